"""What is said of a step and of an evaluation."""

import json
from dataclasses import replace

import pytest
import torch

from trainer import metrics
from trainer.metrics import EvaluationMetrics, StepMetrics, memory_gb, to_json

STEP = StepMetrics(
    step=3, epoch=0, loss=2.5, grad_norm=1.25, lr=1e-3, num_samples=8, num_loss_tokens=100, useful_tokens=4500,
    computed_tokens=5000, seconds=2.0, data_seconds=0.5, memory_gb=12.5, flops=4e14, peak_flops=None,
)  # fmt: skip

EVALUATION = EvaluationMetrics(step=4, loss=2.25, accuracy=0.375, num_samples=1234, num_loss_tokens=98765, seconds=61.2)


def test_a_line_says_what_a_person_wants_to_know():
    assert STEP.line(num_steps=10, seconds_left=3725) == (
        "step 3/10  loss 2.5000  grad norm 1.250  lr 1.00e-03  2,250 useful tok/s (2,500 computed)  4.0 samples/s"
        "  packing 0.9000  data wait 25.0%  12.5 GB  ETA 1:02:05"
    )
    assert EVALUATION.line(10) == (
        "evaluation after step 4/10  loss 2.2500  token accuracy 37.50%  1,234 samples, 98,765 tokens in 0:01:01"
    )


def test_mfu_is_the_share_of_what_all_gpus_could_do():
    both = replace(STEP, peak_flops=2 * 250e12)
    assert both.derived()["mfu"] == 4e14 / 2.0 / 5e14
    assert "  12.5 GB  MFU 40.0%  ETA" in both.line(10, 0)
    assert STEP.derived()["mfu"] is None


def test_a_loss_in_the_file_reads_back_exactly():
    loss = 2.1234567890123457
    assert json.loads(to_json(replace(STEP, loss=loss).values()))["loss"] == loss


def test_every_number_that_is_promised_is_in_the_file():
    assert {
        "step", "loss", "grad_norm", "lr", "useful_tokens_per_second", "computed_tokens_per_second",
        "samples_per_second", "packing_efficiency", "data_wait", "memory_gb", "mfu", "flops",
    } <= json.loads(to_json(STEP.values())).keys()  # fmt: skip


def test_memory_on_a_cpu_is_what_the_process_holds(monkeypatch, tmp_path):
    before = memory_gb(torch.device("cpu"))
    held = torch.ones(50_000_000)
    assert memory_gb(torch.device("cpu")) - before == pytest.approx(0.2, abs=0.05)
    del held
    # Where there is no /proc, the most that it ever held.
    monkeypatch.setattr(metrics, "STATM", tmp_path / "statm")
    assert memory_gb(torch.device("cpu")) >= before + 0.15
