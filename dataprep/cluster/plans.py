"""The plan of a run in shares: made once, by the first share, and read by the others.

`.tasks/plan.json` says of each input what a survey found, so that n shares do not read the input n times, and which
orders (`dataprep/selection.py`) lie in the folders. The tasks follow from it and the config, as in any run.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from configs import VERSION
from dataprep.errors import CommandError, Exit
from dataprep.output import HOLDOUT_NAME
from dataprep.pipeline import Assignment, Job, Prepared, input_files, input_names, prepare
from dataprep.plan import InputFile, Task
from dataprep.selection import ORDER_NAME, needs_selection
from dataprep.shards.writer import publish
from dataprep.workers import worker_map

PLAN_NAME = "plan.json"

#: Below this, surveying takes less time than starting processes for it. In bytes.
WORTH_PROCESSES = 1 << 30

#: What file systems, mounts and copying programs keep of a time of change: from nanoseconds to whole seconds.
PRECISIONS = (10**9, 10**6, 10**3, 100)


class PlannedFile(msgspec.Struct, frozen=True):
    """An input as the survey found it."""

    name: str
    num_bytes: int
    mtime_ns: int
    sha256: str
    num_lines: int
    line_starts: tuple[int, ...]

    def at(self, path: Path) -> InputFile:
        """Return the survey of the file, which lies at `path` here."""
        return InputFile(path, self.name, self.num_bytes, self.sha256, self.num_lines, self.line_starts)


class Plan(msgspec.Struct, frozen=True):
    """What the first share writes for the others."""

    version: str
    files: tuple[PlannedFile, ...]
    num_duplicates: int | None
    """Of a run that chooses records: how many equal another; None: it does not choose."""
    orders: dict[str, str]
    """sha256 of each order, by its place in the output folder."""


def read_plan(job: Job) -> Plan | None:
    """Return the plan in a job's output folder; None where there is none, or a damaged one, so that one is to be made.

    Raises:
        CommandError: it was made by another version, or for other inputs (4).
    """
    path = job.output / ".tasks" / PLAN_NAME
    try:
        plan = msgspec.json.decode(path.read_bytes(), type=Plan)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None
    if plan.version != VERSION:
        raise CommandError(
            f"{path}: planned by llava-prep {plan.version}, this is {VERSION}; a run in shares needs one version",
            Exit.CONFLICT,
        )
    planned, given = [file.name for file in plan.files], input_names(job.inputs)
    if planned != given:
        different = sorted(set(planned) ^ set(given)) or planned
        raise CommandError(
            f"{path}: the run was planned for {len(planned)} inputs, this share was given {len(given)}, or in another"
            f" order; they differ in {', '.join(different[:3])}",
            Exit.CONFLICT,
        )
    return plan


def make_plan(job: Job, workers: int) -> Plan:
    """Survey the inputs, choose the records where the config asks for it, and write the plan.

    Raises:
        CommandError: an input changed meanwhile, the folder holds another run's shards (4).
    """
    before = [os.stat(path) for path in job.inputs]
    large = len(before) > 1 and sum(status.st_size for status in before) > WORTH_PROCESSES
    with worker_map(min(workers, len(before)) if large else 1) as mapper:
        files = input_files(job.inputs, mapper)
    prepared = prepare(job, files, workers)
    planned = []
    for file, status in zip(files, before, strict=True):
        if (file.num_bytes, _mtime(file.path)) != (status.st_size, status.st_mtime_ns):
            raise CommandError(f"{file.path}: changed while it was read; run the same command again", Exit.CONFLICT)
        survey = (file.sha256, file.num_lines, file.line_starts)
        planned.append(PlannedFile(file.name, file.num_bytes, status.st_mtime_ns, *survey))
    chosen = needs_selection(job.config)
    orders = {str(path.relative_to(job.output)): _sha256(path) for path in _orders(job)}
    plan = Plan(VERSION, tuple(planned), prepared.parts[0].deduplicated if chosen else None, orders)
    publish(job.output / ".tasks" / PLAN_NAME, msgspec.json.encode(plan))
    return plan


def follow(plan: Plan, job: Job) -> Prepared:
    """Prepare a run as it was planned, without reading the input.

    Raises:
        CommandError: the folder was planned for another config, tokenizer or image root; an order is damaged (4).
    """
    for path in _orders(job):
        if not path.is_file() or _sha256(path) != plan.orders.get(str(path.relative_to(job.output))):
            raise CommandError(
                f"{path}: not as planned; delete {job.output / '.tasks' / PLAN_NAME} and start all shares again",
                Exit.CONFLICT,
            )
    files = [file.at(path) for file, path in zip(plan.files, job.inputs, strict=True)]
    return prepare(job, files, 1, plan.num_duplicates)


def require_inputs(plan: Plan, job: Job, work: Iterable[Assignment]) -> None:
    """Make sure that the inputs which some tasks read are those that were planned.

    Size and time of change tell; where the time differs, as it does in a copy on another machine, the content does.

    Raises:
        CommandError: one has changed (4).
    """
    needed: set[Path] = set()
    for _, task in work:
        if not isinstance(task, Task):  # picked records come from anywhere
            needed.update(job.inputs)
            break
        needed.update(segment.path for segment in task.segments)
    for file, path in zip(plan.files, job.inputs, strict=True):
        if path in needed and (finding := _difference(file, path)):
            raise CommandError(
                f"{path}: changed since the run was planned: {finding}; name another --output, or delete {job.output}",
                Exit.CONFLICT,
            )


def _difference(file: PlannedFile, path: Path) -> str | None:
    status = os.stat(path)
    if status.st_size != file.num_bytes:
        return f"{status.st_size} bytes, {file.num_bytes} were planned"
    if not same_time(file.mtime_ns, status.st_mtime_ns) and (sha256 := _sha256(path)) != file.sha256:
        return f"sha256 {sha256}, {file.sha256} was planned"
    return None


def same_time(planned: int, found: int) -> bool:
    """Return whether two times of change, in nanoseconds, are one, as far as both places keep such a time."""
    precision = next((unit for unit in PRECISIONS if planned % unit == 0 or found % unit == 0), 1)
    return planned // precision == found // precision


def _orders(job: Job) -> list[Path]:
    if not needs_selection(job.config):
        return []
    folders = [job.output, *([job.output / HOLDOUT_NAME] if job.config.holdout > 0 else [])]
    return [folder / ".tasks" / ORDER_NAME for folder in folders]


def _mtime(path: Path) -> int:
    return os.stat(path).st_mtime_ns


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
