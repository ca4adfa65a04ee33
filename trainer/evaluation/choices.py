"""Multiple choice: which option an answer names, if it names one.

The letter is looked for as LLaVA's `eval_science_qa.py` does (the letter alone; `B. text`; `The answer is B`), then the
text of an option. Where nothing is named, or two things are, there is no choice: published scripts differ in what they
guess then (MMMU's draws a letter, VLMEvalKit's asks a language model or counts an option named anywhere in a sentence),
and a guess is a score of the guesser.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from dataprep.datasets.options import are_letters
from dataprep.prompts import LETTERS

_LONE = re.compile(r"\W*([A-Za-z])\W*")
_LEADING = re.compile(r"(?:\(([A-Z])\)|([A-Z])[.):])\s")
_LEADING_SMALL = re.compile(r"([a-z])\)\s")
_STATED = re.compile(r"\banswer(?: is|:)\s*", re.IGNORECASE)


def have_letters(prompt: str, options: Sequence[str], answer: str) -> bool:
    """Return whether options were offered behind letters.

    Options that are letters themselves (`B`, `D`, `H` of a diagram) are asked for by their text (as by
    `dataprep/datasets/ai2d.py`), and then an answer `B` is not the second one. Any others may be named by a letter,
    however they were written.

    Args:
        answer: the reference answer.
    """
    if not are_letters(options) or _by_text(answer, options) is None:
        return True
    return f"A. {options[0]}" in prompt or f"a) {options[0]}" in prompt


def chosen_option(text: str, options: Sequence[str], letters: bool = True) -> int | None:
    """Return the index of the option that an answer names, None where none can be told.

    Args:
        options: the texts, in the order of their letters.
        letters: whether they were offered behind letters; otherwise their text alone counts.
    """
    for said in (text, *_stated(text)):
        by_text, by_letter = _by_text(said, options), _by_letter(said, len(options)) if letters else None
        # A letter alone is a letter first; of anything longer, the text says more.
        ways = (by_letter, by_text) if _LONE.fullmatch(said) else (by_text, by_letter)
        named = next((index for index in ways if index is not None), None)
        if named is not None:
            return named
    return None


def _stated(text: str) -> list[str]:
    """Return what follows `the answer is`, if that is said once."""
    parts = _STATED.split(text)
    return [parts[1].strip()] if len(parts) == 2 else []


def _by_text(text: str, options: Sequence[str]) -> int | None:
    for same in (_plain, str.strip):
        named = [index for index, option in enumerate(options) if same(option) == same(text)]
        if len(named) == 1:
            return named[0]
    return None


def _by_letter(text: str, num_options: int) -> int | None:
    if lone := _LONE.fullmatch(text):
        return _index(lone[1], num_options)
    leading = _LEADING.match(f"{text.strip()} ") or _LEADING_SMALL.match(text.strip())
    if leading is None:
        return None
    return _index(next(filter(None, leading.groups())), num_options)


def _index(letter: str, num_options: int) -> int | None:
    index = LETTERS.find(letter.upper())
    return index if 0 <= index < num_options else None


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
