"""Any LLaVA-style question file: one question a line.

    {"question_id": 0, "image": "COCO_val2014_000000016631.jpg", "text": "Is a person in it?", "category": "popular"}

as the original repository's `llava/eval/model_vqa_loader.py` reads (`image` may be missing: a question of words alone).
`answers` (a list) or `answer`, `kind` or `category`, and `options` are taken where they are there. Questions without
reference answers are answered and cannot be scored; a judge can read them. A line of `llava-prep preprocess`'s files
for evaluation, with `conversations`, is read too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from dataprep.errors import CommandError
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source

LAYOUT = "a .jsonl file of questions, each with question_id, text and image"

Value = TypeVar("Value")


def read(source: Source) -> Iterator[Asked | Left]:
    """Yield the questions of a file.

    Raises:
        CommandError: there is no such file.
    """
    from dataprep.conversation import EvaluationRecord
    from trainer.evaluation.benchmarks.prepared import asked_of

    images = source.image_dir or source.data.parent
    for number, line in lines_of(source):
        record = record_of(line, dict[str, Any], number)
        if isinstance(record, Left):
            yield record
        elif "conversations" in record:
            found = record_of(line, EvaluationRecord, number)
            if isinstance(found, Left):
                yield found
            else:
                yield unsafe_picture(found.image, number) or asked_of(found, images)
        else:
            yield _question(record, images, number)


def lines_of(source: Source) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that are not empty, with their numbers from 1."""
    if not source.data.is_file():
        raise source.needs(LAYOUT)
    with open(source.data, "rb") as file:
        for number, line in enumerate(file, 1):
            if line.strip():
                yield number, line


def record_of(line: bytes, kind: type[Value], number: int) -> Value | Left:
    """Return a line as a value of `kind`, or why it is none."""
    import msgspec

    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return Left("not_a_record", f"line {number}: {error}")


def unsafe_picture(name: str | None, number: int | str) -> Left | None:
    """Return why a picture's name is not followed, if it is not: such a file is others', and asks for any path.

    Args:
        number: of the line that has it.
    """
    from dataprep.images import ImageFault, check_key

    try:
        if name is not None:
            check_key(name)
    except ImageFault as fault:
        return Left(fault.reason, f"line {number}: {fault}")
    return None


def _question(record: dict[str, Any], images: Path, number: int) -> Asked | Left:
    name, text, image = record.get("question_id"), record.get("text"), record.get("image")
    if not isinstance(name, str | int) or not isinstance(text, str) or not isinstance(image, str | None):
        return Left("not_a_record", f"line {number}: expected question_id, text and image; found {', '.join(record)}")
    given = record.get("answers", record.get("answer", record.get("label")))
    answers = given if isinstance(given, list) else [given] if given is not None else []
    options = record.get("options", [])
    if not isinstance(options, list) or not all(isinstance(text, str | int | float) for text in [*answers, *options]):
        return Left("not_a_record", f"line {number}: `answers` and `options` are lists of texts")
    if unsafe := unsafe_picture(image, number):
        return unsafe
    kind = record.get("kind", record.get("category", ""))
    picture = images / image if image is not None else None
    words = text.removeprefix("<image>").removeprefix("\n")
    return Asked(name, words, picture, tuple(map(str, answers)), str(kind or ""), tuple(map(str, options)))


def require_pictures(folder: Path | None, source: Source, layout: str) -> Path:
    """Return the folder of pictures that a layout has, or that `--image-dir` names.

    Raises:
        CommandError: there is none.
    """
    if source.image_dir is not None:
        return source.image_dir
    if folder is None or not folder.is_dir():
        raise CommandError(f"--data {source.data}: expected {layout} with the pictures, or --image-dir; found neither")
    return folder


BENCHMARK = Benchmark(
    "questions",
    "any LLaVA-style question file",
    "exact_match",
    (),
    read,
    # LLaVA's own for open questions (`llava/eval/model_vqa.py`).
    max_new_tokens=1024,
)
