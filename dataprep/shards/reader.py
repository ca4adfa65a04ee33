"""A folder of shards as one indexable sequence of rows.

A shard's sha256 is compared with the manifest before HDF5 opens it, on its first use on a node (`once.py`); what came
without a manifest is read through in a child process first (`guarded.py`).
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import UInt8

from dataprep.shards.audit import ForeignPromise
from dataprep.shards.embedded import NO_PICTURE, StoredPictures, open_pictures
from dataprep.shards.guarded import audit_in_child
from dataprep.shards.layout import NO_IMAGE, RowLayout, ShardError, Source, StoredRow, feature
from dataprep.shards.manifest import MANIFEST_NAME, read_manifest, require_sha256
from dataprep.shards.once import Stamp, check_all, check_once, stamp_of

#: Files kept open at once, a process. Each costs about 100 KB.
MAX_OPEN_FILES = 64

#: Rows read at once where columns must be counted.
BLOCK_ROWS = 128


@dataclass(frozen=True, slots=True)
class ShardFile:
    """One file of the folder; `sha256` is None for shards that came without a manifest."""

    path: Path
    num_rows: int
    sha256: str | None


class _Columns(NamedTuple):
    lengths: np.ndarray
    num_loss_tokens: np.ndarray
    has_image: np.ndarray
    has_embedded: np.ndarray


class ShardReader:
    """Reads rows by index over all shards of a folder.

    Opens files lazily and once a process, so that an instance can be sent to loader workers, spawned or forked.

    Attributes:
        layout: what every shard of the folder was compiled for.
        manifest_sha256: the identity of the data, for checkpoints.

    Raises:
        ShardError: no manifest, an unknown format, a shard missing or damaged.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        manifest, raw = read_manifest(folder)
        layout = RowLayout.from_attributes(manifest["layout"], str(folder / MANIFEST_NAME))
        files = [ShardFile(folder / s["file"], s["rows"], s["sha256"]) for s in manifest["shards"]]
        self._start(folder, layout, files, hashlib.sha256(raw).hexdigest())

    @classmethod
    def open_cerebras(
        cls,
        folder: Path | str,
        tokenizer: Path | str,
        image_start_idx: int,
        num_patches: int = 576,
        image_size: int = 336,
    ) -> ShardReader:
        """Open shards that the Cerebras Model Zoo, Release 2.3, wrote (`examples_*.h5`, four features).

        They name neither their features nor their tokenizer, so both are taken from the caller's word. They have no
        checksum either: every file is read through first, in child processes, once a node (`foreign.py`).

        Raises:
            ShardError: a file is damaged, or of another layout (named in the message).
        """
        from dataprep.shards import foreign

        reader = cls.__new__(cls)
        files, layout, promise = foreign.describe(
            Path(folder), Path(tokenizer), image_start_idx, num_patches, image_size
        )
        identity = hashlib.sha256(repr([(f.path.name, f.num_rows, f.path.stat().st_size) for f in files]).encode())
        reader._start(Path(folder), layout, files, identity.hexdigest())
        reader._promise = promise
        return reader

    def _start(self, folder: Path, layout: RowLayout, files: list[ShardFile], identity: str) -> None:
        self.folder = folder
        self.layout = layout
        self.files = files
        self.manifest_sha256 = identity
        self._ends = np.cumsum([file.num_rows for file in files]).tolist()
        self._promise: ForeignPromise | None = None
        self._verified: dict[Path, Stamp] = {}
        self._open: OrderedDict[Path, OpenShard] = OrderedDict()
        self._pid = os.getpid()

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": OrderedDict()}

    def __getitem__(self, index: int) -> StoredRow:
        """Return row `index` of the folder, counted over the shards in the manifest's order."""
        shard, row = self._locate(index)
        return shard.row(row)

    def picture(self, index: int) -> UInt8[np.ndarray, "size size 3"] | None:
        """Return the picture of row `index`, RGB; None where its shard does not hold it.

        Raises:
            ShardError: its code is damaged.
        """
        shard, row = self._locate(index)
        return None if shard.pictures is None else shard.pictures.of(row)

    def _locate(self, index: int) -> tuple[OpenShard, int]:
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: row {index}; there are {len(self)}")
        shard = bisect_right(self._ends, index)
        file = self.files[shard]
        return self._shard(file), index - self._ends[shard] + file.num_rows

    def __iter__(self) -> Iterator[StoredRow]:
        return (self[index] for index in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Attended positions of every row, int32 (rows,)."""
        return self._columns.lengths

    @property
    def num_loss_tokens(self) -> np.ndarray:
        """Trained positions of every row, int32 (rows,)."""
        return self._columns.num_loss_tokens

    @property
    def has_image(self) -> np.ndarray:
        """Whether a row has a picture of its own, bool (rows,)."""
        return self._columns.has_image

    @property
    def has_embedded(self) -> np.ndarray:
        """Whether a row's picture lies in its shard, bool (rows,)."""
        return self._columns.has_embedded

    @cached_property
    def _columns(self) -> _Columns:
        if not self.files:
            nothing = np.zeros(0, np.int32)
            return _Columns(nothing, nothing, nothing.astype(bool), nothing.astype(bool))
        # All at once: hashing a shard after the other would keep a node's other cores waiting.
        check_all(self.files, self._verify)
        parts = [self._shard(file).columns() for file in self.files]
        return _Columns(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def close(self) -> None:
        """Close what is open; the next use opens it again."""
        while self._open:
            self._open.popitem()[1].handle.close()

    def _shard(self, file: ShardFile) -> OpenShard:
        if self._pid != os.getpid():
            # A handle inherited by a fork shares its file position and caches with the parent.
            self._open, self._pid = OrderedDict(), os.getpid()
        if file.path not in self._open:
            self._open[file.path] = self._checked(file)
            if len(self._open) > MAX_OPEN_FILES:
                self._open.popitem(last=False)[1].handle.close()
        self._open.move_to_end(file.path)
        return self._open[file.path]

    def _checked(self, file: ShardFile) -> OpenShard:
        self._verify(file)
        shard = open_shard(file, self.layout)
        if shard.stamp() != self._verified[file.path]:
            shard.handle.close()
            raise ShardError(f"{file.path}: changed while it was being opened; try again when nothing writes there")
        return shard

    def _verify(self, file: ShardFile) -> None:
        """Make sure that a file is what was promised, and remember which file that was."""
        if self._verified.get(file.path) == stamp_of(file.path):
            return
        if file.sha256 is not None:
            promise, check = f"sha256 {file.sha256}", partial(require_sha256, file.path, file.sha256)
        else:
            assert self._promise is not None
            promise, check = self._promise.key(), partial(audit_in_child, file.path, self._promise)
        self._verified[file.path] = check_once(file.path, promise, check)


def open_shard(file: ShardFile, layout: RowLayout) -> OpenShard:
    """Open one shard and compare it with what was promised; foreign shards carry no layout of their own."""
    try:
        handle: Any = h5py.File(file.path, "r", locking=False)
        data = handle["data"]
        pictures = open_pictures(handle, len(data), layout.image_size)
        shard = OpenShard(handle, data, handle["img_path"][:, 0], _sources(handle), pictures)
    except ShardError:
        raise
    except Exception as error:  # h5py turns damage into every kind of exception
        raise ShardError(f"{file.path}: not a shard: {error}") from None
    found = shard.data.shape[0]
    if found != file.num_rows:
        raise ShardError(f"{file.path}: {found} rows, expected {file.num_rows}")
    if file.sha256 is not None:
        own = RowLayout.from_attributes(dict(handle.attrs), str(file.path))
        if differences := own.differences(layout):
            raise ShardError(f"{file.path}: not of this folder's layout: {'; '.join(differences)}")
    return shard


@dataclass(frozen=True, slots=True)
class OpenShard:
    """An open file with its small columns read, so that a row costs one chunk."""

    # h5py's own types are unions of everything a name can be; these are a file and a dataset.
    handle: Any
    data: Any
    img_paths: np.ndarray
    sources: _Sources | None
    pictures: StoredPictures | None

    def stamp(self) -> Stamp:
        """Return the stamp of the file that is open."""
        return stamp_of(self.handle.id.get_vfd_handle())

    def columns(self) -> _Columns:
        """Read the columns that packing needs; foreign shards have none, so theirs are counted."""
        embedded = np.zeros(len(self.data), bool) if self.pictures is None else self.pictures.of_row != NO_PICTURE
        if "length" in self.handle:
            stored = (self.handle[name][:] for name in ("length", "num_loss_tokens", "has_image"))
            return _Columns(*stored, has_embedded=embedded)
        lengths = np.zeros(len(self.data), np.int32)
        num_loss_tokens = np.zeros(len(self.data), np.int32)
        for start in range(0, len(self.data), BLOCK_ROWS):
            rows = self.data[start : start + BLOCK_ROWS]
            lengths[start : start + BLOCK_ROWS] = (feature(rows, "key_padding_mask") == 0).sum(1)
            num_loss_tokens[start : start + BLOCK_ROWS] = feature(rows, "loss_mask").sum(1)
        return _Columns(lengths, num_loss_tokens, self.img_paths != NO_IMAGE, embedded)

    def row(self, index: int) -> StoredRow:
        """Read one row.

        Raises:
            ShardError: its chunk cannot be unpacked: the file was damaged after it was checked.
        """
        try:
            data = self.data[index].astype(np.int32, copy=False)
        except (OSError, RuntimeError) as error:
            raise ShardError(f"{self.handle.filename}: row {index}: damaged: {error}") from None
        img_path = bytes(self.img_paths[index])
        padding = feature(data, "key_padding_mask").astype(bool)
        return StoredRow(
            text_input_ids=feature(data, "text_input_ids"),
            loss_mask=feature(data, "loss_mask").astype(bool),
            labels=feature(data, "labels"),
            key_padding_mask=padding,
            length=int((~padding).sum()),
            has_image=img_path != NO_IMAGE,
            img_path=None if img_path == NO_IMAGE else img_path.decode("utf-8"),
            source=self._source(index),
        )

    def _source(self, index: int) -> Source:
        if self.sources is None:
            return Source(Path(self.handle.filename).name, index, "")
        column = self.sources
        name = column.names[column.file[index]]
        return Source(name, int(column.line[index]), bytes(column.id[index]).decode("utf-8"))


class _Sources(NamedTuple):
    names: list[str]
    file: np.ndarray
    line: np.ndarray
    id: np.ndarray


def _sources(handle: Any) -> _Sources | None:
    if "source" not in handle:
        return None
    source = handle["source"]
    names = [str(name) for name in source.attrs["source_files"]]
    return _Sources(names, *(source[column][:] for column in ("file", "line", "id")))
