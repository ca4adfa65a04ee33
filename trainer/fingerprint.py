"""Do the shards and the model fit together? Asked before anything is allocated on a GPU.

Each fault is one sentence that names what the shards hold and what the model, or the config, holds.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dataprep.shards import RowLayout
from dataprep.shards.fingerprint import special_ids, tokenizer_fingerprint
from trainer.errors import IntegrityError
from trainer.model import LlavaConfig

#: The `bos_id` of shards whose tokenizer has none.
NO_ID = -1


def check_fingerprint(
    layout: RowLayout, lengths: NDArray[np.int32], model: LlavaConfig, model_folder: Path, phase: int
) -> None:
    """Refuse shards that were not compiled for this model and this phase.

    `lengths` (num_rows,) are the rows' attended tokens.

    Raises:
        IntegrityError: they differ; every difference is a line.
    """
    faults = [*_phase_faults(layout, phase), *_tokenizer_faults(layout, model, model_folder)]
    faults += [*_picture_faults(layout, model), *_slot_faults(layout), *_length_faults(lengths, model)]
    if faults:
        raise IntegrityError("\n".join(faults))


def _phase_faults(layout: RowLayout, phase: int) -> Iterator[str]:
    if layout.phase != phase:
        yield (
            f"phase: the shards were compiled for phase {layout.phase} (template {layout.template}),"
            f" the config trains phase {phase}"
        )
    elif layout.template.startswith("plain") != (phase == 1):
        yield f"template: the shards were compiled with {layout.template}, which is not one of phase {phase}"


def _tokenizer_faults(layout: RowLayout, model: LlavaConfig, folder: Path) -> Iterator[str]:
    try:
        found = tokenizer_fingerprint(folder / "tokenizer")
    except (OSError, ValueError) as error:
        yield f"tokenizer: the model's cannot be read: {error}"
        return
    if found != layout.tokenizer_fingerprint:
        yield (
            f"tokenizer: the shards were compiled with {layout.tokenizer_fingerprint[:12]}…,"
            f" {folder / 'tokenizer'} is {found[:12]}…"
        )
    for name, index in special_ids(folder / "tokenizer").items():
        written = getattr(layout, name.replace("_token", "_id"))
        if written != (NO_ID if index is None else index):
            yield f"{name}: the shards have the id {written}, the model's tokenizer {index}"
    if not 0 <= layout.pad_id < model.language.vocab_size:
        yield f"pad_token: the shards have the id {layout.pad_id}, the model embeds {model.language.vocab_size}"
    if layout.vocab_size > model.language.vocab_size:
        yield (
            f"vocabulary: the shards hold ids of a vocabulary of {layout.vocab_size},"
            f" the model embeds {model.language.vocab_size}"
        )


def _picture_faults(layout: RowLayout, model: LlavaConfig) -> Iterator[str]:
    pairs = [
        ("image patches", layout.num_patches, model.vision.num_patches),
        ("image size in pixels", layout.image_size, model.vision.image_size),
        ("image mean", tuple(layout.image_mean), model.image_mean),
        ("image std", tuple(layout.image_std), model.image_std),
    ]
    for name, ours, theirs in pairs:
        if not np.allclose(ours, theirs, rtol=0, atol=1e-6):
            yield f"{name}: the shards were compiled for {ours}, the model has {theirs}"


def _slot_faults(layout: RowLayout) -> Iterator[str]:
    """Find slots outside their row, and a hole that does not cover them: a text-only row would attend patches."""
    slots = (layout.image_start_idx, layout.image_start_idx + layout.num_patches)
    hole = (layout.hole_start, layout.hole_start + layout.hole_length)
    if slots[1] > layout.max_seq_length:
        yield f"image slots: {slots[0]} to {slots[1]} do not lie in a row of {layout.max_seq_length}"
    if not 0 <= hole[0] <= slots[0] or hole[1] != slots[1]:
        yield (
            f"hole: text-only rows mask {hole[0]} to {hole[1]}, which must reach around the image slots,"
            f" {slots[0]} to {slots[1]}, and end with them"
        )


def _length_faults(lengths: NDArray[np.int32], model: LlavaConfig) -> Iterator[str]:
    longest = int(lengths.max(initial=0))
    if longest > model.language.max_position_embeddings:
        yield (
            f"length: the longest row of the shards has {longest} tokens,"
            f" the model was made for {model.language.max_position_embeddings}"
        )
    window = model.language.sliding_window
    if window is not None and longest > window:
        yield f"length: the longest row of the shards has {longest} tokens, the model's sliding window {window}"
