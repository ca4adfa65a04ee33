"""The trained weights in a checkpoint of a run, read by one process, however many wrote them.

The files are those of torch.distributed.checkpoint (torch 2.13, `filesystem.py` and `metadata.py`): `.metadata` is a
pickled `Metadata` that says in which file and at which byte each part of a tensor lies, a part is what `torch.save`
writes. Optimizer states lie beside the weights, and are not read.

Both may come from anywhere, and a pickle may run any program: of `.metadata` only the classes are admitted that torch
writes there, and parts are read with `weights_only`. (torch's own reader does the former for none, and the latter for
tensors alone: what `.metadata` calls bytes it would unpickle whole.)
"""

import io
import math
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from trainer.errors import IntegrityError
from trainer.model.folder import listed

METADATA = ".metadata"

#: What the names of the weights begin with; the optimizer's begin with `optimizer.`.
PREFIX = "model."

_HOME = "torch.distributed.checkpoint"

#: Module and name of all that torch writes into `.metadata`; number types (`torch.float32`) come on top.
ADMITTED = frozenset(
    {
        ("torch", "Size"),
        ("torch.serialization", "_get_layout"),
        (f"{_HOME}.filesystem", "_StorageInfo"),
        (f"{_HOME}.metadata", "BytesStorageMetadata"),
        (f"{_HOME}.metadata", "ChunkStorageMetadata"),
        (f"{_HOME}.metadata", "Metadata"),
        (f"{_HOME}.metadata", "MetadataIndex"),
        (f"{_HOME}.metadata", "StorageMeta"),
        (f"{_HOME}.metadata", "TensorProperties"),
        (f"{_HOME}.metadata", "TensorStorageMetadata"),
        (f"{_HOME}.metadata", "_MEM_FORMAT_ENCODING"),
    }
)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if name == "PosixPath" and module in ("pathlib", "pathlib._local"):  # the latter in Python 3.13
            return PurePosixPath
        if module == "torch" and isinstance(found := getattr(torch, name, None), torch.dtype):
            return found
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint needs")
        return super().find_class(module, name)


class TrainedWeights:
    """The weights of one checkpoint, read tensor by tensor."""

    def __init__(self, folder: Path, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Read where everything lies, and make sure that it is what the run trains.

        Args:
            expected: names and shapes of all that the run trains.

        Raises:
            IntegrityError: `.metadata` is damaged or no such file, or tensors are missing, unknown or of another shape.
        """
        self.folder, self.names = folder, expected.keys()
        try:
            self._tensors, self._places = _table_of_contents(folder / METADATA)
            wrong = {name for name, shape in expected.items() if not self._is_whole(name, shape)}
        except Exception as error:  # a damaged file makes the unpickler raise nearly anything
            raise IntegrityError(f"{folder / METADATA} cannot be read: {_cause(error)}") from error
        for what, names in (("incomplete or of another shape", wrong), ("unknown", self._tensors.keys() - expected)):
            if names:
                raise IntegrityError(f"{folder}: {len(names)} tensors are {what}: {listed(sorted(names))}")

    def _is_whole(self, name: str, shape: tuple[int, ...]) -> bool:
        """Return whether a tensor has this shape, and parts for all of it, each in a file of this folder."""
        about = self._tensors.get(name)
        chunks = getattr(about, "chunks", None)  # what torch calls bytes has none
        if about is None or chunks is None or tuple(about.size) != shape:
            return False
        files = [Path(self._places.get((name, tuple(chunk.offsets)), ("",))[0]) for chunk in chunks]
        plain = all(file.name == str(file) and file.suffix == ".distcp" for file in files)
        return plain and sum(math.prod(chunk.sizes) for chunk in chunks) == math.prod(shape)

    def read(self, name: str) -> Tensor:
        """Return one tensor, on the CPU and in the dtype that it is trained in.

        Raises:
            IntegrityError: a file is missing or damaged.
        """
        about = self._tensors[name]
        whole = torch.empty(tuple(about.size), dtype=about.properties.dtype)
        for chunk in about.chunks:
            file, start, length = self._places[name, tuple(chunk.offsets)]
            place = tuple(slice(at, at + size) for at, size in zip(chunk.offsets, chunk.sizes, strict=True))
            try:
                part = _read_part(self.folder / file, start, length)
                if not isinstance(part, Tensor) or part.shape != whole[place].shape:
                    raise ValueError(f"expected a tensor of shape {tuple(chunk.sizes)}")
                whole[place] = part
            except Exception as error:  # as above
                raise IntegrityError(f"{self.folder / file} cannot be read: {name}: {_cause(error)}") from error
        return whole


def _table_of_contents(path: Path) -> tuple[dict[str, Any], dict[tuple[str, tuple[int, ...]], tuple[str, int, int]]]:
    """Return what is said of each weight, and by its name and a part's offsets the file, first byte and length."""
    with open(path, "rb") as file:
        metadata = _Unpickler(file).load()
    tensors = {
        name.removeprefix(PREFIX): about
        for name, about in metadata.state_dict_metadata.items()
        if name.startswith(PREFIX)
    }
    places = {
        (index.fqn.removeprefix(PREFIX), tuple(index.offset)): (place.relative_path, place.offset, place.length)
        for index, place in metadata.storage_data.items()
        if index.fqn.startswith(PREFIX) and index.offset is not None
    }
    return tensors, places


def _read_part(path: Path, start: int, length: int) -> Any:
    with open(path, "rb") as file:
        file.seek(start)
        return torch.load(io.BytesIO(file.read(length)), map_location="cpu", weights_only=True)


def _cause(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it is not there (a run that goes on removes its oldest checkpoints, see `keep`)"
    return f"{type(error).__name__}: {error}".partition("\n")[0]
