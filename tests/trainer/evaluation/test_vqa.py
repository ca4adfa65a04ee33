"""VQA's accuracy on vectors worked out by hand from vqaEval.py and from TextVQA's EvalAIAnswerProcessor."""

import os
import random

import pytest

from trainer.evaluation.vqa import CONTRACTIONS, soft_accuracy, textvqa_accuracy, textvqa_spelling, vqa_accuracy

PROOFS = 20_000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 200


@pytest.mark.parametrize(
    ("same", "score"),
    # Of ten left out in turn: 9 find 9 of 9 ... 1 says it: the nine others find 1 of 3, itself finds none.
    [(10, 1), (4, 1), (3, (7 * 1 + 3 * 2 / 3) / 10), (2, (8 * 2 / 3 + 2 * 1 / 3) / 10), (1, 9 / 30), (0, 0)],
)
def test_an_answer_is_worth_a_third_for_each_other_who_gave_it(same, score):
    answers = ["red"] * same + [f"other{number}" for number in range(10 - same)]
    assert vqa_accuracy("red", answers) == pytest.approx(score)
    assert textvqa_accuracy("red", answers) == pytest.approx(score)


def test_the_average_equals_leaving_each_out_by_hand():
    draw = random.Random(5)
    for _ in range(PROOFS):
        answers = draw.choices("abc", k=10)
        by_hand = [min(1, sum(a == "a" for j, a in enumerate(answers) if j != i) / 3) for i in range(10)]
        assert soft_accuracy("a", answers) == pytest.approx(sum(by_hand) / 10)


def ten(answer, other="something else"):
    """Nine who say it, and one who says something else, so that vqaEval does not take them as they are."""
    return [answer] * 9 + [other]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("Red", "red"),
        ("a red bus", "red bus"),
        ("The Red bus.", "red bus"),
        ("two", "2"),
        ("none", "0"),
        ("ten", "10"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("shed've", "she'd've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("red\nbus", "red bus"),
        ("red\tbus", "red bus"),
        ("black-white", "black white"),  # no blank beside the mark: a blank takes its place
        ("black - white", "black white"),
        ("1,000", "1000"),
        ("$1,000-2", "$10002"),  # a number with a comma: every mark is deleted
        ("3.5", "3.5"),
        ("5.", "5"),
        ("U.S.A.", "usa"),
        ("what?", "what"),
        ("it's", "it's"),
    ],
)
def test_vqaeval_brings_the_answer_to_one_spelling(text, answer):
    assert vqa_accuracy(text, ten(answer)) == 1


def test_vqaeval_takes_people_at_their_word_where_they_agree():
    assert vqa_accuracy("red-blue", ["red-blue"] * 10) == 0  # the answer loses its mark, theirs keep it
    assert vqa_accuracy("red-blue", ten("red-blue")) == 1
    # Number words and articles of people are never touched.
    assert vqa_accuracy("two", ten("two")) == 0
    assert vqa_accuracy("a bus", ten("a bus")) == 0


@pytest.mark.parametrize(
    ("text", "spelling"),
    [
        ("Two", "2"),
        ("a bus", "bus"),
        ("Levi's", "levi 's"),
        ("red,blue", "redblue"),
        ("red, blue", "red blue"),
        ("what? now", "what now"),
        ("10.30 a.m.", "10.30 am"),
        ("black-white", "black white"),
        ("black -white", "black white"),
        ("dont", "don't"),
        ("The", ""),
        (" coca\ncola ", "coca cola"),
    ],
)
def test_textvqa_brings_answers_and_truths_to_the_same_spelling(text, spelling):
    assert textvqa_spelling(text) == spelling
    assert textvqa_accuracy(text, ten(text.upper())) == 1


def test_the_contractions_are_all_of_the_published_ones_that_can_be_met():
    # vqaEval lists 120: less two that stand for themselves, and four with a capital, which no word has by then.
    assert len(CONTRACTIONS) == 114
    assert CONTRACTIONS["couldn'tve"] == CONTRACTIONS["couldnt've"] == "couldn't've"
    assert "shes" not in CONTRACTIONS and "ill" not in CONTRACTIONS
