"""Files that may be damaged are opened in a child process with limits, so that the parent cannot die of them.

One child reads many files, one after the other; questions and answers are lines of JSON over its pipes. It may use so
much memory, processor time and time in all, and write nothing. A child that crashes or exceeds a limit is one sentence
about the file that it was reading, and the next file gets a new child.
"""

from __future__ import annotations

import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dataprep.shards.audit import ForeignPromise, Held, audit_foreign, audit_own
from dataprep.shards.layout import RowLayout, ShardError

#: Exit status of a child that ran out of the memory it may use.
NO_MEMORY = 17


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may use for one file."""

    memory: int = 2 << 30
    """Bytes of address space beyond what Python and HDF5 themselves take."""
    cpu_seconds: int = 30
    """Beside one second a megabyte of the file."""
    seconds: float = 300.0
    """In all, beside ten seconds a megabyte: disks may be slow."""


class Guarded:
    """Audits files in a child process; for one thread at a time."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._child: subprocess.Popen[bytes] | None = None
        self._fresh = False

    def __enter__(self) -> Guarded:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def audit_foreign(self, path: Path, promise: ForeignPromise) -> None:
        """Run `audit.audit_foreign` in the child.

        Raises:
            ShardError: what it raises, or what became of the child.
        """
        self._ask("foreign", path, asdict(promise))

    def audit_own(self, path: Path, num_rows: int, content_sha256: str, layout: RowLayout) -> Held:
        """Run `audit.audit_own` in the child.

        Raises:
            ShardError: what it raises, or what became of the child.
        """
        values = {"num_rows": num_rows, "content_sha256": content_sha256, "layout": layout.attributes()}
        found = self._ask("own", path, values)
        return Held(**{**found, "first": tuple(found["first"]), "last": tuple(found["last"])})

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            child, self._child = self._child, None
            child.kill()
            child.communicate()

    def _ask(self, kind: str, path: Path, values: dict[str, Any]) -> Any:
        fault, died, found = self._answer(kind, path, values)
        if died and not self._fresh:
            # Files before this one may have left their mark on the process.
            fault, died, found = self._answer(kind, path, values)
        self._fresh = False
        if fault:
            raise ShardError(fault)
        return found

    def _answer(self, kind: str, path: Path, values: dict[str, Any]) -> tuple[str, bool, Any]:
        """Return what is wrong with a file (empty: nothing), whether the child died of it, and what the audit found."""
        megabytes = path.stat().st_size >> 20
        cpu_seconds = self._limits.cpu_seconds + megabytes
        question = {"kind": kind, "path": str(path), "cpu_seconds": cpu_seconds, "values": values}
        child = self._living()
        try:
            _write(child, json.dumps(question).encode("ascii") + b"\n")
            answer = _read_line(child, self._limits.seconds + 10 * megabytes)
        except BrokenPipeError:
            answer = b""
        except TimeoutError:
            self.close()
            return f"{path}: damaged: reading it in a child process did not end in time", True, None
        if answer.endswith(b"\n"):
            fault, found = json.loads(answer)
            return fault, False, found
        code = child.wait()
        self.close()
        return f"{path}: damaged: reading it in a child process {self._end(code, cpu_seconds)}", True, None

    def _end(self, code: int, cpu_seconds: int) -> str:
        if code == NO_MEMORY:
            return f"took more than {self._limits.memory >> 20} MB of memory"
        if code == -signal.SIGXCPU:
            return f"took more than {cpu_seconds} s of processor time"
        return f"ended that process ({signal.Signals(-code).name if code < 0 else f'exit {code}'})"

    def _living(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self.close()
            self._child, self._fresh = _start(self._limits), True
        return self._child


class Guards:
    """As many children as are asked at once, for threads."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits
        self._idle: list[Guarded] = []

    def __enter__(self) -> Guards:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._idle:
            child.close()

    @contextmanager
    def one(self) -> Iterator[Guarded]:
        """Give a child that no other thread is asking."""
        try:
            child = self._idle.pop()
        except IndexError:
            child = Guarded(self._limits)
        try:
            yield child
        except ShardError:
            self._idle.append(child)
            raise
        except BaseException:
            child.close()  # it may still be answering
            raise
        else:
            self._idle.append(child)


def audit_in_child(path: Path, promise: ForeignPromise) -> None:
    """Audit one foreign shard in a child of its own.

    Raises:
        ShardError: it is damaged, or of another layout.
    """
    with Guarded() as child:
        child.audit_foreign(path, promise)


def _start(limits: Limits) -> subprocess.Popen[bytes]:
    # Not by multiprocessing: its children run the parent's main program again, and loader workers may have none.
    program = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from dataprep.shards.guarded import serve; "
    words = [sys.executable, "-c", program + "serve(int(sys.argv[2]))", json.dumps(sys.path), str(limits.memory)]
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, env=environment, bufsize=0)


def _write(child: subprocess.Popen[bytes], line: bytes) -> None:
    assert child.stdin is not None
    while line:
        line = line[os.write(child.stdin.fileno(), line) :]


def _read_line(child: subprocess.Popen[bytes], seconds: float) -> bytes:
    """Return the child's answer up to its newline, or what came before the child's end."""
    assert child.stdout is not None
    line, end = b"", time.monotonic() + seconds
    while not line.endswith(b"\n"):
        ready, _, _ = select.select([child.stdout], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(child.stdout.fileno(), 1 << 16)
        if not part:
            break
        line += part
    return line


def serve(memory: int) -> None:
    """Be the child: answer questions until there are no more."""
    # A signal from the terminal is the parent's to act upon; without it the pipe ends, and so does this.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _limit(resource.RLIMIT_AS, used + memory)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, 0)
    for line in sys.stdin.buffer:
        question = json.loads(line)
        _limit(resource.RLIMIT_CPU, int(time.process_time()) + question["cpu_seconds"])
        try:
            answer = _audited(question)
        except MemoryError:
            os._exit(NO_MEMORY)
        answers.write(json.dumps(answer).encode("ascii") + b"\n")


def _audited(question: dict[str, Any]) -> tuple[str, dict[str, Any] | None]:
    """Return what is wrong with a file (empty: nothing), and what the audit found."""
    path, values = Path(question["path"]), question["values"]
    audits: dict[str, Callable[[], Held | None]] = {
        "foreign": lambda: audit_foreign(path, ForeignPromise(**values)),
        "own": lambda: audit_own(path, **{**values, "layout": RowLayout.from_attributes(values["layout"], str(path))}),
    }
    try:
        found = audits[question["kind"]]()
        return "", found._asdict() if found else None
    except ShardError as error:
        return str(error), None


def _limit(kind: int, value: int) -> None:
    """Lower a limit, or raise it again; nobody may exceed the hard one."""
    hard = resource.getrlimit(kind)[1]
    resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))
