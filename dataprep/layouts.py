"""Where the picture stands, found by rendering and encoding; it is never typed in."""

from __future__ import annotations

from dataprep.config import CompileConfig
from dataprep.conversation import IMAGE_TAG, Conversation, Turn
from dataprep.encoding import TextEncoder, encode
from dataprep.shards.layout import RowLayout
from dataprep.templates import TEMPLATES


class LayoutError(ValueError):
    """A config and a tokenizer that no row can be made of."""


def find_layout(config: CompileConfig, encoder: TextEncoder) -> RowLayout:
    """Find where the picture stands by rendering and encoding; it is never typed in.

    Raises:
        LayoutError: the row is too short for prompt and picture, or the vocabulary too large for the dtype.
    """
    num_patches = config.image.num_patches
    template = TEMPLATES[config.template]
    turns = [Turn("human", f"{IMAGE_TAG}\na"), Turn("gpt", "a")]
    shown = encode(template.render(Conversation("", "a", turns), encoder.legacy), encoder, num_patches)
    hole_start, hole_length = shown.image_start, num_patches
    if config.phase == 2:
        text_only = Conversation("", None, [Turn("human", "a"), Turn("gpt", "a")])
        hidden = ~encode(template.render(text_only, encoder.legacy), encoder, num_patches).attended
        hole_start, hole_length = int(hidden.argmax()), int(hidden.sum())
    if shown.image_start + num_patches >= config.max_seq_length:
        raise LayoutError(
            f"max_seq_length {config.max_seq_length}: the prompt and {num_patches} image slots take"
            f" {shown.image_start + num_patches}, which leaves no room for an answer"
        )
    if config.dtype == "uint16" and encoder.vocab_size > 1 << 16:
        raise LayoutError(f"dtype uint16: the vocabulary has {encoder.vocab_size} ids; use int32")
    return RowLayout(
        max_seq_length=config.max_seq_length,
        num_patches=num_patches,
        image_start_idx=shown.image_start,
        hole_start=hole_start,
        hole_length=hole_length,
        phase=config.phase,
        template=config.template,
        bos_id=encoder.bos_id,
        eos_id=encoder.eos_id,
        pad_id=encoder.pad_id,
        vocab_size=encoder.vocab_size,
        tokenizer_fingerprint=encoder.fingerprint,
        image_size=config.image.size,
        image_mean=config.image.mean,
        image_std=config.image.std,
        image_fit=config.image.fit,
        config_sha256=config.sha256(),
    )
