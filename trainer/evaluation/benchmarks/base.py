"""What a benchmark's file offers, and what its reader yields."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dataprep.errors import CommandError


class Asked(NamedTuple):
    """One question as it is put to a model."""

    id: str | int
    """As the benchmark has it; unique together with `prompt`."""
    prompt: str
    """The words, with options and the sentence about the form of the answer, without the picture's tag."""
    image: Path | None
    answers: tuple[str, ...] = ()
    """Every reference answer; empty where none are published."""
    kind: str = ""
    """The benchmark's own word for the kind of question; several are joined by `+`."""
    options: tuple[str, ...] = ()
    group: str | int | None = None
    """Questions that count as one, since they are one with its options in another order."""


class Left(NamedTuple):
    """A question that cannot be asked: counted, and in no score."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Source:
    """Where a benchmark's questions come from."""

    data: Path
    """What `--data` names: a folder or file, absolute."""
    split: str
    image_dir: Path | None
    """What `--image-dir` names: where the names of pictures begin; None: where the benchmark's layout has them."""
    pictures: Path
    """A folder for pictures that are taken out of tables or drawn; absolute."""

    def needs(self, layout: str, found: str = "") -> CommandError:
        """Return the error of a --data that is not what a benchmark needs."""
        return CommandError(f"--data {self.data}: expected {layout}; found {found or _contents(self.data)}")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """One benchmark."""

    name: str
    title: str
    metric: str
    """Name in `metrics.METRICS`."""
    splits: tuple[str, ...]
    """The one that is asked by default first."""
    read: Callable[[Source], Iterator[Asked | Left]]
    max_new_tokens: int = 128
    """LLaVA's own for questions with short answers (`llava/eval/model_vqa_loader.py`)."""
    caveat: str = ""
    """In what a score differs from one that others publish; said with every score."""
    tagged_prompt: bool = False
    """Write `<image>` into the prompt of an answer: LLaVA's scoring of this benchmark tells by it who had a picture."""


def _contents(path: Path) -> str:
    """Say what is there, in a few words."""
    if not path.exists():
        return "nothing of that name"
    if path.is_file():
        return f"a file of {path.stat().st_size} bytes"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return f"a folder with {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else "an empty folder"
