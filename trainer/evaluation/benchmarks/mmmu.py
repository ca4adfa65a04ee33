"""MMMU (Yue et al. 2024): multiple-choice questions of college courses.

The tables of MMMU/MMMU (a folder a subject) or of lmms-lab/MMMU (all subjects together), parquet:

    Accounting/validation-00000-of-00001.parquet         data/validation-00000-of-00001.parquet
    {"id": "validation_Accounting_1", "question": "<image 1> Baxter Company has a ...", "options": "['$6', '$7']",
     "image_1": {"bytes": ..., "path": ...}, ..., "image_7": null, "answer": "B", "question_type": "multiple-choice",
     "subfield": "Managerial Accounting", ...}

`options` is a Python list as text. The answers of the test split are `?`. A question with more than one picture is left
out and counted (`several_images`: a model here sees one), as is one that is not multiple choice
(`not_multiple_choice`: scoring those needs a judge); the official score counts both, so ours is over fewer questions.
Where the text says `<image 1>` it stays, as in lmms-eval: it says what is meant.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataprep.errors import CommandError
from dataprep.prompts import LETTERS, PROMPTS, choose_between
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source

PICTURES = tuple(f"image_{number}" for number in range(1, 8))
COLUMNS = ("id", "question", "options", "answer", "question_type", *PICTURES)
ROWS_AT_A_TIME = 16


def read(source: Source) -> Iterator[Asked | Left]:
    """Yield the questions of a split, subject by subject.

    Raises:
        CommandError: there is no table of the split, or it is not MMMU's.
    """
    tables = _tables(source)
    if not tables:
        raise source.needs(f"a folder with {source.split}-*.parquet, or with a folder of it a subject")
    for path in tables:
        for row in _rows(path):
            yield _question(row, source)


def _tables(source: Source) -> list[Path]:
    if source.data.suffix == ".parquet" and source.data.is_file():
        return [source.data]
    return [
        path for level in ("", "*/", "*/*/") for path in sorted(source.data.glob(f"{level}{source.split}-*.parquet"))
    ]


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow.parquet import ParquetFile

    try:
        with ParquetFile(path) as file:
            missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
            if missing:
                there = ", ".join(file.schema_arrow.names)
                raise CommandError(f"{path}: no column {', '.join(missing)}; there are: {there}")
            for batch in file.iter_batches(ROWS_AT_A_TIME, columns=list(COLUMNS)):
                yield from batch.to_pylist()
    except pa.ArrowException as error:
        raise CommandError(f"{path}: not a parquet file that can be read: {error}") from None


def _question(row: dict[str, Any], source: Source) -> Asked | Left:
    name = row["id"]
    if row["question_type"] != "multiple-choice":
        return Left("not_multiple_choice", f"{name} is of the type {row['question_type']!r}")
    there = [row[column] for column in PICTURES if row[column] is not None]
    if len(there) != 1:
        return Left("several_images" if there else "missing_image", f"{name} has {len(there)} pictures")
    options = _options(row["options"])
    answer = row["answer"] or ""
    published = answer in tuple(LETTERS[: len(options)])
    if len(options) < 2 or not (published or answer in ("?", "")):
        return Left("bad_options", f"{name}: the options are {row['options']!r:.80}, the answer is {row['answer']!r}")
    right = LETTERS.index(answer) if published else 0
    choice = choose_between(row["question"], options, right, PROMPTS["llava15"], "letter")
    prompt = PROMPTS["llava15"].ask(choice.question, choice.form)
    image = _picture(there[0], name, source)
    if isinstance(image, Left):
        return image
    return Asked(name, prompt, image, (choice.answer,) if published else (), _subject(name), tuple(options))


def _options(text: str) -> list[str]:
    """Return the options of a list that is written as Python; nothing is run."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(option) for option in value][: len(LETTERS)] if isinstance(value, list) else []


def _subject(name: str) -> str:
    """Return `Art_Theory` of `validation_Art_Theory_12`."""
    return "_".join(name.split("_")[1:-1])


def _picture(value: dict[str, Any], name: str, source: Source) -> Path | Left:
    from dataprep.datasets.pictures import content_name, extension, write_whole

    content = value.get("bytes")
    if not content:
        return Left("missing_image", f"{name}: the table holds no picture")
    path = source.pictures / f"{content_name(content)}.{extension(content)}"
    if not path.is_file():
        write_whole(path, content)
    return path


BENCHMARK = Benchmark(
    "mmmu",
    "MMMU: multiple choice of college courses",
    "multiple_choice",
    ("validation", "dev", "test"),
    read,
    caveat="over multiple-choice questions with one picture; the official score is over all questions",
)
