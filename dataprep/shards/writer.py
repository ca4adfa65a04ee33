"""Rows to the bytes of a shard, and bytes to a file that is whole or absent.

The HDF5 file is built in memory (h5py's `core` driver) and its image is written by us: a full disk is then a plain
`OSError`, a kill leaves no half-written HDF5 structure, and the hash is known before the file has its name.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np
from isal import isal_zlib

from dataprep.shards.content import ContentHash
from dataprep.shards.embedded import CodedPicture, PictureTable
from dataprep.shards.layout import FEATURES, NO_IMAGE, Row, RowLayout

#: isal's level 1 writes smaller chunks than zlib's and an order of magnitude faster; any HDF5 library reads them.
DEFLATE_LEVEL = 1


@dataclass(frozen=True, slots=True)
class ShardImage:
    """A finished shard in memory."""

    content: bytes
    num_rows: int
    sha256: str
    """Of the file: equal on one kind of machine with the same library versions."""
    content_sha256: str
    """Of the decoded arrays: equal everywhere."""


class ShardWriter:
    """Collects rows and lays them out as one HDF5 file.

    Args:
        layout: becomes the root attributes.
        dtype: of `data`; int32 as the Model Zoo writes it, or uint16 where the vocabulary fits.
    """

    def __init__(self, layout: RowLayout, dtype: str = "int32") -> None:
        self.layout = layout
        self.dtype = np.dtype(dtype)
        self.num_bytes = 0
        self._chunks: list[bytes] = []
        self._rows: list[tuple[bytes, int, int, bool]] = []
        self._sources: list[tuple[int, int, bytes]] = []
        self._files: dict[str, int] = {}
        self._content = ContentHash(layout)
        self._pictures = PictureTable(layout.image_size)

    def __len__(self) -> int:
        return len(self._rows)

    def write(self, row: Row) -> None:
        """Add one row; it is compressed at once, so that a shard in hand costs what it will cost on disk."""
        data = np.ascontiguousarray(row.data, dtype=self.dtype)
        chunk = isal_zlib.compress(data, DEFLATE_LEVEL)
        path = NO_IMAGE if row.img_path is None else row.img_path.encode("utf-8")
        self._chunks.append(chunk)
        self._rows.append((path, row.length, row.num_loss_tokens, row.img_path is not None))
        file_index = self._files.setdefault(row.source.file, len(self._files))
        self._sources.append((file_index, row.source.line, row.source.id.encode("utf-8")))
        self._content.add(row.data, path, row.length, row.num_loss_tokens)
        self.num_bytes += len(chunk) + len(path)

    @property
    def num_sources(self) -> int:
        """Number of input files that the rows come from; an HDF5 attribute holds the names of some thousands."""
        return len(self._files)

    def has_picture(self, key: str) -> bool:
        """Return whether the picture of an image key is in the shard."""
        return key in self._pictures

    def add_picture(self, key: str, picture: CodedPicture) -> None:
        """Store a picture for all rows whose `img_path` is `key`, written before or after."""
        self.num_bytes += self._pictures.add(key, picture)

    def finish(self) -> ShardImage:
        """Return the shard; the writer is used up."""
        with h5py.File("shard", "w", driver="core", backing_store=False, libver="earliest") as file:
            self._attributes(file)
            self._data(file)
            self._columns(file)
            file.flush()
            content = file.id.get_file_image()
        return ShardImage(content, len(self), hashlib.sha256(content).hexdigest(), self._content.hexdigest())

    def _attributes(self, file: h5py.File) -> None:
        file.attrs["n_examples"] = len(self)
        for name, value in self.layout.attributes().items():
            file.attrs[name] = value

    def _data(self, file: h5py.File) -> None:
        slots = self.layout.max_seq_length
        data: Any = file.create_dataset(
            "data",
            shape=(len(self), len(FEATURES), slots),
            dtype=self.dtype,
            # One row a chunk: training reads rows at random, and many-row chunks cost a whole chunk a read.
            chunks=(1, len(FEATURES), slots),
            compression="gzip",
            track_times=False,
        )
        for index, chunk in enumerate(self._chunks):
            data.id.write_direct_chunk((index, 0, 0), chunk)

    def _columns(self, file: h5py.File) -> None:
        paths = [row[0] for row in self._rows]
        # h5py reads fixed-length bytes without trailing NULs; a path has none.
        file.create_dataset("img_path", data=np.array(paths, dtype="S").reshape(-1, 1), track_times=False)
        for name, column, dtype in (("length", 1, "int32"), ("num_loss_tokens", 2, "int32"), ("has_image", 3, "bool")):
            values = np.array([row[column] for row in self._rows], dtype=dtype)
            file.create_dataset(name, data=values, track_times=False)
        source = file.create_group("source")
        source.attrs["source_files"] = list(self._files)
        for name, column, dtype in (("file", 0, "int32"), ("line", 1, "int64"), ("id", 2, "S")):
            values = np.array([entry[column] for entry in self._sources], dtype=dtype)
            source.create_dataset(name, data=values, track_times=False)
        self._pictures.write(file, paths, self._content)


@contextmanager
def whole_file(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """Give a file to write; it gets the name `path` when the block ends well, and nothing is left when it does not.

    Args:
        durable: wait until the disk has it, so that it is whole after a power failure too.

    Raises:
        OSError: errno 28 where the disk is full.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def publish(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that the file is whole or absent, whatever happens in between."""
    with whole_file(path) as file:
        file.write(content)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
