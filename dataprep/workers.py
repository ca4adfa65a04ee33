"""Worker processes that end when they should: with the command, with its death, and at once when it is told to stop."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from dataprep.errors import CommandError, Exit

#: What a run says when a worker is gone.
DIED = "a worker process died (killed, or out of memory); what is finished is kept, run the same command again"


def begin_worker() -> None:
    """Set up a worker process: the parent alone decides when to stop."""
    # An interrupt from the terminal reaches every process of the group.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_die_with_parent, daemon=True).start()


@contextmanager
def worker_map(workers: int) -> Iterator[Callable[..., Iterator[Any]]]:
    """Give a `map` over worker processes that keeps the order; for one worker, the one that runs here."""
    if workers <= 1:
        yield map
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), begin_worker)
    try:
        yield pool.map
    except (BrokenProcessPool, OSError) as error:
        if not lost_worker(pool, error):
            raise
        raise CommandError(DIED, Exit.BUG) from None
    finally:
        stop_workers(pool)


@contextmanager
def rare_collections() -> Iterator[None]:
    """Let Python look for cycles less often: compiling makes many objects and hardly a cycle, and each look costs."""
    before = gc.get_threshold()
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def lost_worker(pool: ProcessPoolExecutor, error: Exception) -> bool:
    """Return whether an error says that a worker was killed.

    Where a worker is killed while the pool still starts it, the pool fails in its own plumbing: the pipe to the worker
    is broken, or `handle is closed`.
    """
    return isinstance(error, BrokenProcessPool | BrokenPipeError) or bool(pool._broken)


def out_of_memory(error: Exception) -> bool:
    """Return whether an error says that the system gave no more memory; HDF5 says it in words alone."""
    number = error.errno if isinstance(error, OSError) else None
    return isinstance(error, MemoryError) or number == errno.ENOMEM or "unable to allocate memory" in str(error)


def stop_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers, whatever they are doing."""
    processes = list((pool._processes or {}).values())  # no public way to them before Python 3.14
    pool.shutdown(wait=False, cancel_futures=True)
    for process in processes:
        process.terminate()
    for process in processes:
        process.join()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
