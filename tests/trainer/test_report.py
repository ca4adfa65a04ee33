"""How a run is shown: files that hold each step once, lines, a bar."""

import io
import json
from dataclasses import replace

import pytest

from tests.trainer.test_metrics import EVALUATION, STEP
from trainer.errors import IntegrityError
from trainer.report import EVALUATIONS, METRICS, MetricsLog, forget_steps_after


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Listener:
    def __init__(self):
        self.heard, self.closed = [], False

    def write(self, part, step, values):
        self.heard.append((part, step, values["loss"]))

    def close(self):
        self.closed = True


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def test_every_step_is_written_and_some_are_printed(tmp_path):
    stream = io.StringIO()
    log = MetricsLog(tmp_path, done=0, num_steps=7, log_every=3, stream=stream)
    for step in range(1, 8):
        log.write(replace(STEP, step=step))
    log.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["3/7", "6/7", "7/7"]
    assert steps_in(tmp_path / METRICS) == [1, 2, 3, 4, 5, 6, 7]


def test_every_evaluation_is_written_and_printed(tmp_path):
    stream = io.StringIO()
    log = MetricsLog(tmp_path, done=0, num_steps=7, log_every=3, stream=stream)
    log.evaluated(EVALUATION)
    log.close()
    assert stream.getvalue().startswith("evaluation after step 4/7  loss 2.2500")
    assert steps_in(tmp_path / EVALUATIONS) == [4]
    assert steps_in(tmp_path / METRICS) == []


def test_trackers_hear_all_of_it_and_are_closed(tmp_path):
    listener = Listener()
    log = MetricsLog(tmp_path, done=0, num_steps=7, log_every=3, trackers=[listener], stream=io.StringIO())
    log.write(STEP)
    log.evaluated(EVALUATION)
    log.close()
    assert listener.heard == [("train", 3, 2.5), ("evaluation", 4, 2.25)]
    assert listener.closed


def test_the_eta_is_the_steps_left_at_the_pace_so_far_and_the_evaluations(tmp_path):
    stream = io.StringIO()
    log = MetricsLog(tmp_path, done=2, num_steps=33, log_every=1, evaluations_left=lambda step: 2, stream=stream)
    log.write(replace(STEP, step=3, seconds=2.0))
    log.evaluated(replace(EVALUATION, seconds=100.0))
    log.write(replace(STEP, step=4, seconds=2.0))
    log.close()
    etas = [line.rpartition(" ")[2] for line in stream.getvalue().splitlines() if "ETA" in line]
    assert etas == ["0:01:00", "0:04:18"]


def test_a_terminal_gets_a_bar(tmp_path):
    stream = Terminal()
    log = MetricsLog(tmp_path, done=2, num_steps=4, log_every=1, stream=stream)
    log.write(STEP)
    log.close()
    assert "3/4" in stream.getvalue()
    assert "loss 2.5000" in stream.getvalue()


def test_a_resumed_log_goes_on_after_the_checkpoint_and_its_evaluation(tmp_path):
    (tmp_path / METRICS).write_text("".join(f'{{"step": {step}}}\n' for step in range(1, 10)) + '{"step": 10, "lo')
    (tmp_path / EVALUATIONS).write_text('{"step": 3}\n{"step": 6}\n{"step": 9}\n')
    # Stopped by a signal after step 6, which was evaluated only when the run went on, and then killed.
    log = MetricsLog(tmp_path, done=6, num_steps=12, log_every=1, evaluated=3, stream=io.StringIO())
    log.evaluated(replace(EVALUATION, step=6))
    log.write(replace(STEP, step=7))
    log.close()
    assert steps_in(tmp_path / METRICS) == [1, 2, 3, 4, 5, 6, 7]
    assert steps_in(tmp_path / EVALUATIONS) == [3, 6]


@pytest.mark.parametrize("ending", ["", '{"step": 4, "lo', '{"step": 4'])
def test_steps_that_a_resumed_run_does_again_are_forgotten(tmp_path, ending):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": {step}}}\n' for step in (1, 2, 3)) + ending)
    forget_steps_after(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize("damaged", ["[]", "3", "{}", '{"step": "two"}', '{"step": 2, "lo'])
def test_a_damaged_line_is_named(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + damaged + '\n{"step": 3}\n')
    before = path.read_bytes()
    with pytest.raises(IntegrityError, match=r"metrics.jsonl:2: expected a step's metrics, found "):
        forget_steps_after(path, 3)
    assert path.read_bytes() == before
