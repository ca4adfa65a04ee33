"""Questions to prompts: the ids and pixels that training saw, up to where the answer begins.

Template, encoder and picture loader are those that compile the shards; this only leaves out what a row hides (the hole
of a text without a picture).
"""

import hashlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from dataprep.conversation import IMAGE_TAG, REASONS, Conversation, Refusal, Turn, validate
from dataprep.encoding import TextEncoder, encode
from dataprep.images import ImageFault, load_image, pad_colour
from dataprep.templates import Kind, Prompter
from trainer.inference.asking import Request
from trainer.model import LlavaConfig


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the model reads before it answers."""

    ids: list[int]
    """All tokens, the picture's slots among them (they hold the pad id)."""
    image_slots: range
    """Where in `ids` the picture's patches go; empty without a picture."""
    pixels: UInt8[Tensor, "I 3 size size"]
    """I is 1, or 0 without a picture."""

    def picture_digest(self) -> bytes:
        """Return what tells this picture from another."""
        return hashlib.sha256(self.pixels.numpy().tobytes()).digest()


@dataclass(frozen=True, slots=True)
class Ending:
    """How an answer ends."""

    ids: frozenset[int]
    """Any of these tokens ends it, and is no part of it."""
    text: str = ""
    """Where the template ends an answer by wording alone, that wording (`plain`: a newline); else empty."""


class PromptMaker:
    """Makes prompts for one model.

    Args:
        image_fit: `pad` or `crop`, as the shards were compiled.
    """

    def __init__(self, prompter: Prompter, encoder: TextEncoder, config: LlavaConfig, image_fit: str) -> None:
        self.prompter, self.encoder, self.image_fit = prompter, encoder, image_fit
        self._config = config
        self.ending = _ending(prompter, encoder)

    def make(self, request: Request) -> Prompt:
        """Return the prompt of a request.

        Raises:
            Refusal: words that cannot be asked, or more of them than the model has positions for.
            ImageFault: a picture that cannot be used.
        """
        has_image = request.image is not None
        turns = list(request.turns)
        if self.prompter.template.phase == 1 and turns == [""]:
            turns = ["a"]  # the words of a caption's question are not written
        check_turns(turns, has_image)
        sample = encode(self.prompter.prompt_of(turns, has_image), self.encoder, self._config.vision.num_patches)
        ids = sample.ids[sample.attended].tolist()
        most = self._config.language.max_position_embeddings
        if len(ids) > most:
            raise Refusal("too_long", f"the prompt has {len(ids)} tokens, the model was made for {most}")
        start = sample.image_start if has_image else 0
        slots = range(start, start + self._config.vision.num_patches * has_image)
        return Prompt(ids, slots, self._pixels(request.image))

    def image_start(self) -> int:
        """Return where the picture stands in a prompt that has one."""
        spans = self.prompter.prompt_of([f"{IMAGE_TAG}\na"], has_image=True)
        return encode(spans, self.encoder, self._config.vision.num_patches).image_start

    def _pixels(self, image: Path | bytes | None) -> UInt8[Tensor, "I 3 size size"]:
        size = self._config.vision.image_size
        if image is None:
            return torch.empty(0, 3, size, size, dtype=torch.uint8)
        colour = pad_colour(self._config.image_mean)
        if isinstance(image, bytes):
            pixels = _load_bytes(image, size, self.image_fit, colour)
        else:
            pixels = load_image(image, size, self.image_fit, colour)
        return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].contiguous()


def check_turns(turns: Sequence[str], has_image: bool) -> None:
    """Refuse what compiling refuses: empty questions, `<image>` twice or in a later turn.

    Raises:
        Refusal: the first fault found.
    """
    if not len(turns) % 2:
        raise Refusal("roles_do_not_alternate", f"{len(turns)} turns, expected the last one to be a question")
    for number, words in enumerate(turns, 1):
        try:
            words.encode()
        except UnicodeEncodeError as error:
            raise Refusal("not_utf8", f"turn {number}: {error.reason} at character {error.start}") from None
    # An answer may be empty here, since a model may have given it; and the one that is asked for is not there yet.
    said = [Turn("gpt", words or "a") if i % 2 else Turn("human", words) for i, words in enumerate([*turns, "a"])]
    if has_image and not any(IMAGE_TAG in turn.value for turn in said[::2]):
        said[0] = Turn("human", f"{IMAGE_TAG}\n{turns[0]}")
        if any(not words for words in turns[2::2]):
            raise Refusal("empty_question", "a later question is empty")
    validate(Conversation("", "picture" if has_image else None, said))


def sentence(error: Exception) -> str:
    """Return what to say of an error; a refusal has a code and a detail, of which people get the meaning."""
    if not isinstance(error, Refusal):
        return str(error)
    # What `too_long` means of records is another thing.
    return error.detail if error.reason == "too_long" else f"{REASONS[error.reason]} ({error.detail})"


def _load_bytes(content: bytes, size: int, fit: str, colour: tuple[int, int, int]) -> UInt8[np.ndarray, "size size 3"]:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        try:
            return load_image(Path(file.name), size, fit, colour)
        except ImageFault as fault:
            said = str(fault).replace(file.name, f"the picture of {len(content):,} bytes")
            raise ImageFault(fault.reason, said) from None


def _ending(prompter: Prompter, encoder: TextEncoder) -> Ending:
    token, wording = prompter.ending()
    if token is None:
        return Ending(frozenset({encoder.eos_id}), wording)
    own = encoder.control_ids[token.text] if token.kind is Kind.CONTROL else encoder.eos_id
    return Ending(frozenset({encoder.eos_id, own}))
