"""A folder of shards to the figures of its report.

Reads the manifest and each shard's small columns, never the rows themselves: 17 bytes a row. What is kept does not
grow with the folder: counts by length, totals by source file, and a sample of at most `MAX_SAMPLE` rows. Shards of up
to `HASHED_BYTES` together are compared with their sha256 first; of more, with their sizes and the manifest's totals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from dataprep.shards.layout import RowLayout, ShardError
from dataprep.shards.manifest import MANIFEST_NAME, read_manifest, require_sha256
from dataprep.shards.once import check_all, check_once

#: Rows whose lengths are kept one by one, for packing and for choosing which to show.
MAX_SAMPLE = 400_000

#: Shards that are opened. A folder with more is read at this many places, and the report says so.
MAX_SHARDS = 2_000

#: Bytes of shards that are hashed: seconds, where a folder of terabytes would take an hour.
HASHED_BYTES = 8_000_000_000

#: Where `to-h5 --holdout` puts what it keeps from training.
HOLDOUT_NAME = "holdout"

#: Slots of a row beyond which a manifest is not believed.
MAX_SLOTS = 1 << 22


class SourceTotals(NamedTuple):
    """What one input file became."""

    rows: int
    pictures: int
    attended: int
    trained: int


class RowSample(NamedTuple):
    """Rows drawn from all shards, in their order; R rows."""

    index: np.ndarray
    """Place in the folder, int64 (R,)."""
    length: np.ndarray
    """Attended positions, int32 (R,)."""
    trained: np.ndarray
    """Positions with a loss, int32 (R,)."""
    has_image: np.ndarray
    """bool (R,)."""
    source: np.ndarray
    """Index into the keys of `Columns.sources`, int32 (R,)."""


@dataclass
class Columns:
    """What the small columns say. S slots a row."""

    lengths: np.ndarray
    """Rows by attended positions, int64 (2, S + 1): without a picture, with one."""
    trained: np.ndarray
    """Rows by positions with a loss, int64 (S + 1,)."""
    sample: RowSample
    sources: dict[str, SourceTotals] = field(default_factory=dict)
    num_shards: int = 0
    """Shards that were read."""

    @property
    def num_rows(self) -> int:
        """Rows that were read."""
        return int(self.lengths.sum())


@dataclass(frozen=True)
class Facts:
    """What a report is made of; `accounting` is the manifest's."""

    folder: Path
    manifest: dict[str, Any]
    layout: RowLayout
    columns: Columns
    hashed: bool
    """Whether every shard has the sha256 that the manifest says."""

    @property
    def accounting(self) -> dict[str, Any]:
        """The accounting of the whole folder."""
        return self.manifest["accounting"]

    @property
    def num_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(int(shard.get("bytes", 0)) for shard in self.manifest["shards"])

    @property
    def num_held_out(self) -> int:
        """Records that `to-h5 --holdout` wrote into a folder of their own, inside this one."""
        if not (self.folder / HOLDOUT_NAME / MANIFEST_NAME).is_file():
            return 0
        written = read_manifest(self.folder / HOLDOUT_NAME)[0]["accounting"].get("written")
        return written if type(written) is int else 0

    @property
    def whole(self) -> bool:
        """Whether every shard was read."""
        return self.columns.num_shards == len(self.manifest["shards"])


def gather(folder: Path) -> Facts:
    """Read what the report of a folder needs, its rows apart.

    Raises:
        ShardError: no manifest, a shard that is missing or damaged, or columns that contradict the manifest.
    """
    manifest, _ = read_manifest(folder)
    layout = RowLayout.from_attributes(manifest["layout"], str(folder))
    _check(folder, manifest, layout)
    hashed = sum(shard.get("bytes", 0) for shard in manifest["shards"]) <= HASHED_BYTES
    if hashed:
        check_all(manifest["shards"], partial(_check_hash, folder))
    columns = _columns(folder, manifest["shards"], layout.max_seq_length)
    facts = Facts(folder, manifest, layout, columns, hashed)
    if facts.whole:
        _compare(facts)
    return facts


#: What the accounting must say for the report to be made of it.
COUNTS = ("records", "written", "rows", "text_only", "attended_tokens", "loss_tokens", "num_refused")


def _check(folder: Path, manifest: dict[str, Any], layout: RowLayout) -> None:
    """Check the kinds of what the report reads of a manifest, so that a damaged one is told in a sentence."""
    counts, shards = manifest["accounting"], manifest["shards"]
    numbers = [(f.name, getattr(layout, f.name)) for f in fields(layout) if f.type == "int"]
    numbers += [(name, counts.get(name)) for name in COUNTS]
    numbers += [(name, counts.get(name, 0)) for name in ("deduplicated", "truncated", "split")]
    numbers += [(entry["file"], entry[key]) for entry in shards for key in ("rows", "bytes") if key in entry]
    for name in ("refused", "normalised"):
        part = counts.get(name, {})
        numbers += part.items() if isinstance(part, dict) else [(name, None)]
    wrong = [name for name, value in numbers if type(value) is not int or not 0 <= value < 1 << 62]
    if not isinstance(manifest.get("config", {}), dict):
        wrong.append("config")
    inputs = manifest.get("inputs", [])
    if not isinstance(inputs, list) or not all(isinstance(entry, dict) for entry in inputs):
        wrong.append("inputs")
    if wrong or not 0 < layout.max_seq_length <= MAX_SLOTS:
        raise ShardError(
            f"{folder}/manifest.json: {(wrong or ['max_seq_length'])[0]!r} has no value that a report can show"
        )


def _check_hash(folder: Path, shard: dict[str, Any]) -> None:
    path, sha256 = folder / shard["file"], shard["sha256"]
    # As the reader says it, so that what is checked here is not checked there again.
    check_once(path, f"sha256 {sha256}", partial(require_sha256, path, sha256))


def _compare(facts: Facts) -> None:
    """Compare the columns with the manifest's totals."""
    slots = np.arange(facts.layout.max_seq_length + 1)
    found = {
        "rows": facts.columns.num_rows,
        "attended_tokens": int((facts.columns.lengths * slots).sum()),
        "loss_tokens": int((facts.columns.trained * slots).sum()),
    }
    for name, value in found.items():
        if value != facts.accounting[name]:
            raise ShardError(
                f"{facts.folder}: the shards hold {value} {name.replace('_', ' ')}, manifest.json says"
                f" {facts.accounting[name]}; `llava-prep verify` names the damage"
            )


class _Part(NamedTuple):
    """The columns of one shard; `source` indexes `files`."""

    first_row: int
    length: np.ndarray
    trained: np.ndarray
    has_image: np.ndarray
    source: np.ndarray
    files: list[str]


def _columns(folder: Path, shards: Sequence[dict[str, Any]], slots: int) -> Columns:
    share = min(1.0, MAX_SAMPLE / max(1, sum(shard["rows"] for shard in shards)))
    found = Columns(np.zeros((2, slots + 1), np.int64), np.zeros(slots + 1, np.int64), _no_rows())
    numbers: dict[str, int] = {}
    kept = [_no_rows()]
    for part in _parts(folder, shards):
        _count(found, part, slots)
        places = np.array([numbers.setdefault(file, len(numbers)) for file in part.files], np.int32)
        kept.append(_drawn(part, places, share))
        found.num_shards += 1
    found.sample = RowSample(*(np.concatenate(column) for column in zip(*kept, strict=True)))
    return found


def _no_rows() -> RowSample:
    return RowSample(*(np.zeros(0, kind) for kind in (np.int64, np.int32, np.int32, bool, np.int32)))


def _drawn(part: _Part, places: np.ndarray, share: float) -> RowSample:
    """Draw rows of a shard by its place alone, so that the same folder always gives the same sample."""
    which = np.arange(len(part.length))
    if share < 1:
        which = which[np.random.default_rng([part.first_row]).random(len(which)) < share]
    return RowSample(
        index=which + part.first_row,
        length=part.length[which].astype(np.int32),
        trained=part.trained[which].astype(np.int32),
        has_image=part.has_image[which].astype(bool),
        source=places[part.source[which]],
    )


def _count(found: Columns, part: _Part, slots: int) -> None:
    found.lengths[0] += np.bincount(part.length[~part.has_image], minlength=slots + 1)
    found.lengths[1] += np.bincount(part.length[part.has_image], minlength=slots + 1)
    found.trained += np.bincount(part.trained, minlength=slots + 1)
    weights = (None, part.has_image, part.length, part.trained)
    columns = [np.bincount(part.source, weight, len(part.files)).astype(np.int64).tolist() for weight in weights]
    for file, *values in zip(part.files, *columns, strict=True):
        before = found.sources.get(file, SourceTotals(0, 0, 0, 0))
        found.sources[file] = SourceTotals(*(old + new for old, new in zip(before, values, strict=True)))


def _parts(folder: Path, shards: Sequence[dict[str, Any]]) -> Iterator[_Part]:
    first_rows = np.cumsum([0, *(shard["rows"] for shard in shards)]).tolist()
    chosen = range(len(shards))
    if len(shards) > MAX_SHARDS:
        chosen = np.linspace(0, len(shards) - 1, MAX_SHARDS).round().astype(int).tolist()
    for number in chosen:
        yield _read(folder / shards[number]["file"], shards[number], first_rows[number])


def _read(path: Path, shard: dict[str, Any], first_row: int) -> _Part:
    try:
        size = path.stat().st_size
        if size != shard.get("bytes", size):
            raise ShardError(f"{path}: {size} bytes, the manifest says {shard['bytes']}; `to-h5` again makes it anew")
        with h5py.File(path, "r", locking=False) as file:
            handle: Any = file
            names = ("length", "num_loss_tokens", "has_image", "source/file")
            columns = [np.asarray(handle[name][:]) for name in names]
            files = [str(name) for name in handle["source"].attrs["source_files"]]
            slots = handle["data"].shape[-1]
    except FileNotFoundError:
        raise ShardError(f"{path}: the manifest names this shard, but there is no such file") from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, ShardError):
            raise
        raise ShardError(f"{path}: not a shard: {error}") from None
    _check_columns(path, shard["rows"], columns, len(files), slots)
    length, trained, has_image, source = columns
    return _Part(first_row, length, trained, has_image.astype(bool), source, files)


def _check_columns(path: Path, rows: int, columns: Sequence[np.ndarray], num_files: int, slots: int) -> None:
    if any(column.shape != (rows,) or column.dtype.kind not in "iub" for column in columns):
        raise ShardError(f"{path}: a column is not of {rows} numbers, as the manifest says")
    limits = (slots, slots, 1, num_files - 1)
    if rows and any(column.min() < 0 or column.max() > limit for column, limit in zip(columns, limits, strict=True)):
        raise ShardError(f"{path}: a column holds a value out of its range")
