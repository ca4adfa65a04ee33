"""What a row and a shard consist of: the one declaration that writer and reader share.

Shapes: N rows of a shard, L slots of a row (`max_seq_length`), P image slots (`num_patches`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32

#: Raised with every change of the file format that an older reader would misread.
FORMAT_VERSION = 1

#: The rows of `data`, in the order of the Cerebras Model Zoo's loader (Release 2.3, LlavaHDF5MapDataProcessor).
#: Stored as an attribute; code goes by these names, never by the positions.
FEATURES = ("text_input_ids", "loss_mask", "labels", "key_padding_mask")

#: What the Model Zoo stores as the path of a row without a picture.
NO_IMAGE = b"None"


class ShardError(ValueError):
    """Shards that cannot be read as asked: damaged, of another format, or not what the config says."""


@dataclass(frozen=True, slots=True)
class RowLayout:
    """The root attributes of a shard: all that model and data must agree on.

    Image slots stand at `image_start_idx` to `image_start_idx + num_patches`. A row without a picture keeps its hole:
    `hole_length` masked slots from `hole_start` (for vicuna_v1 with the Llama-2 tokenizer 577 from 34: the `▁` before
    the picture and 576 patches).
    """

    max_seq_length: int
    num_patches: int
    image_start_idx: int
    hole_start: int
    hole_length: int
    phase: int
    template: str
    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    tokenizer_fingerprint: str
    image_size: int
    image_mean: tuple[float, float, float]
    image_std: tuple[float, float, float]
    image_fit: str
    config_sha256: str
    template_sha256: str = ""
    """Of what the template writes around the words, the ids of its control tokens and a tokenizer's own chat template;
    empty in shards that were written before there was more than one conversation template."""
    system_prompt: str = ""
    """What the template writes as the system prompt; empty where there is none, or in shards of that age."""

    def attributes(self) -> dict[str, Any]:
        """Return what the root of a shard carries."""
        return {"format_version": FORMAT_VERSION, "features": list(FEATURES), **asdict(self)}

    def differences(self, expected: RowLayout) -> list[str]:
        """Name what differs from another layout, with both values."""
        pairs = ((f.name, getattr(self, f.name), getattr(expected, f.name)) for f in fields(self))
        return [f"{name} is {mine}, expected {theirs}" for name, mine, theirs in pairs if mine != theirs]

    @classmethod
    def from_attributes(cls, attributes: Mapping[str, Any], name: str) -> RowLayout:
        """Read the layout of the shard `name`.

        Raises:
            ShardError: an unknown format version, or an attribute that is missing.
        """
        version = attributes.get("format_version")
        if version is None:
            raise ShardError(
                f"{name}: no format_version; this is not one of our shards"
                " (ShardReader.open_cerebras reads the Model Zoo's Release 2.3 files)"
            )
        if str(version) != str(FORMAT_VERSION):
            raise ShardError(
                f"{name}: format version {version}, this program reads {FORMAT_VERSION};"
                " compile again with `llava-prep to-h5` into an empty folder"
            )
        missing = [f.name for f in fields(cls) if f.name not in attributes and f.default is MISSING]
        if missing:
            raise ShardError(f"{name}: attributes missing: {', '.join(missing)}")
        present = [f for f in fields(cls) if f.name in attributes]
        values = {f.name: _plain(attributes[f.name]) for f in present}
        for f in present:
            if _kind(values[f.name]) != f.type:
                raise ShardError(f"{name}: attribute {f.name} is {values[f.name]!r}, expected {f.type}")
        return cls(**values)


@dataclass(frozen=True, slots=True)
class Row:
    """One laid-out sample, as the writer takes it."""

    data: Int32[np.ndarray, "4 L"]
    """`FEATURES` in order; `key_padding_mask` is 1 where a position is NOT attended, as the Model Zoo has it."""
    img_path: str | None
    length: int
    """Attended positions: what packing spends."""
    num_loss_tokens: int
    source: Source


class Source(NamedTuple):
    """Where a row came from."""

    file: str
    line: int
    id: str


@dataclass(frozen=True, slots=True)
class StoredRow:
    """One row as read back. `key_padding_mask`: True where a position is NOT attended."""

    text_input_ids: Int32[np.ndarray, " L"]
    loss_mask: Bool[np.ndarray, " L"]
    labels: Int32[np.ndarray, " L"]
    key_padding_mask: Bool[np.ndarray, " L"]
    length: int
    has_image: bool
    img_path: str | None
    source: Source


def feature(data: np.ndarray, name: str) -> np.ndarray:
    """Return one feature of `data` (..., 4, L) by its name."""
    return data[..., FEATURES.index(name), :]


def _kind(value: Any) -> str:
    """Return the annotation of a plain value, as the fields of `RowLayout` have it."""
    return f"tuple[{', '.join(map(_kind, value))}]" if isinstance(value, tuple) else type(value).__name__


def _plain(value: Any) -> Any:
    """Turn what h5py or JSON gives for an attribute into the plain value that was stored."""
    if isinstance(value, (np.ndarray, list, tuple)):
        return tuple(_plain(item) for item in value)
    if isinstance(value, np.generic):
        value = value.item()
    return value.decode() if isinstance(value, bytes) else value
