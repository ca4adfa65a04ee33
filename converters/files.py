"""Safetensors files, one tensor at a time: memory is one tensor, not one model.

The format (github.com/huggingface/safetensors): eight bytes with the length of the header, least significant first;
the header, a JSON table of name -> dtype, shape and begin and end of its bytes; then the bytes of all tensors.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from converters.errors import ConversionError
from trainer.model import FolderError, tensor_files
from trainer.model.folder import INDEX, WEIGHTS, open_weights

#: Names that safetensors gives to dtypes.
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
#: What a system says that cannot copy between these two files: on other disks, of other kinds.
_CANNOT_COPY = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Place:
    """Where in a file a tensor's bytes lie, as they are to be written: they need not pass through this program."""

    path: Path
    begin: int


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is known by name, shape and dtype, and read only when `load` is called."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    load: Callable[[], Tensor]
    place: Place | None = None
    """Where its bytes lie; None where they have to be made."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the values."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize

    def renamed(self, name: str) -> "LazyTensor":
        """Return the same tensor under another name."""
        return replace(self, name=name)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "LazyTensor":
        """Return what `change` makes of the tensor, still unread; `change` must also work on meta tensors."""
        result = change(torch.empty(self.shape, dtype=self.dtype, device="meta"))
        load = self.load
        return replace(self, shape=tuple(result.shape), dtype=result.dtype, load=lambda: change(load()), place=None)


def read_tensors(folder: Path) -> list[LazyTensor]:
    """Return the tensors of a folder (`model.safetensors`, or the files of its index), unread.

    Raises `ConversionError` when there are none or a file is missing, damaged or of an unknown dtype.
    """
    try:
        files = tensor_files(folder)
        begins = {path: _begins(path) for path in set(files.values())}
        return [_lazy(path, name, begins[path]) for name, path in files.items()]
    except FolderError as error:
        hint = " (a checkpoint of ours is safetensors alone)"
        raise ConversionError(f"{error}{hint if list(folder.glob('*.bin')) else ''}") from error


def read_file(path: Path) -> list[LazyTensor]:
    """Return the tensors of one safetensors file, unread; raises `ConversionError` as `read_tensors`."""
    try:
        with open_weights(path) as weights:
            names = list(weights.keys())
        return [_lazy(path, name, _begins(path)) for name in names]
    except FolderError as error:
        raise ConversionError(str(error)) from error


def _begins(path: Path) -> dict[str, int]:
    """Return where in a whole file each tensor's bytes begin."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}


def _lazy(path: Path, name: str, begins: Mapping[str, int]) -> LazyTensor:
    with open_weights(path) as weights:
        view = weights.get_slice(name)
        if view.get_dtype() not in DTYPES:
            raise ConversionError(f"{path}: {name} is of dtype {view.get_dtype()}, which is not converted")
        shape, dtype = tuple(view.get_shape()), DTYPES[view.get_dtype()]
        return LazyTensor(name, shape, dtype, partial(_read, path, name), Place(path, begins[name]))


def _read(path: Path, name: str) -> Tensor:
    with open_weights(path) as weights:
        return weights.get_tensor(name)


def write_tensors(folder: Path, tensors: Sequence[LazyTensor], max_shard_bytes: int) -> None:
    """Write tensors into a folder: `model.safetensors`, or shards with an index when they exceed `max_shard_bytes`."""
    shards = _cut(tensors, max_shard_bytes)
    if len(shards) == 1:
        _write_file(folder / WEIGHTS, shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_file(folder / name, shard)
        weight_map |= {tensor.name: name for tensor in shard}
    index = {"metadata": {"total_size": sum(tensor.num_bytes for tensor in tensors)}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _cut(tensors: Iterable[LazyTensor], max_bytes: int) -> list[list[LazyTensor]]:
    shards: list[list[LazyTensor]] = [[]]
    filled = 0
    for tensor in tensors:
        if shards[-1] and filled + tensor.num_bytes > max_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(tensor)
        filled += tensor.num_bytes
    return shards


def _write_file(path: Path, tensors: Iterable[LazyTensor]) -> None:
    # Wide values first, so that each tensor's bytes start at a multiple of its width.
    ordered = sorted(tensors, key=lambda tensor: -tensor.dtype.itemsize)
    with path.open("wb") as file, ThreadPoolExecutor(max_workers=1) as beside:
        _write_header(file, ordered)
        begun: Future[None] | None = None
        for tensor in ordered:
            _write_tensor(file, tensor)
            file.flush()
            if begun is None or begun.done():
                begun = beside.submit(_start_writing, file.fileno())


def _write_header(file: BinaryIO, tensors: Iterable[LazyTensor]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for tensor in tensors:
        end = begin + tensor.num_bytes
        header[tensor.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)


def _write_tensor(file: BinaryIO, tensor: LazyTensor) -> None:
    if tensor.place is None or not _copied(tensor.place, tensor.num_bytes, file):
        _write_values(file, tensor)


def _write_values(file: BinaryIO, tensor: LazyTensor) -> None:
    values = tensor.load()
    if tuple(values.shape) != tensor.shape or values.dtype != tensor.dtype:
        found, expected = f"{tuple(values.shape)} {values.dtype}", f"{tensor.shape} {tensor.dtype}"
        raise ConversionError(f"{tensor.name}: expected {expected}, found {found}")
    # As bytes, since numpy has no bfloat16; a number without dimensions needs one for that.
    file.write(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _copied(place: Place, num_bytes: int, file: BinaryIO) -> bool:
    """Have the system copy bytes behind what was written, as `cp` does; return whether it could."""
    if not hasattr(os, "copy_file_range"):
        return False
    file.flush()
    begin = done = file.tell()
    with place.path.open("rb") as source:
        while done < begin + num_bytes:
            try:
                offset, left = place.begin + done - begin, begin + num_bytes - done
                count = os.copy_file_range(source.fileno(), file.fileno(), left, offset, done)
            except OSError as error:
                if error.errno not in _CANNOT_COPY or done > begin:
                    raise
                return False
            if not count:
                raise ConversionError(f"{place.path} became shorter while it was read")
            done += count
    file.seek(done)
    return True


def _start_writing(file: int) -> None:
    """Let the disk begin with what was written, while the next tensor is read: it all has to arrive in the end."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
