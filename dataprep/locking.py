"""One run at a time in one place: who holds it, what a dead one left, and shares of one run side by side.

The lock is `flock`: the system frees it when its process ends, however that ends, so a killed run leaves nothing to
tidy up. The lock file says who holds it. A whole run locks it for itself alone; a share of a run (task i of n) locks it
together with the other shares, and a file of its own for itself alone. So a whole run and a share never meet, nor do
two processes with the same share.

Some network file systems have no `flock`. There files made with O_EXCL are the locks. One whose process is dead on this
machine is taken over; of one on another machine nobody here can tell, so the message says what to delete.
"""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from dataprep.errors import CommandError, Exit

#: What `flock` says where a file system has none, and where another process has the lock.
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)
TAKEN = (errno.EAGAIN, errno.EACCES)

#: Whoever has just got a lock needs a moment to write down who they are. In seconds.
PATIENCE, PAUSE = 2.0, 0.02

#: The end of the name of a file that is a lock by being there.
CLAIM = ".owner"

#: What `whole_file` calls a file that is not whole yet.
UNFINISHED = re.compile(r"\..+\.\d+\.tmp")


class Owner(msgspec.Struct, frozen=True):
    """A process that holds a lock."""

    pid: int
    begun: str
    """When the process began, as its system counts; the number of a process is given again, with another beginning."""
    machine: str
    """Boot and process namespace: the numbers of processes mean something within one only."""
    host: str
    user: str
    since: str

    @classmethod
    def current(cls) -> Owner:
        """Return this process."""
        since = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        return cls(os.getpid(), _begun(os.getpid()) or "", _machine(), socket.gethostname(), _user(), since)

    def ended(self) -> bool:
        """Return whether the process is known to be dead; of another machine's nothing is known."""
        if self.machine != _machine():
            return False
        begun = _begun(self.pid)
        return begun is None or (begun != self.begun and "" not in (begun, self.begun))

    def __str__(self) -> str:
        return f"process {self.pid} of {self.user} on {self.host}, since {self.since}"


class _NoLocks(Exception):
    """The file system has no `flock`."""


@contextmanager
def only_run(lock: Path, output: Path) -> Iterator[None]:
    """Hold a lock while `output` is written; that of a process that died is free.

    What killed runs left half-written there is removed first. Where the block fails before anything was made, the lock
    and the folders made for it go too.

    Raises:
        CommandError: another run, or a share of one, holds it; the message says who; exit 4.
    """
    made = [folder for folder in (lock.parent, *lock.parent.parents) if not folder.exists()]
    try:
        with _held(lock, lock, output):
            remove_unfinished(output)
            try:
                yield
            except BaseException:
                if not set(os.listdir(lock.parent)) - {lock.name, lock.name + CLAIM}:
                    lock.unlink()
                raise
    finally:
        for folder in made:
            with suppress(OSError):  # where something is in it, it stays
                folder.rmdir()


@contextmanager
def only_share(lock: Path, output: Path, share: int, num_shares: int) -> Iterator[None]:
    """Hold share `share` of `num_shares` (from 0) of a run that several processes do side by side.

    Raises:
        CommandError: a whole run holds the lock, another process this share, or a share of another cut; exit 4.
    """
    own = lock.with_name(f"{lock.name}-{share}-of-{num_shares}")
    with _held(lock, own, output):
        try:
            # Shares of two cuts would do the same tasks. Each looks after it has its own lock: one sees the other.
            if (other := _other_cut(lock, num_shares)) is not None:
                owner = _read(other) or _read(_claim(other))
                raise CommandError(
                    f"{output}: {other.name.removeprefix(f'{lock.name}-')} is being compiled, so this cannot be a share"
                    f" of {num_shares}{_named(owner, other)}",
                    Exit.CONFLICT,
                )
            yield
        finally:
            own.unlink(missing_ok=True)  # whoever waits for it sees that it is no lock any more


def _other_cut(lock: Path, num_shares: int) -> Path | None:
    """Return the lock of a share that some process holds of a run cut into another number of shares."""
    shares = {path.with_name(path.name.removesuffix(CLAIM)) for path in lock.parent.glob(f"{lock.name}-*-of-*")}
    others = (path for path in sorted(shares) if not path.name.endswith(f"-of-{num_shares}"))
    return next((path for path in others if _is_held(path)), None)


def _is_held(lock: Path) -> bool:
    owner = _read(_claim(lock))
    if owner is not None and not owner.ended():
        return True
    try:
        descriptor = os.open(lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in TAKEN
    finally:
        os.close(descriptor)
    return False


def remove_unfinished(output: Path) -> None:
    """Remove what killed runs were writing to a file or a folder; for whoever holds its lock alone."""
    if output.is_dir():
        left = [path for depth in ("", "*/", "*/*/") for path in output.glob(f"{depth}.*.tmp")]
    else:
        left = [path for path in output.parent.glob(".*.tmp") if path.name.startswith(f".{output.name}.")]
    for path in left:
        if UNFINISHED.fullmatch(path.name):
            path.unlink(missing_ok=True)


@contextmanager
def _held(lock: Path, own: Path, output: Path) -> Iterator[None]:
    """Hold `own` alone, and `lock`, where that is another file, together with other shares."""
    deadline = time.monotonic() + PATIENCE
    with ExitStack() as held:
        while not _taken(lock, own, held):
            owner, file = _holder(lock, own)
            if owner or time.monotonic() > deadline:
                raise CommandError(f"{output}: another run is writing it{_named(owner, file)}", Exit.CONFLICT)
            time.sleep(PAUSE)
        yield


def _taken(lock: Path, own: Path, held: ExitStack) -> bool:
    """Try once to get the lock; `held` gives it back."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with ExitStack() as files:
            if own != lock and _locked(lock, fcntl.LOCK_SH, files) is None:
                return False
            if (descriptor := _locked(own, fcntl.LOCK_EX, files)) is None:
                return False
            files.callback(os.ftruncate, descriptor, 0)
            os.ftruncate(descriptor, 0)
            os.write(descriptor, msgspec.json.encode(Owner.current()))
            held.push(files.pop_all())
            return True
    except _NoLocks:
        return _claimed(lock, own, held)


def _locked(path: Path, kind: int, files: ExitStack) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except FileNotFoundError:  # a run that made nothing has just removed the folder
        return None
    files.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            raise _NoLocks from None
        if error.errno not in TAKEN:
            raise
        return None
    with suppress(FileNotFoundError):
        if os.path.samestat(os.stat(path), os.fstat(descriptor)):
            return descriptor
    return None  # the holder before made nothing and removed the file: this would be the lock of nothing


def _claimed(lock: Path, own: Path, held: ExitStack) -> bool:
    """Try once to get a lock that is one by being there."""
    rivals = [_claim(path) for path in _rivals(lock, own)]
    for rival in rivals:
        owner = _read(rival)
        if owner is not None and owner.ended():
            _take_away(rival, owner)
    if any(rival.exists() for rival in rivals):
        return False
    with ExitStack() as files:
        try:
            descriptor = os.open(_claim(own), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        except (FileExistsError, FileNotFoundError):
            return False
        files.callback(_claim(own).unlink, missing_ok=True)
        files.callback(os.close, descriptor)
        os.write(descriptor, msgspec.json.encode(Owner.current()))
        # A rival may have made its own file at the same moment: then both give way.
        if any(_claim(path).exists() for path in _rivals(lock, own) if path != own):
            return False
        held.push(files.pop_all())
    return True


def _take_away(claim: Path, owner: Owner) -> None:
    """Remove the file of a dead process, and no other's that took its place in this moment."""
    aside = claim.with_name(f"{claim.name}.{os.getpid()}")
    with suppress(FileNotFoundError):
        os.rename(claim, aside)
        if _read(aside) == owner:
            aside.unlink()
        else:
            os.rename(aside, claim)


def _claim(path: Path) -> Path:
    return path.with_name(path.name + CLAIM)


def _rivals(lock: Path, own: Path) -> list[Path]:
    """Return the locks of which none may be held by another process."""
    if own != lock:
        return [lock, own]
    shares = {path.name.removesuffix(CLAIM) for path in lock.parent.glob(f"{lock.name}-*-of-*")}
    return [lock, *(lock.with_name(name) for name in sorted(shares))]


def _holder(lock: Path, own: Path) -> tuple[Owner | None, Path]:
    """Return who holds the lock, and the file that says so; None where nobody alive is named."""
    files = [file for path in _rivals(lock, own) for file in (path, _claim(path))]
    owners = [(owner, file) for file in files if (owner := _read(file)) and not owner.ended()]
    return max(owners, key=lambda found: found[0].since, default=(None, lock))


def _named(owner: Owner | None, file: Path) -> str:
    if owner is None:
        return f"; which one, {file} does not say"
    advice = ""
    if file.name.endswith(CLAIM) and owner.machine != _machine():
        advice = f"; this file system has no locks, so if that process is dead, delete {file}"
    return f": {owner}{advice}"


def _read(file: Path) -> Owner | None:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Owner)
    except (OSError, msgspec.MsgspecError):
        return None


def _begun(pid: int) -> str | None:
    """Return when a process began; None where it is dead, nothing where that cannot be seen."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except OSError:  # another user's
        pass
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return None if state in ("Z", "X") else fields[18]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return socket.gethostname()


def _user() -> str:
    """Return the user's name by the system's list: variables of the environment are nobody's business."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
