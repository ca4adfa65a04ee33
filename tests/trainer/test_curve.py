"""The picture of the losses: what is in it, and that it is an SVG."""

import json
import xml.etree.ElementTree as ElementTree

import pytest

from trainer.curve import MAX_POINTS, draw_curve, picture, thinned, ticks

SVG = "{http://www.w3.org/2000/svg}"


def lines_of(svg):
    return [element.get("points").split() for element in ElementTree.fromstring(svg).iter(f"{SVG}polyline")]


def words_of(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_both_losses_are_drawn_against_the_step(tmp_path):
    steps = [{"step": step, "loss": 4.0 - step / 10} for step in range(1, 11)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    (tmp_path / "evaluations.jsonl").write_text('{"step": 5, "loss": 3.7}\n{"step": 10, "loss": 3.2}\n')
    draw_curve(tmp_path)
    svg = (tmp_path / "loss.svg").read_text(encoding="utf-8")
    training, evaluation = lines_of(svg)
    assert (len(training), len(evaluation)) == (10, 2)
    # Step 5 and step 10 stand where they do in both; a loss of 3.5 lies between 3.7 and 3.2.
    at = [[float(number) for number in place.split(",")] for place in (training[4], evaluation[0], evaluation[1])]
    assert at[0][0] == at[1][0] < at[2][0]
    assert at[1][1] < at[0][1] < at[2][1]
    assert {"training: 3.0000 in step 10", "evaluation: best 3.2000 after step 10", "optimizer step"} <= set(
        words_of(svg)
    )


def test_without_an_evaluation_there_is_one_curve_and_without_a_step_no_picture(tmp_path):
    draw_curve(tmp_path)
    assert not (tmp_path / "loss.svg").exists()
    assert len(lines_of(picture([(1, 2.0), (2, 1.0)], []))) == 1


@pytest.mark.parametrize("training", [[(1, 2.0)], [(1, 2.0), (2, 2.0)], [(7, 0.0)], [(1, 1e-12), (2, 1e9)]])
def test_few_or_equal_losses_are_a_picture_too(training):
    for place in (place for line in lines_of(picture(training, [(1, 2.0)])) for place in line):
        assert all(0 <= float(number) <= 860 for number in place.split(","))


def test_a_long_run_is_thinned_to_means():
    points = [(float(step), float(step % 2)) for step in range(1, 10 * MAX_POINTS)]
    assert len(thinned(points)) == MAX_POINTS
    assert thinned([(1, 2.0), (2, 4.0), (3, 5.0)], most=2) == [(1.5, 3.0), (3.0, 5.0)]
    assert any("mean of 10 steps each" in word for word in words_of(picture(points, [])))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0, 10, [0, 2, 4, 6, 8, 10]), (0.31, 0.52, [0.3, 0.35, 0.4, 0.45, 0.5, 0.55]), (2, 2, None), (0, 5197, None)],
)
def test_ticks_are_round_and_enclose_the_values(low, high, expected):
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 11
    if expected is not None:
        assert found == pytest.approx(expected)
