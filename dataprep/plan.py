"""Input files to tasks: which records make which shard.

A task is a fixed range of the input, so that the shards do not depend on how many workers there are or which of them
did what. Files are cut by lines: one jsonl keeps all cores busy, many small ones share a shard.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dataprep.conversation import BYTE_ORDER_MARK, placed_lines, read_lines
from dataprep.errors import CommandError, Exit
from dataprep.shards.layout import Source

BLOCK_BYTES = 1 << 20

#: Small inputs are cut finer than a full shard, so that several workers have something to do.
MIN_TASKS = 8
MIN_RECORDS = 500

#: A shard names its input files in one HDF5 attribute of at most 64 KB.
MAX_FILES = 1000

#: What file systems, mounts and copying programs keep of a time of change: from nanoseconds to whole seconds.
PRECISIONS = (10**9, 10**6, 10**3, 100)


@dataclass(frozen=True, slots=True)
class InputFile:
    """One jsonl file as it was when the run was planned."""

    path: Path
    name: str
    """As shards, refusals and the manifest call it."""
    num_bytes: int
    mtime_ns: int
    """Time of the last change, nanoseconds."""
    sha256: str
    num_lines: int
    line_starts: tuple[int, ...]
    """Byte at which every `MIN_RECORDS`-th line begins."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Whole lines of one file: bytes `start` to `stop`, of which the first is line `first_line` (from 1)."""

    path: Path
    name: str
    start: int
    stop: int
    first_line: int

    def lines(self) -> Iterator[tuple[bytes, Source]]:
        """Yield the lines with their places; blank ones are not records."""
        for number, line in enumerate(read_lines(self.path, self.start, self.stop), self.first_line):
            if line.strip():
                # A byte order mark is no part of the first record.
                yield line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line, Source(self.name, number, "")


@dataclass(frozen=True, slots=True)
class Task:
    """What becomes one shard (more, where a shard would grow too large)."""

    index: int
    segments: tuple[Segment, ...]

    def lines(self) -> Iterator[tuple[bytes, Source]]:
        """Yield the records of the task with their places."""
        for segment in self.segments:
            yield from segment.lines()

    @property
    def paths(self) -> set[Path]:
        """The files that are read."""
        return {segment.path for segment in self.segments}

    @property
    def first(self) -> Source:
        """Where the first line stands."""
        return Source(self.segments[0].name, self.segments[0].first_line, "")


def survey(path: Path, name: str) -> InputFile:
    """Read a file once: its hash, its lines, and where they are.

    Raises:
        CommandError: it changed meanwhile (4).
    """
    before = os.stat(path)
    digest = hashlib.sha256()
    starts, lines, position, last = [0], 0, 0, b"\n"
    for block in _blocks(path):
        digest.update(block)
        ends = np.flatnonzero(np.frombuffer(block, np.uint8) == 0x0A)
        wanted = ends[MIN_RECORDS - 1 - lines % MIN_RECORDS :: MIN_RECORDS]
        starts += (wanted + position + 1).tolist()
        lines, position, last = lines + len(ends), position + len(block), block[-1:]
    lines += last != b"\n"
    after = os.stat(path)
    if (after.st_size, after.st_mtime_ns) != (before.st_size, before.st_mtime_ns) or position != after.st_size:
        raise CommandError(f"{path}: changed while it was read; run the same command again", Exit.CONFLICT)
    return InputFile(path, name, position, after.st_mtime_ns, digest.hexdigest(), lines, tuple(starts))


def change_of(file: InputFile) -> str | None:
    """Return how an input differs from what was surveyed, None where it does not.

    Size and time of change tell; where the time differs, as it does in a copy on another machine, the content does.
    """
    status = os.stat(file.path)
    if status.st_size != file.num_bytes:
        return f"{status.st_size} bytes, {file.num_bytes} were planned"
    if not same_time(file.mtime_ns, status.st_mtime_ns) and (found := sha256_of(file.path)) != file.sha256:
        return f"sha256 {found}, {file.sha256} was planned"
    return None


def same_time(planned: int, found: int) -> bool:
    """Return whether two times of change, in nanoseconds, are one, as far as both places keep such a time."""
    precision = next((unit for unit in PRECISIONS if planned % unit == 0 or found % unit == 0), 1)
    return planned // precision == found // precision


def sha256_of(path: Path) -> str:
    """Return the sha256 (hex) of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _blocks(path: Path) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            yield block


def plan(files: Sequence[InputFile], shard_rows: int) -> list[Task]:
    """Cut the files into tasks of at most `shard_rows` lines; a function of the input and `shard_rows` alone."""
    size = task_size(sum(file.num_lines for file in files), shard_rows)
    groups: list[list[Segment]] = [[]]
    room = size
    for segment, num_lines in _pieces(files, size):
        if num_lines > room or len(groups[-1]) == MAX_FILES:
            groups.append([])
            room = size
        groups[-1].append(segment)
        room -= num_lines
    return [Task(index, tuple(group)) for index, group in enumerate(group for group in groups if group)]


def task_size(num_records: int, shard_rows: int) -> int:
    """Return how many records make a task: `shard_rows`, or less where that would leave workers idle."""
    size = min(shard_rows, max(MIN_RECORDS, -(-num_records // MIN_TASKS)))
    return max(size - size % MIN_RECORDS, min(size, MIN_RECORDS))


def _pieces(files: Iterable[InputFile], size: int) -> Iterator[tuple[Segment, int]]:
    """Cut each file at every `size`-th line."""
    for file in files:
        starts = _exact_starts(file, size) if size < MIN_RECORDS else file.line_starts[:: size // MIN_RECORDS]
        # A survey that ends on a cut notes the end of the file as one more start.
        starts = [start for start in starts if start < file.num_bytes]
        stops = [*starts[1:], file.num_bytes]
        for number, (start, stop) in enumerate(zip(starts, stops, strict=False)):
            first = number * size
            yield Segment(file.path, file.name, start, stop, first + 1), min(size, file.num_lines - first)


def _exact_starts(file: InputFile, size: int) -> list[int]:
    """Shards smaller than the survey's step are asked for in tests and trials only, so the file is read again."""
    return [begin for number, (begin, _) in enumerate(placed_lines(file.path)) if number % size == 0]
