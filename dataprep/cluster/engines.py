"""Shares started by datatrove's executors: on this machine, by Slurm, by Ray.

A share is one datatrove task. What datatrove notes as completed decides nothing: a share looks at the records and the
shards themselves. Each share runs in a process of its own, so that one that is killed is an error of that share and
nothing waits for it for ever.
"""

from __future__ import annotations

import inspect
import logging
import multiprocessing
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_type_hints

import msgspec
import yaml
from datatrove.executor import LocalPipelineExecutor, RayPipelineExecutor, SlurmPipelineExecutor
from datatrove.executor.base import PipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.utils.logging import logger
from multiprocess.process import current_process
from pydantic import TypeAdapter, ValidationError

from dataprep.errors import CommandError, Exit, mendable

EXECUTORS: dict[str, type[PipelineExecutor]] = {
    "local": LocalPipelineExecutor,
    "slurm": SlurmPipelineExecutor,
    "ray": RayPipelineExecutor,
}

#: What an executor is given by us, and what makes no sense for shares.
FIXED = {"self", "pipeline", "tasks", "logging_dir", "skip_completed", "depends", "depends_job_id", "job_id_retriever"}
FIXED |= {"start_method", "local_tasks", "local_rank_offset", "nodes_per_task", "gpus_per_task"}

#: Options of ours beside an executor's own.
EXTRA = {"local": {}, "slurm": {"wait": bool}, "ray": {"address": str}}


class Outcome(msgspec.Struct):
    """How a share ended, for whoever started it."""

    code: int
    message: str


class Errand(msgspec.Struct, frozen=True):
    """A job as another machine gets it: plain values, and the folder that relative paths start from."""

    folder: str
    config: dict[str, Any]
    tokenizer: str
    inputs: tuple[str, ...]
    image_root: str
    output: str
    workers: int

    def outcome(self, share: int, num_shares: int) -> Path:
        """Return where the outcome of a share stands."""
        return Path(self.folder, self.output, ".tasks", "outcomes", f"{share}-of-{num_shares}.json")


class ShareStep(PipelineStep):
    """The one step of the pipeline: the share of the rank.

    Args:
        strict: an error ends the process, so that Slurm sees it; elsewhere it would end the other shares too.
    """

    type = "compile"
    name = "llava-prep to-h5"

    def __init__(self, errand: Errand, strict: bool) -> None:
        super().__init__()
        self.errand = msgspec.to_builtins(errand)
        self.strict = strict

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        """Do share `rank` of `world_size`."""
        if current_process().daemon:
            # An interrupt from the terminal reaches the whole group; the process that started the others ends them.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        arguments = (self.errand, rank, world_size, self.strict)
        process = multiprocessing.get_context("spawn").Process(target=do_share, args=arguments)
        process.start()
        try:
            process.join()
        finally:
            process.terminate()
        errand = msgspec.convert(self.errand, Errand)
        outcome = read_outcome(errand, rank, world_size)
        if outcome is None:
            outcome = Outcome(Exit.BUG, _death(process.exitcode))
            _write_outcome(errand, rank, world_size, outcome)
        (logger.error if outcome.code else logger.info)(f"share {rank} of {world_size}: {outcome.message}")
        if outcome.code and self.strict:
            sys.exit(outcome.code)


def do_share(values: dict[str, Any], rank: int, world_size: int, alone: bool) -> None:
    """Do one share in this process, write down how it ended, and end the process with its exit code.

    Args:
        alone: nobody waits for the end of the run, so the share that finishes it makes the report too.
    """
    from dataprep.workers import begin_worker

    begin_worker()
    errand = msgspec.convert(values, Errand)
    try:
        os.chdir(errand.folder)
        errand.outcome(rank, world_size).unlink(missing_ok=True)
        outcome = _do_share(errand, rank, world_size, alone)
    except Exception as error:
        known = mendable(error)
        outcome = Outcome(Exit.BUG, traceback.format_exc()) if known is None else Outcome(known.code, str(known))
    _write_outcome(errand, rank, world_size, outcome)
    sys.exit(outcome.code)


def _do_share(errand: Errand, rank: int, world_size: int, alone: bool) -> Outcome:
    from dataprep.cluster.shares import Share, run_share
    from dataprep.config import CompileConfig
    from dataprep.pipeline import Job

    inputs = tuple(map(Path, errand.inputs))
    config = CompileConfig.model_validate(errand.config)
    job = Job(config, Path(errand.tokenizer), inputs, Path(errand.image_root), Path(errand.output))
    result = run_share(job, Share(rank, world_size), errand.workers)
    if alone and result.total is not None:
        from dataprep.report import try_report

        try_report(job.output, print)
    left = len(result.waiting_for)
    state = f"{left} share{'s' * (left > 1)} not done yet" if left else "the run is complete"
    return Outcome(Exit.OK, f"{result.own.records} records, {result.own.rows} rows; {state}")


def read_outcome(errand: Errand, share: int, num_shares: int) -> Outcome | None:
    """Return how a share ended; None where it left no word."""
    try:
        return msgspec.json.decode(errand.outcome(share, num_shares).read_bytes(), type=Outcome)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write_outcome(errand: Errand, share: int, num_shares: int, outcome: Outcome) -> None:
    from dataprep.shards.writer import publish

    path = errand.outcome(share, num_shares)
    path.parent.mkdir(parents=True, exist_ok=True)
    publish(path, msgspec.json.encode(outcome))


def _death(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit code {code} and no word"
    return f"killed by {signal.Signals(-code).name}, perhaps since memory ran out"


def start(engine: str, errand: Errand, num_shares: int, options: Mapping[str, str]) -> str | None:
    """Run all shares, or hand them to Slurm; return what Slurm calls them, None where they have ended.

    Raises:
        CommandError: an option is unknown or of another kind (2); shares failed: the first one's code.
    """
    values = executor_options(engine, options)
    for share in range(num_shares):
        errand.outcome(share, num_shares).unlink(missing_ok=True)
    logs = str(Path(errand.folder, errand.output, ".tasks", "logs"))
    step = ShareStep(errand, strict=engine == "slurm")
    fixed = {"pipeline": [step], "tasks": num_shares, "logging_dir": logs, "skip_completed": False}
    runner = {"local": _run_local, "slurm": _run_slurm, "ray": _run_ray}[engine]
    submitted = runner(fixed, values, errand)
    if submitted is None:
        _sum_up(errand, num_shares, logs)
    return submitted


def executor_options(engine: str, options: Mapping[str, str]) -> dict[str, Any]:
    """Return the values of `--executor-option KEY=VALUE` as the executor's signature wants them.

    Raises:
        CommandError: it has no such option, needs another, or the value is of another kind.
    """
    executor = EXECUTORS[engine]
    hints = {**get_type_hints(executor.__init__), **EXTRA[engine]}
    parameters = inspect.signature(executor).parameters
    known = {name for name in parameters if name not in FIXED} | EXTRA[engine].keys()
    if unknown := sorted(options.keys() - known):
        raise CommandError(f"--executor {engine} has no option {unknown[0]}; it has {', '.join(sorted(known))}")
    required = {name for name, parameter in parameters.items() if parameter.default is parameter.empty} - FIXED
    if missing := sorted(required - options.keys()):
        raise CommandError(f"--executor {engine} needs --executor-option {missing[0]}=...")
    return {name: _value(f"--executor-option {name}", hints[name], text) for name, text in options.items()}


def _value(place: str, hint: Any, text: str) -> Any:
    structured = "dict" in str(hint) or "tuple" in str(hint)
    try:
        if structured:
            return TypeAdapter(hint).validate_python(yaml.safe_load(text))
        return TypeAdapter(hint).validate_strings(text)
    except (ValidationError, yaml.YAMLError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "not YAML"
        raise CommandError(f"{place}={text}: {reason}") from None


def _run_local(fixed: dict[str, Any], values: dict[str, Any], errand: Errand) -> None:
    at_once = max(1, len(os.sched_getaffinity(0)) // errand.workers)
    LocalPipelineExecutor(**fixed, **{"workers": min(at_once, fixed["tasks"]), **values}).run()


def _run_slurm(fixed: dict[str, Any], values: dict[str, Any], errand: Errand) -> str | None:
    wait = values.pop("wait", False)
    if wait:
        values["sbatch_args"] = {**(values.get("sbatch_args") or {}), "wait": ""}
    if not {"env_command", "condaenv", "venv_path"} & values.keys() and sys.prefix != sys.base_prefix:
        values["venv_path"] = f"{sys.prefix}/bin/activate"
    defaults = {"cpus_per_task": errand.workers, "job_name": "llava-prep", "mail_type": "NONE"}
    executor = SlurmPipelineExecutor(**fixed, **{**defaults, **values})
    # Their statistics hold nothing, and a job that waits for all shares to succeed would stay in the queue.
    executor.launch_merge_stats = _nothing
    try:
        executor.run()
    except FileNotFoundError as error:
        raise CommandError(f"--executor slurm: {error.filename} is not on PATH; run this where Slurm is") from None
    except subprocess.CalledProcessError as error:
        if not wait:
            raise CommandError(f"sbatch ended with exit code {error.returncode}; what it said stands above") from None
    return None if wait else str(executor.job_id)


def _run_ray(fixed: dict[str, Any], values: dict[str, Any], errand: Errand) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    import ray

    address = values.pop("address", None)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError as error:
        raise CommandError(f"--executor-option address={address}: {str(error).splitlines()[0]}") from None
    try:
        RayPipelineExecutor(**fixed, **{"cpus_per_task": errand.workers, **values}).run()
    finally:
        ray.shutdown()


def _nothing() -> None:
    """Do nothing."""


def _sum_up(errand: Errand, num_shares: int, logs: str) -> None:
    outcomes = [read_outcome(errand, share, num_shares) for share in range(num_shares)]
    failed = [(share, outcome) for share, outcome in enumerate(outcomes) if outcome is None or outcome.code]
    if not failed:
        return
    share, first = failed[0]
    first = first or Outcome(Exit.BUG, "left no word")
    words = first.message.strip().splitlines()[-1]
    raise CommandError(
        f"{len(failed)} of {num_shares} shares failed, first share {share}: {words}; what each did stands in {logs},"
        " and the same command again does what is missing",
        Exit(first.code),
    )
