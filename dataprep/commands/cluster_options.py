"""Options of `to-h5` for a run in shares: `--task`, `--num-tasks`, `--executor`, `--executor-option`."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dataprep.commands.door import result, say
from dataprep.errors import CommandError

if TYPE_CHECKING:
    from dataprep.compiler import Tally
    from dataprep.pipeline import Job

INSTALL = "pip install -e '.[cluster]'"


@dataclass(frozen=True)
class Cluster:
    """A run in `num_tasks` shares: this process does share `task`, or an `executor` starts them all."""

    num_tasks: int
    task: int | None
    executor: str | None
    options: dict[str, str]

    def run(self, job: Job, workers: int, as_json: bool, bar: Callable[[bool], Any]) -> Tally | None:
        """Do what is asked for; return the accounting of the whole run, None where it is not complete.

        Args:
            workers: `--workers`; where it was not given, a share that an executor starts has one.
            bar: gives the callbacks of a progress bar.

        Raises:
            CommandError: see `shares.run_share` and `engines.start`.
        """
        given = click.get_current_context().get_parameter_source("workers") != ParameterSource.DEFAULT
        if self.task is None:
            return self._start(job, workers if given else 1, as_json)
        return self._share(job, workers if given else len(os.sched_getaffinity(0)), as_json, bar)

    def _share(self, job: Job, workers: int, as_json: bool, bar: Callable[[bool], Any]) -> Tally | None:
        from dataprep.cluster.shares import Share, run_share

        share = Share(self.task or 0, self.num_tasks)
        with bar(as_json) as (started, progress):
            done = run_share(job, share, workers, progress, started, say)
        if done.total is None:
            left = {"task": share.index, "num_tasks": share.count, "waiting_for": list(done.waiting_for)}
            text = f"share {share} of {job.output} is done: {done.own.records} records; {_waiting(done.waiting_for)}"
            counts = {**done.own.as_dict(), "num_refused": done.own.num_refused}
            result({"output": str(job.output), **left, **counts}, as_json, text)
        return done.total

    def _start(self, job: Job, workers: int, as_json: bool) -> Tally | None:
        assert self.executor is not None
        try:
            from dataprep.cluster import engines

            if self.executor == "ray":
                import ray  # noqa: F401
        except ImportError as error:
            name = (error.name or "").split(".")[0]
            if name in ("configs", "dataprep"):
                raise
            raise CommandError(f"--executor {self.executor} needs {name}: {INSTALL}") from None
        from dataprep.cluster.shares import total_of

        errand = engines.Errand(
            folder=str(Path.cwd()),
            config=job.config.model_dump(mode="json"),
            tokenizer=str(job.tokenizer),
            inputs=tuple(map(str, job.inputs)),
            image_root=str(job.image_root),
            output=str(job.output),
            workers=workers,
        )
        submitted = engines.start(self.executor, errand, self.num_tasks, self.options)
        if submitted is not None:
            values = {"output": str(job.output), "job": submitted, "num_tasks": self.num_tasks}
            text = f"{job.output}: job {submitted}, {self.num_tasks} shares; the last one writes manifest.json"
            result(values, as_json, text)
            return None
        if (total := total_of(job)) is None:
            raise CommandError(f"{job.output}: all shares ended and something is missing; run the same command again")
        return total


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options, and what they say as its argument `cluster` (None: a run in this process)."""

    @functools.wraps(command)
    def collect(
        *args: Any,
        executor: str | None,
        executor_options: tuple[str, ...],
        task: int | None,
        num_tasks: int | None,
        **others: Any,
    ) -> Any:
        return command(*args, cluster=_read(executor, executor_options, task, num_tasks), **others)

    for option in reversed(OPTIONS):
        collect = option(collect)
    return collect


OPTIONS = (
    click.option(
        "--task", type=click.IntRange(0), help="Do share TASK, from 0, of --num-tasks of the run, and no more."
    ),
    click.option("--num-tasks", type=click.IntRange(1), help="Number of shares that the run is cut into."),
    click.option("--executor", type=click.Choice(["local", "slurm", "ray"]), help="Start all shares with datatrove."),
    click.option(
        "--executor-option",
        "executor_options",
        multiple=True,
        metavar="KEY=VALUE",
        help="An argument of datatrove's executor: partition, time, mem_per_cpu_gb, ...",
    ),
)


def _read(executor: str | None, options: tuple[str, ...], task: int | None, num_tasks: int | None) -> Cluster | None:
    if executor is None and options:
        raise CommandError(f"--executor-option {options[0]}: of which --executor? Give one")
    if executor is None and task is None:
        if num_tasks is not None:
            raise CommandError(f"--num-tasks {num_tasks} needs --task, which share to do here, or an --executor")
        return None
    if executor is not None and task is not None:
        raise CommandError("--task does one share here, --executor starts all of them: give one of the two")
    if num_tasks is None:
        raise CommandError(f"--{'task' if executor is None else 'executor'} needs --num-tasks, the number of shares")
    if task is not None and task >= num_tasks:
        raise CommandError(f"--task {task}: the shares of --num-tasks {num_tasks} are 0 to {num_tasks - 1}")
    if click.get_current_context().params.get("dry_run"):
        raise CommandError("--dry-run looks at a sample in this process: give it without --task and --executor")
    return Cluster(num_tasks, task, executor, dict(map(_pair, options)))


def _pair(option: str) -> tuple[str, str]:
    key, equals, value = option.partition("=")
    if not equals:
        raise CommandError(f"--executor-option {option}: expected KEY=VALUE")
    return key, value


def _waiting(shares: tuple[int, ...]) -> str:
    names = ", ".join(map(str, shares[:10])) + (", ..." if len(shares) > 10 else "")
    return f"tasks of share{'s' * (len(shares) > 1)} {names} are not done yet"
