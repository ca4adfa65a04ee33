"""The benchmarks among the training datasets: their evaluation splits, by the readers that also make training data.

`--data` is the raw dataset's folder, as each file of `dataprep/datasets/` opens with, or what
`llava-prep preprocess --dataset NAME --split SPLIT` made of it, `eval/NAME-SPLIT.jsonl`, with the image root of that
file as `--image-dir`. Questions are asked in the wording `llava15` (`dataprep/prompts.py`). A question's id is that of
the raw data where it has one (ScienceQA's problem number, so that the original repository's scoring knows it).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from dataprep.errors import CommandError
from trainer.evaluation.benchmarks.base import Asked, Benchmark, Left, Source

if TYPE_CHECKING:
    from dataprep.conversation import EvaluationRecord


def read(source: Source, *, name: str) -> Iterator[Asked | Left]:
    """Yield the questions of a split, in the order of the raw data.

    Raises:
        CommandError: the dataset is not there, or not this one.
    """
    if source.data.suffix == ".jsonl":
        yield from _compiled(source, name)
    else:
        yield from _raw(source, name)


def asked_of(record: EvaluationRecord, images: Path, prefix: str = "") -> Asked:
    """Return the question of an evaluation record.

    Args:
        images: where its image key begins.
        prefix: what its id begins with, to be left out.
    """
    from dataprep.conversation import IMAGE_TAG

    words = record.turns[0].value.removeprefix(IMAGE_TAG).removeprefix("\n")
    image = images / record.image if record.image is not None else None
    answers = tuple(record.answers)
    return Asked(record.id.removeprefix(prefix), words, image, answers, record.kind, tuple(record.options))


def _raw(source: Source, name: str) -> Iterator[Asked | Left]:
    from dataprep.conversation import EvaluationRecord
    from dataprep.datasets import DATASETS
    from dataprep.datasets.base import Options, Refused, Written
    from dataprep.prompts import PROMPTS

    dataset, top = DATASETS[name], Path(source.data.anchor)
    # Raw data and pictures taken out of it may lie anywhere, so the root of all is the one image root of both.
    options = Options(
        root=top, image_root=top, images=source.pictures, prompts=PROMPTS["llava15"], splits=(source.split,),
        evaluation=True, settings=dataset.settings(),
    )  # fmt: skip
    try:
        for part in dataset.parts(source.data, options):
            for item in dataset.read(part, options):
                if isinstance(item, Written):
                    assert isinstance(item.conversation, EvaluationRecord)
                    yield asked_of(item.conversation, top, f"{name}-{source.split}-")
                elif isinstance(item, Refused):
                    yield Left(item.reason, f"{item.file}, {item.line}: {item.detail}")
    except CommandError as error:
        # Its readers know the option by the name that it has in `llava-prep preprocess`.
        raise CommandError(str(error).replace("--input", "--data"), error.code) from error


def _compiled(source: Source, name: str) -> Iterator[Asked | Left]:
    from dataprep.conversation import EvaluationRecord
    from trainer.evaluation.benchmarks.files import lines_of, record_of, unsafe_picture

    prefix = f"{name}-{source.split}-"
    if source.image_dir is None:
        raise CommandError(f"--data {source.data}: give --image-dir too, the image root that its keys are relative to")
    for number, line in lines_of(source):
        found = record_of(line, EvaluationRecord, number)
        if isinstance(found, Left):
            yield found
        elif not found.id.startswith(f"{name}-"):
            raise source.needs(f"questions of {name}", f"the id {found.id!r} in line {number}")
        elif not found.id.startswith(prefix):
            raise source.needs(f"the split {source.split} (see --split)", f"the id {found.id!r} in line {number}")
        else:
            yield unsafe_picture(found.image, number) or asked_of(found, source.image_dir, prefix)


def _benchmark(name: str, title: str, metric: str, *splits: str, tagged: bool = False) -> Benchmark:
    return Benchmark(name, title, metric, splits, partial(read, name=name), tagged_prompt=tagged)


BENCHMARKS = (
    _benchmark("chartqa", "ChartQA: charts, human and augmented questions apart", "relaxed_accuracy", "test", "val"),
    _benchmark("docvqa", "DocVQA: scanned pages", "anls", "val", "test"),
    _benchmark("infographicvqa", "InfographicVQA: infographics", "anls", "val", "test"),
    _benchmark("ai2d", "AI2D: diagrams of school books", "multiple_choice", "test"),
    _benchmark("scienceqa", "ScienceQA: school lessons", "multiple_choice", "test", "val", tagged=True),
    _benchmark("dvqa", "DVQA: bar charts, by template", "exact_match", "val_easy", "val_hard"),
)
