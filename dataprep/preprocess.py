"""Raw dataset to jsonl: parts over worker processes, joined in order, everything counted."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from dataprep.conversation import encode_line
from dataprep.datasets import DATASETS
from dataprep.datasets.base import Dataset, Item, Options, Part, Refused, Written
from dataprep.errors import CommandError
from dataprep.shards.writer import whole_file


@dataclass
class Accounting:
    """What became of the raw records. `conversations` are the lines written: one may hold many records."""

    records: int = 0
    written: int = 0
    deduplicated: int = 0
    conversations: int = 0
    refused: list[Refused] = field(default_factory=list)
    normalised: Counter[str] = field(default_factory=Counter)

    @property
    def by_reason(self) -> Counter[str]:
        """Number of refusals by reason code."""
        return Counter(refusal.reason for refusal in self.refused)

    def count(self, item: Item) -> None:
        """Count one item."""
        if isinstance(item, Written):
            self.written += item.records
            self.conversations += 1
            self.normalised.update(item.rules)
        elif isinstance(item, Refused):
            self.refused.append(item)
        else:
            self.deduplicated += 1
        self.records += item.records if isinstance(item, Written) else 1

    def add(self, other: Accounting) -> None:
        """Add another part's accounting to this one."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    def balanced(self) -> bool:
        """Return whether every record ended in exactly one place."""
        return self.records == self.written + len(self.refused) + self.deduplicated


def convert(
    dataset: Dataset,
    source: Path,
    options: Options,
    output: Path,
    workers: int,
    limit: int | None = None,
    progress: Callable[[int], None] = lambda _: None,
) -> Accounting:
    """Write a dataset's jsonl; it appears under its name when it is whole.

    Args:
        limit: write at most so many conversations (for a trial); read in one process then.
        progress: called with the number of raw records since the last call.

    Raises:
        CommandError: there is no record.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    parts = dataset.parts(source, options)
    with whole_file(output) as file:
        if limit is None and min(workers, len(parts)) > 1:
            accounting = _write_parts(dataset.name, parts, options, output, file, workers, progress)
        else:
            items = (item for part in parts for item in dataset.read(part, options))
            accounting = _write(_limited(items, limit), file, progress)
        if not accounting.records:
            raise CommandError(f"no records in {source}")
    if not accounting.balanced():
        raise AssertionError(f"records do not add up: {accounting}")
    return accounting


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


def _write(items: Iterable[Item], file: BinaryIO, progress: Callable[[int], None]) -> Accounting:
    accounting = Accounting()
    items = iter(items)
    while block := list(islice(items, 256)):
        before = accounting.records
        for item in block:
            accounting.count(item)
            if isinstance(item, Written):
                file.write(encode_line(item.conversation))
        progress(accounting.records - before)
    return accounting


def _write_parts(
    name: str,
    parts: list[Part],
    options: Options,
    output: Path,
    joined: BinaryIO,
    workers: int,
    progress: Callable[[int], None],
) -> Accounting:
    """Write each part in a worker to a file of its own, then join the files in the order of the parts."""
    total = Accounting()
    context = multiprocessing.get_context("spawn")
    with (
        TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder,
        ProcessPoolExecutor(min(workers, len(parts)), context, _quiet) as pool,
    ):
        pieces = [Path(folder, str(index)) for index in range(len(parts))]
        counts = pool.map(_write_part, [name] * len(parts), parts, [options] * len(parts), pieces)
        for piece, accounting in zip(pieces, counts, strict=True):
            with open(piece, "rb") as file:
                shutil.copyfileobj(file, joined)
            piece.unlink()
            total.add(accounting)
            progress(accounting.records)
    return total


def _quiet() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _write_part(name: str, part: Part, options: Options, path: Path) -> Accounting:
    with open(path, "wb") as file:
        return _write(DATASETS[name].read(part, options), file, lambda _: None)
