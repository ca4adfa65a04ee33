"""A template's script to a plan, once, and a plan to spans, for every record.

A script says in order what stands in a sample: wording, the words of the turns, control tokens, the picture, and where
an answer begins. A run is what stands between two control tokens (or pictures). A tokenizer never merges across them,
so a run is what must be encoded in one piece; it is cut only where that changes nothing (`Dialect.cut`), and where an
answer begins, because there the prompt ends at inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import NamedTuple

from dataprep.templates.dialect import BLANKS, Dialect, TemplateError
from dataprep.templates.spans import Kind, Span


class Words(NamedTuple):
    """The words of a turn; even indexes are questions, odd ones answers."""

    index: int


class Control(NamedTuple):
    """A control token: BOS, EOS, or CONTROL with its text."""

    kind: Kind
    token: str = ""


class Mark(Enum):
    """What is neither words nor a token."""

    IMAGE = "image"
    ANSWER = "answer"
    """What follows is learned, up to and with the control token that ends the answer."""


class Hole(NamedTuple):
    """Where the picture of a text-only sample would stand, and the control tokens that exist only for it."""

    controls: tuple[Control, ...] = ()


Part = str | Words | Control | Mark | Hole
"""A `str` is wording: encoded as text, whatever it spells."""

BOS = Control(Kind.BOS)
EOS = Control(Kind.EOS)


class Slot(NamedTuple):
    """Words of a turn with the wording that must be encoded together with them."""

    before: str
    index: int
    after: str
    trained: bool


Plan = list[Span | Slot]


def literal(text: str, dialect: Dialect) -> list[Part]:
    """Cut a template's own text at the control tokens in it, as the tokenizer would."""
    parts: list[Part] = []
    position, eats = 0, False
    for match in dialect.added_pattern.finditer(text):
        token = dialect.added[match[0]]
        piece = text[position : match.start()]
        piece = piece.lstrip() if eats else piece
        parts += [piece.rstrip() if token.lstrip else piece, Control(Kind.CONTROL, match[0])]
        position, eats = match.end(), token.rstrip
    rest = text[position:]
    parts.append(rest.lstrip() if eats else rest)
    return [part for part in parts if part != ""]


def make_plan(script: Sequence[Part], dialect: Dialect, opens_with_blank: bool) -> Plan:
    """Turn a script into spans with slots for the turns' words.

    Args:
        opens_with_blank: open runs as transformers' Llama tokenizers do (a blank where `legacy` is set, and always at
            the very start); False where the script writes every blank itself.

    Raises:
        TemplateError: an answer begins where the tokenizer might merge it with what stands before.
    """
    plan = _Planner(dialect)
    run: list[Part] = []
    blank = not dialect.byte_level and opens_with_blank
    for part in script:
        if isinstance(part, Control) or part is Mark.IMAGE:
            plan.add_run(run, blank)
            plan.add_token(part)
            run = []
            blank = not dialect.byte_level and opens_with_blank and dialect.legacy
        else:
            run.append(part)
    plan.add_run(run, blank)
    return plan.done


class _Planner:
    """Goes through a script once."""

    def __init__(self, dialect: Dialect) -> None:
        self.done: Plan = []
        self._dialect = dialect
        self._trained = False
        self._answered = False
        self._piece: list[str | Words] = []

    def add_token(self, part: Control | Mark) -> None:
        if isinstance(part, Mark):
            self.done.append(Span(Kind.IMAGE))
            return
        self.done.append(Span(part.kind, part.token, self._trained))
        if self._answered:
            self._trained = self._answered = False

    def add_run(self, run: Sequence[Part], opens_with_blank: bool) -> None:
        for part in _opened(run) if opens_with_blank else run:
            if part is Mark.ANSWER:
                self._begin_answer(run)
            elif isinstance(part, Hole):
                self._add_hole(part)
            elif isinstance(part, str | Words):
                self._piece.append(part)
        self._flush()

    def _begin_answer(self, run: Sequence[Part]) -> None:
        behind = run[list(run).index(Mark.ANSWER) + 1 :]
        if self._piece and not self._dialect.byte_level:
            last, following = self._piece[-1], behind[0] if behind else ""
            last = last if isinstance(last, str) else ""
            before_blank = isinstance(following, str) and following[:1] == " " and last[-1:] not in ("", *BLANKS)
            if not before_blank and not (last.endswith("\n") and self._dialect.newline_cuts):
                raise TemplateError(
                    f"an answer begins behind {last!r}, where this tokenizer may merge it with what stands before"
                )
        self._flush()
        self._trained = True

    def _add_hole(self, hole: Hole) -> None:
        wording = "".join(part for part in self._piece if isinstance(part, str))
        cut = self._dialect.cut(wording)
        self._add_wording(wording[:cut])
        # What text may merge with stands twice: hidden as the picture's sample has it, and with the text that follows.
        self._add_wording(wording[cut:], attended=False)
        self.done += [Span(control.kind, control.token, attended=False) for control in hole.controls]
        self.done.append(Span(Kind.IMAGE, attended=False))
        self._piece = [wording[cut:]]

    def _flush(self) -> None:
        places = [place for place, part in enumerate(self._piece) if isinstance(part, Words)]
        if len(places) > 1:
            raise TemplateError("two turns follow each other without a control token between them")
        place = places[0] if places else len(self._piece)
        before = "".join(part for part in self._piece[:place] if isinstance(part, str))
        after = "".join(part for part in self._piece[place + 1 :] if isinstance(part, str))
        if places:
            cut = self._dialect.cut(before)
            self._add_wording(before[:cut])
            words = self._piece[place]
            assert isinstance(words, Words)
            self.done.append(Slot(before[cut:], words.index, after, self._trained))
            self._answered = self._answered or words.index % 2 == 1
        else:
            self._add_wording(before)
        self._piece = []

    def _add_wording(self, text: str, attended: bool = True) -> None:
        if text:
            self.done.append(Span(Kind.WORDING, text, self._trained and attended, attended))


def _opened(run: Sequence[Part]) -> list[Part]:
    """Put a blank before the first words of a run, unless they bring one."""
    for place, part in enumerate(run):
        if isinstance(part, Words) or (isinstance(part, str) and not part.startswith(" ")):
            return [*run[:place], " ", *run[place:]]
        if isinstance(part, str):
            break
    return list(run)
