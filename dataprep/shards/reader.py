"""A folder of shards as one indexable sequence of rows.

A shard's sha256 is compared with the manifest once, on its first use, before a row of it is returned.
"""

from __future__ import annotations

import hashlib
import json
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dataprep.shards.fingerprint import tokenizer_fingerprint
from dataprep.shards.layout import NO_IMAGE, RowLayout, ShardError, Source, StoredRow, feature

#: Files kept open at once, a process. Each costs about 100 KB.
MAX_OPEN_FILES = 64

MANIFEST_NAME = "manifest.json"


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


class ShardReader:
    """Reads rows by index over all shards of a folder.

    Opens files lazily and once a process, so that an instance can be sent to loader workers.

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

        They name neither their features nor their tokenizer, so both are taken from the caller's word.
        """
        from dataprep.shards import foreign

        reader = cls.__new__(cls)
        files, layout = foreign.describe(
            Path(folder), tokenizer_fingerprint(tokenizer), image_start_idx, num_patches, image_size
        )
        identity = hashlib.sha256(repr([(f.path.name, f.num_rows, f.path.stat().st_size) for f in files]).encode())
        reader._start(Path(folder), layout, files, identity.hexdigest())
        return reader

    def _start(self, folder: Path, layout: RowLayout, files: list[ShardFile], identity: str) -> None:
        self.folder = folder
        self.layout = layout
        self.files = files
        self.manifest_sha256 = identity
        self._ends = np.cumsum([file.num_rows for file in files]).tolist()
        self._verified: set[Path] = set()
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
        if not 0 <= index < len(self):
            raise IndexError(f"{self.folder}: row {index}; there are {len(self)}")
        shard = bisect_right(self._ends, index)
        file = self.files[shard]
        return self._shard(file).row(index - self._ends[shard] + file.num_rows)

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

    @cached_property
    def _columns(self) -> _Columns:
        if not self.files:
            return _Columns(np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0, bool))
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
        if file.sha256 is not None and file.path not in self._verified:
            found = file_sha256(file.path)
            if found != file.sha256:
                raise ShardError(f"{file.path}: damaged: sha256 {found[:12]}…, the manifest says {file.sha256[:12]}…")
            self._verified.add(file.path)
        return open_shard(file, self.layout)


def read_manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the manifest of a folder and its bytes.

    Raises:
        ShardError: there is none, or it is not one.
    """
    path = folder / MANIFEST_NAME
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder; `llava-prep to-h5` makes one")
    if not path.is_file():
        raise ShardError(
            f"{path}: no such file; the compile is unfinished (run `llava-prep to-h5` again)"
            " or these are foreign shards"
        )
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        whole = all(isinstance(manifest[key], dict) for key in ("layout", "accounting")) and all(
            isinstance(shard[key], kind) for shard in manifest["shards"] for key, kind in _SHARD_ENTRY.items()
        )
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(f"{path}: not a manifest: {error!r}") from None
    if not whole:
        raise ShardError(f"{path}: not a manifest: layout, accounting or an entry of shards is of another kind")
    return manifest, raw


#: What every shard's entry in the manifest has.
_SHARD_ENTRY = {"file": str, "rows": int, "sha256": str}


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file.

    Raises:
        ShardError: there is no such file.
    """
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ShardError(f"{path}: the manifest names this shard, but there is no such file") from None


def open_shard(file: ShardFile, layout: RowLayout) -> OpenShard:
    """Open one shard and compare it with what was promised; foreign shards carry no layout of their own."""
    try:
        handle: Any = h5py.File(file.path, "r", locking=False)
        shard = OpenShard(handle, handle["data"], handle["img_path"][:, 0], _sources(handle, file.path))
    except (OSError, KeyError) as error:
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
    sources: list[Source]

    def columns(self) -> _Columns:
        """Read the columns that packing needs; foreign shards have none, so theirs are counted."""
        if "length" in self.handle:
            return _Columns(*(self.handle[name][:] for name in ("length", "num_loss_tokens", "has_image")))
        lengths = np.zeros(len(self.data), np.int32)
        num_loss_tokens = np.zeros(len(self.data), np.int32)
        for index, row in enumerate(self.data):
            lengths[index] = (feature(row, "key_padding_mask") == 0).sum()
            num_loss_tokens[index] = feature(row, "loss_mask").sum()
        return _Columns(lengths, num_loss_tokens, self.img_paths != NO_IMAGE)

    def row(self, index: int) -> StoredRow:
        """Read one row."""
        data = self.data[index].astype(np.int32, copy=False)
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
            source=self.sources[index],
        )


def _sources(handle: Any, path: Path) -> list[Source]:
    if "source" not in handle:
        return [Source(path.name, index, "") for index in range(handle["data"].shape[0])]
    source = handle["source"]
    files = [str(file) for file in source.attrs["source_files"]]
    columns = zip(source["file"][:].tolist(), source["line"][:].tolist(), source["id"][:].tolist(), strict=True)
    return [Source(files[file], line, record_id.decode("utf-8")) for file, line, record_id in columns]
