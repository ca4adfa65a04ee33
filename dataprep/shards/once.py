"""A file is checked once a node, not once a process: 8 ranks with loader workers would hash the same terabytes each.

A check that ended well is noted in a folder of the user's own under the temporary folder of the node: one small file a
shard, which is also the lock that keeps two processes from checking the same shard side by side. A note counts for the
very file that was checked (real path, device, inode, size, times of change), for what it was compared with, and until
the machine starts again. It is a shortcut and nothing else: where it is missing, damaged, not ours or cannot be
written, the file is checked once more. The folder can be deleted at any time.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

from dataprep.shards.layout import ShardError

#: A file changed this recently may change again without its times telling: no file system's clock is coarser.
SETTLED_NS = 2_000_000_000

#: Seconds to wait for another process that checks the same file, before it is checked here too.
PATIENCE = 600.0

#: Threads of one process that check files side by side (hashing releases Python's lock); there may be a process a GPU.
MAX_THREADS = 8

Item = TypeVar("Item")


class Stamp(NamedTuple):
    """What tells that a file is the one that was checked."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int


def stamp_of(file: Path | int) -> Stamp:
    """Return the stamp of a path or of an open file.

    Raises:
        ShardError: there is no such file, or it is another thing than a file (opening a pipe would wait forever).
    """
    try:
        found = os.stat(file)
    except FileNotFoundError:
        raise ShardError(f"{file}: the manifest names this shard, but there is no such file") from None
    except OSError as error:
        raise ShardError(f"{file}: cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(found.st_mode):
        raise ShardError(f"{file}: is no file; a shard is one")
    return Stamp(found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def check_once(path: Path, promise: str, check: Callable[[], None]) -> Stamp:
    """Run `check` (it raises where the file is not what `promise` says), unless that was done on this node.

    Returns:
        The stamp of the file that was checked.

    Raises:
        ShardError: what `check` raises, or that the file changed meanwhile.
    """
    stamp = stamp_of(path)
    settled = time.time_ns() - stamp.ctime_ns > SETTLED_NS
    proof = hashlib.sha256(repr((os.path.realpath(path), tuple(stamp), promise, _node())).encode()).digest()
    with _note(path) as note:
        if note is None or not _done(note, proof):
            check()
            if stamp_of(path) != stamp:
                raise ShardError(f"{path}: changed while it was being checked; try again when nothing writes there")
            if note is not None and settled:
                _write(note, proof)
    return stamp


def check_all(items: Iterable[Item], check: Callable[[Item], None]) -> None:
    """Check many files side by side; processes that check the same ones share the work.

    Raises:
        ShardError: what the first check that failed says.
    """
    # Each process in an order of its own, so that they meet at a file only now and then.
    shuffled = list(items)
    random.Random(os.urandom(8)).shuffle(shuffled)
    with ThreadPoolExecutor(min(MAX_THREADS, num_cores(len(shuffled)))) as pool:
        running = [pool.submit(check, item) for item in shuffled]
        try:
            for future in running:
                future.result()
        finally:
            for future in running:
                future.cancel()


def num_cores(num_files: int) -> int:
    """Return how many files to check side by side: on each core that this process may use, one."""
    return max(1, min(len(os.sched_getaffinity(0)), num_files))


@contextmanager
def _note(path: Path) -> Iterator[int | None]:
    """Give the open note of a file, None where there can be none."""
    folder = _folder()
    name = hashlib.sha256(repr((os.path.realpath(path), _node())).encode()).hexdigest()[:40]
    try:
        note = None
        if folder is not None:
            note = os.open(folder / name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError:
        note = None
    try:
        yield note
    finally:
        if note is not None:
            os.close(note)  # which frees the lock


def _folder() -> Path | None:
    """Return the folder of notes, None where it is not ours alone: a note in it could then be anybody's."""
    folder = Path(tempfile.gettempdir()) / f"llava-prep-checked-{os.geteuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return folder if ours else None


def _done(note: int, proof: bytes) -> bool:
    """Return whether the note holds the proof, now or when another process is done; hold the lock where it does not.

    A fork keeps the lock of its parent open, so the lock alone is not waited for without end.
    """
    end = time.monotonic() + PATIENCE
    while _read(note) != proof:
        try:
            fcntl.flock(note, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        except OSError:  # a file system without locks: two may check the same file
            return False
        else:
            return _read(note) == proof
    return True


def _read(note: int) -> bytes:
    try:
        return os.pread(note, 1 + hashlib.sha256().digest_size, 0)
    except OSError:
        return b""


def _write(note: int, proof: bytes) -> None:
    try:
        os.pwrite(note, proof, 0)
        os.ftruncate(note, len(proof))
    except OSError:  # a full disk costs the shortcut only
        return


@cache
def _node() -> str:
    """Name this machine since its start: a temporary folder may be shared by several, or outlive a start."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return socket.gethostname()
