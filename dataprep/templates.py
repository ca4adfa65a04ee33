"""Conversation to Spans: the wording around the turns, and which of it is learned.

A span is encoded alone and its tokens are joined to its neighbours'. What a span trains is constant within it, so the
loss mask is born with the ids; nothing is searched for later. The cuts fall where no piece of the vocabulary can cross
(before a space that follows a non-space), so that the ids equal those of the original LLaVA, which renders one string
and tokenises it whole (llava/train/train.py, `preprocess_v1` and `preprocess_plain`).

Every leading space is written out here: the tokenizer adds none (see `encoding.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from dataprep.conversation import IMAGE_TAG, Conversation, Refusal


class Kind(Enum):
    """What a span becomes."""

    TEXT = "text"  # words of the record
    WORDING = "wording"  # words of the template, encoded once
    BOS = "bos"
    EOS = "eos"
    IMAGE = "image"


class Span(NamedTuple):
    """A piece of a sample. Control ids come from spans of their kind alone, never from text."""

    kind: Kind
    text: str = ""
    trained: bool = False
    attended: bool = True
    """False in the hole that a text-only sample keeps where its picture would stand."""


@dataclass(frozen=True)
class Template:
    """The wording of one prompt format.

    `render(conversation, legacy)` returns the spans; `legacy` is the tokenizer's setting, which decides how later
    turns open.
    """

    name: str
    phase: int
    render: Callable[[Conversation, bool], list[Span]]
    prompt: Callable[[str, bool, bool], list[Span]]
    """`prompt(question, has_image, legacy)`: the spans up to where the answer begins, for inference."""


#: llava/conversation.py, `conv_vicuna_v1`.
VICUNA_SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)


def _vicuna_v1(conversation: Conversation, legacy: bool) -> list[Span]:
    """`<s> SYSTEM USER: <image>\\nq ASSISTANT: a</s>USER: q ASSISTANT: a</s>`."""
    spans: list[Span] = []
    turns = conversation.turns
    for index in range(0, len(turns), 2):
        if index == 0:
            spans += _vicuna_opening(turns[0].value, conversation.image is not None)
        else:
            # transformers' `legacy` tokenizers put a blank before text that follows `</s>`, the others do not.
            spans += [Span(Kind.WORDING, " USER:" if legacy else "USER:"), _vicuna_question(turns[index].value)]
        # The blank belongs to the answer's first word: at inference the prompt ends in "ASSISTANT:".
        spans += [Span(Kind.TEXT, " " + turns[index + 1].value, trained=True), Span(Kind.EOS, trained=True)]
    return spans


def _vicuna_opening(question: str, has_image: bool) -> list[Span]:
    opening = [Span(Kind.BOS), Span(Kind.WORDING, f" {VICUNA_SYSTEM} USER:")]
    if not has_image:
        hole = [Span(Kind.WORDING, " ", attended=False), Span(Kind.IMAGE, attended=False)]
        return [*opening, *hole, _vicuna_question(question)]
    # LLaVA's preprocess_multimodal: the tag goes to the front, wherever it stood, and a newline after it.
    rest = question.replace(IMAGE_TAG, "").strip()
    asked = _vicuna_question("\n" + rest if rest else "")
    return [*opening, Span(Kind.WORDING, " "), Span(Kind.IMAGE), asked]


def _vicuna_question(question: str) -> Span:
    # In one piece: a question may end in blanks, and a run of blanks must not be cut.
    return Span(Kind.TEXT, f" {question} ASSISTANT:")


def _vicuna_prompt(question: str, has_image: bool, legacy: bool) -> list[Span]:
    return _vicuna_opening(question, has_image)


def _plain(conversation: Conversation, legacy: bool) -> list[Span]:
    """`<s><image> caption\\n`: the question is dropped and there is no `</s>`."""
    return [*_plain_opening(conversation), Span(Kind.TEXT, f" {conversation.turns[1].value}\n", trained=True)]


def _plain_eos(conversation: Conversation, legacy: bool) -> list[Span]:
    """`<s><image> caption</s>`: what the Cerebras Model Zoo's phase 1 trains on."""
    caption = Span(Kind.TEXT, f" {conversation.turns[1].value}", trained=True)
    return [*_plain_opening(conversation), caption, Span(Kind.EOS, trained=True)]


def _plain_opening(conversation: Conversation) -> list[Span]:
    if len(conversation.turns) != 2:
        raise Refusal("plain_needs_a_pair", f"{len(conversation.turns)} turns", conversation.id)
    if conversation.image is None:
        raise Refusal("plain_needs_an_image", "the record has no picture", conversation.id)
    return _plain_prompt("", True, False)


def _plain_prompt(question: str, has_image: bool, legacy: bool) -> list[Span]:
    return [Span(Kind.BOS), Span(Kind.IMAGE)]


#: A new template is a line here, with a golden case in `tests/dataprep/test_templates.py`.
TEMPLATES = {
    template.name: template
    for template in (
        Template("plain", 1, _plain, _plain_prompt),
        Template("plain_eos", 1, _plain_eos, _plain_prompt),
        Template("vicuna_v1", 2, _vicuna_v1, _vicuna_prompt),
    )
}
