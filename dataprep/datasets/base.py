"""What a dataset's file offers, and what its reader yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataprep.conversation import Conversation
from dataprep.prompts import PromptSet


class Written(NamedTuple):
    """A record for the jsonl, made of `records` records of the raw data."""

    conversation: Conversation
    records: int = 1
    rules: tuple[str, ...] = ()


class Refused(NamedTuple):
    """A raw record that cannot be trained on."""

    reason: str
    detail: str
    file: str
    line: int
    """Its number in the file, from 1 (in a json array: the element's)."""
    id: str


class Duplicate(NamedTuple):
    """A raw record that says what another one says."""

    file: str
    line: int
    id: str


Item = Written | Refused | Duplicate


@dataclass(frozen=True)
class Options:
    """How to read a dataset."""

    image_root: Path
    """Image keys are relative to it."""
    splits: tuple[str, ...]
    prompts: PromptSet


@dataclass(frozen=True)
class Part:
    """A piece of a dataset that can be read on its own: a file, or a split."""

    path: Path
    split: str


@dataclass(frozen=True)
class Dataset:
    """One dataset: `parts` finds its pieces under a folder, `read` turns a piece into items.

    The order of parts and items is a function of the input alone.
    """

    name: str
    title: str
    phases: tuple[int, ...]
    splits: tuple[str, ...]
    """Known splits, the one for training first; empty where there is none."""
    parts: Callable[[Path, Options], list[Part]]
    read: Callable[[Part, Options], Iterator[Item]]


def image_key(path: Path, options: Options) -> str:
    """Return the image key of a file under the image root, always with forward slashes."""
    return path.absolute().relative_to(options.image_root).as_posix()
