"""Runs that are killed, told to stop, or out of memory: shards are whole or absent, and a rerun ends as if nothing was.

200 interruptions at random moments in `make test-long`, 10 in `make test`.
"""

import os
import random
import shutil
import signal
import subprocess
import time
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from dataprep.errors import Exit
from tests.dataprep.survival.kills import (
    FULL,
    begun,
    check_whole_or_absent,
    children,
    compiled,
    contents,
    finish,
    mixture,
    recorded,
    start,
    wait_until,
    words,
)

WORKERS = 2

#: Of 20 interruptions so many are of each kind.
KINDS = (
    ["parent killed"] * 6
    + ["all interrupted"] * 1
    + ["worker killed"] * 3
    + ["parent told to stop"] * 3
    + ["all told to stop"] * 2
    + ["worker without memory"] * 3
    + ["worker killed for its memory"] * 2
)
BATCHES, ROUNDS = (10, 20) if FULL else (2, 5)

SIGNALS = {"parent killed": signal.SIGKILL, "all interrupted": signal.SIGINT}

#: How a run may end when it is interrupted; 0 where it was faster.
ENDS = {
    "parent killed": {-signal.SIGKILL},
    "worker killed": {Exit.BUG},
    "parent told to stop": {Exit.TERMINATED},
    "all told to stop": {Exit.TERMINATED},
    "all interrupted": {Exit.INTERRUPTED},
    "worker without memory": {Exit.BUG},
    "worker killed for its memory": {Exit.BUG},
}


class Interrupted:
    """One folder, whose run is interrupted again and again."""

    def __init__(self, workspace, log, chance):
        self.workspace, self.log, self.chance = workspace, log, chance
        self.folder = workspace.root / "h5"
        self.ended = []

    def once(self, kind, clean):
        """Interrupt one run at a random moment, and look at what it leaves."""
        before, count = recorded(self.folder), len(begun(self.log))
        process = start(self.workspace, words(self.workspace), log=self.log, disk="slow", **self.inside(kind))
        self.interrupt(kind, process, count)
        try:
            code, _, error = finish(process)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{kind}: the run never ended")
        tried = len(begun(self.log)) - count
        if not tried and -code in (signal.SIGTERM, signal.SIGINT):  # before Python was up; a shell gives the same codes
            code, error = 128 - code, "run the same command again"
        if -code in (signal.SIGTERM, signal.SIGINT) and (self.folder / "manifest.json").exists():
            code = 0  # it was done, and Python on its way out
        assert code in {0, *ENDS[kind]}, (kind, code, error)
        if code > 0:
            assert "run the same command again" in error, (kind, error)
            # Where there is no memory at all, Python's own machinery may have the first word.
            assert "Traceback" not in error or (FULL and "memory" in kind), (kind, error)
        self.ended.append(code)
        check_whole_or_absent(self.folder, clean)
        after = recorded(self.folder)
        assert before.items() <= after.items(), "a finished shard was written again"
        # What was begun and is not done is what will be done again.
        assert tried - (len(after) - len(before)) <= WORKERS

    def inside(self, kind):
        if "memory" not in kind:
            return {}
        (self.log.with_name(f"{self.log.name}.memory")).unlink(missing_ok=True)
        moment = f"{self.chance.uniform(0, 0.6):.3f}"
        if kind == "worker without memory":
            return {"memory": f"{moment} limit" if FULL else "0 error"}
        return {"memory": f"{moment} kill"}

    def interrupt(self, kind, process, count):
        if "memory" in kind:
            return
        # Half of the moments lie in the start, or in the look at what is there; half where shards are made.
        if self.chance.random() < 0.5:
            time.sleep(self.chance.uniform(0, 1.5))
        else:
            wait_until(lambda: len(begun(self.log)) > count, process)
            time.sleep(self.chance.uniform(0, 0.5))
        if kind == "worker killed":
            wait_until(lambda: children(process), process)
            found = children(process)
            if found:
                os.kill(self.chance.choice(found), signal.SIGKILL)
        elif process.poll() is None:
            tell = os.killpg if kind.startswith("all") else os.kill
            tell(process.pid, SIGNALS.get(kind, signal.SIGTERM))


@pytest.mark.parametrize("batch", range(BATCHES))
def test_interrupted_runs_leave_whole_shards_and_finish_identically(workspace, tmp_path, batch):
    chance = random.Random(batch)
    mixture(workspace)
    code, _, error = compiled(workspace, words(workspace, "clean"))
    assert code == 0, error
    clean = contents(workspace.root / "clean")
    runs = Interrupted(workspace, tmp_path / "begun.log", chance)
    kinds = chance.sample(KINDS, len(KINDS))[:ROUNDS]
    for kind in kinds:
        if (runs.folder / "manifest.json").exists():
            shutil.rmtree(runs.folder)
        runs.once(kind, clean)
    code, _, error = compiled(workspace, words(workspace))
    assert code == 0, error
    assert contents(runs.folder) == clean
    assert sum(code != 0 for code in runs.ended) > len(kinds) // 2
    print(Counter(zip(kinds, runs.ended, strict=True)))


@pytest.mark.parametrize("worker", [1, 2])
def test_a_worker_killed_with_the_lock_of_the_counter_stops_nobody_for_ever(workspace, tmp_path, worker):
    mixture(workspace, 600)
    log = tmp_path / "begun.log"
    code, _, error = finish(start(workspace, words(workspace), log=log, counter=worker), timeout=60)
    assert code == Exit.BUG and "a worker process died" in error
    code, _, error = compiled(workspace, words(workspace))
    assert code == 0, error


def test_an_interrupt_while_the_workers_begin_is_told_once(workspace, tmp_path):
    mixture(workspace, 600)
    run = start(workspace, words(workspace), workers=tmp_path / "began")
    assert wait_until((tmp_path / "began").exists, run)
    os.killpg(run.pid, signal.SIGINT)
    code, _, error = finish(run)
    assert (code, error) == (Exit.INTERRUPTED, "llava-prep: interrupted; run the same command again to go on\n")


def test_workers_die_with_the_run_and_its_shards_stay_whole(workspace, tmp_path):
    mixture(workspace, 1200)
    log, gate = tmp_path / "begun.log", tmp_path / "gate"
    killed = start(workspace, words(workspace), log=log, gate=gate)
    assert wait_until(lambda: len(begun(log)) == WORKERS, killed)
    workers = children(killed)
    assert len(workers) == WORKERS
    killed.kill()
    deadline = time.monotonic() + 30
    while any(os.path.exists(f"/proc/{worker}") for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    finish(killed)


def test_a_worker_that_failed_takes_no_other_task(workspace, tmp_path):
    mixture(workspace)
    log = tmp_path / "begun.log"
    code, _, error = compiled(workspace, words(workspace), log=log, bug="yes")
    assert code == Exit.BUG and "ZeroDivisionError" in error
    assert len(begun(log)) <= WORKERS


def test_a_request_to_stop_is_no_fault_of_the_picture_that_is_decoded(workspace, tmp_path):
    noise = np.random.default_rng(1)
    for index in range(6):
        picture = Image.fromarray(noise.integers(0, 256, (3000 + index, 3000), np.uint8))
        picture.save(workspace.root / f"pictures/slow{index}.png", compress_level=1)
    workspace.write("a.jsonl", [workspace.record(number, f"pictures/slow{number % 6}.png") for number in range(12)])
    log, chance, folder = tmp_path / "begun.log", random.Random(1), workspace.root / "h5"
    stopped = 0
    for _ in range(20 if FULL else 4):
        count = len(begun(log))
        run = start(workspace, words(workspace, "h5", "--workers", 1), log=log)
        assert wait_until(lambda count=count: len(begun(log)) > count, run)
        time.sleep(chance.uniform(0, 0.3))
        run.terminate()
        code, _, error = finish(run)
        if code == -signal.SIGTERM and (folder / "manifest.json").exists():
            code = 0  # it was done, and Python on its way out
        assert code in (0, Exit.TERMINATED)
        stopped += code == Exit.TERMINATED
        if code == 0:  # it was faster
            assert (folder / "refused.jsonl").read_bytes() == b""
        else:
            assert error == "llava-prep: terminated; run the same command again to go on\n"
        if recorded(folder):  # all is compiled, so that the same command would begin nothing
            shutil.rmtree(folder)
    assert stopped
    code, _, error = compiled(workspace, words(workspace, "h5", "--workers", 1))
    assert code == 0, error
    assert (folder / "refused.jsonl").read_bytes() == b""
