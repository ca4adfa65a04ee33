"""Each metric on vectors worked out by hand from its published definition; the sources stand in `metrics.py`."""

import os
import random

import pytest

from trainer.evaluation.metrics import METRICS, Truth, Verdict

PROOFS = 20_000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 200


def judged(metric, text, *answers, options=(), prompt=""):
    return METRICS[metric].judge(text, Truth(answers, tuple(options), prompt))


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("14", "14", True),
        ("14.7", "14", True),  # exactly 5 %
        ("14.71", "14", False),
        ("13.3", "14", True),
        ("-14", "14", False),
        ("-14.5", "-14", True),
        ("12%", "12%", True),
        ("12.5%", "12%", True),
        ("12", "12%", False),  # 12 is not 0.12
        ("0.12", "12%", True),
        ("12%", "0.12", True),
        ("12 %", "12%", True),  # float takes the blank
        ("0", "0", True),
        ("0.0", "0", False),  # a truth of 0 has no 5 %: compared as text
        ("0.01", "0", False),
        ("2000", "2019", True),  # years are numbers: known to be lenient
        ("1900", "2019", False),
        ("1,000", "1000", False),  # not a number to float
        ("yes", "Yes", True),
        ("Yes.", "Yes", False),
        ("[2013, 2016]", "[2013, 2016]", True),
        ("[2016, 2013]", "[2013, 2016]", False),
        ("", "14", False),
        ("%", "14", False),
        ("nan", "14", False),
        ("inf", "14", False),
    ],
)
def test_relaxed_accuracy_allows_five_percent_on_numbers_and_nothing_on_words(text, answer, right):
    assert judged("relaxed_accuracy", text, answer) == Verdict(float(right))


def test_relaxed_accuracy_takes_the_best_of_several_answers():
    assert judged("relaxed_accuracy", "20", "10", "20").score == 1


@pytest.mark.parametrize(
    ("text", "answers", "score"),
    [
        ("university of california", ["University of California"], 1),
        ("Universty of California", ["university of california"], 1 - 1 / 24),
        ("abcd", ["abxy"], 0.5),  # a similarity of 0.5 stays
        ("abc", ["axy"], 0),  # 1/3 is below it
        ("  two   words ", ["two words"], 1),
        ("$975.00", ["975.00", "$975.00"], 1),
        ("975.0", ["975.00", "x"], 1 - 1 / 6),
        ("", ["a"], 0),
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("TRUE", ["true"], 1),
    ],
)
def test_anls_is_the_similarity_to_the_nearest_answer_or_zero_below_one_half(text, answers, score):
    assert judged("anls", text, *answers).score == pytest.approx(score, abs=1e-12)


def test_anls_divides_by_the_length_as_it_was_written():
    # The portal's script compares "a b" with "a c", and divides by the seven characters of "a     b".
    assert judged("anls", "a     b", "a c").score == pytest.approx(1 - 1 / 7)


def levenshtein(one, two):
    row = list(range(len(two) + 1))
    for i, a in enumerate(one, 1):
        row, before = [i], row
        for j, b in enumerate(two, 1):
            row.append(min(before[j] + 1, row[-1] + 1, before[j - 1] + (a != b)))
    return row[-1]


def test_anls_equals_its_formula_on_random_texts():
    draw = random.Random(3)
    scores = []
    for _ in range(PROOFS):
        text, *answers = ("".join(draw.choices("abé", k=draw.randint(1, 8))) for _ in range(draw.randint(2, 4)))
        best = max(1 - levenshtein(text, answer) / max(len(text), len(answer)) for answer in answers)
        scores.append(judged("anls", text, *answers).score)
        assert scores[-1] == pytest.approx(best if best >= 0.5 else 0)
    assert 0 < sum(score > 0 for score in scores) < len(scores)


OPTIONS = ["a red fox", "a dog", "E. coli", "the fox"]


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("B", 1),
        ("b", 1),
        ("(B)", 1),
        ("B.", 1),
        ("**B**", 1),
        ("B. a dog", 1),
        ("B) a dog", 1),
        ("B: a dog", 1),
        ("b) a dog", 1),
        ("(B) a dog", 1),
        ("The answer is B.", 1),
        ("The answer is (B)", 1),
        ("Answer: B", 1),
        ("The correct answer is B. a dog", 1),
        ("a dog", 1),
        ("A dog.", 1),
        ("The answer is a dog.", 1),
        ("E. coli", 2),  # no option E: it is a text
        ("A", 0),
        ("C", 2),
    ],
)
def test_a_choice_is_known_by_its_letter_then_by_its_text(text, chosen):
    verdict = judged("multiple_choice", text, "ABCD"[chosen], options=OPTIONS)
    assert verdict == Verdict(1.0)
    wrong = judged("multiple_choice", text, "ABCD"[chosen - 1], options=OPTIONS)
    assert wrong == Verdict(0.0)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "7",
        "fox",
        "A or B",
        "A dog and a fox",
        "not B",
        "It is not a dog",
        "I think it might be the first one",
        "The answer is A. No, the answer is B.",
        "None of them",
        "BA",
    ],
)
def test_what_names_no_option_is_unparsed_and_wrong_and_never_guessed(text):
    for right in "ABCD":
        assert judged("multiple_choice", text, right, options=OPTIONS) == Verdict(0.0, parsed=False)


def test_options_that_are_letters_are_known_by_their_text_unless_they_were_offered_behind_letters():
    options, by_text, by_letter = ["B", "D", "H"], "What is it?\nB\nD\nH\nAnswer.", "What is it?\nA. B\nB. D\nC. H"
    assert judged("multiple_choice", "B", "B", options=options, prompt=by_text).score == 1
    assert judged("multiple_choice", "D", "B", options=options, prompt=by_text) == Verdict(0.0)
    assert judged("multiple_choice", "A", "B", options=options, prompt=by_text) == Verdict(0.0, parsed=False)
    assert judged("multiple_choice", "B", "B", options=options, prompt=by_letter).score == 1
    assert judged("multiple_choice", "A", "B", options=options, prompt=by_letter) == Verdict(0.0)


def test_a_letter_that_no_option_stands_behind_may_be_the_text_of_one():
    assert judged("multiple_choice", "x", "A", options=["x", "y"], prompt="A. x\nB. y").score == 1
    assert judged("multiple_choice", "b", "B", options=["b", "c d", "e f"]).score == 1


def test_options_equal_but_for_case_are_told_apart_by_it():
    assert judged("multiple_choice", "XX", "A", options=["XX", "xx"]).score == 1
    assert judged("multiple_choice", "Xx", "A", options=["XX", "xx"]) == Verdict(0.0, parsed=False)


@pytest.mark.parametrize(("options", "answer"), [((), "A"), (("x", "y"), "z"), (("x", "y"), "C")])
def test_a_truth_that_is_no_option_is_refused(options, answer):
    with pytest.raises(ValueError, match="option"):
        judged("multiple_choice", "A", answer, options=options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("yes", "yes"),
        ("Yes.", "yes"),
        ("Yes, there is a snowboard.", "yes"),
        ("No", "no"),
        ("no, but", "no"),
        ('"No"', "no"),
        ("'Yes'", "yes"),
        ("There is no snowboard", ""),
        ("not at all", ""),
        ("I cannot see one", ""),
        ("yesterday", ""),
        ("nope", ""),
        ("", ""),
    ],
)
def test_a_yes_no_answer_is_its_first_word_and_anything_else_is_neither(text, said):
    for truth in ("yes", "no"):
        assert judged("yes_no", text, truth) == Verdict(float(said == truth), said != "", said, truth)


def test_a_truth_that_is_neither_yes_nor_no_is_refused():
    with pytest.raises(ValueError, match="neither"):
        judged("yes_no", "yes", "maybe")


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [("pair", "pair", 1), (" Pair ", "pair", 1), ("2", "two", 0), ("2.0", "2", 0), ("", "x", 0)],
)
def test_exact_match_forgives_case_and_blanks_around_alone(text, answer, right):
    assert judged("exact_match", text, answer).score == right
