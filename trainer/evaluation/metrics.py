"""One answer to one verdict, as each benchmark's authors define it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from trainer.evaluation.choices import chosen_option, have_letters
from trainer.evaluation.vqa import textvqa_accuracy, vqa_accuracy

#: ChartQA's tolerance, relative to the true number.
TOLERANCE = 0.05

#: A string less like the truth than this is another answer, not a misread one.
ANLS_THRESHOLD = 0.5


class Truth(NamedTuple):
    """What is known about a question."""

    answers: tuple[str, ...]
    """The reference answers, one at least."""
    options: tuple[str, ...] = ()
    """Of a multiple-choice question, in the order of their letters."""
    prompt: str = ""
    """How it was asked."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one answer is worth."""

    score: float
    """From 0 to 1."""
    parsed: bool = True
    """Whether the answer is one of those that can be given; one that is not is wrong."""
    said: Literal["", "yes", "no"] = ""
    truth: Literal["", "yes", "no"] = ""
    """For yes/no questions: what was said and what is true."""


@dataclass(frozen=True, slots=True)
class Metric:
    """How a benchmark is scored."""

    title: str
    judge: Callable[[str, Truth], Verdict]
    """Takes the model's words."""


def relaxed_accuracy(text: str, truth: Truth) -> Verdict:
    """Judge as ChartQA does: numbers within 5 % of the truth, all else by equality, case aside.

    Masry et al. 2022, section 5.1; the code of pix2struct (google-research, `pix2struct/metrics.py`) that lmms-eval and
    others use. `12%` is 0.12 on either side, so `12` is wrong where `12%` is true. A truth of 0 is compared as text.
    Years are numbers like any other: 2000 is right where 2019 is true, which is a known weakness of the measure.
    """
    return Verdict(float(any(_relaxed(text, answer) for answer in truth.answers)))


def _relaxed(text: str, answer: str) -> bool:
    said, true = _number(text), _number(answer)
    if said is not None and true:
        return abs(said - true) / abs(true) <= TOLERANCE
    return text.lower() == answer.lower()


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def anls(text: str, truth: Truth) -> Verdict:
    """Judge by the normalised Levenshtein similarity to the nearest reference answer (Biten et al. 2019).

    The RRC portal's script, which lmms-eval has too: case does not matter, runs of blanks are one, the distance is
    divided by the longer of the two texts as they were written, and a similarity below 0.5 is 0.
    """
    from rapidfuzz.distance import Levenshtein

    said = " ".join(text.lower().split())
    similarities = []
    for answer in truth.answers:
        distance = Levenshtein.distance(" ".join(answer.lower().split()), said)
        similarities.append(1 - distance / max(len(answer), len(text), 1))
    best = max(similarities)
    return Verdict(best if best >= ANLS_THRESHOLD else 0.0)


def multiple_choice(text: str, truth: Truth) -> Verdict:
    """Judge by the option that is named (`choices.py`); an answer that names none is wrong and not parsed.

    Raises:
        ValueError: there are no options, or the reference answer is none of them.
    """
    if not truth.options:
        raise ValueError("has no options, and is to be scored as multiple choice")
    letters = have_letters(truth.prompt, truth.options, truth.answers[0])
    right = chosen_option(truth.answers[0], truth.options, letters)
    if right is None:
        raise ValueError(f"the reference answer {truth.answers[0]!r} is none of the options {list(truth.options)}")
    chosen = chosen_option(text, truth.options, letters)
    return Verdict(float(chosen == right), parsed=chosen is not None)


def exact_match(text: str, truth: Truth) -> Verdict:
    """Judge by equality with a reference answer, but for case and the blanks around it (DVQA, Kafle et al. 2018)."""
    return Verdict(float(text.strip().casefold() in {answer.strip().casefold() for answer in truth.answers}))


def yes_or_no(text: str, truth: Truth) -> Verdict:
    """Judge a yes/no answer by its first word (POPE, Li et al. 2023).

    The published scripts look for `no` and `not` anywhere and count all else as yes. Here an answer that begins with
    neither is neither: wrong, and no yes.

    Raises:
        ValueError: the reference answer is neither.
    """
    true, said = _yes_or_no(truth.answers[0]), _yes_or_no(text)
    if not true:
        raise ValueError(f"the reference answer {truth.answers[0]!r} is neither yes nor no")
    return Verdict(float(said == true), parsed=said != "", said=said, truth=true)


def _yes_or_no(text: str) -> Literal["", "yes", "no"]:
    words = "".join(c if c.isalnum() or c == "'" else " " for c in text.casefold()).split()
    word = [word.strip("'") for word in words[:1]]
    if word == ["yes"]:
        return "yes"
    return "no" if word == ["no"] else ""


#: A new metric is a line here.
METRICS = {
    "relaxed_accuracy": Metric("relaxed accuracy", relaxed_accuracy),
    "anls": Metric("ANLS", anls),
    "multiple_choice": Metric("accuracy", multiple_choice),
    "circular": Metric("circular accuracy", multiple_choice),
    "exact_match": Metric("exact match", exact_match),
    "vqa": Metric("VQA accuracy", lambda text, truth: Verdict(vqa_accuracy(text, truth.answers))),
    "textvqa": Metric("VQA accuracy", lambda text, truth: Verdict(textvqa_accuracy(text, truth.answers))),
    "yes_no": Metric("accuracy", yes_or_no),
}
