"""VQAv2 (Goyal et al. 2017) and TextVQA (Singh et al. 2019): questions that ten people have answered.

VQAv2, visualqa.org, questions and annotations apart, pictures of COCO:

    v2_OpenEnded_mscoco_val2014_questions.json
        {"data_type": "mscoco", "questions": [{"image_id": 262148, "question": "Where is he looking?",
         "question_id": 262148000}, ...]}
    v2_mscoco_val2014_annotations.json
        {"annotations": [{"question_id": 262148000, "question_type": "none of the above", "answer_type": "other",
         "answers": [{"answer": "down", "answer_confidence": "yes", "answer_id": 1}, ...], ...}, ...]}
    val2014/COCO_val2014_000000262148.jpg

The test splits (test2015, test-dev2015; pictures in test2015/) have no annotations: their answers are for a submission.

TextVQA, textvqa.org, one file a split; the pictures of train and val lie together:

    TextVQA_0.5.1_val.json
        {"data": [{"question": "what is the brand of this camera?", "image_id": "003a8ae2ef43b901",
         "question_id": 34602, "answers": ["nous les gosses", "dakota", ...], ...}, ...]}
    train_images/003a8ae2ef43b901.jpg, test_images/...

A TextVQA question is named by its picture, as in LLaVA's own question file: its `eval_textvqa.py` looks answers up by
picture and question. What readings of the picture's text (OCR tokens) some question files add is not asked along.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import msgspec

from dataprep.errors import CommandError
from dataprep.prompts import PROMPTS
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source
from trainer.evaluation.benchmarks.files import require_pictures

NUM_PEOPLE = 10

#: What the published names call each split: of the questions, and of the pictures.
VQAV2_SPLITS = {
    "val": ("val2014", "val2014"),
    "train": ("train2014", "train2014"),
    "test-dev": ("test-dev2015", "test2015"),
    "test": ("test2015", "test2015"),
}
TEXTVQA_SPLITS = {"val": "train_images", "train": "train_images", "test": "test_images"}

Value = TypeVar("Value")


class Said(msgspec.Struct):
    """What one person answered."""

    answer: str


class Annotation(msgspec.Struct):
    """What is known about one question of VQAv2."""

    question_id: int
    answer_type: str
    answers: list[Said]


class Annotations(msgspec.Struct):
    """VQAv2's file of answers."""

    annotations: list[Annotation]


class Put(msgspec.Struct):
    """One question of VQAv2."""

    image_id: int
    question: str
    question_id: int


class Questions(msgspec.Struct):
    """VQAv2's file of questions."""

    questions: list[Put]


class Element(msgspec.Struct):
    """One question of TextVQA."""

    question: str
    image_id: str
    answers: list[str] = msgspec.field(default_factory=list)


class Elements(msgspec.Struct):
    """TextVQA's file."""

    data: list[Element]


def read_vqav2(source: Source) -> Iterator[Asked | Left]:
    """Yield the questions of a split of VQAv2, in the order of its file.

    Raises:
        CommandError: the files of the split are not there, or not VQAv2's.
    """
    name, pictures = VQAV2_SPLITS[source.split]
    questions = _decoded(source, f"v2_OpenEnded_mscoco_{name}_questions.json", Questions)
    known: dict[int, Annotation] = {}
    if not source.split.startswith("test"):
        annotations = _decoded(source, f"v2_mscoco_{name}_annotations.json", Annotations)
        known = {annotation.question_id: annotation for annotation in annotations.annotations}
    folder = require_pictures(_found(source.data, pictures), source, f"a folder {pictures}/")
    for put in questions.questions:
        image = folder / f"COCO_{pictures}_{put.image_id:012d}.jpg"
        annotation = known.get(put.question_id)
        if known and annotation is None:
            yield Left("no_answer", f"question {put.question_id} has no annotation")
            continue
        answers = tuple(said.answer for said in annotation.answers) if annotation else ()
        yield _asked(put.question_id, put.question, image, answers, annotation.answer_type if annotation else "")


def read_textvqa(source: Source) -> Iterator[Asked | Left]:
    """Yield the questions of a split of TextVQA, in the order of its file.

    Raises:
        CommandError: the file of the split is not there, or not TextVQA's.
    """
    elements = _decoded(source, f"TextVQA_0.5.1_{source.split}.json", Elements)
    pictures = TEXTVQA_SPLITS[source.split]
    folder = require_pictures(_found(source.data, pictures), source, f"a folder {pictures}/")
    for element in elements.data:
        image = folder / f"{element.image_id}.jpg"
        yield _asked(element.image_id, element.question, image, tuple(element.answers), "")


def _asked(name: str | int, question: str, image: Path, answers: tuple[str, ...], kind: str) -> Asked | Left:
    if answers and len(answers) != NUM_PEOPLE:
        return Left("not_ten_answers", f"question {name} has {len(answers)} answers, the measure takes {NUM_PEOPLE}")
    return Asked(name, PROMPTS["llava15"].ask(question, "short"), image, answers, kind)


def _found(folder: Path, name: str) -> Path | None:
    from dataprep.datasets.raw import found

    return found(folder, name) if folder.is_dir() else None


def _decoded(source: Source, name: str, kind: type[Value]) -> Value:
    path = _found(source.data, name)
    if path is None:
        raise source.needs(f"a folder with {name}")
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: not what the benchmark publishes: {error}") from None


BENCHMARKS = (
    Benchmark("vqav2", "VQAv2: questions about photos", "vqa", tuple(VQAV2_SPLITS), read_vqav2),
    Benchmark("textvqa", "TextVQA: text in photos", "textvqa", tuple(TEXTVQA_SPLITS), read_textvqa),
)
