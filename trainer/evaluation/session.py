"""One run of a benchmark, from the folder of a model to the finished file of answers."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from dataprep.errors import CommandError, Exit
from dataprep.shards.writer import publish, whole_file
from trainer.evaluation.answering import answer_batch, batches, progress
from trainer.evaluation.answers import Given, encode, parts_folder, record_of
from trainer.evaluation.benchmarks import Asked, Benchmark, Left, Source
from trainer.evaluation.parts import mend, only_run, part_writer, read_parts
from trainer.evaluation.ranks import Ranks, joined
from trainer.evaluation.settings import RUN_FILE, Settings, model_digest, model_name, questions_digest
from trainer.inference.runs import asked_folder


@dataclass(frozen=True, slots=True)
class Job:
    """What the command was asked for."""

    model: Path
    benchmark: Benchmark
    source: Source
    output: Path
    limit: int | None
    batch_size: int
    max_new_tokens: int
    template: str | None = None
    force_template: bool = False
    base: Path | None = None
    device: str = "auto"
    dtype: str = "auto"


@dataclass(slots=True)
class Questions:
    """What is asked, and what is left out."""

    asked: list[Asked] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    """By reason."""
    first_left: Left | None = None


def run(job: Job) -> dict[str, Any]:
    """Ask a model a benchmark's questions; go on where the same run stopped.

    Returns:
        The counts of the whole run, on the first rank; on others an empty mapping.

    Raises:
        CommandError: the data, or what is in the place of the output, is not what it should be.
    """
    with joined() as ranks, only_run(parts_folder(job.output)) if ranks.is_first else nullcontext():
        job = replace(job, model=ranks.share(_asked(job) if ranks.is_first else None))
        questions: Questions | None = None
        plan: tuple[Settings, list[list[int]]] | None = None
        if ranks.is_first:
            questions = load(job)
            plan = _plan(job, questions)
        settings, todo = ranks.share(plan)
        # The first rank has written the pictures that the others will find.
        questions = questions or load(job)
        if questions_digest(questions.asked) != settings.questions_sha256:
            raise CommandError(f"--data {job.source.data}: rank {ranks.rank} finds other questions there than rank 0")
        if todo:
            _answer(job, questions.asked, todo, ranks)
        ranks.gather(None)
        return _finish(job, questions, settings) if ranks.is_first else {}


def _asked(job: Job) -> Path:
    """Return the folder whose model is asked; called by one rank, since a run may write another before the next looks.

    Raises:
        TrainError: a run that has nothing to ask yet.
    """
    found = asked_folder(job.model)
    if found != job.model:
        _say(f"{job.model} is a run; asked: {found}")
    return found


def load(job: Job) -> Questions:
    """Read the questions, up to the limit; those that count as one are one.

    Raises:
        CommandError: there is none, or none of their pictures.
    """
    found = Questions()
    names: set[tuple[str | int, str]] = set()
    units: set[tuple[str | int, str]] = set()
    for item in job.benchmark.read(job.source):
        if isinstance(item, Asked) and (item.id, item.prompt) in names:
            item = Left("repeated_id", f"question {item.id!r} comes twice, in the same words")
        if isinstance(item, Left):
            found.left[item.reason] += 1
            found.first_left = found.first_left or item
            continue
        units.add((item.id, item.prompt) if item.group is None else (item.group, ""))
        if job.limit is not None and len(units) > job.limit:
            break
        names.add((item.id, item.prompt))
        found.asked.append(item)
    if not found.asked:
        first = (
            f": {found.left.total()} are left out, the first as {': '.join(found.first_left)}"
            if found.first_left
            else ""
        )
        raise CommandError(f"--data {job.source.data}: no question of {job.benchmark.name} can be asked{first}")
    _expect_pictures(found.asked)
    return found


def _expect_pictures(questions: Sequence[Asked]) -> None:
    """Refuse a wrong folder of pictures before a model is loaded; single missing ones are counted later."""
    images = [asked.image for asked in questions if asked.image is not None]
    if images and not any(map(os.path.exists, images)):
        raise CommandError(
            f"none of the {len(images)} pictures is there, as {images[0]}; --image-dir says where they are"
        )


def _plan(job: Job, questions: Questions) -> tuple[Settings, list[list[int]]]:
    """Return what the run is, and the batches that are left; called by the first rank alone."""
    from trainer.inference.loading import pick, pick_dtype

    folders = [job.model, *([job.base] if job.base else [])]
    for folder in folders:
        if not folder.exists():
            raise CommandError(f"{folder}: no such model folder")
    settings = Settings(
        benchmark=job.benchmark.name,
        split=job.source.split,
        limit=job.limit,
        template=job.template,
        # As it is run: answers of two dtypes are those of two models, and `auto` is another on another device.
        dtype=str(pick_dtype(job.dtype, pick(job.device))).removeprefix("torch."),
        max_new_tokens=job.max_new_tokens,
        model=str(job.model.absolute()),
        model_sha256=model_digest(folders),
        base=str(job.base.absolute()) if job.base else None,
        data=str(job.source.data),
        questions_sha256=questions_digest(questions.asked),
    )
    folder = parts_folder(job.output)
    begun = _expect_same(job.output, settings, any(folder.glob("rank-*")))
    if job.output.exists():
        return settings, []
    if not begun:
        publish(run_file(job.output), json.dumps(asdict(settings), indent=1).encode("utf-8"))
    if mended := mend(folder):
        _say(f"mended: the last line of {mended} part{'s' * (mended > 1)} was torn, and is answered again")
    done = read_parts(folder, len(questions.asked))
    if done:
        _say(f"going on: {len(done)} of {len(questions.asked)} questions were answered before")
    left = [index for index in range(len(questions.asked)) if index not in done]
    return settings, batches(questions.asked, left, job.batch_size)


def run_file(output: Path) -> Path:
    """Return where the settings and counts of a run stand: beside its answers."""
    return output.with_name(output.name.removesuffix(".jsonl") + RUN_FILE)


def _expect_same(output: Path, settings: Settings, has_parts: bool) -> bool:
    """Return whether the run was begun before; refuse to mix it with another."""
    path = run_file(output)
    if not output.exists() and not has_parts:
        return False
    if not path.is_file():
        raise CommandError(f"{output}: is there, but no {path.name} that says what it is; name another", Exit.CONFLICT)
    try:
        before = json.loads(path.read_bytes())
    except ValueError as error:
        raise CommandError(f"{path}: damaged: {error}; name another --output", Exit.INTEGRITY) from None
    if differences := settings.differences(before):
        what = output if output.exists() else parts_folder(output)
        raise CommandError(f"{what} is of another run: {'; '.join(differences)}; name another --output", Exit.CONFLICT)
    return True


def _answer(job: Job, questions: Sequence[Asked], todo: Sequence[list[int]], ranks: Ranks) -> None:
    """Answer this rank's batches: every n-th."""
    from trainer.inference import Sampling, open_assistant

    assistant = open_assistant(
        job.model, device=job.device, dtype=job.dtype, template=job.template, base=job.base,
        force_template=job.force_template,
    )  # fmt: skip
    sampling = Sampling(max_new_tokens=job.max_new_tokens)
    mine = todo[ranks.rank :: ranks.size]
    what = job.benchmark.name if ranks.size == 1 else f"{job.benchmark.name}, rank 0 of {ranks.size}"
    with (
        part_writer(parts_folder(job.output), ranks.rank) as writer,
        progress(sum(map(len, mine)), 0, what, ranks.is_first) as update,
    ):
        for batch in mine:
            writer.write(batch, answer_batch(assistant, [questions[index] for index in batch], sampling))
            update(len(batch))


def _finish(job: Job, questions: Questions, settings: Settings) -> dict[str, Any]:
    """Put the parts together in the order of the questions; return the counts."""
    folder = parts_folder(job.output)
    if job.output.exists():
        shutil.rmtree(folder, ignore_errors=True)
        return json.loads(run_file(job.output).read_bytes()) | {"output": str(job.output), "finished_before": True}
    done = read_parts(folder, len(questions.asked))
    missing = len(questions.asked) - len(done)
    if missing:
        raise CommandError(f"{missing} questions are not answered; run the same command again", Exit.INTEGRITY)
    # The counts first: a run that is killed in between has them, whichever of the two files is there.
    values = asdict(settings) | _counts(questions, done)
    publish(run_file(job.output), json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8", "backslashreplace"))
    with whole_file(job.output) as file:
        for line in _lines(job, questions.asked, done, settings):
            file.write(line)
    shutil.rmtree(folder)
    return values | {"output": str(job.output), "finished_before": False}


def _lines(job: Job, questions: Sequence[Asked], done: dict[int, Given], settings: Settings) -> Iterator[bytes]:
    name, benchmark = model_name(job.model), job.benchmark
    for index, asked in enumerate(questions):
        tagged = benchmark.tagged_prompt
        yield encode(record_of(asked, done[index], benchmark.name, name, settings.model_sha256, tagged))


def _counts(questions: Questions, done: dict[int, Given]) -> dict[str, Any]:
    errors = Counter(given.error.partition(":")[0] for given in done.values() if given.error is not None)
    return {
        "questions": len(done),
        "answered": len(done) - errors.total(),
        "cut": sum(given.error is None and not given.ended for given in done.values()),
        "bad": dict(sorted(errors.items())),
        "left_out": dict(sorted(questions.left.items())),
    }


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
