"""A run whose evaluations get no better ends early, and ends at the same step however often it was stopped."""

import shutil

import pytest

from tests.trainer.tiny_run import NUM_HELD_OUT, NUM_ROWS, StopsAfter, evaluations_of, losses_of, weights_of
from trainer.checkpoint import read_state
from trainer.errors import TrainError
from trainer.heldout import Standing


def test_a_better_loss_begins_the_count_anew():
    standing, counts = Standing(), []
    for step, loss in enumerate([3.0, 2.0, 2.5, 1.95, 1.9, 1.8], start=1):
        standing = standing.after(step, loss, min_delta=0.1)
        counts.append((standing.best_step, standing.without_gain))
    assert counts == [(1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (6, 0)]
    exactly = Standing(1, 2.0, 1, 0).after(2, 1.5, min_delta=0.5)
    assert exactly.without_gain == 1


# A loss that must fall by more than it ever can: no evaluation after the first is better.
IMPATIENT = {"every": 2, "patience": 2, "min_delta": 100.0}


def test_a_run_that_gets_no_better_is_finished_says_so_and_exports(workplace, held_out, tmp_path, capsys):
    assert workplace.train(tmp_path, evaluation={"shards": held_out, **IMPATIENT}) == 0
    assert [each["step"] for each in evaluations_of(tmp_path)] == [2, 4, 6]
    assert len(losses_of(tmp_path)) == 6
    said = capsys.readouterr().out.splitlines()
    assert "best after step 2 (" in said[-1]
    assert "the run ends after 6 of 10 steps; the weights are in" in said[-1]
    assert weights_of(tmp_path)
    assert workplace.train(tmp_path, evaluation={"shards": held_out, **IMPATIENT}) == 0
    assert "the run ended early after step 6 of 10" in capsys.readouterr().out
    assert len(losses_of(tmp_path)) == 6


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_patience_survives_a_stop_whatever_became_of_the_log(workplace, held_out, tmp_path, stop):
    evaluation = {"shards": held_out, **IMPATIENT}
    assert workplace.train(tmp_path, evaluation=evaluation, stop_after=stop) == 0
    (tmp_path / "evaluations.jsonl").unlink(missing_ok=True)
    assert workplace.train(tmp_path, evaluation=evaluation) == 0
    assert len(losses_of(tmp_path)) == 6
    assert (tmp_path / "final").is_dir()


def test_an_early_end_that_a_signal_put_off_is_kept_in_the_checkpoint(workplace, held_out, tmp_path, capsys):
    evaluation = {"shards": held_out, **IMPATIENT}
    # Steps 1 to 6 and the evaluations after 2 and 4 ask first; then the one after 6.
    assert workplace.train(tmp_path, evaluation=evaluation, stop=StopsAfter(9)) == 143
    assert workplace.train(tmp_path, evaluation=evaluation) == 0
    (checkpoint,) = [path for path in (tmp_path / "checkpoints").iterdir() if path.name == "step-00000006"]
    assert Standing(**read_state(checkpoint).evaluation).without_gain == 2
    # And a run that was killed between its last checkpoint and the export only exports.
    shutil.rmtree(tmp_path / "final")
    capsys.readouterr()
    assert workplace.train(tmp_path, evaluation=evaluation) == 0
    assert "the run ends after 6 of 10 steps" in capsys.readouterr().out
    assert len(losses_of(tmp_path)) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patience": 3}, "evaluation.patience was 2, is 3"),
        ({"patience": None}, "evaluation.patience was 2, is null"),
        ({"every": 3}, "evaluation.every was 2, is 3"),
        ({"max_samples": 5}, "evaluation.max_samples was null, is 5"),
        ({"min_delta": 0.5}, "evaluation.min_delta was 100.0, is 0.5"),
        ({"shards": "training"}, "evaluation.data was"),
    ],
)
def test_what_decides_when_the_run_ends_stays_as_it_was(workplace, held_out, tmp_path, changes, message):
    assert workplace.train(tmp_path, evaluation={"shards": held_out, **IMPATIENT}, stop_after=1) == 0
    if "shards" in changes:
        changes = {"shards": workplace.root / "shards"}
    evaluation = {"shards": held_out, **IMPATIENT, **changes}
    with pytest.raises(TrainError, match=message):
        workplace.train(tmp_path, evaluation={name: value for name, value in evaluation.items() if value is not None})


def test_without_patience_evaluations_may_change_or_come_later(workplace, held_out, tmp_path):
    assert workplace.train(tmp_path, stop_after=4) == 0
    assert workplace.train(tmp_path, stop_after=7, evaluation={"shards": held_out, "every": 2}) == 0
    assert workplace.train(tmp_path, evaluation={"shards": workplace.root / "shards", "every": 3}) == 0
    found = [(each["step"], each["num_samples"]) for each in evaluations_of(tmp_path)]
    assert found == [(4, NUM_HELD_OUT), (6, NUM_HELD_OUT), (9, NUM_ROWS), (10, NUM_ROWS)]
