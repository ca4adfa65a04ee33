"""A model folder of any format, opened but unread: sizes, fingerprint, tokenizer, and what fills a model."""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.errors import TrainError
from trainer.inference.runs import asked_folder, is_step
from trainer.model import FolderError, LlavaConfig, LlavaModel, load_config, load_layout, load_model
from trainer.model.folder import CONFIG, TOKENIZER

if TYPE_CHECKING:
    from converters.hub import Hub


@dataclass(frozen=True, slots=True)
class Source:
    """A model whose weights are still on disk."""

    config: LlavaConfig
    facts: Mapping[str, Any]
    """The fingerprint of the shards that it was trained on; empty where nobody knows."""
    tokenizer: Path | Mapping[str, bytes]
    """A folder, or files by their names."""
    fill: Callable[[torch.device, torch.dtype], LlavaModel]
    """Returns the model with its weights; memory: the model once, and one tensor."""
    notes: Sequence[str] = field(default_factory=tuple)


def open_source(folder: Path, base: Path | None) -> Source:
    """Open a model folder, or what a run has come to; an adapter and a checkpoint to go on from need their base.

    Raises:
        TrainError: its base is missing or another, it has no use for one, or it is a run that has nothing to ask yet.
        ConversionError, UnsupportedError, FolderError, IntegrityError: it cannot be read.
    """
    if not folder.exists():
        raise TrainError(f"{folder}: no such folder")
    asked = asked_folder(folder)
    source = _open_model(asked, base)
    notes = [] if asked == folder else [f"{folder} is a run; asked: {asked}"]
    return replace(source, notes=[*notes, *source.notes])


def _open_model(folder: Path, base: Path | None) -> Source:
    if _is_own(folder):
        if base is not None:
            raise _needs_no_base(folder, "a checkpoint")
        if not (folder / TOKENIZER / "tokenizer.json").is_file():
            raise FolderError(f"{folder} is incomplete: {TOKENIZER}/tokenizer.json is missing")
        return Source(load_config(folder), load_layout(folder) or {}, folder / TOKENIZER, partial(_fill_own, folder))
    if is_step(folder):
        from trainer.inference.steps import open_step

        return open_step(folder, base)
    from converters.hub import build_model

    hub = _read(folder, base)
    # A checkpoint's tokenizer folder may hold a chat template, which formats do not carry.
    own = base is not None and _is_own(base)
    tokenizer = base / TOKENIZER if own and base is not None else hub.tokenizer
    return Source(hub.config, hub.data or {}, tokenizer, partial(build_model, hub), hub.notes)


def _is_own(folder: Path) -> bool:
    # As `converters.formats.trainer.suits`; importing that package takes seconds, since it imports transformers.
    with suppress(OSError, ValueError):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        return isinstance(config, dict) and {"vision", "language", "image_mean"} <= config.keys()
    return False


def _fill_own(folder: Path, device: torch.device, dtype: torch.dtype) -> LlavaModel:
    return load_model(folder, device, dtype)[0]


def _read(folder: Path, base: Path | None) -> "Hub":
    from converters.formats import FORMATS, detect

    found = FORMATS[detect(folder)]
    if base is not None and "base" not in found.others:
        raise _needs_no_base(folder, found.title)
    return found.read(folder, **({} if base is None else {"base": base}))


def _needs_no_base(folder: Path, what: str) -> TrainError:
    return TrainError(
        f"base: {folder} is a whole model ({what}); only an adapter, a projector or a run's checkpoint has a base"
    )
