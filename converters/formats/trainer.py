"""The hub itself: the trainer's checkpoint folder (`trainer/model/folder.py` says how it lies on disk)."""

import json
from pathlib import Path

from converters.errors import ConversionError
from converters.files import read_tensors, write_tensors
from converters.hub import Hub, check_shapes, read_tokenizer
from converters.rules import Rule, to_ours
from trainer.model import load_config, load_layout, parameter_shapes
from trainer.model.folder import CONFIG, DATA, TOKENIZER


def suits(folder: Path) -> bool:
    """Return whether a folder looks like the trainer's: its config has the three parts under our names."""
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and {"vision", "language", "image_mean"} <= config.keys()


def read(folder: Path) -> Hub:
    """Read a checkpoint folder; raises `FolderError` or `ConversionError` when it is not whole."""
    config = load_config(folder)
    expected = parameter_shapes(config)
    # Our names are the hub's, so each tensor's rule is its own name.
    tensors = to_ours(read_tensors(folder), [Rule(name, name) for name in expected], expected)
    check_shapes(config, tensors)
    if not (folder / TOKENIZER).is_dir():
        raise ConversionError(f"{folder} is incomplete: it holds no folder {TOKENIZER}")
    return Hub(config, tensors, read_tokenizer(folder / TOKENIZER), load_layout(folder))


def write(hub: Hub, folder: Path, max_shard_bytes: int) -> None:
    """Write a checkpoint folder into an existing, empty folder."""
    hub.config.to_json(folder / CONFIG)
    write_tensors(folder, hub.tensors, max_shard_bytes)
    (folder / TOKENIZER).mkdir()
    for name, content in hub.tokenizer.items():
        (folder / TOKENIZER / name).write_bytes(content)
    if hub.data is not None:
        (folder / DATA).write_text(json.dumps(hub.data, indent=2) + "\n", encoding="utf-8")
