"""What a dataset's file offers, and what its reader yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configs import StrictConfig
from dataprep.conversation import Conversation, Refusal
from dataprep.images import ImageFault, resolve_key
from dataprep.prompts import PromptSet
from dataprep.tables import Hub, Table


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
    """Its number in the file, from 1 (in a json array or a table: the element's or row's)."""
    id: str


class Duplicate(NamedTuple):
    """A raw record that says what another one says."""

    file: str
    line: int
    id: str


Item = Written | Refused | Duplicate


class NoSettings(StrictConfig):
    """The settings of a dataset that has none."""


@dataclass(frozen=True)
class Options:
    """How to read a dataset."""

    root: Path
    """The workspace, absolute."""
    image_root: Path
    """Image keys are relative to it, absolute."""
    images: Path
    """Folder under `root` for pictures that are taken out of tables or drawn."""
    prompts: PromptSet
    splits: tuple[str, ...] = ()
    evaluation: bool = False
    """Make a record of every single question, with all its reference answers, for scoring."""
    max_questions: int | None = None
    """At most so many questions a record; the rest go into further records with the same picture."""
    seed: int = 0
    settings: StrictConfig = NoSettings()
    """The dataset's own settings, an instance of its `settings` class."""
    picture_folder: Path | None = None
    """Where the paths inside LLaVA json begin, if it is not the file's own folder; absolute."""
    scratch: Path | None = None
    """Folder for temporary files; None: the system's."""
    hub: Hub | None = None
    """Read this dataset of the Hugging Face hub instead of a folder."""


@dataclass(frozen=True)
class Part:
    """A piece of a dataset that can be read on its own: a file, a split, or some tables."""

    path: Path
    split: str = ""
    tables: tuple[Table, ...] = ()
    """Where it is read from tables: these, in this order."""
    pictures: Path | None = None
    """The folder of its pictures, where that is not to be told from `path`."""


@dataclass(frozen=True)
class Dataset:
    """One dataset: `parts` finds its pieces under a folder, `read` turns a piece into items.

    The order of parts and items is a function of the input and the options alone.
    """

    name: str
    title: str
    phases: tuple[int, ...]
    splits: tuple[str, ...]
    """Known splits, the one for training first; empty where there is none."""
    parts: Callable[[Path, Options], list[Part]]
    read: Callable[[Part, Options], Iterator[Item]]
    settings: type[StrictConfig] = NoSettings
    tolerated: frozenset[str] = frozenset()
    """Reasons that are a known property of the published data: counted, but not held against --max-refused."""
    max_questions: int | None = None
    """The default of --max-questions."""
    hub: tuple[str, ...] = ()
    """Ids on the Hugging Face hub whose tables it reads; empty: none."""
    scored: bool = True
    """Its records are questions with reference answers, so they can be made for evaluation."""
    llava_json: bool = False
    """Its records are conversations already: --images applies, and --prompts does not."""
    members: tuple[str, ...] = ("*",)
    """Patterns of the names that are taken out of archives, matched from the right: `png/*.png`."""


def image_key(folder: Path, name: str, options: Options) -> str:
    """Return the image key of the picture `name`, an untrusted relative path of the raw data, under `folder`.

    Raises:
        Refusal: `unsafe_image_path`, the name does not stay under the folder.
    """
    try:
        resolve_key(folder, name)
    except ImageFault:
        raise Refusal("unsafe_image_path", f"picture {name!r} does not stay under {folder.name}/") from None
    return (folder.absolute().relative_to(options.image_root) / name).as_posix()
