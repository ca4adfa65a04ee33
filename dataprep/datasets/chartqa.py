"""ChartQA (Masry et al. 2022), the original layout of the zip and of github.com/vis-nlp/ChartQA.

    ChartQA Dataset/                     the name has a blank
      train/ val/ test/
        png/41699051005347.png ...       86 % RGBA
        {split}_human.json               written by people
        {split}_augmented.json           generated from the charts' summaries

    {"imgname": "41699051005347.png", "query": "How many food item is shown in the bar graph?", "label": "14"}

Labels are strings, also the numbers; 2 % of the human ones are lists written as strings (`[2013, 2016]`). Typos and
double blanks are the dataset's own and stay. All questions of a picture become one record, the human ones first.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import msgspec

from dataprep.conversation import IMAGE_TAG, Conversation, Refusal, Turn, validate
from dataprep.datasets.base import Dataset, Duplicate, Item, Options, Part, Refused, Written, image_key
from dataprep.errors import CommandError
from dataprep.json_stream import array_elements

FOLDER = "ChartQA Dataset"
SPLITS = ("train", "val", "test")
KINDS = ("human", "augmented")


class Question(msgspec.Struct, frozen=True):
    """One element of the json files."""

    imgname: str
    query: str
    label: str


class _Asked(msgspec.Struct, frozen=True):
    question: Question
    file: str
    line: int

    @property
    def place(self) -> tuple[str, int, str]:
        return self.file, self.line, self.question.imgname


def parts(folder: Path, options: Options) -> list[Part]:
    """Return a part a split.

    Raises:
        CommandError: the folder does not hold the splits asked for.
    """
    base = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    for split in options.splits:
        for kind in KINDS:
            path = base / split / f"{split}_{kind}.json"
            if not path.is_file():
                raise CommandError(f"{path}: no such file; --input should be the folder {FOLDER!r} with {split}/ in it")
    return [Part(base / split, split) for split in options.splits]


def read(part: Part, options: Options) -> Iterator[Item]:
    """Yield a record a picture, in the order in which the pictures are first asked about."""
    by_image: dict[str, list[_Asked]] = {}
    seen: set[Question] = set()
    for asked in _questions(part):
        if isinstance(asked, Refused):
            yield asked
        elif asked.question in seen:
            yield Duplicate(*asked.place)
        else:
            seen.add(asked.question)
            by_image.setdefault(asked.question.imgname, []).append(asked)
    for name, questions in by_image.items():
        yield from _record(name, questions, part, options)


def _questions(part: Part) -> Iterator[_Asked | Refused]:
    for kind in KINDS:
        path = part.path / f"{part.split}_{kind}.json"
        for number, element in enumerate(array_elements(path), 1):
            yield _question(element, path.name, number)


def _question(element: bytes, file: str, line: int) -> _Asked | Refused:
    try:
        question = msgspec.json.decode(element, type=Question)
    except msgspec.ValidationError as error:
        return Refused("not_a_record", str(error), file, line, "")
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        reason = "not_utf8" if isinstance(error, UnicodeDecodeError) else "not_json"
        return Refused(reason, str(error), file, line, "")
    if not question.query:
        return Refused("empty_question", "query is empty", file, line, question.imgname)
    if IMAGE_TAG in question.query:
        return Refused("image_count", f"the query holds {IMAGE_TAG}", file, line, question.imgname)
    if not question.label:
        return Refused("no_answer", "label is empty", file, line, question.imgname)
    return _Asked(question, file, line)


def _record(name: str, questions: list[_Asked], part: Part, options: Options) -> Iterator[Item]:
    stem = PurePosixPath(name)
    if len(stem.parts) != 1 or stem.name == "..":
        yield from (Refused("unsafe_image_path", f"imgname {name!r}", *asked.place) for asked in questions)
        return
    turns: list[Turn] = []
    for asked in questions:
        query = asked.question.query
        if not turns:
            query = f"{IMAGE_TAG}\n{options.prompts.ask_shortly(query)}"
        turns += [Turn("human", query), Turn("gpt", asked.question.label)]
    key = image_key(part.path / "png" / name, options)
    conversation = Conversation(f"chartqa-{part.split}-{stem.stem}", key, turns)
    try:
        validate(conversation)
    except Refusal as refusal:
        yield from (Refused(refusal.reason, refusal.detail, *asked.place) for asked in questions)
        return
    yield Written(conversation, len(questions))


DATASET = Dataset("chartqa", "ChartQA: questions about charts", (2,), SPLITS, parts, read)
