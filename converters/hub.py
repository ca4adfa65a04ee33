"""What every format is read into and written from."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from converters.errors import ConversionError
from converters.files import LazyTensor
from converters.sentencepiece_files import tokenizer_files
from trainer.model import FolderError, LlavaConfig, LlavaModel, listed, parameter_shapes

#: The files of a tokenizer, where they are there. `tokenizer.model` is for formats that need SentencePiece's file.
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
)


@dataclass(frozen=True, slots=True)
class Hub:
    """A model in the trainer's terms, its tensors unread."""

    config: LlavaConfig
    tensors: Sequence[LazyTensor]
    """All of the model, under the trainer's names."""
    tokenizer: Mapping[str, bytes]
    """File name -> content."""
    data: Mapping[str, Any] | None
    """What the shards were that the model was trained on, and under `training` how; None for starting weights and
    foreign models."""
    notes: Sequence[str] = ()
    """What reading left behind on purpose, one sentence each."""


def read_tokenizer(folder: Path) -> dict[str, bytes]:
    """Return the tokenizer's files of a folder; a missing `tokenizer.json` is made from `tokenizer.model`.

    Raises `ConversionError` when there is neither, or the latter cannot be used.
    """
    files = {name: (folder / name).read_bytes() for name in TOKENIZER_FILES if (folder / name).is_file()}
    if "tokenizer.json" not in files and "tokenizer.model" in files:
        added = _added_tokens(folder / "added_tokens.json")
        files = tokenizer_files(files["tokenizer.model"], added, f"{folder / 'tokenizer.model'}") | files
    if "tokenizer.json" not in files:
        raise ConversionError(f"{folder} holds no tokenizer: neither tokenizer.json nor tokenizer.model")
    return files


def _added_tokens(path: Path) -> dict[str, int]:
    try:
        found = json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(found, dict) or not all(type(index) is int for index in found.values()):
        raise ConversionError(f"{path}: expected a table of tokens with their ids")
    return found


def check_shapes(config: LlavaConfig, tensors: Sequence[LazyTensor]) -> None:
    """Refuse tensors of another shape than the config says, all in one `ConversionError`."""
    shapes = parameter_shapes(config)
    wrong = [f"{t.name} {t.shape}, expected {shapes[t.name]}" for t in tensors if t.shape != shapes[t.name]]
    if wrong:
        raise ConversionError("tensors are of another shape than the config says: " + listed(wrong, "; "))


def build_model(hub: Hub, device: torch.device, dtype: torch.dtype) -> LlavaModel:
    """Return a model with the hub's tensors, read one after the other; `FolderError` when some are missing."""
    with torch.device("meta"):
        model = LlavaModel(hub.config)
    model.to(dtype).to_empty(device=device)
    state = model.state_dict()
    missing = state.keys() - {tensor.name for tensor in hub.tensors}
    if missing:
        raise FolderError(f"the model lacks {len(missing)} tensors, the first of them {min(missing)}")
    for tensor in hub.tensors:
        with torch.no_grad():
            state[tensor.name].copy_(tensor.load())
    return model
