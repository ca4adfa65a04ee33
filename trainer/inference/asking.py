"""What a model is asked, how its answer is drawn, and what comes back. Loads nothing heavy."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Request:
    """One question, with what was said before it."""

    turns: Sequence[str]
    """Words, human first, alternating, the last one the human's. `<image>` is not needed; one in the first turn is
    taken out, as compiling does."""
    image: Path | bytes | None = None
    """A picture's file or its content; None for words alone."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How each token is chosen: the likeliest one unless `temperature` is above 0.

    Raises `ValueError` for a value out of range.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    """The logits are divided by it before they become probabilities; 0: always the likeliest token."""
    top_p: float = 1.0
    """Draw from the likeliest tokens whose probabilities reach this sum; 1: from all."""
    top_k: int | None = None
    """Draw from this many of the likeliest tokens; None: from all."""
    seed: int = 0
    """Together with the prompt it decides every draw, whatever else is in the batch."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {self.max_new_tokens}, expected at least 1")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature: {self.temperature}, expected 0 (the likeliest token) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p: {self.top_p}, expected more than 0 and at most 1")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k: {self.top_k}, expected at least 1")


#: The likeliest token, always.
GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    """Decoded, without control tokens and without blanks around it."""
    ids: list[int]
    """Without the token that ends it."""
    num_prompt_tokens: int
    """The picture's patches included."""
    ended: bool
    """False: cut at `max_new_tokens`, or at the end of the model's positions."""
