"""Workers that end when they should, and are told of when they stand still."""

import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor

import pytest

from dataprep import workers
from dataprep.errors import CommandError, Exit
from dataprep.workers import StandstillWatch, stop_workers


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
