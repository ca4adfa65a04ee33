"""What asking a language model costs, and the limits that are kept before they are exceeded.

A try is sent only when what it can cost at most still fits. That most is known beforehand: a token of the usual
vocabularies (byte-level BPE) is at least one byte, so a prompt has no more tokens than bytes, and the answer has no
more than was asked for. What a picture costs is the endpoint's own affair, so `PICTURE_TOKENS` is a guess and the one
thing by which a budget can be overrun.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from dataprep.errors import CommandError

#: One message of a chat: `role`, and `content` as text or as a list of parts.
Message = dict[str, Any]

#: Bytes of English text a token, for estimates.
BYTES_A_TOKEN = 4

#: What a picture is taken to cost at most. LLaVA-1.5 takes 576, LLaVA-NeXT up to 2,880.
PICTURE_TOKENS = 3000

#: What a chat template adds to a message: its role and control tokens.
_MESSAGE_TOKENS = 8


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What was spent."""

    requests: int = 0
    """HTTP requests sent, tries that failed among them."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    assumed_tokens: int = 0
    """How many of these tokens no endpoint has counted: it told nothing, or the connection was cut."""

    def __add__(self, other: Usage) -> Usage:
        return Usage(*(getattr(self, name) + getattr(other, name) for name in self.__struct_fields__))

    @property
    def tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Prices:
    """What a million tokens cost, in any one currency."""

    prompt: float
    completion: float

    def cost(self, usage: Usage) -> float:
        """Return what a usage costs."""
        return (usage.prompt_tokens * self.prompt + usage.completion_tokens * self.completion) / 1e6


@dataclass(frozen=True, slots=True)
class Limits:
    """What may be spent in all, runs before included; None: no limit."""

    max_requests: int | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    prices: Prices | None = None

    def __post_init__(self) -> None:
        if self.max_cost is not None and self.prices is None:
            raise CommandError("--max-cost: a limit needs prices: give --price-in and --price-out, per million tokens")
        figures = (self.max_cost, *((self.prices.prompt, self.prices.completion) if self.prices else ()))
        if any(figure is not None and math.isnan(figure) for figure in figures):
            raise CommandError("--max-cost, --price-in and --price-out: expected numbers; nan is none")

    def exceeded(self, usage: Usage) -> str | None:
        """Return which limit a usage would exceed, with its value."""
        if self.max_requests is not None and usage.requests > self.max_requests:
            return f"--max-requests {self.max_requests}"
        if self.max_tokens is not None and usage.tokens > self.max_tokens:
            return f"--max-total-tokens {self.max_tokens}"
        if self.max_cost is not None and self.prices is not None and self.prices.cost(usage) > self.max_cost:
            return f"--max-cost {self.max_cost:g}"
        return None


class Budget:
    """What was spent and what is under way, held against the limits.

    Args:
        spent: by the runs before this one.
    """

    def __init__(self, limits: Limits, spent: Usage) -> None:
        self.limits = limits
        self.spent = spent
        self._reserved: dict[int, Usage] = {}
        self._tickets = 0

    @property
    def under_way(self) -> bool:
        """Whether anything is reserved, which can give room back."""
        return bool(self._reserved)

    def reserve(self, most: Usage) -> int | str:
        """Set aside what a try can cost at most; return its ticket, or the limit that leaves no room for it."""
        limit = self.limits.exceeded(sum(self._reserved.values(), self.spent + most))
        if limit is not None:
            return limit
        self._tickets += 1
        self._reserved[self._tickets] = most
        return self._tickets

    def settle(self, ticket: int, usage: Usage) -> None:
        """Replace a reservation by what the try has cost."""
        del self._reserved[ticket]
        self.spent += usage


def most(messages: Sequence[Message], completion_tokens: int) -> Usage:
    """Return what one try can cost at most."""
    text, pictures = _size(messages)
    prompt = text + pictures * PICTURE_TOKENS + _MESSAGE_TOKENS * len(messages)
    return Usage(1, prompt, completion_tokens)


def expected(messages: Sequence[Message], completion_tokens: int) -> Usage:
    """Return about what one try costs, for an estimate."""
    text, pictures = _size(messages)
    prompt = text // BYTES_A_TOKEN + pictures * PICTURE_TOKENS + _MESSAGE_TOKENS * len(messages)
    return Usage(1, prompt, completion_tokens)


def assumed(usage: Usage) -> Usage:
    """Return a usage that is taken for granted since nobody has counted it."""
    return msgspec.structs.replace(usage, assumed_tokens=usage.tokens)


def _size(messages: Sequence[Message]) -> tuple[int, int]:
    """Return the bytes of text and the number of pictures."""
    text = pictures = 0
    for message in messages:
        content = message["content"]
        for part in [{"text": content}] if isinstance(content, str) else content:
            text += len(part.get("text", "").encode("utf-8"))
            pictures += "image_url" in part
    return text, pictures
