"""One share of a run: tasks i, i + n, i + 2n, ... of the plan; the last share to end writes the manifest.

Task k belongs to share k mod n, so that a heavy stretch of the input (one dataset after another) is spread over all
shares. The records of finished tasks decide what is left, whoever made them: a share that died is run again, and a run
without shares finishes what they left.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from dataprep.cluster.plans import PLAN_NAME, Plan, follow, make_plan, read_plan
from dataprep.compiler import Tally
from dataprep.errors import CommandError, Exit
from dataprep.locking import only_run, only_share
from dataprep.output import HOLDOUT_NAME, made_anew
from dataprep.pipeline import Assignment, Job, Prepared, Progress, compile_missing, finish, resources
from dataprep.shards.layout import ShardError
from dataprep.shards.manifest import read_manifest

#: Seconds between two looks at what another share is doing.
PAUSE = 0.5

#: What a killed share was writing of a task, by the task's number.
UNFINISHED = re.compile(r"\.(?:shard-)?(\d+)(?:-\d+)?\.(?:h5|json)\.\d+\.tmp")


class Share(NamedTuple):
    """Share `index`, from 0, of `count`."""

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index} of {self.count}"

    def of(self, work: Sequence[Assignment]) -> list[Assignment]:
        """Return the share's part of the work."""
        return list(work[self.index :: self.count])


class ShareResult(NamedTuple):
    """What a share did, and what is known of the rest."""

    own: Tally
    total: Tally | None
    """Of the whole run, where it is complete."""
    waiting_for: tuple[int, ...]
    """The shares whose tasks are not done, where it is not."""


def run_share(
    job: Job,
    share: Share,
    workers: int,
    progress: Progress = lambda done, refused: None,
    started: Callable[[int], None] = lambda records: None,
    notice: Callable[[str], None] = lambda message: None,
) -> ShareResult:
    """Compile what is missing of a share; where nothing is left of the whole run then, finish it.

    Args:
        started: called once with about the number of the share's records.
        notice: told, in a sentence, what the share waits for, and what of it was there already.

    Raises:
        CommandError: another run or the same share is at work, inputs or config are not as planned (4); no space (6).
    """
    job = replace(job, share=f"-{share.index}-of-{share.count}")
    with resources(job.output), only_share(job.output / ".lock", job.output, *share):
        plan = _plan_once(job, workers, notice)
        prepared = follow(plan, job)
        work = share.of(prepared.work)
        _remove_unfinished(prepared, work)
        started(round(prepared.num_records * len(work) / max(len(prepared.work), 1)))
        if found := made_anew(compile_missing(prepared, work, workers, progress), len(work)):
            notice(f"share {share}: {found}")
        return _end(prepared, share, work, notice)


def total_of(job: Job) -> Tally | None:
    """Return the accounting of a finished run; None where a manifest is missing."""
    total = Tally()
    for held_out, manifest in enumerate(manifests := _manifests(job)):
        tally = Tally.from_dict({name: n for name, n in manifest["accounting"].items() if name != "num_refused"})
        tally.held_out = tally.written if held_out else 0
        total.add(tally)
    return total if manifests else None


def _plan_once(job: Job, workers: int, notice: Callable[[str], None]) -> Plan:
    """Return the plan; whoever comes first makes it, the others wait."""
    tasks = job.output / ".tasks"
    while (plan := read_plan(job)) is None:
        with ExitStack() as held:
            if not _wait(held, tasks / "plan.lock", tasks / PLAN_NAME, notice, lambda: read_plan(job) is not None):
                continue
            if (plan := read_plan(job)) is None:
                return make_plan(job, workers)
    return plan


def _wait(
    held: ExitStack,
    lock: Path,
    output: Path,
    notice: Callable[[str], None],
    superfluous: Callable[[], bool] = lambda: False,
) -> bool:
    """Wait for a lock that shares hold one after the other; return whether it is held now."""
    told = False
    while not superfluous():
        try:
            held.enter_context(only_run(lock, output))
            return True
        except CommandError as error:
            if error.code != Exit.CONFLICT:
                raise
            if not told:
                notice(f"waiting: {error}")
            told = True
        time.sleep(PAUSE)
    return False


def _remove_unfinished(prepared: Prepared, work: Sequence[Assignment]) -> None:
    """Remove what this share was writing when it was killed."""
    own = {(number, task.index) for number, task in work}
    for number, part in enumerate(prepared.parts):
        for folder in (part.output.folder, part.output.tasks):
            for name in os.listdir(folder):
                found = UNFINISHED.fullmatch(name)
                if found and (number, int(found[1])) in own:
                    (folder / name).unlink(missing_ok=True)


def _end(prepared: Prepared, share: Share, work: Sequence[Assignment], notice: Callable[[str], None]) -> ShareResult:
    """Finish the run where nothing is left of it."""
    job = prepared.job
    records = [(number, prepared.parts[number].output.record(task)) for number, task in work]
    own = Tally()
    for number, record in records:
        tally = Tally.from_dict(record["tally"])
        tally.held_out = tally.written if number else 0
        own.add(tally)
    if _described(job, records) and (total := total_of(job)):
        return ShareResult(own, total, ())
    lock = job.output / ".tasks" / "finish.lock"
    # A new name makes NFS ask the server anew what is in the folder. Otherwise the last two shares might each see an
    # old list, without the other's last record, and neither would finish.
    seen = lock.with_name(f"share{job.share}")
    with ExitStack() as held:
        _wait(held, lock, lock, notice)
        seen.touch()
        seen.unlink()
        left = {(n, task.index) for n, part in enumerate(prepared.parts) for task in part.output.left(part.tasks)}
        if not left:
            return ShareResult(own, finish(prepared), ())
    places = (place for place, (number, task) in enumerate(prepared.work) if (number, task.index) in left)
    return ShareResult(own, None, tuple(sorted({place % share.count for place in places})))


def _manifests(job: Job) -> list[dict[str, Any]]:
    """Return the manifests of the training rows and of those held out; nothing where one is missing."""
    folders = [job.output, *([job.output / HOLDOUT_NAME] if job.config.holdout > 0 else [])]
    try:
        return [read_manifest(folder)[0] for folder in folders]
    except ShardError:
        return []


def _described(job: Job, records: Sequence[tuple[int, dict[str, Any]]]) -> bool:
    """Return whether the manifests name the shards of these records as they are."""
    manifests = _manifests(job)
    named = {
        (number, shard["file"], shard["sha256"]) for number, found in enumerate(manifests) for shard in found["shards"]
    }
    shards = ((number, s["file"], s["sha256"]) for number, record in records for s in record["shards"])
    return bool(manifests) and named.issuperset(shards)
