"""A checkpoint folder of the trainer, and how it is written whole or not at all.

```
FOLDER/config.json          LlavaConfig
FOLDER/model.safetensors    the parameters under their own names
                            (or model-0000i-of-0000n.safetensors with model.safetensors.index.json)
FOLDER/tokenizer/           tokenizer.json, tokenizer_config.json and what else came with them
FOLDER/data.json            what the shards were that it was trained on, and under `training` how; absent for
                            starting weights
```
"""

import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from trainer.model.config import LlavaConfig
from trainer.model.llava import LlavaModel

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer"
DATA = "data.json"

#: Tensors that a message names, at most; a model has hundreds.
MAX_NAMES = 10


#: Blocks of a weight file that its identity is taken from, and their size.
NUM_PROBES = 64
PROBE_BYTES = 1 << 16


class FolderError(ValueError):
    """A model folder that is incomplete or damaged; one sentence."""


class FolderConflict(FolderError):
    """A folder that is to be written and already holds something; one sentence."""


def load_model(
    folder: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    attention: str = "sdpa",
) -> tuple[LlavaModel, LlavaConfig]:
    """Load a checkpoint folder; memory: the model and one tensor.

    Raises `FolderError` when a file of the folder is missing or unreadable, or when tensors are missing, unknown or
    of another shape than the config says: the first of them are listed.
    """
    folder = Path(folder)
    config = load_config(folder)
    if not (folder / TOKENIZER / "tokenizer.json").is_file():
        raise FolderError(f"{folder} is incomplete: {TOKENIZER}/tokenizer.json is missing")
    with torch.device("meta"):
        model = LlavaModel(config, attention)
    model.to(dtype).to_empty(device=device)
    fill_parameters(model, folder)
    return model, config


def load_config(folder: Path | str) -> LlavaConfig:
    """Return the config of a checkpoint folder; `FolderError` when it is missing or does not hold one."""
    path = Path(folder) / CONFIG
    try:
        return LlavaConfig.from_json(path)
    except OSError as error:
        raise FolderError(f"{folder} is incomplete: {CONFIG} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise FolderError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise FolderError(f"{path}: {place or 'the file'}: {first['msg']}") from error


def load_layout(folder: Path | str) -> dict[str, Any] | None:
    """Return what `data.json` says of the shards the model was trained on; None for starting weights.

    Raises `FolderError` when the file holds something else than a table.
    """
    path = Path(folder) / DATA
    if not path.exists():
        return None
    try:
        layout = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FolderError(f"{path} is not JSON: {error}") from error
    if not isinstance(layout, dict):
        raise FolderError(f"{path}: expected a table, found a {type(layout).__name__}")
    return layout


def fill_parameters(model: LlavaModel, folder: Path) -> None:
    """Copy the tensors of a folder into a model, one at a time; any mismatch is a `FolderError` that lists it."""
    state = model.state_dict()
    for name, tensor in read_parameters(folder, {name: tuple(tensor.shape) for name, tensor in state.items()}):
        with torch.no_grad():
            state[name].copy_(tensor)


def read_parameters(
    folder: Path, expected: Mapping[str, tuple[int, ...]], but: Collection[str] = ()
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a folder by name, one at a time, all but those named.

    `expected` are the names and shapes of a whole model; `FolderError` lists what is missing, unknown or of another
    shape, before the first tensor is read.
    """
    files = tensor_files(folder)
    _refuse(folder, "missing", sorted(expected.keys() - files.keys()))
    _refuse(folder, "unknown", sorted(files.keys() - expected.keys()))
    with ExitStack() as stack:
        opened = {path: stack.enter_context(open_weights(path)) for path in sorted(set(files.values()))}
        found = {name: tuple(opened[path].get_slice(name).get_shape()) for name, path in files.items()}
        wrong = [f"{name} {found[name]}, expected {shape}" for name, shape in expected.items() if found[name] != shape]
        _refuse(folder, "of another shape", wrong)
        for name in expected:
            if name not in but:
                yield name, opened[files[name]].get_tensor(name)


def open_weights(path: Path) -> safe_open:
    """Open a safetensors file for reading tensor by tensor; `FolderError` when it is missing or cut short."""
    try:
        return safe_open(str(path), framework="pt", device="cpu")
    except (OSError, SafetensorError) as error:
        raise FolderError(f"{path} is not a whole safetensors file: {error}") from error


def tensor_files(folder: Path | str) -> dict[str, Path]:
    """Return the file that holds each tensor of a folder, by the tensor's name.

    Reads `model.safetensors`, or `model.safetensors.index.json` and the files that it names. Raises `FolderError`
    when neither is there, or when the index names a file that is missing or does not hold what it says.
    """
    folder = Path(folder)
    if (folder / WEIGHTS).exists():
        with open_weights(folder / WEIGHTS) as weights:
            return dict.fromkeys(weights.keys(), folder / WEIGHTS)
    if not (folder / INDEX).exists():
        raise FolderError(f"{folder} is incomplete: it holds neither {WEIGHTS} nor {INDEX}")
    files = {}
    for name in sorted(set(read_index(folder / INDEX).values())):
        with open_weights(folder / name) as weights:
            files |= dict.fromkeys(weights.keys(), folder / name)
    _refuse(
        folder, f"named in {INDEX} but in none of its files", sorted(read_index(folder / INDEX).keys() - files.keys())
    )
    return files


def read_index(path: Path) -> dict[str, str]:
    """Return which file holds each tensor, as an index beside the files says; `FolderError` when it does not."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        plain = all(isinstance(name, str) and name == Path(name).name for name in files.values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FolderError(f"{path} is not an index of weight files: no weight_map in it") from error
    if not plain:
        raise FolderError(f"{path}: weight_map: expected names of files in the same folder")
    return files


def _refuse(folder: Path, what: str, names: list[str]) -> None:
    if names:
        raise FolderError(f"{folder}: {len(names)} tensors are {what}: {listed(names)}")


def listed(names: Sequence[str], separator: str = ", ") -> str:
    """Return names as a message lists them: the first `MAX_NAMES`, and how many there are when there are more."""
    shown = separator.join(names[:MAX_NAMES])
    return shown if len(names) <= MAX_NAMES else f"{shown} and {len(names) - MAX_NAMES} more ({len(names)} in all)"


def save_model(
    folder: Path | str,
    state_dict: Mapping[str, Tensor],
    config: LlavaConfig,
    tokenizer_dir: Path | str,
    layout: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint folder: complete under its name, or not there at all.

    `tokenizer_dir` is a folder with the tokenizer's files, which are copied; `layout` describes the shards that the
    model was trained on. Raises `FolderConflict` when `folder` exists and is not empty.
    """
    with whole_folder(Path(folder)) as unfinished:
        config.to_json(unfinished / CONFIG)
        # Views into larger storage (gathered shards, say) would not be saved otherwise.
        tensors = {name: tensor.detach().to("cpu").contiguous() for name, tensor in state_dict.items()}
        save_file(tensors, str(unfinished / WEIGHTS), metadata={"format": "pt"})
        # safetensors writes through a temporary file that only its owner may read; the others follow the umask.
        shutil.copymode(unfinished / CONFIG, unfinished / WEIGHTS)
        shutil.copytree(tokenizer_dir, unfinished / TOKENIZER)
        if layout is not None:
            (unfinished / DATA).write_text(json.dumps(layout, indent=2) + "\n", encoding="utf-8")


def weights_identity(folder: Path) -> str:
    """Return a hash of a folder's weights, wherever it lies: file sizes, and `NUM_PROBES` blocks spread over each file.

    A large model's weights are not read whole for this; other weights differ in nearly every block.
    """
    identity = hashlib.sha256()
    for path in sorted(set(tensor_files(folder).values())):
        size = path.stat().st_size
        identity.update(f"{path.name}:{size};".encode())
        with open(path, "rb") as file:
            for number in range(NUM_PROBES):
                file.seek(size * number // NUM_PROBES)
                identity.update(file.read(PROBE_BYTES))
    return identity.hexdigest()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to write into; when all went well it is flushed to disk and gets the name.

    After an error nothing is left. Raises `FolderConflict` when `folder` exists and is not an empty folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FolderConflict(f"{folder} already exists; give a new folder or remove it first")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.with_name(f".{folder.name}.unfinished-{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        _flush([*unfinished.rglob("*"), unfinished])
        # Renaming onto an empty folder replaces it in one step; onto a full one it fails.
        unfinished.rename(folder)
        _flush([folder.parent])
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _flush(paths: Iterable[Path]) -> None:
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
