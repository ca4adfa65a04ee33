"""One run at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dataprep.errors import CommandError, Exit


@contextmanager
def only_run(lock: Path, output: Path) -> Iterator[None]:
    """Hold a lock while `output` is written; that of a process that died is free.

    Raises:
        CommandError: another run holds it; exit 4.
    """
    import filelock

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(lock, timeout=0)
    try:
        held.acquire()
    except filelock.Timeout:
        raise CommandError(f"{output}: another run is writing it", Exit.CONFLICT) from None
    try:
        yield
    finally:
        held.release()
