"""torch's pickled weights (`.bin`, `.pt`, `.pth`, `.mdl`), read as tensors and as nothing else.

A pickle is a program: whoever opens one with Python's `pickle` runs it. Here it goes only through
`torch.load(weights_only=True)`, which knows tensors, tables and numbers and refuses all else before it is called.
"""

import re
import warnings
import zipfile
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import Tensor

from converters.errors import ConversionError
from converters.files import DTYPES, LazyTensor, read_tensors
from trainer.model import FolderError, listed
from trainer.model.folder import INDEX, WEIGHTS, read_index

#: transformers' names for a model's pickled weights: one file, or several and an index of them.
PICKLED_WEIGHTS = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"

#: Bytes that are read from a mapped file before it is mapped anew: pages once read count as this program's memory.
MAX_MAPPED = 64 * 2**20

#: Letters of torch's error that a message repeats, at most; it goes on for a page.
MAX_REASON = 200


def read_weights(folder: Path) -> list[LazyTensor]:
    """Return the tensors of a folder as transformers saves it, unread: safetensors, or else pickled, whole or sharded.

    Raises `ConversionError` when there are none, or a file is missing, damaged, or more than tensors.
    """
    if _any_of(folder, WEIGHTS, INDEX) or not _any_of(folder, PICKLED_WEIGHTS, PICKLED_INDEX):
        return read_tensors(folder)
    if (folder / PICKLED_WEIGHTS).exists():
        return read_pickled(folder / PICKLED_WEIGHTS)
    try:
        files = read_index(folder / PICKLED_INDEX)
    except FolderError as error:
        raise ConversionError(str(error)) from error
    tensors = [tensor for name in sorted(set(files.values())) for tensor in read_pickled(folder / name)]
    if lost := sorted(files.keys() - {tensor.name for tensor in tensors}):
        raise ConversionError(f"{folder}: named in {PICKLED_INDEX} but in none of its files: {listed(lost)}")
    return tensors


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds anything that `read_weights` would read."""
    return _any_of(folder, WEIGHTS, INDEX, PICKLED_WEIGHTS, PICKLED_INDEX)


def _any_of(folder: Path, *names: str) -> bool:
    return any((folder / name).exists() for name in names)


def read_pickled(path: Path, part: str | None = None) -> list[LazyTensor]:
    """Return the tensors of a pickled state dict, unread: values stay in the file until they are asked for.

    `part` is the key under which a training checkpoint keeps the state dict; None where it is the whole file. Raises
    `ConversionError` when the file is missing, cut short, older than torch 1.6, asks for more than tensors, or holds
    something else than a table of names and dense tensors.
    """
    opened = _Pickled(path, part)
    return [
        LazyTensor(name, tuple(tensor.shape), tensor.dtype, partial(opened.load, name))
        for name, tensor in opened.tensors.items()
    ]


class _Pickled:
    """A state dict in a file, mapped into memory; at most `MAX_MAPPED` bytes and one tensor of it are there at once."""

    def __init__(self, path: Path, part: str | None) -> None:
        self.path, self.part = path, part
        self._map()

    def load(self, name: str) -> Tensor:
        """Return one tensor; it stays valid after the file is mapped anew."""
        tensor = self.tensors[name]
        if self._num_read and self._num_read + tensor.nbytes > MAX_MAPPED:
            self._map()
            tensor = self.tensors[name]
        self._num_read += tensor.nbytes
        return tensor

    def _map(self) -> None:
        self.tensors = _state_dict(self.path, self.part)
        self._num_read = 0


def _state_dict(path: Path, part: str | None) -> dict[str, Tensor]:
    _check_archive(path)
    try:
        with warnings.catch_warnings(action="ignore"):  # of newer pickle protocols: they are read, or it is an error
            content = torch.load(str(path), map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the pickle decides where it breaks, and so with what
        raise ConversionError(f"{path} is not read: {_reason(error)}") from error
    if part is not None:
        if not isinstance(content, dict) or part not in content:
            raise ConversionError(f"{path}: expected a table with {part!r}, found {_kind(content)}")
        content = content[part]
    place = f"{path}: {part}" if part else str(path)
    if not isinstance(content, dict) or not content:
        raise ConversionError(f"{place}: expected a table of tensors, found {_kind(content)}")
    return {_name(name, place): _dense(name, tensor, place) for name, tensor in content.items()}


def _check_archive(path: Path) -> None:
    """Refuse what `torch.load` would not map, or would map wrongly, with a message that says what to do."""
    try:
        with path.open("rb") as file:
            begin = file.read(4)
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror})") from error
    except Exception as error:  # a hostile archive breaks in many places
        if begin.startswith(b"PK"):
            raise ConversionError(f"{path} is cut short or damaged: no table at its end ({error})") from error
        hint = (
            "load it once in a place that may be harmed, and save it again with torch.save" if begin else "it is empty"
        )
        raise ConversionError(f"{path} is not an archive as torch.save writes it since torch 1.6: {hint}") from error
    if packed:  # torch maps the packed bytes as if they were values
        raise ConversionError(f"{path} is compressed ({packed[0]}); torch.save stores weights as they are")


def _reason(error: Exception) -> str:
    """Return what torch found, without its page of advice, which tells users to open the file unsafely."""
    found = error.__context__ if isinstance(error.__context__, UnpicklingError) else error
    text = str(found).split("In PyTorch 2.6")[0]
    if asked := re.search(r"GLOBAL (\S+)", text):
        return f"it asks for {asked[1]}, which is no tensor and was not run"
    return f"it is damaged or no state dict ({_cut(text) or type(found).__name__})"


def _cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= MAX_REASON else text[:MAX_REASON] + "..."


def _kind(content: Any) -> str:
    if isinstance(content, dict):
        return f"one with {listed([repr(key) for key in content])}" if content else "an empty one"
    return f"a {type(content).__name__}"


def _name(name: Any, place: str) -> str:
    if not isinstance(name, str):
        raise ConversionError(f"{place}: expected names of tensors, found {name!r}")
    return name


def _dense(name: Any, tensor: Any, place: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise ConversionError(f"{place}: {name}: expected a tensor, found a {type(tensor).__name__}")
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.dtype not in DTYPES.values():
        found = f"{tensor.layout} {tensor.dtype} on {tensor.device}"
        raise ConversionError(f"{place}: {name}: expected plain values, found {found.replace('torch.', '')}")
    return tensor.detach()
