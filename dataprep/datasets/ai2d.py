"""AI2D (Kembhavi et al. 2016): multiple-choice questions about the diagrams of school books.

`ai2d-all.zip`, and `ai2d_test_ids.csv` (the number of a test picture on every line), which is published apart from it:

    ai2d/
      images/0.png ...            the names are numbers, with gaps
      questions/0.png.json ...    of training and test pictures alike
      annotations/0.png.json ...  see ai2d_labels.py

    {"imageName": "0.png", "questions": {"What is A in the diagram?": {"abcLabel": true, "questionId": "0.png-0",
     "answerTexts": ["ears", "nose", "mouth", "face"], "correctAnswer": 3}, ...}}

`questions` is an object whose keys are the questions, so two equal ones share a key, and most parsers keep the last:
here both are read. An option `{}` (as text or as an object) or null is no option; some options come twice, and only one
is marked right. A question with `abcLabel` asks about letters that stand in no published picture: the picture is
painted (ai2d_labels.py), once a run, as `images/ai2d/abc_masked/0-HASH.png` or `abc_unmasked/...`.

The table of lmms-lab/ai2d (test only; its pictures are painted already; the answer is an index, as text):

    {"question": "What is A in the diagram?", "options": ["ears", "nose", ...], "answer": "3", "image": {"bytes": ...}}

Options that name letters in the picture (`B`, `D`, `H`; Molmo allows one that does not, such as `none of these`) are
asked for by their text, whatever `target` says: behind other letters nobody could tell which is meant. They are
written as published, also where that is in lower case (the painted letters are capitals).
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Sequence, Set
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import msgspec

from configs import StrictConfig
from dataprep.conversation import Refusal
from dataprep.datasets.ai2d_labels import Diagram, Style
from dataprep.datasets.base import Dataset, Item, Options, Part, Refused, image_key
from dataprep.datasets.options import NULL, are_letters, is_letter, pruned, pruning
from dataprep.datasets.pictures import content_name, keep_picture, stored_bytes
from dataprep.datasets.questions import Question, fault, records
from dataprep.datasets.raw import Picture, found, numbered_rows, table_parts, typed
from dataprep.errors import CommandError
from dataprep.prompts import Choice, choose_between

NAME = "ai2d"
SPLITS = ("train", "test")
TEST_IDS = "ai2d_test_ids.csv"
TEST_IDS_URL = "https://s3-us-east-2.amazonaws.com/prior-datasets/ai2d_test_ids.csv"

#: With more question files than these, one at least is of the test.
MANY_FILES = 50

TABLE_SPLITS = {"train": ("train",), "test": ("test",)}


class Settings(StrictConfig):
    """What can be chosen for AI2D."""

    labels: Literal["masked", "unmasked", "both"] = "masked"
    """How letters are painted over labels. `both`: a record for each way; evaluation takes the masked one."""
    target: Literal["letter", "option"] = "letter"
    """Whether the answer is the letter of an option or its text."""
    test_ids: Literal["required", "none"] = "required"
    """`none`: do without ai2d_test_ids.csv, and count all questions as training data, the benchmark's too."""


class Asked(msgspec.Struct, frozen=True):
    """One question of a question file, without its text."""

    options: list[str] = msgspec.field(name="answerTexts")
    right: int = msgspec.field(name="correctAnswer")
    abc: bool = msgspec.field(name="abcLabel")
    id: str = msgspec.field(name="questionId", default="")


class Row(msgspec.Struct, frozen=True):
    """One row of lmms-lab/ai2d."""

    image: Picture | None
    question: str
    options: list[str]
    answer: str | int


FIELDS = msgspec.structs.fields(Asked)


class _Pairs(NamedTuple):
    """A JSON object with all its keys, also those that come twice."""

    items: list[tuple[str, Any]]


class File(NamedTuple):
    """A question file: the name of its picture, and each question's text with what is known about it."""

    image: Any
    questions: list[tuple[str, Any]]


def parts(folder: Path, options: Options) -> list[Part]:
    """Return a part a split.

    Raises:
        CommandError: neither `questions/` nor tables are there; the pictures are missing; the test ids are missing,
            damaged, or another dataset's; painted pictures would lie outside the image root.
    """
    questions = found(folder, "questions") if options.hub is None else None
    if questions is not None and questions.is_dir():
        _require_image_root(folder, options)
        if not (questions.parent / "images").is_dir():
            raise CommandError(
                f"{questions.parent}: no folder images/ there; --input should be the folder ai2d of ai2d-all.zip"
            )
        _expect_known(_test_ids(questions.parent, options), questions)
        return [Part(questions.parent, split) for split in options.splits]
    if tables := table_parts(folder, options, TABLE_SPLITS):
        return tables
    raise CommandError(
        f"{folder}: holds no folder questions/ and no parquet files; --input should be the folder ai2d of ai2d-all.zip"
    )


def read(part: Part, options: Options) -> Iterator[Item]:
    """Yield a record a picture, and one for each way in which it is painted, in the order of the pictures' numbers."""
    questions = _rows(part, options) if part.tables else _asked_of(part, options)
    yield from records(questions, NAME, part, options)


def _require_image_root(folder: Path, options: Options) -> None:
    if not options.images.is_relative_to(options.image_root):
        link = shlex.join(["ln", "-s", str(folder.absolute()), str(options.root / "raw" / NAME)])
        raise CommandError(
            f"{folder}: lies outside the root {options.root}, where pictures with painted letters are written; "
            f"link it there: {link}"
        )


def _test_ids(base: Path, options: Options) -> frozenset[str]:
    """Return the test pictures as `_number` has them; none where they are not asked for."""
    assert isinstance(options.settings, Settings)
    if options.settings.test_ids == "none":
        if "test" in options.splits:
            raise CommandError(f"test_ids=none: without {TEST_IDS} there is no test split; leave out the setting")
        return frozenset()
    path = _test_ids_file(base)
    if path is None:
        raise CommandError(
            f"{base / TEST_IDS}: no such file, nor beside the folder; get it from {TEST_IDS_URL}: questions/ mixes "
            f"training and test, and training on all of it is training on the benchmark (--set test_ids=none does)"
        )
    lines = path.read_text("utf-8-sig", errors="replace").split()
    for number, line in enumerate(lines, 1):
        if not re.fullmatch(r"[0-9]+(\.png)?", line):
            raise CommandError(f"{path}: id {number} is {line[:40]!r}, expected the number of a picture")
    if not lines:
        raise CommandError(f"{path}: holds no ids")
    return frozenset(_number(line) for line in lines)


def _test_ids_file(base: Path) -> Path | None:
    return next((place / TEST_IDS for place in (base, base.parent) if (place / TEST_IDS).is_file()), None)


def _number(name: str) -> str:
    """Return what tells a picture from the others: `7`, `007` and `7.png` are one, since numbers are compared."""
    stem = PurePosixPath(name).stem
    return stem.lstrip("0") or "0" if re.fullmatch("[0-9]+", stem) else stem


def _is_picture(name: Any, picture: str) -> bool:
    return isinstance(name, str) and _number(name) == _number(picture)


def _expect_known(test: Set[str], questions: Path) -> None:
    """Refuse ids of which none is a picture's here: all of the benchmark would be trained on."""
    names = [path.name for path in questions.glob("[!.]*.json")]
    if test and len(names) > MANY_FILES and not any(_number(name.removesuffix(".json")) in test for name in names):
        raise CommandError(
            f"{_test_ids_file(questions.parent)}: none of its {len(test)} ids is that of one of the {len(names)} files "
            f"in questions/; get it from {TEST_IDS_URL}"
        )


def _asked_of(part: Part, options: Options) -> Iterator[Question | Refused]:
    """Yield the questions of a split's pictures; those of other pictures are another split's."""
    test = _test_ids(part.path, options)
    files = (path for path in (part.path / "questions").glob("[!.]*.json") if path.is_file())
    for path in sorted(files, key=_numerically):
        picture = path.name.removesuffix(".json")
        if (_number(picture) in test) == (part.split == "test"):
            yield from _of_file(path, picture, part, options)


def _numerically(path: Path) -> tuple[int, str]:
    number = path.name.partition(".")[0]
    return (int(number) if re.fullmatch("[0-9]{1,18}", number) else 10**18, path.name)


def _of_file(path: Path, picture: str, part: Part, options: Options) -> Iterator[Question | Refused]:
    if not _is_text(path.name):
        yield Refused("not_utf8", f"the file's name is {path.name!r}", _escaped(path.name), 1, "")
        return
    file = _file(path.read_bytes(), path.name)
    if isinstance(file, Refused):
        yield file
        return
    diagram = Diagram(part.path / "images" / picture, part.path / "annotations" / path.name, options.images)
    for line, (text, value) in enumerate(file.questions, 1):
        asked = _asked(text, value, path.name, line)
        if isinstance(asked, Refused):
            yield asked
        elif file.image is not None and not _is_picture(file.image, picture):
            # Which of the two it is decides between training and test, so it is not guessed.
            detail = f"imageName is {file.image!r:.60}, expected {picture!r} by the file's name"
            yield Refused("not_a_record", detail, path.name, line, asked.id)
        else:
            yield from _of_question(text, asked, diagram, path.name, line, part, options)


def _file(content: bytes, name: str) -> File | Refused:
    """Return a question file with all its questions, also where two have the same text."""
    try:
        value = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_Pairs, parse_int=_integer)
    except UnicodeDecodeError as error:
        return Refused("not_utf8", str(error), name, 1, "")
    except ValueError as error:
        return Refused("not_json", str(error), name, 1, "")
    except RecursionError as error:
        return Refused("not_a_record", str(error), name, 1, "")
    members = dict(value.items) if isinstance(value, _Pairs) else {}
    questions = members.get("questions")
    if not isinstance(questions, _Pairs):
        return Refused("not_a_record", "expected an object with the object `questions`", name, 1, "")
    return File(members.get("imageName"), questions.items)


def _integer(digits: str) -> int | None:
    """Return a number, None for one longer than any here: Python refuses the whole text because of very long ones."""
    return int(digits) if len(digits) < 20 else None


def _asked(text: str, value: Any, file: str, line: int) -> Asked | Refused:
    """Return what is known about a question, or its refusal, which names it if it has a name."""
    members = dict(value.items) if isinstance(value, _Pairs) else {}
    # Other keys may be anything, also what msgspec does not take for a key.
    known = {field.encode_name: members[field.encode_name] for field in FIELDS if field.encode_name in members}
    name = _escaped(known["questionId"]) if isinstance(known.get("questionId"), str) else ""
    if isinstance(choices := known.get("answerTexts"), list):
        known["answerTexts"] = [NULL if choice is None or choice == _Pairs([]) else choice for choice in choices]
    asked = typed(known, Asked, file, line)
    if isinstance(asked, Refused):
        return asked._replace(id=name)
    if not all(map(_is_text, (text, asked.id, *asked.options))):
        return Refused("not_utf8", "half of a surrogate pair stands in the text", file, line, name)
    return asked


def _is_text(text: str) -> bool:
    """Return whether a text can be written: half of a surrogate pair cannot."""
    return not re.search("[\ud800-\udfff]", text)


def _escaped(text: str) -> str:
    """Return a text as it is if it can be written, otherwise in ASCII."""
    return text if _is_text(text) else text.encode("ascii", "backslashreplace").decode("ascii")


def _of_question(
    text: str, asked: Asked, diagram: Diagram, file: str, line: int, part: Part, options: Options
) -> Iterator[Question | Refused]:
    """Yield a question, once for each way in which its picture is painted, or its refusal."""
    picture = file.removesuffix(".json")
    group = PurePosixPath(picture).stem
    kind = "abc" if asked.abc else "text"
    try:
        choices, right = pruned(asked.options, asked.right)
        key = image_key(part.path / "images", picture, options)
        choice = _choice(text, choices, right, options)
        question = Question(
            file, line, asked.id, f"{group}-{line}", group, key, choice.question, choice.answer,
            form=choice.form, kind=kind, options=choices, rules=pruning(asked.options, choices),
        )  # fmt: skip
        if fault(question) is None and asked.abc:
            yield from _painted(question, _letters(text, choices, right), diagram, options)
        else:
            yield question
    except Refusal as refusal:
        yield Refused(refusal.reason, refusal.detail, file, line, asked.id)


def _choice(text: str, choices: Sequence[str], right: int, options: Options) -> Choice:
    assert isinstance(options.settings, Settings)
    if not text.strip():
        raise Refusal("empty_question", "the question is empty")
    target = "option" if are_letters(choices) else options.settings.target
    return choose_between(text, choices, right, options.prompts, target)


def _letters(text: str, choices: Sequence[str], right: int) -> set[str]:
    """Return the letters of which one must be in the picture, as far as a question names any."""
    if are_letters(choices):
        return {choices[right].strip().upper()} if is_letter(choices[right]) else set()
    return set(re.findall(r"\b[A-Z]\b", text))


def _painted(question: Question, letters: set[str], diagram: Diagram, options: Options) -> list[Question]:
    """Return a question with each of its painted pictures; the first counts as the raw record."""
    assert isinstance(options.settings, Settings)
    labels = options.settings.labels
    styles: tuple[Style, ...] = ("masked", "unmasked") if labels == "both" else (labels,)
    diagram.require(letters)
    painted = []
    for number, style in enumerate(styles[:1] if options.evaluation else styles):
        key = diagram.write(style).relative_to(options.image_root).as_posix()
        group = f"{question.group}-{style}"
        painted.append(msgspec.structs.replace(question, image=key, group=group, round=number))
    return painted


def _rows(part: Part, options: Options) -> Iterator[Question | Refused]:
    for number, file, line, row in numbered_rows(part, Row):
        yield row if isinstance(row, Refused) else _of_row(row, number, file, line, part, options)


def _of_row(row: Row, number: int, file: str, line: int, part: Part, options: Options) -> Question | Refused:
    try:
        choices, right = pruned(row.options, _index(row.answer))
        choice = _choice(row.question, choices, right, options)
        content = stored_bytes(row.image)
        group = content_name(content)
        key = keep_picture(content, f"{part.split}/{group}", options)
    except Refusal as refusal:
        return Refused(refusal.reason, refusal.detail, file, line, "")
    return Question(
        file, line, "", str(number), group, key, choice.question, choice.answer,
        form=choice.form, options=choices, rules=pruning(row.options, choices),
    )  # fmt: skip


def _index(answer: str | int) -> int:
    if isinstance(answer, int):
        return answer
    if not re.fullmatch(r"[0-9]{1,4}", answer):
        raise Refusal("bad_options", f"the answer is {answer[:40]!r}, expected the index of an option")
    return int(answer)


DATASET = Dataset(
    NAME,
    "AI2D: multiple-choice questions about school-book diagrams",
    (2,),
    SPLITS,
    parts,
    read,
    settings=Settings,
    hub=("lmms-lab/ai2d",),
    members=("questions/*.json", "annotations/*.json", "images/*", TEST_IDS, "*.parquet"),
)
