"""Raw dataset to jsonl: parts over worker processes, joined in order, everything counted."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from dataprep.conversation import encode_line
from dataprep.datasets import DATASETS
from dataprep.datasets.base import Dataset, Item, Options, Part, Refused, Written
from dataprep.errors import CommandError
from dataprep.shards.writer import whole_file
from dataprep.tables import ParquetTable
from dataprep.workers import worker_pool

#: What is said when a worker is gone.
DIED = "a worker process was killed (out of memory?); try fewer --workers"


@dataclass
class Accounting:
    """What became of the raw records. `conversations` are the lines written: one may hold many records."""

    records: int = 0
    written: int = 0
    deduplicated: int = 0
    conversations: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    """By reason code."""
    normalised: Counter[str] = field(default_factory=Counter)
    """By the name of the rule."""

    def count(self, item: Item) -> None:
        """Count one item."""
        if isinstance(item, Written):
            self.written += item.records
            self.conversations += 1
            if item.rules:
                self.normalised.update(item.rules)
        elif isinstance(item, Refused):
            self.refused[item.reason] += 1
        else:
            self.deduplicated += 1
        self.records += item.records if isinstance(item, Written) else 1

    def add(self, other: Accounting) -> None:
        """Add another part's accounting to this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def balanced(self) -> bool:
        """Return whether every record ended in exactly one place."""
        return self.records == self.written + self.refused.total() + self.deduplicated


def convert(
    dataset: Dataset,
    parts: Sequence[Part],
    options: Options,
    output: Path,
    refused: Path,
    workers: int = 1,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Accounting:
    """Write a dataset's jsonl, and what was refused; each file appears under its name when it is whole.

    Where no record is good nothing is written, and a file of an earlier run stays. One run at a time may write an
    output.

    Args:
        parts: the dataset's, for these options.
        refused: jsonl of `Refused`.
        limit: write at most so many conversations (for a trial); read in one process then.
        progress: called with the number of raw records since the last call.

    Raises:
        CommandError: there is no record.
    """
    for path in (output, refused):
        path.parent.mkdir(parents=True, exist_ok=True)
    with _scratch(output) as scratch, whole_file(refused) as bad:
        options = replace(options, scratch=scratch)
        parts = [_with_scratch(part, scratch) for part in parts]
        try:
            with whole_file(output) as good:
                accounting = _convert(dataset, parts, options, _Sink(good, bad), workers, limit, progress)
                if not accounting.conversations:
                    raise _NothingWritten
        except _NothingWritten:
            pass
        if not accounting.records:
            raise CommandError(f"no records in {', '.join(sorted({str(part.path) for part in parts}))}")
    if not accounting.balanced():
        raise AssertionError(f"records do not add up: {accounting}")
    return accounting


class _NothingWritten(Exception):
    """There is no good record, so there is to be no file: an empty one would look like data."""


@contextmanager
def _scratch(output: Path) -> Iterator[Path]:
    """Give a folder for temporary files beside the output; what a killed run has left goes first."""
    folder = output.with_name(f".{output.name}.scratch")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _convert(
    dataset: Dataset,
    parts: Sequence[Part],
    options: Options,
    sink: _Sink,
    workers: int,
    limit: int | None,
    progress: Callable[[int], None],
) -> Accounting:
    if limit is None and min(workers, len(parts)) > 1:
        return _write_parts(dataset.name, parts, options, sink, workers, progress)
    items = (item for part in parts for item in dataset.read(part, options))
    return sink.write(_limited(items, limit), progress)


def _with_scratch(part: Part, folder: Path) -> Part:
    """Let tables put temporary files beside the output: the system's folder may be small, or memory."""
    tables = (replace(table, scratch=folder) if isinstance(table, ParquetTable) else table for table in part.tables)
    return replace(part, tables=tuple(tables))


def _limited(items: Iterable[Item], limit: int | None) -> Iterator[Item]:
    if limit is None:
        yield from items
        return
    items = iter(items)
    for _ in range(limit):
        for item in items:
            yield item
            if isinstance(item, Written):
                break


@dataclass(frozen=True)
class _Sink:
    """Where items go: good ones to one file, refused ones to another, so that memory holds neither."""

    good: BinaryIO
    refused: BinaryIO

    def write(self, items: Iterable[Item], progress: Callable[[int], None]) -> Accounting:
        accounting = Accounting()
        items = iter(items)
        while block := list(islice(items, 256)):
            before = accounting.records
            for item in block:
                accounting.count(item)
                if isinstance(item, Written):
                    self.good.write(encode_line(item.conversation))
                elif isinstance(item, Refused):
                    self.refused.write(_refusal_line(item))
            progress(accounting.records - before)
        return accounting

    def append(self, piece: Path) -> None:
        """Move what `_write_part` left behind the rest."""
        for source, target in ((piece, self.good), (piece.with_suffix(".refused"), self.refused)):
            with open(source, "rb") as file:
                shutil.copyfileobj(file, target)
            source.unlink()


def _refusal_line(refused: Refused) -> bytes:
    # A file's name need not be UTF-8, and what is refused may be the reason why it is not.
    return json.dumps(refused._asdict(), ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"


def _write_parts(
    name: str,
    parts: Sequence[Part],
    options: Options,
    joined: _Sink,
    workers: int,
    progress: Callable[[int], None],
) -> Accounting:
    """Write each part in a worker to files of its own, then join the files in the order of the parts."""
    total = Accounting()
    with TemporaryDirectory(dir=options.scratch) as folder:
        pieces = [Path(folder, str(index)) for index in range(len(parts))]
        with worker_pool(min(workers, len(parts)), died=DIED) as pool:
            counts = pool.map(_write_part, [name] * len(parts), parts, [options] * len(parts), pieces)
            for piece, accounting in zip(pieces, counts, strict=True):
                joined.append(piece)
                total.add(accounting)
                progress(accounting.records)
    return total


def _write_part(name: str, part: Part, options: Options, path: Path) -> Accounting:
    with open(path, "wb") as good, open(path.with_suffix(".refused"), "wb") as refused:
        return _Sink(good, refused).write(DATASETS[name].read(part, options), lambda _: None)
