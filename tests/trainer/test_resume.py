"""A run that was stopped goes on as if it had not been."""

import os
import shutil
import signal

import pytest
import torch

from tests.trainer.tiny_run import losses_of, metrics_of, weights_of
from trainer.errors import TrainError
from trainer.stopping import StopSignal, catching


@pytest.fixture(scope="module")
def uninterrupted(workplace, tmp_path_factory):
    output = tmp_path_factory.mktemp("uninterrupted")
    assert workplace.train(output) == 0
    return output


def assert_bitwise_equal(output, expected):
    assert losses_of(output) == losses_of(expected)
    assert [m["grad_norm"] for m in metrics_of(output)] == [m["grad_norm"] for m in metrics_of(expected)]
    weights = weights_of(output)
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(expected).items())


@pytest.mark.parametrize("stops", [(1,), (3, 7), (5, 9)])
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(workplace, uninterrupted, tmp_path, stops):
    for stop in stops:
        assert workplace.train(tmp_path, stop_after=stop) == 0
        assert not (tmp_path / "final").exists()
    assert workplace.train(tmp_path) == 0
    assert_bitwise_equal(tmp_path, uninterrupted)


def test_a_run_killed_between_checkpoints_goes_on_from_the_last(workplace, uninterrupted, tmp_path, monkeypatch):
    from trainer import loop

    def dying(data, world):
        if data.number == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "_raise_faults", dying)
    with pytest.raises(KeyboardInterrupt):
        workplace.train(tmp_path, save_every=3)
    assert len(losses_of(tmp_path)) == 7
    assert [path.name for path in sorted((tmp_path / "checkpoints").iterdir())] == ["step-00000003", "step-00000006"]
    monkeypatch.undo()
    assert workplace.train(tmp_path, save_every=3) == 0
    assert_bitwise_equal(tmp_path, uninterrupted)


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_finishes_the_step_saves_and_can_be_resumed(workplace, uninterrupted, tmp_path, number, exit_code):
    stop = StopSignal()
    with catching(stop):
        os.kill(os.getpid(), number)
        assert workplace.train(tmp_path, stop=stop) == exit_code
    assert len(losses_of(tmp_path)) == 1
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001"]
    assert workplace.train(tmp_path) == 0
    assert_bitwise_equal(tmp_path, uninterrupted)


def test_a_second_ctrl_c_does_not_wait():
    stop = StopSignal()
    stop.receive(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.receive(signal.SIGINT)


def test_a_finished_run_has_nothing_left_to_do(workplace, uninterrupted, capsys):
    before = (uninterrupted / "final" / "model.safetensors").stat().st_mtime_ns
    assert workplace.train(uninterrupted) == 0
    assert "all 10 steps are done already" in capsys.readouterr().out
    assert (uninterrupted / "final" / "model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": {"peak_lr": 0.5}}, "optimizer.peak_lr was 0.01, is 0.5"),
        ({"seed": 4}, "seed was 0, is 4"),
        ({"epochs": 3}, "epochs was 2, is 3"),
        ({"freeze": []}, "freeze was"),
    ],
)
def test_another_config_is_refused_naming_what_changed(workplace, uninterrupted, changes, message):
    with pytest.raises(TrainError, match=f"cannot resume .*step-00000010: {message}"):
        workplace.train(uninterrupted, **changes)


def test_other_data_is_refused(make_workplace, uninterrupted):
    other = make_workplace(lambda number: number % 2 == 0)
    with pytest.raises(TrainError, match="cannot resume .*: data was"):
        other.train(uninterrupted)


def test_settings_of_speed_may_change_between_stop_and_resume(workplace, uninterrupted, tmp_path):
    assert workplace.train(tmp_path, stop_after=4) == 0
    assert workplace.train(tmp_path, max_tokens=300, num_workers=1, save_every=2, keep=1) == 0
    assert losses_of(tmp_path) == pytest.approx(losses_of(uninterrupted), rel=1e-6)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000010"]


def test_other_starting_weights_are_another_run_wherever_they_lie(workplace, tmp_path):
    from safetensors.torch import load_file, save_file

    assert workplace.train(tmp_path / "run", stop_after=2) == 0
    shutil.copytree(workplace.root / "start", tmp_path / "moved")
    assert workplace.train(tmp_path / "run", model=tmp_path / "moved", stop_after=3) == 0
    path = tmp_path / "moved" / "model.safetensors"
    weights = load_file(path)
    save_file({name: tensor + 1 for name, tensor in weights.items()}, path, metadata={"format": "pt"})
    with pytest.raises(TrainError, match="model.starting_weights was"):
        workplace.train(tmp_path / "run", model=tmp_path / "moved")
