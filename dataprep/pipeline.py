"""jsonl files to a folder of shards, over worker processes."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataprep.compiler import Compiler, Tally, Work
from dataprep.config import CompileConfig
from dataprep.encoding import TextEncoder
from dataprep.errors import NO_SPACE, CommandError, Exit
from dataprep.layouts import find_layout
from dataprep.locking import only_run
from dataprep.output import HOLDOUT_NAME, OutputFolder
from dataprep.plan import InputFile, plan, survey
from dataprep.selection import needs_selection, pick_tasks, select
from dataprep.shards.layout import FORMAT_VERSION, RowLayout
from dataprep.verdicts import ImageVerdicts
from dataprep.workers import DIED, begin_worker, lost_worker, stop_workers, worker_map

#: Seconds between two looks at the workers' counter.
TICK = 0.2


@dataclass(frozen=True)
class Job:
    """One run of `to-h5`, resolved: every path exists."""

    config: CompileConfig
    tokenizer: Path
    inputs: tuple[Path, ...]
    image_root: Path
    output: Path


#: `progress(records_done, refused)`: called in the parent, now and then.
Progress = Callable[[int, int], None]


def input_files(paths: Sequence[Path]) -> list[InputFile]:
    """Survey the inputs; they go by their names, or by their paths where two have the same name.

    Raises:
        CommandError: a file is named twice, so its records would be too.
    """
    places = [path.resolve() for path in paths]
    twice = [str(path) for index, path in enumerate(paths) if places[index] in places[:index]]
    if twice:
        raise CommandError(f"--input names a file twice: {', '.join(twice)}")
    names = [path.name for path in paths]
    unique = len(set(names)) == len(names)
    return [survey(path, path.name if unique else str(path)) for path in paths]


@dataclass(frozen=True)
class Part:
    """One folder of shards that a run makes: the training rows, or those held out."""

    output: OutputFolder
    tasks: tuple[Work, ...]
    deduplicated: int = 0


@dataclass(frozen=True)
class Prepared:
    """A run as it is planned: what is to be made, and of what. It depends on the input and the config alone."""

    job: Job
    layout: RowLayout
    identity: dict[str, Any]
    parts: tuple[Part, ...]
    num_records: int

    @property
    def work(self) -> list[Assignment]:
        """Every task, as the number of its part and itself."""
        return [(number, task) for number, part in enumerate(self.parts) for task in part.tasks]


#: The number of a part, and one of its tasks.
Assignment = tuple[int, Work]


def run_job(job: Job, workers: int, progress: Progress, started: Callable[[int], None] = lambda _: None) -> Tally:
    """Compile everything that is not yet compiled; return the accounting of the whole folder.

    Args:
        started: called once with the number of records.

    Raises:
        CommandError: folder conflict (4), no space (6).
    """
    with _space(job.output):
        job.output.mkdir(parents=True, exist_ok=True)
        with only_run(job.output / ".lock", job.output):
            prepared = prepare(job, input_files(job.inputs), workers)
            started(prepared.num_records)
            compile_missing(prepared, prepared.work, workers, progress)
            return finish(prepared)


def prepare(job: Job, files: Sequence[InputFile], workers: int) -> Prepared:
    """Plan a run and claim its folders.

    Raises:
        CommandError: there is no record, or the folder holds another run's shards (4).
    """
    if not any(file.num_lines for file in files):
        raise CommandError(f"no records in {', '.join(map(str, job.inputs))}")
    layout = find_layout(job.config, TextEncoder(job.tokenizer))
    identity = _identity(job, files, layout)
    output = OutputFolder(job.output, identity)
    if needs_selection(job.config):
        parts = _selected_parts(job, files, output, workers)
    else:
        parts = (Part(output, tuple(plan(files, job.config.shard_rows))),)
    return Prepared(job, layout, identity, parts, sum(file.num_lines for file in files))


def _selected_parts(job: Job, files: Sequence[InputFile], output: OutputFolder, workers: int) -> tuple[Part, ...]:
    with worker_map(workers) as mapper:
        selection = select(files, job.config, mapper)
    tasks = pick_tasks(selection.train, output.tasks, files, job.config.shard_rows)
    parts = [Part(output, tuple(tasks), selection.num_duplicates)]
    if job.config.holdout > 0:
        held = OutputFolder(job.output / HOLDOUT_NAME, output.identity)
        parts.append(Part(held, tuple(pick_tasks(selection.holdout, held.tasks, files, job.config.shard_rows))))
    return tuple(parts)


def _identity(job: Job, files: Sequence[InputFile], layout: RowLayout) -> dict[str, Any]:
    return {
        "shard_format": FORMAT_VERSION,
        "config": job.config.model_dump(mode="json"),
        "tokenizer": {"fingerprint": layout.tokenizer_fingerprint},
        "image_root": str(job.image_root),
        "inputs": [{"file": file.name, "bytes": file.num_bytes, "sha256": file.sha256} for file in files],
    }


def compile_missing(prepared: Prepared, work: Sequence[Assignment], workers: int, progress: Progress) -> None:
    """Compile those tasks of `work` that have no whole shards yet."""
    pictures = make_verdicts(prepared.job)
    missing, records, refused = [], 0, 0
    for number, task in work:
        record = prepared.parts[number].output.done(task, pictures.good)
        if record is None:
            missing.append((number, task))
            continue
        tally = Tally.from_dict(record["tally"])
        records, refused = records + tally.records, refused + tally.num_refused
    pictures.flush()
    progress(records, refused)
    run = _run_here if workers <= 1 or len(missing) <= 1 else _run_in_workers
    for record, advanced in run(prepared, missing, workers):
        if record is not None:
            refused += Tally.from_dict(record["tally"]).num_refused
        progress(advanced, refused)


def finish(prepared: Prepared) -> Tally:
    """Write what describes the folders, once every task is done; return the accounting of all of them."""
    total = Tally()
    # What is held out comes first: the manifest of the folder itself says that everything is there.
    for number in reversed(range(len(prepared.parts))):
        part = prepared.parts[number]
        records = [part.output.record(task) for task in part.tasks]
        part.output.keep_tokenizer(prepared.job.tokenizer)
        tally = part.output.finish(records, prepared.layout, prepared.identity, part.deduplicated)
        if not tally.balanced():
            raise AssertionError(f"records do not add up: {tally}")
        tally.held_out = tally.written if number else 0
        total.add(tally)
    if not total.records:
        raise CommandError(f"no records in {', '.join(map(str, prepared.job.inputs))}")
    return total


#: What a runner reports: the record of a finished task or None, and the records done since the last report.
Report = tuple[dict[str, Any] | None, int]


def _run_here(prepared: Prepared, work: Sequence[Assignment], workers: int) -> Iterator[Report]:
    advanced: list[int] = []
    compiler = make_compiler(prepared.job, advanced.append)
    for number, task in work:
        record = prepared.parts[number].output.save(task, compiler.run(task))
        yield record, sum(advanced)
        advanced.clear()


def make_verdicts(job: Job, remember: bool = True) -> ImageVerdicts:
    """Return the verdicts on a job's pictures; `remember`: share them through the output folder."""
    store = job.output / ".pictures.sqlite" if remember else None
    return ImageVerdicts(job.image_root, job.config.check_images, store)


def make_compiler(job: Job, progress: Callable[[int], None] = lambda _: None, remember: bool = True) -> Compiler:
    """Return the compiler of a job."""
    return Compiler(job.config, job.tokenizer, make_verdicts(job, remember), progress)


def _run_in_workers(prepared: Prepared, work: Sequence[Assignment], workers: int) -> Iterator[Report]:
    # spawn: a fork would copy the parent's threads' locks and an HDF5 library in an unknown state.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    seen = 0
    outputs = tuple(part.output for part in prepared.parts)
    pool = ProcessPoolExecutor(min(workers, len(work)), context, _start_worker, (prepared.job, outputs, counter))
    try:
        waiting: set[Future[dict[str, Any]]] = {pool.submit(_work, assignment) for assignment in work}
        while waiting:
            finished, waiting = wait(waiting, timeout=TICK, return_when=FIRST_COMPLETED)
            done = counter.value
            yield None, done - seen
            seen = done
            for future in finished:
                yield future.result(), 0
        yield None, counter.value - seen
    except (BrokenProcessPool, OSError) as error:
        if not lost_worker(pool, error):
            raise
        raise CommandError(DIED, Exit.BUG) from None
    finally:
        stop_workers(pool)  # a shard in hand is dropped, since it has no name yet


_worker: tuple[Compiler, tuple[OutputFolder, ...]] | None = None


def _start_worker(job: Job, outputs: tuple[OutputFolder, ...], counter: Any) -> None:
    global _worker
    begin_worker()
    # One process a core: the tokenizer's own threads would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def progress(done: int) -> None:
        with counter.get_lock():
            counter.value += done

    _worker = make_compiler(job, progress), outputs


def _work(assignment: Assignment) -> dict[str, Any]:
    assert _worker is not None
    compiler, outputs = _worker
    number, task = assignment
    return outputs[number].save(task, compiler.run(task))


@contextmanager
def _space(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in NO_SPACE:
            raise CommandError(
                f"{folder}: no space left; finished shards are kept, run the same command again with more space",
                Exit.NO_SPACE,
            ) from None
        raise
