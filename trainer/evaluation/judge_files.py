"""What a judge needs, out of files: answers, references, a baseline's answers, and what is known of the pictures.

`--reference` and `--baseline` are jsonl with `question_id` and `text` (or `answers`), such as answers files of ours or
of the original repository (LLaVA-Bench's answers_gpt4.jsonl). A line of `--context` is about a question (`question_id`)
or about a picture (`image`, matched by its file's name): `caption` or `captions`, and `boxes` or `instances` with
`category` and `bbox`, as in LLaVA-Bench's context.jsonl and in caps_boxes_coco2014_val_80.jsonl.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from dataprep.errors import CommandError, Exit
from dataprep.llm_client import picture_part
from trainer.evaluation.answers import Record, read_answers
from trainer.evaluation.judging import Case

IMAGE_TAG = "<image>"


def read_cases(
    answers: Path,
    reference: Path | None,
    baseline: Path | None,
    context: Path | None,
    pictures: bool,
    limit: int | None,
) -> list[Case]:
    """Return what is to be judged, in the order of the answers.

    Raises:
        CommandError: a file is missing or damaged, a question comes twice, or a baseline has no answer to one.
    """
    records = read_answers(answers)
    if len({str(record["question_id"]) for record in records}) < len(records):
        raise CommandError(f"{answers}: a question_id comes twice, so references cannot be told apart")
    records = records[:limit]
    references = _texts(reference) if reference else None
    others = _texts(baseline) if baseline else None
    known = _contexts(context) if context else {}
    for path, found in ((reference, references), (baseline, others)):
        _expect_all(path, found, records)
    return [_case(record, references, others, known, pictures) for record in records]


def _expect_all(path: Path | None, found: dict[str, tuple[str, ...]] | None, records: list[Record]) -> None:
    missing = [
        str(each["question_id"]) for each in records if found is not None and str(each["question_id"]) not in found
    ]
    if missing:
        raise CommandError(f"{path}: has no answer to {len(missing)} of {len(records)} questions, such as {missing[0]}")


def _case(
    record: Record,
    references: dict[str, tuple[str, ...]] | None,
    others: dict[str, tuple[str, ...]] | None,
    known: dict[str, str],
    pictures: bool,
) -> Case:
    metadata, name = record["metadata"], str(record["question_id"])
    image = metadata.get("image")
    context = known.get(f"question {name}") or (known.get(f"image {PurePath(image).name}") if image else None)
    return Case(
        question_id=record["question_id"],
        kind=metadata.get("kind", ""),
        picture=image or f"question {name}",
        question=record["prompt"].replace(IMAGE_TAG, "").strip(),
        answer=record["text"].strip(),
        references=tuple(metadata["answers"]) if references is None else references[name],
        context=context or "",
        baseline=None if others is None else others[name][0],
        error=metadata.get("error"),
        seen=(_picture(image),) if pictures and image and "error" not in metadata else (),
    )


def _picture(image: str) -> dict[str, Any]:
    try:
        return picture_part(Path(image).read_bytes())
    except ValueError as error:
        raise CommandError(f"{image}: {error}") from None


def _texts(path: Path) -> dict[str, tuple[str, ...]]:
    """Return the answers of each question."""
    texts: dict[str, tuple[str, ...]] = {}
    for number, line in _lines(path):
        # A model's own answer, also an empty one, and not the truths that may stand beside it.
        given = [line["text"]] if "text" in line else line.get("answers") or []
        name = line.get("question_id", line.get("id"))
        if name is None or not given or not all(isinstance(text, str) for text in given):
            raise _damaged(path, number, "expected question_id, and text or answers")
        if str(name) in texts:
            raise _damaged(path, number, f"question {name!r} comes twice")
        texts[str(name)] = tuple(given)
    return texts


def _contexts(path: Path) -> dict[str, str]:
    """Return what is known, under `question ID` or `image NAME`."""
    known: dict[str, str] = {}
    for number, line in _lines(path):
        given: Any = line.get("captions", line.get("caption", line.get("context")))
        captions = [given] if isinstance(given, str) else given
        boxes = line.get("boxes", line.get("instances", []))
        try:
            text = "\n".join([*captions, *(f"{box['category']}: {box['bbox']}" for box in boxes)])
        except (TypeError, KeyError):
            raise _damaged(path, number, "expected caption or captions, and boxes with category and bbox") from None
        if "question_id" in line:
            known[f"question {line['question_id']}"] = text
        elif isinstance(line.get("image"), str):
            known[f"image {PurePath(line['image']).name}"] = text
        else:
            raise _damaged(path, number, "expected question_id or image")
    return known


def _lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise CommandError(f"{path}: no such file")
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            try:
                value = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise _damaged(path, number, f"is not JSON: {error}") from None
            if not isinstance(value, dict):
                raise _damaged(path, number, f"is a {type(value).__name__}, expected an object")
            yield number, value


def _damaged(path: Path, number: int, what: str) -> CommandError:
    return CommandError(f"{path}, line {number}: {what}", Exit.INTEGRITY)
