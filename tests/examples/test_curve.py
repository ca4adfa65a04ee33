import pytest

from examples import curve


def test_losses_come_in_step_order_and_a_repeated_step_counts_once(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text('{"step": 2, "loss": 5.0}\n{"step": 1, "loss": 9.0}\n{"step": 2, "loss": 4.0}\n')
    assert curve.read_losses(metrics) == [9.0, 4.0]


def test_smoothing_averages_the_last_losses_only():
    assert curve.smooth([4.0, 2.0, 0.0, 4.0], window=2) == [4.0, 3.0, 1.0, 2.0]


def test_the_curve_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    curve.plot([("phase1", [3.0, 2.0]), ("phase2", [2.5, 1.0, 0.5])], tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
