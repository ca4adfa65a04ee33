"""The plan of a run in shares: made once, by the first share, and read by the others.

`.tasks/plan.json` says of each input what a survey found, so that n shares do not read the input n times, and which
orders (`dataprep/selection.py`) lie in the folders. The tasks follow from it and the config, as in any run.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from configs import VERSION
from dataprep.errors import CommandError, Exit
from dataprep.output import HOLDOUT_NAME
from dataprep.pipeline import Job, Prepared, input_files, input_names, prepare
from dataprep.plan import InputFile, sha256_of
from dataprep.selection import ORDER_NAME, needs_selection
from dataprep.shards.writer import publish
from dataprep.workers import worker_map

PLAN_NAME = "plan.json"

#: Below this, surveying takes less time than starting processes for it. In bytes.
WORTH_PROCESSES = 1 << 30


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
        return InputFile(path, **msgspec.structs.asdict(self))

    @classmethod
    def of(cls, file: InputFile) -> PlannedFile:
        """Return what the plan says of a surveyed file."""
        return cls(**{name: getattr(file, name) for name in cls.__struct_fields__})


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
    large = len(job.inputs) > 1 and sum(os.stat(path).st_size for path in job.inputs) > WORTH_PROCESSES
    with worker_map(min(workers, len(job.inputs)) if large else 1) as mapper:
        files = input_files(job.inputs, mapper)
    prepared = prepare(job, files, workers)
    chosen = needs_selection(job.config)
    orders = {str(path.relative_to(job.output)): sha256_of(path) for path in _orders(job)}
    plan = Plan(
        VERSION,
        tuple(PlannedFile.of(file) for file in files),
        prepared.parts[0].deduplicated if chosen else None,
        orders,
    )
    publish(job.output / ".tasks" / PLAN_NAME, msgspec.json.encode(plan))
    return plan


def follow(plan: Plan, job: Job) -> Prepared:
    """Prepare a run as it was planned, without reading the input.

    Raises:
        CommandError: the folder was planned for another config, tokenizer or image root; an order is damaged (4).
    """
    for path in _orders(job):
        if not path.is_file() or sha256_of(path) != plan.orders.get(str(path.relative_to(job.output))):
            raise CommandError(
                f"{path}: not as planned; delete {job.output / '.tasks' / PLAN_NAME} and start all shares again",
                Exit.CONFLICT,
            )
    files = [file.at(path) for file, path in zip(plan.files, job.inputs, strict=True)]
    return prepare(job, files, 1, plan.num_duplicates)


def _orders(job: Job) -> list[Path]:
    if not needs_selection(job.config):
        return []
    folders = [job.output, *([job.output / HOLDOUT_NAME] if job.config.holdout > 0 else [])]
    return [folder / ".tasks" / ORDER_NAME for folder in folders]
