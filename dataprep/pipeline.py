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

from dataprep.compiler import Compiler, Tally
from dataprep.config import CompileConfig
from dataprep.encoding import TextEncoder
from dataprep.errors import NO_SPACE, CommandError, Exit
from dataprep.layouts import find_layout
from dataprep.locking import only_run
from dataprep.output import OutputFolder
from dataprep.plan import InputFile, Task, plan, survey
from dataprep.shards.layout import FORMAT_VERSION, RowLayout
from dataprep.verdicts import ImageVerdicts
from dataprep.workers import begin_worker, lost_worker, stop_workers

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
            return _run_locked(job, workers, progress, started)


def _run_locked(job: Job, workers: int, progress: Progress, started: Callable[[int], None]) -> Tally:
    files = input_files(job.inputs)
    started(sum(file.num_lines for file in files))
    layout = find_layout(job.config, TextEncoder(job.tokenizer))
    identity = _identity(job, files, layout)
    output = OutputFolder(job.output, identity)
    tasks = plan(files, job.config.shard_rows)
    records = _compile_missing(job, output, tasks, workers, progress)
    if not any(record["tally"]["records"] for record in records.values()):
        raise CommandError(f"no records in {', '.join(map(str, job.inputs))}")
    output.keep_tokenizer(job.tokenizer)
    tally = output.finish([records[task.index] for task in tasks], layout, identity)
    if not tally.balanced():
        raise AssertionError(f"records do not add up: {tally}")
    return tally


def _identity(job: Job, files: Sequence[InputFile], layout: RowLayout) -> dict[str, Any]:
    return {
        "shard_format": FORMAT_VERSION,
        "config": job.config.model_dump(mode="json"),
        "tokenizer": {"fingerprint": layout.tokenizer_fingerprint},
        "image_root": str(job.image_root),
        "inputs": [{"file": file.name, "bytes": file.num_bytes, "sha256": file.sha256} for file in files],
    }


def _compile_missing(
    job: Job, output: OutputFolder, tasks: Sequence[Task], workers: int, progress: Progress
) -> dict[int, dict[str, Any]]:
    pictures = make_verdicts(job)
    records = {task.index: record for task in tasks if (record := output.done(task, pictures.good))}
    pictures.flush()
    missing = [task for task in tasks if task.index not in records]
    before = [Tally.from_dict(record["tally"]) for record in records.values()]
    refused = sum(tally.num_refused for tally in before)
    progress(sum(tally.records for tally in before), refused)
    run = _run_here if workers <= 1 or len(missing) <= 1 else _run_in_workers
    for task, record, advanced in run(job, output, missing, workers):
        if task is not None and record is not None:
            records[task.index] = record
            refused += Tally.from_dict(record["tally"]).num_refused
        progress(advanced, refused)
    return records


#: What a runner reports: a finished task with its record, or (None, None), and the records done since the last report.
Report = tuple[Task | None, dict[str, Any] | None, int]


def _run_here(job: Job, output: OutputFolder, tasks: Sequence[Task], workers: int) -> Iterator[Report]:
    advanced: list[int] = []
    compiler = make_compiler(job, advanced.append)
    for task in tasks:
        record = output.save(task, compiler.run(task))
        yield task, record, sum(advanced)
        advanced.clear()


def make_verdicts(job: Job, remember: bool = True) -> ImageVerdicts:
    """Return the verdicts on a job's pictures; `remember`: share them through the output folder."""
    store = job.output / ".pictures.sqlite" if remember else None
    return ImageVerdicts(job.image_root, job.config.check_images, store)


def make_compiler(job: Job, progress: Callable[[int], None] = lambda _: None, remember: bool = True) -> Compiler:
    """Return the compiler of a job."""
    return Compiler(job.config, job.tokenizer, make_verdicts(job, remember), progress)


def _run_in_workers(job: Job, output: OutputFolder, tasks: Sequence[Task], workers: int) -> Iterator[Report]:
    # spawn: a fork would copy the parent's threads' locks and an HDF5 library in an unknown state.
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    seen = 0
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (job, output, counter))
    try:
        waiting: dict[Future[dict[str, Any]], Task] = {pool.submit(_work, task): task for task in tasks}
        while waiting:
            finished, _ = wait(waiting, timeout=TICK, return_when=FIRST_COMPLETED)
            done = counter.value
            yield None, None, done - seen
            seen = done
            for future in finished:
                yield waiting.pop(future), future.result(), 0
        yield None, None, counter.value - seen
    except (BrokenProcessPool, OSError) as error:
        if not lost_worker(pool, error):
            raise
        raise CommandError(
            "a worker process died (killed, or out of memory); what is finished is kept, run the same command again",
            Exit.BUG,
        ) from None
    finally:
        stop_workers(pool)  # a shard in hand is dropped, since it has no name yet


_worker: tuple[Compiler, OutputFolder] | None = None


def _start_worker(job: Job, output: OutputFolder, counter: Any) -> None:
    global _worker
    begin_worker()
    # One process a core: the tokenizer's own threads would only compete.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"

    def progress(done: int) -> None:
        with counter.get_lock():
            counter.value += done

    _worker = make_compiler(job, progress), output


def _work(task: Task) -> dict[str, Any]:
    assert _worker is not None
    compiler, output = _worker
    return output.save(task, compiler.run(task))


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
