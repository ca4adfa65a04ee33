import pytest

from examples import ask

COLOURS = ["red", "red", "blue", "green"]
COUNTS = ["2", "3", "3", "3"]


@pytest.fixture
def questions():
    """Two questions about each of four pictures."""
    return [
        {"split": "test", "image": f"{index}.png", "kind": kind, "question": f"{kind}?", "answer": answers[index]}
        for index in range(4)
        for kind, answers in (("colour", COLOURS), ("count", COUNTS))
    ]


def test_a_right_answer_counts_for_its_kind_and_for_the_mean(questions):
    answers = [question["answer"] if question["kind"] == "count" else "black" for question in questions]
    shuffled = ["2"] * len(questions)
    scores = {score.kind: score for score in ask.mark(questions, answers, shuffled, {"colour": "red", "count": "3"})}
    assert scores["colour"] == ask.Score("colour", 4, 0.0, 0.5, 0.0)
    assert scores["count"] == ask.Score("count", 4, 1.0, 0.75, 0.25)
    assert scores["mean"] == ask.Score("mean", 8, 0.5, 0.625, 0.125)


def test_the_best_constant_is_the_most_common_answer_of_the_kind(questions):
    assert ask.best_constants(questions) == {"colour": "red", "count": "3"}


def test_of_equally_common_answers_the_alphabet_chooses():
    rows = [{"kind": "colour", "answer": answer} for answer in ("red", "blue", "green")]
    assert ask.best_constants(rows) == ask.best_constants(rows[::-1]) == {"colour": "blue"}


@pytest.mark.parametrize("num_pictures", [2, 3, 4, 7])
def test_shuffling_leaves_no_question_its_own_picture(num_pictures):
    rows = [{"image": f"{index // 5}.png"} for index in range(5 * num_pictures)]
    dealt = ask.other_pictures(rows)
    assert sorted(dealt) == sorted(row["image"] for row in rows)
    assert not [row for row, image in zip(rows, dealt, strict=True) if row["image"] == image]


def test_only_the_split_asked_for_is_read(tmp_path):
    lines = ['{"split": "train", "answer": "red"}', '{"split": "test", "answer": "blue"}']
    (tmp_path / "questions.jsonl").write_text("\n".join(lines) + "\n")
    assert [row["answer"] for row in ask.read_questions(tmp_path, "test")] == ["blue"]
