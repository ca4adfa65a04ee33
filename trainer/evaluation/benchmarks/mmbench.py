"""MMBench (Liu et al. 2023): multiple choice, asked with its options in every rotation, right only if always right.

opencompass, one table a split, tab-separated, with the pictures in base64 (the test split has no `answer`):

    mmbench_dev_20230712.tsv, MMBench_DEV_EN.tsv, MMBench_TEST_EN.tsv
    index  question  hint  A  B  C  D  answer  category  image  source  l2-category  comment  split
    241    Identify the question that ...  The passage below ...  ...  B  identity_reasoning  /9j/4AAQ...  ...

The dev tables hold the rotations already: the index of the k-th is the question's plus k million. Where a table holds
none they are made here, numbered in the same way. The image of some rows is the index of the row that has it.

The question is asked as LLaVA does (`llava/eval/model_vqa_mmbench.py`): the hint, the question, a line an option, and
the sentence that asks for the letter.
"""

from __future__ import annotations

import base64
import binascii
import csv
from collections.abc import Iterator
from pathlib import Path

from dataprep.errors import CommandError
from dataprep.prompts import LETTERS, PROMPTS, choose_between
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source

#: What a rotation's index lies above that of its question.
ROTATION = 1_000_000

#: Base64 of the smallest picture is longer than this; the index of a row is shorter.
LONGEST_INDEX = 64

NOTHING = ("", "nan", "none")
COLUMNS = ("index", "question", "A", "B", "image")

Row = dict[str, str]


def read(source: Source) -> Iterator[Asked | Left]:
    """Yield the questions of a split, the rotations of each together.

    Raises:
        CommandError: there is no table of the split, or it is not MMBench's.
    """
    groups: dict[int, list[Row]] = {}
    pictures: dict[str, str] = {}
    for row in _rows(_table(source), source):
        if not row["index"].isdecimal():
            yield Left("not_a_record", f"the index is {row['index']!r:.40}, expected a number")
            continue
        groups.setdefault(int(row["index"]) % ROTATION, []).append(row)
        pictures[row["index"]] = row["image"]
    rotated = any(len(rows) > 1 for rows in groups.values())
    for index, rows in groups.items():
        image = _picture(rows[0], pictures, source)
        if isinstance(image, Left):
            yield image
            continue
        for row in rows:
            yield from _questions(row, index, image, 1 if rotated else len(_options(row)))


def _table(source: Source) -> Path:
    if source.data.is_file():
        return source.data
    tables = sorted(source.data.glob("*.tsv")) if source.data.is_dir() else []
    fitting = [path for path in tables if f"_{source.split}" in path.stem.lower()]
    if len(fitting) != 1:
        names = ", ".join(path.name for path in fitting or tables)
        raise source.needs(f"a .tsv file of MMBench, or a folder with one of the split {source.split}", names)
    return fitting[0]


def _rows(path: Path, source: Source) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)  # a picture is one field
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t")
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            there = ", ".join((reader.fieldnames or ())[:12])
            raise source.needs(f"the column {', '.join(missing)}", f"the columns {there:.200}")
        try:
            for row in reader:
                yield {name: value or "" for name, value in row.items() if isinstance(name, str)}
        except (csv.Error, UnicodeDecodeError) as error:
            raise CommandError(f"{path}: damaged near line {reader.line_num}: {error}") from None


def _picture(row: Row, pictures: dict[str, str], source: Source) -> Path | Left:
    """Write the picture of a question, unless it is there; return where."""
    from dataprep.datasets.pictures import content_name, extension, write_whole

    text = row["image"]
    if len(text) <= LONGEST_INDEX:
        text = pictures.get(text.removesuffix(".0"), "")
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        return Left("unreadable_image", f"row {row['index']}: {error}")
    if not content:
        return Left("missing_image", f"row {row['index']} has no picture")
    path = source.pictures / f"{content_name(content)}.{extension(content)}"
    if not path.is_file():
        write_whole(path, content)
    return path


def _options(row: Row) -> list[str]:
    options = []
    for letter in LETTERS[:4]:
        if row.get(letter, "").strip().lower() in NOTHING:
            break
        options.append(row[letter])
    return options


def _questions(row: Row, group: int, image: Path, num_rotations: int) -> Iterator[Asked | Left]:
    """Yield a row's question, in as many rotations as are asked for."""
    index, options = int(row["index"]), _options(row)
    answer = row.get("answer", "").strip()
    published = answer.lower() not in NOTHING
    if len(options) < 2 or (published and answer not in tuple(LETTERS[: len(options)])):
        yield Left("bad_options", f"row {index}: the options are {options}, the answer is {answer!r}")
        return
    right = LETTERS.index(answer) if published else 0
    hint = row.get("hint", "").strip()
    question = row["question"] if hint.lower() in NOTHING else f"{hint}\n{row['question']}"
    for turn in range(num_rotations):
        turned = [*options[turn:], *options[:turn]]
        choice = choose_between(question, turned, (right - turn) % len(options), PROMPTS["llava15"], "letter")
        prompt = PROMPTS["llava15"].ask(choice.question, choice.form)
        answers = (choice.answer,) if published else ()
        yield Asked(index + turn * ROTATION, prompt, image, answers, row.get("category", ""), tuple(turned), group)


BENCHMARK = Benchmark("mmbench", "MMBench: multiple choice in every rotation", "circular", ("dev", "test"), read)
