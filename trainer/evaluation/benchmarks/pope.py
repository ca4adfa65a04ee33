"""POPE (Li et al. 2023): is a thing in the picture? Half of the questions are about things that are not there.

github.com/AoiDragon/POPE, `output/coco/`, a line a question; the pictures are COCO's val2014:

    coco_pope_random.json, coco_pope_popular.json, coco_pope_adversarial.json
        {"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?",
         "label": "yes"}
    val2014/COCO_val2014_000000310196.jpg

Ids begin anew in every file, so the category is put in front: `random-1`. LLaVA's own question file
(`llava_pope_test.jsonl`) has ids of its own; the benchmark `questions` reads it, for LLaVA's `eval_pope.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from dataprep.prompts import PROMPTS
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source
from trainer.evaluation.benchmarks.files import record_of, require_pictures, unsafe_picture

CATEGORIES = ("random", "popular", "adversarial")
ALL = "all"
PICTURES = "val2014"


class Line(msgspec.Struct):
    """One line."""

    question_id: int
    image: str
    text: str
    label: str


def read(source: Source) -> Iterator[Asked | Left]:
    """Yield the questions of a category, or of all three.

    Raises:
        CommandError: a category's file is not there, or the pictures are not.
    """
    from dataprep.datasets.raw import found

    categories = CATEGORIES if source.split == ALL else (source.split,)
    files = {name: found(source.data, f"coco_pope_{name}.json") for name in categories}
    for name, path in files.items():
        if path is None:
            raise source.needs(f"a folder with coco_pope_{name}.json")
    folder = require_pictures(found(source.data, PICTURES), source, f"a folder {PICTURES}/")
    for name, path in files.items():
        assert path is not None
        for number, line in enumerate(path.read_bytes().splitlines(), 1):
            if line.strip():
                yield _question(line, name, folder, number)


def _question(content: bytes, category: str, folder: Path, number: int) -> Asked | Left:
    line = record_of(content, Line, number)
    if isinstance(line, Left):
        return line
    if line.label not in ("yes", "no"):
        return Left("bad_options", f"line {number}: the label is {line.label!r}, expected yes or no")
    if unsafe := unsafe_picture(line.image, number):
        return unsafe
    prompt = PROMPTS["llava15"].ask(line.text, "short")
    return Asked(f"{category}-{line.question_id}", prompt, folder / line.image, (line.label,), category)


BENCHMARK = Benchmark(
    "pope",
    "POPE: things that are not in the picture",
    "yes_no",
    (ALL, *CATEGORIES),
    read,
    caveat="an answer that is neither yes nor no is wrong and no yes; published scripts take it for yes",
)
