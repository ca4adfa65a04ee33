"""A run that is killed at any moment, while it trains or saves, goes on from its last whole checkpoint."""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from tests.trainer.tiny_run import TINY, losses_of, metrics_of, weights_of
from trainer.checkpoint import Checkpoints, read_state
from trainer.config import OptimizerConfig
from trainer.distributed import open_world
from trainer.model import LlavaModel
from trainer.optimizer import build_optimizer, freeze

RUN = Path(__file__).parents[2] / "trainer" / "run.py"
KILLS = 100 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 3
SETTINGS = {"epochs": 8, "save_every": 1}


@pytest.fixture
def uninterrupted(workplace, tmp_path):
    output = tmp_path / "uninterrupted"
    assert workplace.train(output, **SETTINGS) == 0
    return output


def start(workplace, output: Path) -> subprocess.Popen:
    settings = json.loads(json.dumps(workplace.settings(output, **SETTINGS), default=str))
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    with open(output.with_suffix(".log"), "ab") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen([sys.executable, str(RUN), str(config)], stdout=log, stderr=log, env=environment)


def seen_of(output: Path) -> list[str]:
    """Everything that a run changes while it trains and saves."""
    metrics = output / "metrics.jsonl"
    size = metrics.stat().st_size if metrics.exists() else 0
    return [str(size), *sorted(path.name for path in (output / "checkpoints").glob("*"))]


def wait_for_work(process: subprocess.Popen, output: Path) -> None:
    before = seen_of(output)
    while process.poll() is None and seen_of(output) == before:
        time.sleep(0.002)


def latest_step(output: Path) -> int:
    """Load the latest checkpoint as a run would; return its step, 0 where there is none."""
    with open_world(torch.device("cpu")) as world:
        checkpoints = Checkpoints(output, 2, world)
        latest = checkpoints.latest()
        if latest is None:
            return 0
        model = LlavaModel(TINY)
        freeze(model, (r"vision\.",))
        optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(peak_lr=0.1))
        checkpoints.load(latest, model, optimizer)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        return read_state(latest).step


def assert_equal(output: Path, expected: Path) -> None:
    """Every step once, in order, with the same losses; the same weights to the bit: every sample was used once."""
    assert [step["step"] for step in metrics_of(output)] == [step["step"] for step in metrics_of(expected)]
    assert losses_of(output) == losses_of(expected)
    weights = weights_of(output)
    assert all(torch.equal(weights[name], tensor) for name, tensor in weights_of(expected).items())


def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(workplace, uninterrupted, tmp_path):
    draw, output = random.Random(0), tmp_path / "killed"
    output.mkdir()
    kills = finished = step = 0
    while kills < KILLS or not finished:
        process = start(workplace, output)
        if kills < KILLS:
            wait_for_work(process, output)
            time.sleep(draw.uniform(0, 0.5))
            process.kill()
        if process.wait(timeout=300) < 0:
            kills += 1
            before, step = step, latest_step(output)
            assert step >= before
            continue
        assert process.returncode == 0, output.with_suffix(".log").read_text()
        assert_equal(output, uninterrupted)
        finished, step = finished + 1, 0
        shutil.rmtree(output)
        output.mkdir()
