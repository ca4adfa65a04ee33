"""What is said of a step."""

import io
import json
from dataclasses import replace

import pytest

from trainer.errors import IntegrityError
from trainer.metrics import MetricsLog, StepMetrics, forget_steps_after

STEP = StepMetrics(
    step=3, epoch=0, loss=2.5, grad_norm=1.25, lr=1e-3, num_samples=8, num_loss_tokens=100, useful_tokens=4500,
    computed_tokens=5000, seconds=2.0, data_seconds=0.5, memory_gb=None,
)  # fmt: skip


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_says_what_a_person_wants_to_know():
    assert STEP.line(num_steps=10, seconds_left=3725) == (
        "step 3/10  loss 2.5000  grad norm 1.250  lr 1.00e-03  2,250 useful tok/s (2,500 computed)  4.0 samples/s"
        "  packing 0.9000  data wait 25.0%  ETA 1:02:05"
    )
    assert "  12.5 GB  ETA" in replace(STEP, memory_gb=12.5).line(10, 0)


def test_a_loss_in_the_file_reads_back_exactly():
    loss = 2.1234567890123457
    assert json.loads(replace(STEP, loss=loss).to_json())["loss"] == loss


def test_every_step_is_written_and_some_are_printed(tmp_path):
    stream = io.StringIO()
    log = MetricsLog(tmp_path / "metrics.jsonl", first_step=0, num_steps=7, log_every=3, stream=stream)
    for step in range(1, 8):
        log.write(replace(STEP, step=step))
    log.close()
    assert [line.split()[1] for line in stream.getvalue().splitlines()] == ["3/7", "6/7", "7/7"]
    written = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert written == [1, 2, 3, 4, 5, 6, 7]


def test_the_eta_is_the_steps_left_at_the_pace_so_far(tmp_path):
    stream = io.StringIO()
    log = MetricsLog(tmp_path / "metrics.jsonl", first_step=2, num_steps=33, log_every=1, stream=stream)
    log.write(replace(STEP, step=3, seconds=2.0))
    log.close()
    assert stream.getvalue().endswith("ETA 0:01:00\n")


def test_a_terminal_gets_a_bar(tmp_path):
    stream = Terminal()
    log = MetricsLog(tmp_path / "metrics.jsonl", first_step=2, num_steps=4, log_every=1, stream=stream)
    log.write(STEP)
    log.close()
    assert "3/4" in stream.getvalue()
    assert "loss 2.5000" in stream.getvalue()


@pytest.mark.parametrize("ending", ["", '{"step": 4, "lo'])
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
