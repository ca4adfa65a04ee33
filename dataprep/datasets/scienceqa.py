"""ScienceQA (Lu et al. 2022): multiple-choice questions of school lessons, half of them with a picture.

github.com/lupantech/ScienceQA, `data/scienceqa/` (the zips of pictures unpack to `train/`, `val/` and `test/`; its
script puts them under `images/`, many put them beside the json files, and both are found):

    problems.json           an object, by problem id
    pid_splits.json         {"train": ["1", "2", ...], "val": [...], "test": [...], "minitrain": [...], ...}
    images/train/1/image.png ...

    "1": {"question": "Which of these states is farthest north?", "choices": ["West Virginia", "Louisiana", ...],
     "answer": 0, "hint": "", "image": "image.png", "task": "closed choice", "grade": "grade2",
     "subject": "social science", "topic": "geography", "category": "Geography", "skill": "Read a map: ...",
     "lecture": "Maps have four cardinal directions, ...", "solution": "To find the answer, look at the ...",
     "split": "train"}

`image` is null for questions without a picture. The tables of derek-thomas/ScienceQA (train, validation, test) have
the same columns, with the picture's bytes, and no ids: there a record is named by its row.

A question is written in the order of LLaVA's evaluation file llava_test_CQM-A (context, question, options), in the
wording of lmms-eval's default prompt: a line `Context: HINT` where there is a hint, the question, a line an option, and
the sentence that asks for the letter. With `lecture` or `explanation` the answer is one of ScienceQA's own forms
instead, `The answer is B. BECAUSE: LECTURE SOLUTION` (its QCM-ALE) or, to reason first, `LECTURE SOLUTION The answer is
B.` (its QCM-LEA); no sentence asks for a letter then, and the reference answer of evaluation is still the letter.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from pathlib import Path
from typing import Literal

import msgspec

from configs import StrictConfig
from dataprep.conversation import Refusal
from dataprep.datasets.base import Dataset, Duplicate, Item, Options, Part, Refused, image_key
from dataprep.datasets.options import pruned, pruning
from dataprep.datasets.pictures import content_name, keep_picture, stored_bytes
from dataprep.datasets.questions import Question, records
from dataprep.datasets.raw import Picture, decoded, found, numbered_rows, table_parts
from dataprep.errors import CommandError
from dataprep.json_stream import object_members
from dataprep.prompts import choose_between

NAME = "scienceqa"
SPLITS = ("train", "val", "test")
PROBLEMS, PID_SPLITS = "problems.json", "pid_splits.json"
TABLE_SPLITS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}


class Settings(StrictConfig):
    """What can be chosen for ScienceQA."""

    target: Literal["letter", "option"] = "letter"
    """Whether the answer is the letter of an option or its text."""
    lecture: bool = False
    """Answer with the lecture, which is what is generally known."""
    explanation: bool = False
    """Answer with the explanation of this very answer."""
    reasoning: Literal["after", "before"] = "after"
    """Where lecture and explanation stand: behind the answer or in front of it."""


class Problem(msgspec.Struct, frozen=True):
    """What problems and rows have in common."""

    question: str
    choices: list[str]
    answer: int
    hint: str | None = None
    subject: str | None = None
    lecture: str | None = None
    solution: str | None = None


class Filed(Problem, frozen=True):
    """One problem of problems.json."""

    image: str | None = None
    split: str | None = None


class Row(Problem, frozen=True):
    """One row of a table."""

    image: Picture | None = None


def parts(folder: Path, options: Options) -> list[Part]:
    """Return a part a split.

    Raises:
        CommandError: neither problems.json and pid_splits.json nor tables are there, or a split is missing.
    """
    problems = found(folder, PROBLEMS) if options.hub is None else None
    if problems is not None:
        known = _splits(problems.with_name(PID_SPLITS))
        for split in options.splits:
            if split not in known:
                raise CommandError(f"{problems.with_name(PID_SPLITS)}: no split {split}, only {', '.join(known)}")
        return [Part(problems.parent, split) for split in options.splits]
    if tables := table_parts(folder, options, TABLE_SPLITS):
        return tables
    raise CommandError(
        f"{folder / PROBLEMS}: no such file; --input should be the folder data/scienceqa, or one with parquet files"
    )


def read(part: Part, options: Options) -> Iterator[Item]:
    """Yield a record a question, in the order of pid_splits.json or of the rows."""
    if part.tables:
        yield from records(_rows(part, options), NAME, part, options)
        return
    splits = _splits(part.path / PID_SPLITS)
    held_out = _held_out(splits, part, options)
    lines: dict[str, int] = {}
    for line, pid in enumerate(splits[part.split], 1):
        if pid in lines:
            yield Duplicate(PID_SPLITS, line, pid)
        elif pid in held_out:
            detail = f"it is listed for {part.split} and for {held_out[pid]}"
            yield Refused("not_in_split", detail, PID_SPLITS, line, pid)
        lines.setdefault(pid, line)
    wanted = {pid: line for pid, line in lines.items() if pid not in held_out}
    problems, repeated = _problems(part.path / PROBLEMS, wanted.keys())
    yield from repeated
    yield from records(_listed(wanted, problems, part, options), NAME, part, options)


def _splits(path: Path) -> dict[str, list[str]]:
    """Return the problem ids of each split."""
    if not path.is_file():
        raise CommandError(f"{path}: no such file; it says which problems are for training")
    try:
        return msgspec.json.decode(path.read_bytes(), type=dict[str, list[str]])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: expected lists of problem ids by split: {error}") from None


def _held_out(splits: dict[str, list[str]], part: Part, options: Options) -> dict[str, str]:
    """Return the ids that are kept out of training because a later split is scored on them, with that split."""
    if options.evaluation:
        return {}
    later = SPLITS[SPLITS.index(part.split) + 1 :]
    return {pid: split for split in reversed(later) for pid in splits.get(split, ())}


def _problems(path: Path, wanted: Set[str]) -> tuple[dict[str, tuple[int, bytes]], list[Duplicate | Refused]]:
    """Return each wanted problem's number in the file and its JSON text, so that a bad one costs one record.

    Returns:
        The problems by id, and what becomes of those whose id came before.
    """
    problems: dict[str, tuple[int, bytes]] = {}
    repeated: list[Duplicate | Refused] = []
    for line, (key, content) in enumerate(object_members(path), 1):
        pid = decoded(key, str, PROBLEMS, line)
        if isinstance(pid, Refused) or pid not in wanted:
            continue  # an id that cannot be read is missed where pid_splits.json lists it
        first, _ = problems.setdefault(pid, (line, content))
        if first != line:
            repeated.append(_repeated(pid, problems[pid], line, content))
    return problems, repeated


def _repeated(pid: str, first: tuple[int, bytes], line: int, content: bytes) -> Duplicate | Refused:
    if decoded(first[1], Filed, PROBLEMS, 0) == decoded(content, Filed, PROBLEMS, 0):
        return Duplicate(PROBLEMS, line, pid)
    return Refused("repeated_id", f"problem {first[0]} has the id {pid} and says something else", PROBLEMS, line, pid)


def _listed(
    lines: dict[str, int], problems: dict[str, tuple[int, bytes]], part: Part, options: Options
) -> Iterator[Question | Refused]:
    """Yield the problems of a split.

    Args:
        lines: their ids, with their numbers in pid_splits.json.
        problems: by id, with their numbers in problems.json.
    """
    inside, beside = part.path / "images" / part.split, part.path / part.split
    pictures = next((folder for folder in (inside, beside) if folder.is_dir()), None)
    for pid, line in lines.items():
        if pid in problems:
            yield _of_problem(pid, *problems[pid], pictures, part, options)
        else:
            yield Refused("not_a_record", f"{PROBLEMS} has no problem {pid}", PID_SPLITS, line, pid)


def _of_problem(
    pid: str, line: int, content: bytes, pictures: Path | None, part: Part, options: Options
) -> Question | Refused:
    problem = decoded(content, Filed, PROBLEMS, line)
    if isinstance(problem, Refused):
        return problem._replace(id=pid)
    try:
        if problem.split is not None and problem.split != part.split:
            raise Refusal("not_in_split", f"the problem is of {problem.split}, {PID_SPLITS} lists it for {part.split}")
        key = None
        if problem.image is not None:
            if pictures is None:
                raise _no_pictures(pid, part)
            image_key(pictures, pid, options)  # the id is a folder's name
            key = image_key(pictures / pid, problem.image, options)
        return _question(problem, Place(PROBLEMS, line, pid, pid), key, options)
    except Refusal as refusal:
        return Refused(refusal.reason, refusal.detail, PROBLEMS, line, pid)


def _no_pictures(pid: str, part: Part) -> CommandError:
    places = f"{part.path / 'images' / part.split} or {part.path / part.split}"
    return CommandError(f"{places}: no such folder, and problem {pid} has a picture; unpack {part.split}.zip there")


def _rows(part: Part, options: Options) -> Iterator[Question | Refused]:
    for number, file, line, row in numbered_rows(part, Row):
        yield row if isinstance(row, Refused) else _of_row(row, number, file, line, part, options)


def _of_row(row: Row, number: int, file: str, line: int, part: Part, options: Options) -> Question | Refused:
    try:
        key = None
        if row.image is not None:
            content = stored_bytes(row.image)
            key = keep_picture(content, f"{part.split}/{content_name(content)}", options)
        return _question(row, Place(file, line, "", str(number)), key, options)
    except Refusal as refusal:
        return Refused(refusal.reason, refusal.detail, file, line, "")


class Place(msgspec.Struct, frozen=True):
    """Where a problem stands, and what tells it from the others of its split."""

    file: str
    line: int
    id: str
    name: str


def _question(problem: Problem, place: Place, key: str | None, options: Options) -> Question:
    """Return a problem as it is asked.

    Raises:
        Refusal: `empty_question` or `bad_options`.
    """
    assert isinstance(options.settings, Settings)
    settings = options.settings
    if not problem.question.strip():
        raise Refusal("empty_question", "the question is empty")
    choices, right = pruned(problem.choices, problem.answer)
    hint = (problem.hint or "").strip()
    text = f"Context: {hint}\n{problem.question}" if hint else problem.question
    choice = choose_between(text, choices, right, options.prompts, settings.target)
    reasons = settings.lecture or settings.explanation
    return Question(
        place.file,
        place.line,
        place.id,
        place.name,
        place.name,
        key,
        choice.question,
        _reasoned(choice.answer, problem, settings) if reasons else choice.answer,
        "open" if reasons else choice.form,
        answers=(choice.answer,),
        kind=problem.subject or "",
        options=choices,
        rules=pruning(problem.choices, choices),
    )


def _reasoned(answer: str, problem: Problem, settings: Settings) -> str:
    """Return the answer with its reasons, of which a problem may lack one or both."""
    given = ((settings.lecture, problem.lecture), (settings.explanation, problem.solution))
    reasons = " ".join(text.strip() for wanted, text in given if wanted and text and text.strip())
    conclusion = f"The answer is {answer}" if answer.endswith((".", "!", "?")) else f"The answer is {answer}."
    if not reasons:
        return conclusion
    return f"{reasons} {conclusion}" if settings.reasoning == "before" else f"{conclusion} BECAUSE: {reasons}"


DATASET = Dataset(
    NAME,
    "ScienceQA: multiple-choice questions of school lessons",
    (2,),
    SPLITS,
    parts,
    read,
    settings=Settings,
    hub=("derek-thomas/ScienceQA",),
    members=(PROBLEMS, PID_SPLITS, "*/image.png", "*.parquet"),
)
