"""VQA soft accuracy: how many of ten people gave the answer, after both were brought to one spelling.

VQAv2: `PythonEvaluationTools/vqaEvaluation/vqaEval.py` of github.com/GT-Vision-Lab/VQA (Antol et al. 2015; Goyal et al.
2017). TextVQA: `EvalAIAnswerProcessor` and `TextVQAAccuracyEvaluator` of facebookresearch/mmf (the original LLaVA's
`llava/eval/m4c_evaluator.py`). Both are followed where they are odd:

* A period goes unless a digit follows (the regular expression means to look behind too, and does not), and at most 32
  of them, since a flag was passed in the place of a count.
* A mark is deleted where it stands beside a blank anywhere in the text, or where the text holds a number with a comma
  (`1,000`); otherwise a blank takes its place.
* vqaEval writes digits for number words and drops articles in the model's answer only, and touches the people's answers
  only where they differ among themselves. TextVQA treats both alike.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

MARKS = (*';/[]"{}()=+\\_-><@`,?!',)
ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS)}

#: Words with apostrophes. Whoever leaves one of them out means the same word.
_WORDS = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""

#: The published list has this one the other way round.
CONTRACTIONS = {"somebody'd": "somebodyd"}
CONTRACTIONS |= {
    word[:place] + word[place + 1 :]: word
    for word in _WORDS.split()
    for place, character in enumerate(word)
    if character == "'"
}

_ANY_MARK = re.compile(f"[.{re.escape(''.join(MARKS))}]")
_NUMBER_WITH_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_MAX_PERIODS = 32

#: So many of the others must have given an answer for it to be wholly right.
FULL_AGREEMENT = 3


def vqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Return VQAv2's accuracy of an answer, from 0 to 1.

    Args:
        text: what the model said.
        answers: what people said, ten of them.
    """
    said = _plain_words(_without_marks(_one_line(text)))
    if len(set(answers)) > 1:
        answers = [_without_marks(answer) for answer in answers]
    return soft_accuracy(said, answers)


def textvqa_accuracy(text: str, answers: Sequence[str]) -> float:
    """Return TextVQA's accuracy of an answer, from 0 to 1; the arguments are those of `vqa_accuracy`."""
    return soft_accuracy(textvqa_spelling(text), [textvqa_spelling(answer) for answer in answers])


def textvqa_spelling(text: str) -> str:
    """Return the one spelling that TextVQA compares."""
    lowered = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _plain_words(_without_marks(_one_line(lowered)))


def soft_accuracy(said: str, answers: Sequence[str]) -> float:
    """Return the mean, over leaving out one person at a time, of `min(1, others who said it / 3)`."""
    same = sum(answer == said for answer in answers)
    left_out = [min(1.0, (same - (answer == said)) / FULL_AGREEMENT) for answer in answers]
    return sum(left_out) / len(left_out)


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _without_marks(text: str) -> str:
    if not _ANY_MARK.search(text):
        return text
    has_number = _NUMBER_WITH_COMMA.search(text) is not None
    found = text
    for mark in MARKS:
        beside_blank = f"{mark} " in text or f" {mark}" in text
        found = found.replace(mark, "" if beside_blank or has_number else " ")
    return _PERIOD.sub("", found, count=_MAX_PERIODS)


def _plain_words(text: str) -> str:
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
