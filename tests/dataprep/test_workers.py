"""Workers that end when they should, and are told of when they stand still."""

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import connection
from pathlib import Path

import pytest

from dataprep import workers
from dataprep.errors import CommandError, Exit
from dataprep.workers import StandstillWatch, stop_workers, worker_map
from tests.dataprep.conftest import ROOT


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(workers, "STILL_SECONDS", 1)
    pool = ProcessPoolExecutor(2, multiprocessing.get_context("spawn"))
    yield pool
    stop_workers(pool)
    assert not multiprocessing.active_children()


def watched(pool, seconds: float) -> None:
    watch, begun = StandstillWatch(pool), time.monotonic()
    while time.monotonic() - begun < seconds:
        watch.check()
        time.sleep(0.05)


def test_workers_that_stand_still_end_the_run_with_a_sentence(pool):
    for _ in range(2):
        pool.submit(time.sleep, 600)
    with pytest.raises(CommandError, match="stood still for over a minute .* same command again") as caught:
        watched(pool, 60)
    assert caught.value.code == Exit.BUG


def test_one_worker_at_work_is_enough(pool):
    pool.submit(time.sleep, 600)
    pool.submit(sum, range(10**12))
    watched(pool, 4)


def keep_pythons_lock() -> None:
    """In a worker: stop as in a library that never comes back, with Python's lock kept from the other threads."""
    threading.Thread(target=time.sleep, args=(1,), daemon=True).start()
    ctypes.PyDLL(None).sleep(600)


def test_a_worker_that_only_waits_for_pythons_lock_stands_still(pool, monkeypatch):
    monkeypatch.setattr(workers, "STILL_SECONDS", 6)
    for _ in range(2):
        pool.submit(keep_pythons_lock)
    with pytest.raises(CommandError, match="stood still"):
        watched(pool, 60)


def half_a_result(sent: Path, dies: bool) -> bytes:
    """In a worker: of this result one half is sent, and the other never."""

    def send(self, content, *_):
        os.write(self.fileno(), bytes(content[: len(content) // 2]))
        sent.touch()
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    connection.Connection._send = send
    return bytes(100)


def is_killed_within_a_result(sent: Path) -> None:
    with worker_map(2) as mapper:
        list(mapper(half_a_result, [sent], [True]))


def is_left_within_a_result(sent: Path) -> None:
    with worker_map(2) as mapper:
        mapper(half_a_result, [sent], [False])
        while not sent.exists():
            time.sleep(0.01)
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (is_killed_within_a_result, "CommandError: a worker process died"),
        (is_left_within_a_result, "KeyboardInterrupt"),
    ],
)
def test_a_result_of_which_the_rest_never_comes_is_waited_for_by_nobody(what, said, tmp_path):
    """Python waits for its pool before it ends, so each is a process of its own."""
    call = f"from tests.dataprep import test_workers as t; t.{what.__name__}(t.Path({str(tmp_path / 'sent')!r}))"
    told = subprocess.run([sys.executable, "-c", call], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert said in told.stderr.splitlines()[-1], told.stderr
