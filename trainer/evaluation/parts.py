"""What an unfinished run has on disk: `OUTPUT.parts/`, one file a rank, one line a batch.

The file of answers itself appears when all is answered, whole, under its name: a run that was killed leaves nothing
that looks finished. A batch is one line, so it is there with all its answers or, torn at the end, not at all; what was
answered in one batch is answered in the same one again, and a run that goes on writes what an uninterrupted one does.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from dataprep.errors import CommandError, Exit
from trainer.evaluation.answers import Given


class PartWriter:
    """Appends a rank's batches."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def write(self, indices: Sequence[int], given: Sequence[Given]) -> None:
        """Write a batch: which questions it holds, and what became of them."""
        batch = [[index, *one] for index, one in zip(indices, given, strict=True)]
        self._file.write(json.dumps(batch).encode("ascii") + b"\n")
        self._file.flush()


@contextmanager
def part_writer(folder: Path, rank: int) -> Iterator[PartWriter]:
    """Open a rank's file, to go on behind what is there; what is written is on disk when the block ends."""
    with open(folder / f"rank-{rank:05d}.jsonl", "ab") as file:
        try:
            yield PartWriter(file)
        finally:
            file.flush()
            os.fsync(file.fileno())


def read_parts(folder: Path, num_questions: int) -> dict[int, Given]:
    """Return what was answered, by the question's number.

    Raises:
        CommandError: a line that is not the last is damaged.
    """
    found: dict[int, Given] = {}
    for path in sorted(folder.glob("rank-*.jsonl")):
        for number, line in enumerate(path.read_bytes().splitlines(keepends=True), 1):
            if not line.endswith(b"\n"):
                break  # `mend` cuts it off before anything is written behind it
            try:
                batch = {index: Given(*rest) for index, *rest in json.loads(line)}
            except (ValueError, TypeError) as error:
                raise CommandError(
                    f"{path}, line {number}: damaged: {error}; delete {folder}", Exit.INTEGRITY
                ) from None
            if not all(isinstance(index, int) and 0 <= index < num_questions for index in batch):
                raise CommandError(
                    f"{path}, line {number}: no question has that number; delete {folder}", Exit.INTEGRITY
                )
            found |= batch
    return found


def mend(folder: Path) -> int:
    """Cut off what a killed run has left of a line; return in how many files."""
    mended = 0
    for path in sorted(folder.glob("rank-*.jsonl")):
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
            mended += 1
    return mended


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Keep a second run away; the lock ends with the process, however that ends.

    Raises:
        CommandError: another run is at work.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise CommandError(f"{folder} is being written to by another run", Exit.CONFLICT) from None
    try:
        yield
    finally:
        lock.release()
        if folder.is_dir() and all(path.name == ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)  # nothing was begun
