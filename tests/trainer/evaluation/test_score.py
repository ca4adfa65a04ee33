"""Answers to scores: tables on counts made by hand, intervals, and files that are not what they should be."""

import json

import numpy as np
import pytest
from click.testing import CliRunner

from tests.trainer.evaluation import layouts
from trainer.evaluation import score
from trainer.evaluation.bootstrap import interval
from trainer.evaluation.scoring import MEAN, YES_NO


def record(number, text, answers=("a",), kind="", benchmark="dvqa", picture=None, **metadata):
    metadata = {"benchmark": benchmark, "answers": list(answers), "kind": kind, "options": [], **metadata}
    metadata["image"] = None if picture is None else f"/pictures/{picture}.png"
    values = {
        "question_id": number,
        "prompt": "What?",
        "text": text,
        "answer_id": f"{number:022d}",
        "model_id": "run_final",
    }
    return {**values, "metadata": metadata}


def run_score(path, *more):
    done = CliRunner().invoke(score.command, [str(path), *map(str, more)], catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def rows_of(folder, records, *more):
    code, said, error = run_score(layouts.write(folder / "answers.jsonl", layouts.lines(*records)), "--json", *more)
    assert code == 0, error
    return {(row["kind"], row["measure"]): row for row in json.loads(said)["rows"]}


def test_the_table_counts_by_kind_what_is_right_missing_and_without_truth(tmp_path):
    records = [
        record(1, "a", kind="data", picture=1),
        record(2, "b", kind="data", picture=1),
        record(3, "a", kind="structure+data", picture=2),
        record(4, "", kind="structure", picture=3, error="missing_image: gone"),
        record(5, "a", kind="structure", answers=(), picture=4),
    ]
    rows = rows_of(tmp_path, records)
    counts = {
        kind: (row["n"], row["score"], row["not_answered"], row["without_truth"]) for (kind, _), row in rows.items()
    }
    assert counts == {
        "all": (4, 0.5, 1, 1),
        "data": (3, pytest.approx(2 / 3), 0, 0),
        "structure": (2, 0.5, 1, 1),
    }
    assert all(row["low"] <= row["score"] <= row["high"] for row in rows.values())


def test_what_could_not_be_answered_is_wrong_even_where_silence_would_be_right(tmp_path):
    (row,) = rows_of(tmp_path, [record(1, "", answers=("",), error="missing_image: gone")]).values()
    assert (row["score"], row["not_answered"]) == (0, 1)


def test_unparsed_choices_are_counted_apart_from_pictures_that_were_bad(tmp_path):
    options = ["x", "y"]
    records = [
        record(1, "A", ("A",), benchmark="ai2d", options=options),
        record(2, "who knows", ("A",), benchmark="ai2d", options=options),
        record(3, "", ("A",), benchmark="ai2d", options=options, error="missing_image: gone"),
    ]
    (row,) = rows_of(tmp_path, records).values()
    assert (row["n"], row["unparsed"], row["not_answered"]) == (3, 1, 1)
    assert row["score"] == pytest.approx(1 / 3)


def test_yes_no_measures_equal_a_confusion_matrix_counted_by_hand(tmp_path):
    # Said against true: 3 yes/yes, 1 yes/no, 4 no/no, 1 no/yes, and one of each truth answered with neither.
    said = [("Yes", "yes")] * 3 + [("yes.", "no")] + [("No", "no")] * 4 + [("no", "yes")]
    said += [("perhaps", "yes"), ("there is none", "no")]
    records = [record(n, text, (true,), "random", "pope", n // 2) for n, (text, true) in enumerate(said)]
    rows = rows_of(tmp_path, records)
    found = {measure: row["score"] for (kind, measure), row in rows.items() if kind == "random"}
    assert found == pytest.approx(
        {
            "accuracy": 7 / 11,
            "precision": 3 / 4,
            "recall": 3 / 5,
            "F1": 2 * (3 / 4) * (3 / 5) / (3 / 4 + 3 / 5),
            "yes ratio": 4 / 11,
        }
    )
    assert rows["all", "accuracy"]["unparsed"] == 2


def test_precision_of_a_model_that_never_says_yes_is_not_defined(tmp_path):
    rows = rows_of(tmp_path, [record(n, "no", (true,), "", "pope", n) for n, true in enumerate(("yes", "no", "no"))])
    assert rows["all", "precision"]["score"] is None and rows["all", "precision"]["low"] is None
    assert rows["all", "F1"]["score"] == 0
    assert "-" in run_score(tmp_path / "answers.jsonl")[1]


def test_a_circular_question_is_right_only_if_right_in_every_rotation(tmp_path):
    def group(number, *texts, **metadata):
        turned = [("A", ["x", "y"]), ("B", ["y", "x"])]
        return [
            record(number + turn * 10**6, text, (right,), "logic", "mmbench", number, group=number, options=options)
            for turn, (text, (right, options)) in enumerate(zip(texts, turned, strict=True))
        ]

    records = [*group(1, "A", "B"), *group(2, "A", "A"), *group(3, "B", "B"), *group(4, "x", "hm")]
    rows = rows_of(tmp_path, records)
    assert rows["all", "all rotations"]["n"] == rows["all", "one rotation"]["n"] == 4
    assert rows["all", "all rotations"]["score"] == 1 / 4
    assert rows["all", "one rotation"]["score"] == 3 / 4
    assert rows["all", "all rotations"]["unparsed"] == 1
    assert rows["logic", "all rotations"]["score"] == 1 / 4


def cluster_sums(scores, size):
    """Pictures with `size` questions each, all of them right or wrong together."""
    return np.array([[size, size * value, 0, 0, 0] for value in scores], dtype=float)


def test_the_interval_covers_what_theory_says_and_takes_questions_of_a_picture_for_one():
    scores = np.random.default_rng(1).random(400) < 0.6
    share = scores.mean()
    half = 1.96 * np.sqrt(share * (1 - share) / 400)
    for size in (1, 7):  # were questions resampled, the second would be narrower by the square root of 7
        low, high = interval(cluster_sums(scores, size), MEAN[""])
        assert low == pytest.approx(share - half, abs=0.2 * half)
        assert high == pytest.approx(share + half, abs=0.2 * half)


def test_the_table_takes_questions_of_a_picture_for_one(tmp_path):
    def width(pictures):
        records = [record(n, "ab"[n // 10 % 2], picture=n // 10 if pictures else n) for n in range(200)]
        row = rows_of(tmp_path, records)["all", "exact match"]
        return row["high"] - row["low"]

    assert width(pictures=True) > 2 * width(pictures=False)


def test_the_interval_is_the_same_every_time_and_needs_two_pictures():
    sums = cluster_sums(np.random.default_rng(2).random(50), 2)
    assert interval(sums, MEAN[""]) == interval(sums, MEAN[""])
    assert interval(sums, MEAN[""]) != interval(sums, MEAN[""], seed=1)
    assert interval(sums[:1], MEAN[""]) is None
    assert interval(cluster_sums([1, 1, 1], 2), MEAN[""]) == (1, 1)
    assert interval(cluster_sums([1, 1, 1], 2), YES_NO["precision"]) is None


def test_the_printed_table_has_its_columns_under_each_other(tmp_path):
    records = [record(n, "a" if n % 3 else "b", kind=("structure", "data")[n % 2], picture=n) for n in range(12)]
    path = layouts.write(tmp_path / "answers.jsonl", layouts.lines(*records))
    _, said, _ = run_score(path)
    title, heading, *rows = said.splitlines()
    assert title == "dvqa: DVQA: bar charts, by template, answered by run_final"
    assert heading.split("  ")[0] == "kind" and "95 % interval" in heading
    assert [line.split()[0] for line in rows[:3]] == ["all", "structure", "data"]
    end = heading.index("score") + len("score")
    assert [line[end - 5 : end] for line in rows[:3]] == ["66.67", "66.67", "66.67"]


def test_what_stands_in_the_file_steers_no_terminal(tmp_path):
    hostile = record(1, "a", kind="data\x1b[2J", error="\x9b1mbad: x") | {"model_id": "run\x1b]0;title\x07"}
    code, said, _ = run_score(layouts.write(tmp_path / "answers.jsonl", layouts.lines(hostile)))
    assert code == 0 and "answered by run\ufffd]0;title\ufffd" in said
    assert all(character.isprintable() for line in said.split("\n") for character in line)


def test_a_baseline_is_compared_question_by_question(tmp_path):
    new = layouts.write(
        tmp_path / "new.jsonl", layouts.lines(*(record(n, "ab"[n % 4 == 0], picture=n) for n in range(40)))
    )
    old = layouts.write(
        tmp_path / "old.jsonl", layouts.lines(*(record(n, "ab"[n % 2], picture=n) for n in range(1, 41)))
    )
    code, said, _ = run_score(new, "--baseline", old, "--json")
    found = json.loads(said)["difference"]
    # Of 1 to 39: new is right on 30 (all but 9 that four divides), old on the 19 even ones.
    assert code == 0 and found["n"] == 39
    assert found["difference"] == pytest.approx((30 - 19) / 39)
    assert found["low"] < found["difference"] < found["high"]
    assert (found["only_here"], found["only_there"]) == (1, 1)
    assert "+28.21 points" in run_score(new, "--baseline", old)[1]
    same = json.loads(run_score(new, "--baseline", new, "--json")[1])["difference"]
    assert (same["difference"], same["low"], same["high"]) == (0, 0, 0)


GOOD = record(1, "a")


@pytest.mark.parametrize(
    ("content", "code", "named"),
    [
        (layouts.lines(GOOD) + json.dumps(record(2, "a"))[:40], 5, "line 2: is not JSON (torn: it has no end)"),
        (layouts.lines(GOOD, record(2, "a"), GOOD), 5, "line 3: question 1 was answered in line 1 already"),
        (
            layouts.lines(GOOD, record(2, "a", benchmark="docvqa")),
            5,
            "line 2: is of the benchmark 'docvqa', and line 1",
        ),
        (layouts.lines(GOOD, {"question_id": 2}), 5, "line 2: has no prompt, text"),
        (layouts.lines(GOOD, record(2, ["a"])), 5, "line 2: expected texts"),
        (layouts.lines({**GOOD, "model_id": 7}), 5, "line 1: expected texts"),
        (layouts.lines(GOOD, 7), 5, "line 2: has no question_id"),
        (layouts.lines(GOOD, record(2, "a", error=7)), 5, "line 2: error is 7"),
        (layouts.lines(GOOD, record(2, "a", group=[2])), 5, "line 2: group is [2]"),
        (layouts.lines({**GOOD, "metadata": GOOD["metadata"] | {"image": 3}}), 5, "line 1: image is 3"),
        (layouts.lines({**GOOD, "metadata": {}}), 2, "line 1: metadata names no benchmark"),
        (layouts.lines(record(1, "a", benchmark="mine")), 2, "'mine', which is not known; known are chartqa"),
        (
            layouts.lines(record(1, "a", ("z",), benchmark="ai2d", options=["x", "y"])),
            5,
            "line 1, question 1: the reference",
        ),
        (layouts.lines(record(1, "a", benchmark="ai2d")), 5, "line 1, question 1: has no options"),
        (layouts.lines(record(1, "a", ())), 2, "none of the 1 questions has a reference answer"),
        ("", 2, "holds no answers"),
    ],
)
def test_a_file_that_is_not_sound_is_refused_by_its_line(content, code, named, tmp_path):
    path = layouts.write(tmp_path / "answers.jsonl", content)
    found, said, error = run_score(path)
    assert (found, said) == (code, "")
    assert named in error and error.count("\n") == 1


def test_one_id_in_two_questions_is_no_duplicate(tmp_path):
    # LLaVA's file for TextVQA names questions by their picture.
    assert rows_of(tmp_path, [GOOD, {**GOOD, "prompt": "And this?"}])["all", "exact match"]["n"] == 2


def test_a_file_of_questions_is_scored_as_the_benchmark_that_is_named(tmp_path):
    path = tmp_path / "own.jsonl"
    path.write_text(layouts.lines(record(1, "102", ("100",), benchmark="questions")))
    found = [json.loads(run_score(path, *words, "--json")[1]) for words in ((), ("--benchmark", "chartqa"))]
    assert [one["rows"][0]["score"] for one in found] == [0.0, 1.0]
    assert [one["benchmark"] for one in found] == ["questions", "chartqa"]
    assert run_score(path, "--benchmark", "nonsense")[0] == 2


def test_a_benchmark_that_contradicts_the_file_is_an_error(tmp_path):
    path = layouts.write(tmp_path / "answers.jsonl", layouts.lines(GOOD))
    assert run_score(path, "--benchmark", "dvqa")[0] == 0
    code, _, error = run_score(path, "--benchmark", "docvqa")
    assert code == 2 and "holds answers of dvqa" in error
    code, _, error = run_score(path, "--benchmark", "docvq")
    assert code == 2 and "choose from chartqa" in error
