"""Which records are compiled, in which order, and which are held out: what `shuffle`, `dedup` and `holdout` ask for.

Each is decided by the records themselves, a seed and their places, never by who works on them: a record's side by a
hash of what it says, the order by a hash of seed and place. The index of picked records (24 bytes each) lies in
`.tasks/order.npy`; a task is a range of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
from jaxtyping import Bool, UInt64

from dataprep.config import CompileConfig
from dataprep.conversation import BYTE_ORDER_MARK, MAX_LINE_BYTES, Refusal, parse, placed_lines, validate
from dataprep.plan import MIN_RECORDS, InputFile, Segment, task_size
from dataprep.shards.layout import Source
from dataprep.shards.writer import whole_file

#: One picked record: which input file, where its line begins, the line's length in bytes and its number.
PICK = np.dtype([("file", "<i4"), ("length", "<i4"), ("start", "<i8"), ("line", "<i8")])

#: Lines scanned by one call.
SCAN_LINES = 50_000

ORDER_NAME = "order.npy"

_canonical = msgspec.json.Encoder()


@dataclass(frozen=True, slots=True)
class PickTask:
    """Picks `start` to `stop` of an order."""

    index: int
    order: Path
    inputs: tuple[tuple[Path, str], ...]
    start: int
    stop: int

    def lines(self) -> Iterator[tuple[bytes, Source]]:
        """Yield the records of the task with their places."""
        for file, length, start, number in np.load(self.order, mmap_mode="r")[self.start : self.stop].tolist():
            path, name = self.inputs[file]
            yield os.pread(_open_file(path).descriptor, length, start), Source(name, number, "")

    @property
    def paths(self) -> set[Path]:
        """The files that may be read: picked records come from anywhere."""
        return {path for path, _ in self.inputs}

    @property
    def first(self) -> Source:
        """Where the first record stands."""
        pick = np.load(self.order, mmap_mode="r")[self.start]
        return Source(self.inputs[int(pick["file"])][1], int(pick["line"]), "")


class Selection(NamedTuple):
    """What becomes of the records: each is trained on, held out, or a duplicate."""

    train: np.ndarray
    """`PICK` (records,), in the order of the rows."""
    holdout: np.ndarray
    num_duplicates: int


class _Scan(NamedTuple):
    picks: np.ndarray
    records: UInt64[np.ndarray, "n 2"]
    """Hash of conversation and picture; of its place where the line is no record."""
    sides: UInt64[np.ndarray, " n"]
    """What decides the side."""


def needs_selection(config: CompileConfig) -> bool:
    """Return whether the records are compiled otherwise than one after the other."""
    return config.shuffle is not None or config.dedup != "none" or config.holdout > 0


#: Calls a function over arguments, in processes or here; `map` is one.
Mapper = Callable[..., Iterator[_Scan]]


def select(files: Sequence[InputFile], config: CompileConfig, mapper: Mapper = map) -> Selection:
    """Look at every record once and say what becomes of it."""
    hashed = config.dedup != "none" or config.holdout > 0
    ranges = list(chain.from_iterable(_ranges(file) for file in files))
    numbers = {file.name: number for number, file in enumerate(files)}
    calls = [(segment, numbers[segment.name], hashed, config.holdout_by) for segment in ranges]
    scans = list(mapper(_scan, calls))
    picks = np.concatenate([scan.picks for scan in scans]) if scans else np.zeros(0, PICK)
    kept, held = np.ones(len(picks), bool), np.zeros(len(picks), bool)
    if config.dedup == "exact" and scans:
        kept = _firsts(np.concatenate([scan.records for scan in scans]))
    if config.holdout > 0 and scans:
        held = np.concatenate([scan.sides for scan in scans]) < np.uint64(config.holdout * 2**64)
    train, holdout = (np.flatnonzero(kept & side) for side in (~held, held))
    if config.shuffle is not None:
        train, holdout = (places[_shuffled(places, config.shuffle)] for places in (train, holdout))
    return Selection(picks[train], picks[holdout], int((~kept).sum()))


def keep_order(picks: np.ndarray, folder: Path) -> None:
    """Write an order into `folder`."""
    with whole_file(folder / ORDER_NAME) as file:
        np.save(file, picks)


def order_tasks(folder: Path, files: Sequence[InputFile], shard_rows: int) -> list[PickTask]:
    """Cut the order in `folder` into tasks; a function of the order and `shard_rows` alone."""
    num_picks = len(np.load(folder / ORDER_NAME, mmap_mode="r"))
    inputs = tuple((file.path, file.name) for file in files)
    size = task_size(num_picks, shard_rows)
    return [
        PickTask(index, folder / ORDER_NAME, inputs, start, min(start + size, num_picks))
        for index, start in enumerate(range(0, num_picks, size))
    ]


def _ranges(file: InputFile) -> Iterator[Segment]:
    step = SCAN_LINES // MIN_RECORDS
    starts = [start for start in file.line_starts[::step] if start < file.num_bytes]
    for number, start in enumerate(starts):
        stop = starts[number + 1] if number + 1 < len(starts) else file.num_bytes
        yield Segment(file.path, file.name, start, stop, number * SCAN_LINES + 1)


def _scan(call: tuple[Segment, int, bool, str]) -> _Scan:
    segment, file, hashed, by = call
    picks, hashes = [], []
    placed = placed_lines(segment.path, segment.start, segment.stop)
    for number, (begin, line) in enumerate(placed, segment.first_line):
        record = line
        if number == 1 and line.startswith(BYTE_ORDER_MARK):
            begin, record = begin + len(BYTE_ORDER_MARK), line.removeprefix(BYTE_ORDER_MARK)
        if not record.strip():
            continue
        # Enough of a line that is too long to be a record to see that it is.
        picks.append((file, min(len(record), MAX_LINE_BYTES + 1), begin, number))
        if hashed:
            hashes.append(_hashes(record, (file, number), by))
    table = np.array(hashes, np.uint64).reshape(-1, 3)
    return _Scan(np.array(picks, PICK), table[:, :2], table[:, 2])


def _hashes(line: bytes, place: tuple[int, int], by: str) -> tuple[int, int, int]:
    """Return a record's own hash in two halves, and the one that decides its side."""
    try:
        conversation, _ = parse(line)
        validate(conversation)
    except Refusal:
        # It will be refused, and that must be counted: it equals no other, and stays on the side of training.
        digest = _digest(repr(place).encode())
        return digest[0], digest[1], 2**64 - 1
    # `a//b` and `./a/b` are the picture `a/b`.
    image = conversation.image and "/".join(part for part in conversation.image.split("/") if part not in ("", "."))
    digest = _digest(_canonical.encode((image, conversation.turns)))
    if by == "picture" and image is not None:
        return *digest, _digest(image.encode("utf-8", "surrogatepass"))[0]
    return *digest, digest[0]


def _digest(content: bytes) -> tuple[int, int]:
    digest = hashlib.blake2b(content, digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _firsts(records: UInt64[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
    """Return which records have no equal before them."""
    order = np.lexsort((records[:, 1], records[:, 0]))  # stable: equals stay in the order of the input
    ranked = records[order]
    first = np.ones(len(records), bool)
    first[order[1:]] = (ranked[1:] != ranked[:-1]).any(axis=1)
    return first


def _shuffled(places: np.ndarray, seed: int) -> np.ndarray:
    """Return the order of `places` by a hash of seed and place; numpy's own shuffles may change with its version."""
    (start,) = np.frombuffer(hashlib.sha256(f"shuffle {seed}".encode()).digest()[:8], np.uint64)
    # splitmix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators"), a bijection.
    mixed = (places.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15) + start
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return np.argsort(mixed ^ (mixed >> np.uint64(31)), kind="stable")


class _OpenFile:
    """A file that stays open while it is among those last used."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.descriptor)


_open_file = lru_cache(maxsize=256)(_OpenFile)
