"""Worker processes that end when they should: with the command, with its death, and at once when it is told to stop."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from typing import Any

from dataprep.errors import CommandError, Exit

#: What a run says when a worker is gone.
DIED = "a worker process died (killed, or out of memory); what is finished is kept, run the same command again"

#: Seconds between two looks whether all workers live.
LOOK = 0.5

#: Seconds without any sign of work of any worker.
STILL_SECONDS = 90

#: What counts as no work: seconds of processor time, and a share of the time that has gone by. A thread that waits for
#: Python's own lock looks at it 200 times a second, though a thread that has it may have stopped for ever.
CRUMB, CRUMBS = 0.02, 0.005

#: What a run says when its workers hang.
STOOD_STILL = (
    "the worker processes have stood still for over a minute (short of memory?); what is finished is kept, run the same"
    " command again with fewer --workers"
)


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
    with worker_pool(workers) as pool:
        yield pool.map


@contextmanager
def worker_pool(
    workers: int, begin: Callable[..., None] = begin_worker, arguments: tuple[Any, ...] = (), died: str = DIED
) -> Iterator[ProcessPoolExecutor]:
    """Give worker processes that end with the block, and all of them as soon as one has ended.

    Args:
        begin: called in each worker first with `arguments`, which should be small: one that is killed before it has
            read more than a pipe holds (64 KB) would never be noticed. It calls `begin_worker`.
        died: what is said when one is gone.

    Raises:
        CommandError: a worker was killed.
    """
    # spawn: a fork would copy the parent's threads' locks and an HDF5 library in an unknown state.
    pool = _Pool(workers, multiprocessing.get_context("spawn"), begin, arguments)
    over = threading.Event()
    try:
        threading.Thread(target=_end_together, args=(pool, over), daemon=True).start()
        yield pool
    except (BrokenProcessPool, OSError) as error:
        if not lost_worker(pool, error):
            raise
        raise CommandError(died, Exit.BUG) from None
    finally:
        over.set()
        stop_workers(pool)


class _Pool(ProcessPoolExecutor):
    """A pool whose workers get no interrupt from the terminal, not even before they can ignore it themselves."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Hand a call to the workers; this may begin one, which inherits what is blocked."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            return super().submit(fn, *args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


class StandstillWatch:
    """Tells when workers that should be at work have stood still for long, as a process short of memory may for ever.

    Where the system does not tell what a process does (`/proc` of Linux), nothing is ever said to stand still.
    """

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool
        self._used: dict[int, float | None] = {}
        self._since = self._looked = time.monotonic()

    def check(self) -> None:
        """Look again, now and then.

        Raises:
            CommandError: for `STILL_SECONDS` no worker has computed, or waited for a disk.
        """
        now = time.monotonic()
        if now - self._looked < STILL_SECONDS / 20:
            return
        self._looked = now
        used = {process.pid: _used(process.pid) for process in _processes(self._pool)}
        if self._at_work(used, now - self._since):
            self._used, self._since = used, now
        elif now - self._since > STILL_SECONDS:
            raise CommandError(STOOD_STILL, Exit.BUG)

    def _at_work(self, used: dict[int, float | None], seconds: float) -> bool:
        if used.keys() != self._used.keys():
            return True
        pairs = ((self._used[pid], now) for pid, now in used.items())
        return any(before is None or now is None or now - before > CRUMB + CRUMBS * seconds for before, now in pairs)


def _used(pid: int) -> float | None:
    """Return the seconds that a process has computed; None where it does so now, waits for a disk, or is not known."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields[0] == "S" else None


def stop_workers(pool: ProcessPoolExecutor) -> None:
    """End the workers, whatever they are doing."""
    processes, results = _processes(pool), pool._result_queue
    manager: Any = pool._executor_manager_thread
    pool.shutdown(wait=False, cancel_futures=True)
    _end(processes, results)
    if manager is not None:
        manager.join(timeout=10)


def _processes(pool: ProcessPoolExecutor) -> list[Any]:
    return list((pool._processes or {}).values())  # no public way to them before Python 3.14


def _end_together(pool: ProcessPoolExecutor, over: threading.Event) -> None:
    """End all workers as soon as one has ended: the others may wait for a lock that it held, and the pool with them.

    The pool watches its workers too, but not one that began after it last looked, nor any while it reads a result, of
    which the rest may never come.
    """
    results = pool._result_queue
    while not over.wait(LOOK):
        processes = _processes(pool)
        if connection.wait([process.sentinel for process in processes], timeout=0):
            _end(processes, results)
            return


_ending = threading.Lock()


def _end(processes: list[Any], results: Any) -> None:
    """End worker processes, and what their pool may still read of them."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.join(timeout=10)
        if process.is_alive():
            process.kill()
            process.join()
    with _ending:
        # The parent's own end is open too: without this a result cut off in the middle is waited for until all ends.
        if results is not None and not results._writer.closed:
            results._writer.close()


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
