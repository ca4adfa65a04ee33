"""Templates, and a template bound to a tokenizer: conversation to spans."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, Protocol, runtime_checkable

from dataprep.conversation import IMAGE_TAG, Conversation, Refusal, Turn
from dataprep.templates.dialect import Dialect, TemplateError
from dataprep.templates.script import Hole, Mark, Part, Plan, Slot, Words, make_plan
from dataprep.templates.spans import Kind, Span


class Opening(Enum):
    """What the first question brings."""

    TEXT = "text only"
    PICTURE = "a picture and words"
    BARE_PICTURE = "a picture alone"


@runtime_checkable
class Writer(Protocol):
    """A template for one tokenizer and one system prompt."""

    @property
    def system(self) -> str:
        """The system prompt that is written; empty where there is none."""
        ...

    @property
    def opens_with_blank(self) -> bool:
        """See `make_plan`."""
        ...

    @property
    def before_question(self) -> str:
        """What stands between the picture and the words of its question."""
        ...

    def script(self, pairs: int, opening: Opening) -> list[Part]:
        """Return what stands in a sample of so many questions and answers, with a `Hole` where there is no picture."""
        ...


@dataclass(frozen=True)
class Template:
    """One prompt format."""

    name: str
    phase: int
    make: Callable[[Dialect, str | None], Writer]
    """Raises `TemplateError` where the tokenizer does not fit."""

    def bind(self, dialect: Dialect, system: str | None = None) -> Prompter:
        """Return what turns conversations into spans for a tokenizer.

        Args:
            system: the system prompt; None for the template's own, empty for none at all.

        Raises:
            TemplateError: the tokenizer has not what the template needs, or the picture has no fixed place.
        """
        if self.phase == 1 and system:
            raise TemplateError(f"template {self.name}: captions have no system prompt")
        return Prompter(self, dialect, self.make(dialect, system))


class Filling(NamedTuple):
    """A plan as it is carried out: the spans that are always the same, and the places of those that hold words."""

    spans: list[Span]
    slots: list[tuple[int, Slot]]


#: Plans for more turns than this are made anew: they are rare, and hostile input could have one of each size.
MAX_REMEMBERED = 128

# What `Span(...)` comes down to, at half its cost: it is called for every turn of every record.
_new_span = tuple.__new__


class Prompter:
    """A template bound to a tokenizer. Plans are made once for each number of turns, so a record costs little.

    Attributes:
        system: the system prompt that is written; empty where there is none.
        writer: the template for this tokenizer and system prompt.
    """

    def __init__(self, template: Template, dialect: Dialect, writer: Writer) -> None:
        self.template = template
        self.system = writer.system
        self._dialect = dialect
        self.writer = writer
        # By number of turns. Not one table by both: hashing an Enum costs more than the rest of a look-up.
        self._plans: dict[Opening, dict[int, Filling]] = {opening: {} for opening in Opening}
        self._texts, self._pictures, self._bare_pictures = self._plans.values()
        self._before_question = writer.before_question
        self._lead = self._lead_of(2, Opening.PICTURE)
        # Made once to see that they can be made: what does not fit is said here, not at some record.
        for num_turns in (2, 4, 8) if template.phase == 2 else ():
            for opening in Opening:
                self._plan(num_turns, opening)

    def render(self, conversation: Conversation) -> list[Span]:
        """Return the spans of a conversation that `validate` accepts.

        Raises:
            Refusal: the template cannot write it.
        """
        turns = conversation.turns
        words = [turn.value for turn in turns]
        if self.template.phase == 1:
            _check_caption(conversation)
        plans = self._texts
        if conversation.image is not None:
            # LLaVA's preprocess_multimodal: the tag goes to the front, wherever it stood, and a newline after it.
            rest = words[0].replace(IMAGE_TAG, "").strip()
            plans = self._pictures if rest else self._bare_pictures
            words[0] = self._before_question + rest
        filling = plans.get(len(words)) or self._add_filling(conversation, plans)
        spans = filling.spans.copy()
        for place, (before, index, after, trained) in filling.slots:
            spans[place] = _new_span(Span, (Kind.TEXT, before + words[index] + after, trained, True))
        return spans

    def prompt(self, question: str, has_image: bool) -> list[Span]:
        """Return the spans up to where the answer begins, for inference."""
        return self.prompt_of([question], has_image)

    def prompt_of(self, turns: Sequence[str], has_image: bool) -> list[Span]:
        """Return the spans of a conversation up to where its next answer begins: what training saw before that answer.

        Args:
            turns: the words, human first, alternating; the last ones are the human's.

        Raises:
            Refusal: the template cannot write it.
        """
        said = [Turn("gpt" if index % 2 else "human", words) for index, words in enumerate([*turns, ""])]
        spans = self.render(Conversation("", "picture" if has_image else None, said))
        # The last stretch of learned spans is the answer that is asked for.
        stop = next(place for place in range(len(spans), 0, -1) if spans[place - 1].trained)
        start = next((place for place in range(stop, 0, -1) if not spans[place - 1].trained), 0)
        return spans[:start]

    def ending(self) -> tuple[Span | None, str]:
        """Return how the end of an answer is learned: its control token, and the wording between words and token.

        The token is None where wording alone ends an answer, as a newline does a caption of `plain`.
        """
        plan = self._plan(2, Opening.PICTURE)
        place, words = next((i, part) for i, part in enumerate(plan) if isinstance(part, Slot) and part.index == 1)
        token = next((part for part in plan[place + 1 :] if isinstance(part, Span) and part.trained), None)
        return token, words.after

    def outline(self) -> list[tuple[str, str, bool, bool]]:
        """Return what is written around the words of some conversations: what decides rows beside words and ids."""
        cases = [(2, Opening.PICTURE)]
        if self.template.phase == 2:
            cases += [(2, Opening.TEXT), (2, Opening.BARE_PICTURE), (6, Opening.PICTURE)]
        return [
            (part.kind.value, part.text, part.trained, part.attended)
            if isinstance(part, Span)
            else (f"turn {part.index}", f"{part.before}\0{part.after}", part.trained, True)
            for case in cases
            for part in self._plan(*case)
        ]

    def sha256(self, control_ids: Mapping[str, int]) -> str:
        """Return the hash of what is written: wording, the control tokens' ids, a tokenizer's own chat template."""
        outline = self.outline()
        tokens = {text for kind, text, *_ in outline if kind == Kind.CONTROL.value}
        ids = {token: control_ids[token] for token in sorted(tokens)}
        own = self._dialect.chat_template if self.template.name == "tokenizer" else None
        text = json.dumps([self.template.name, outline, ids, own], ensure_ascii=True, sort_keys=True)
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def _add_filling(self, conversation: Conversation, plans: dict[int, Filling]) -> Filling:
        opening = next(opening for opening, found in self._plans.items() if found is plans)
        try:
            plan = self._plan(len(conversation.turns), opening)
        except TemplateError as error:
            raise Refusal("chat_template", str(error), conversation.id) from None
        spans = [part if isinstance(part, Span) else Span(Kind.TEXT) for part in plan]
        filling = Filling(spans, [(place, part) for place, part in enumerate(plan) if isinstance(part, Slot)])
        if len(conversation.turns) <= MAX_REMEMBERED:
            plans[len(conversation.turns)] = filling
        return filling

    def _plan(self, num_turns: int, opening: Opening) -> Plan:
        if self.template.phase == 2:
            self._check_lead(num_turns, opening)
        script = self.writer.script(num_turns // 2, opening)
        return make_plan(script, self._dialect, self.writer.opens_with_blank)

    def _lead_of(self, num_turns: int, opening: Opening) -> Sequence[Part]:
        """Return what stands before the picture."""
        script = self.writer.script(num_turns // 2, opening)
        places = [place for place, part in enumerate(script) if part is Mark.IMAGE or isinstance(part, Hole)]
        if len(places) != 1 or any(isinstance(part, Words) for part in script[: places[0]]):
            raise TemplateError(f"template {self.template.name}: the picture has no fixed place before the words")
        hole = script[places[0]]
        return [*script[: places[0]], *(hole.controls if isinstance(hole, Hole) else ())]

    def _check_lead(self, num_turns: int, opening: Opening) -> None:
        if self._lead_of(num_turns, opening) != self._lead:
            raise TemplateError(
                f"template {self.template.name}: what stands before the picture is not the same in a conversation of"
                f" {num_turns} turns ({opening.value}) as in one of 2 with a picture, so image_start_idx is not"
                " constant"
            )


def _check_caption(conversation: Conversation) -> None:
    if len(conversation.turns) != 2:
        raise Refusal("plain_needs_a_pair", f"{len(conversation.turns)} turns", conversation.id)
    if conversation.image is None:
        raise Refusal("plain_needs_an_image", "the record has no picture", conversation.id)
