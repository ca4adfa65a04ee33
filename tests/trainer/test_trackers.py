"""TensorBoard and Weights & Biases: used when asked for and installed, never imported otherwise."""

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.trainer.test_metrics import EVALUATION, STEP
from trainer import trackers
from trainer.config import LogConfig
from trainer.errors import TrainError
from trainer.report import MetricsLog
from trainer.trackers import open_trackers

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("name", "asked"), [("tensorboard", True), ("wandb", "project")])
def test_a_tracker_that_is_not_installed_is_one_sentence_before_the_run_starts(
    workplace, tmp_path, monkeypatch, name, asked
):
    monkeypatch.setattr(trackers, "find_spec", lambda package: None)
    with pytest.raises(TrainError, match=f"log.{name}: the package {name} is not installed; `pip install {name}`"):
        workplace.train(tmp_path, log={name: asked})
    assert not list(tmp_path.iterdir())


def test_neither_is_imported_unless_it_is_asked_for():
    program = "import trainer.loop, trainer.main, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()).isdisjoint({"tensorboard", "wandb", "torch.utils.tensorboard", "matplotlib"})


def log_steps(folder, config, done, steps):
    opened = open_trackers(config, folder, done, {"seed": 0})
    log = MetricsLog(folder, done=done, num_steps=9, log_every=99, trackers=opened, stream=io.StringIO())
    for step in steps:
        log.write(replace(STEP, step=step, loss=float(step)))
    log.evaluated(replace(EVALUATION, step=steps[-1]))
    log.close()


def test_tensorboard_reads_the_numbers_of_a_run_that_was_stopped_each_step_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log_steps(tmp_path, LogConfig(tensorboard=True), 0, [1, 2, 3])
    log_steps(tmp_path, LogConfig(tensorboard=True), 2, [3, 4])  # step 3 came after the last checkpoint
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    assert [(event.step, event.value) for event in events.Scalars("evaluation/loss")] == [(4, 2.25)]
    tags = set(events.Tags()["scalars"])
    assert {"train/lr", "train/grad_norm", "train/packing_efficiency", "evaluation/accuracy"} <= tags
    assert "train/mfu" not in tags


@pytest.fixture
def wandb_environment(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")


def test_wandb_logs_offline_where_there_is_no_account(tmp_path, wandb_environment):
    log_steps(tmp_path, LogConfig(wandb="llava"), 0, [1, 2])
    log_steps(tmp_path, LogConfig(wandb="llava"), 2, [3])
    runs = [path.name for path in (tmp_path / "wandb").glob("offline-run-*")]
    identity = (tmp_path / "wandb-id").read_text()
    assert len(runs) == 2
    assert all(name.endswith(identity) for name in runs)
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_wandb_goes_on_offline_where_there_is_no_network(tmp_path, wandb_environment, monkeypatch, capsys):
    # The port of nothing: a connection is refused at once.
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_INIT_TIMEOUT", "2")
    log_steps(tmp_path, LogConfig(wandb="llava"), 0, [1, 2])
    assert "going on offline, `wandb sync` sends it later" in capsys.readouterr().out
    assert list((tmp_path / "wandb").glob("offline-run-*"))
