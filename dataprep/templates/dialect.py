"""What a template has to know of a tokenizer: where text may be cut, and which control tokens there are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

#: U+2581 in a text is a blank to a Llama-type tokenizer.
BLANKS = " ▁"


class TemplateError(ValueError):
    """A template that does not fit a tokenizer, or that no fixed row can be made of."""


class AddedToken(NamedTuple):
    """How a tokenizer's own splitting treats a token beside its vocabulary."""

    special: bool = True
    lstrip: bool = False
    """The token eats the blanks before it."""
    rstrip: bool = False
    """The token eats the blanks behind it."""


@dataclass(frozen=True)
class Dialect:
    """A tokenizer as templates see it. The defaults are Llama-2's."""

    legacy: bool = False
    """Of a Llama-type tokenizer: whether text behind a control token opens with a blank, if it has none."""

    byte_level: bool = False
    """A byte-level BPE (Llama-3, Qwen) cuts text by a pattern, so text may only be cut at control tokens; a Llama-type
    (SentencePiece) one has no piece with a blank behind another character, so text may be cut before blanks."""

    newline_cuts: bool = True
    """Of a Llama-type tokenizer: no piece has a newline beside another character, so text may be cut behind one."""

    specials: Mapping[str, str] = field(default_factory=lambda: {"bos_token": "<s>", "eos_token": "</s>"})
    """The named special tokens that have an id: `bos_token`, `eos_token`, ..."""

    added: Mapping[str, AddedToken] = field(
        default_factory=lambda: {token: AddedToken() for token in ("<s>", "</s>", "<unk>")}
    )
    """Every token beside the vocabulary. They are structure: none of them is ever found in a text."""

    chat_template: str | None = None
    """The tokenizer's own chat template, as Jinja text."""

    def need(self, template: str, *tokens: str) -> None:
        """Refuse a tokenizer without one of the control tokens.

        Raises:
            TemplateError: names the first one missing.
        """
        for token in tokens:
            if token not in self.added:
                raise TemplateError(f"template {template}: the tokenizer has no {token}")

    def need_special(self, template: str, *names: str) -> None:
        """Refuse a tokenizer without a `bos_token` or whatever is named."""
        for name in names:
            if name not in self.specials:
                raise TemplateError(f"template {template}: the tokenizer has no {name}")

    def need_llama_type(self, template: str) -> None:
        """Refuse a byte-level tokenizer."""
        if self.byte_level:
            raise TemplateError(
                f"template {template}: needs a Llama-type (SentencePiece) tokenizer, this one is byte-level"
            )

    @cached_property
    def added_pattern(self) -> re.Pattern[str]:
        """Matches any token beside the vocabulary; of two that begin at one place the longer, as `tokenizers` does."""
        longest_first = sorted(self.added, key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def cut(self, wording: str) -> int:
        """Return the last place at which `wording` may be cut whatever text follows it; 0 where there is none."""
        if self.byte_level:
            return 0
        for place in range(len(wording), 0, -1):
            before = wording[place - 1]
            if before == "\n" and self.newline_cuts:
                return place
            if wording[place : place + 1] == " " and before not in BLANKS:
                return place
        return 0
