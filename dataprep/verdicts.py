"""What is known about each picture, so that a file is decoded once however many records, workers and runs use it.

A verdict belongs to the content of a file: a second file with the same bytes, and a file that was only touched or
moved, are not decoded again. The content is hashed once for each path, size and time of change.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import NamedTuple

from dataprep.errors import NOT_THE_FILE
from dataprep.images import ImageFault, check_image, check_key, keep_freed_memory, require_file
from dataprep.shards.writer import ShardWriter

#: Verdicts kept back until they are written together; a commit each would cost more than many a decode.
BATCH = 200

#: Keys remembered in this process; beyond it all are forgotten, and found in the store or looked at again.
MAX_KNOWN = 300_000

#: What a damaged store raises: texts that are none, too.
BROKEN = (sqlite3.Error, UnicodeDecodeError)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS seen (path TEXT PRIMARY KEY, size INTEGER, mtime INTEGER, content BLOB);
CREATE TABLE IF NOT EXISTS judged (content BLOB PRIMARY KEY, reason TEXT, detail TEXT);
"""


class Verdict(NamedTuple):
    """What is known of an image key."""

    fault: tuple[str, str] | None
    """Reason and message; None: the picture can be used."""
    content: bytes | None
    """sha256 of the file, where it was needed."""


class ImageVerdicts:
    """Checks pictures under one root and remembers the result.

    Args:
        root: the image root.
        check: how thoroughly (`images.CHECKS`).
        store: an SQLite file shared by the workers of a run and by later runs; None keeps the memory to this object.
    """

    def __init__(self, root: Path, check: str, store: Path | None = None) -> None:
        self.root = root
        self.check = check
        self._prefix = f"{root}/"
        self._known: dict[str, Verdict] = {}
        self._memory = _Memory(store) if check == "decode" else None
        if check == "decode":
            keep_freed_memory()

    def require(self, key: str) -> None:
        """Make sure that the picture of an image key can be used.

        Raises:
            ImageFault: it cannot.
        """
        fault = self._verdict(key).fault
        if fault is not None:
            raise ImageFault(*fault)

    def flush(self) -> None:
        """Hand what was found to the other workers."""
        if self._memory is not None:
            self._memory.flush()

    def embed(self, key: str | None, writer: ShardWriter) -> None:
        """Give the writer the picture of a row, where shards hold pictures; here they name them only."""

    def good(self, key: str) -> bool:
        """Return whether the picture of an image key can be used."""
        return self._verdict(key).fault is None

    def _verdict(self, key: str) -> Verdict:
        verdict = self._known.get(key)
        if verdict is None:
            if len(self._known) >= MAX_KNOWN:
                self._known.clear()
            verdict = self._known[key] = self._look_up(key)
        return verdict

    def _look_up(self, key: str) -> Verdict:
        path = self._prefix + key
        try:
            check_key(key)
            if self._memory is not None:
                return self._remembered(path, require_file(path))
            if self.check == "exists":
                require_file(path)
            elif self.check != "none":
                check_image(Path(path), self.check)
        except ImageFault as fault:
            return Verdict((fault.reason, str(fault)), None)
        return _GOOD

    def _remembered(self, path: str, status: os.stat_result) -> Verdict:
        assert self._memory is not None
        try:
            content = self._memory.content_of(path, status)
        except OSError as error:
            if error.errno in NOT_THE_FILE:
                raise
            raise ImageFault("unreadable_image", f"{path}: {error.strerror}") from None
        judgement = self._memory.judgement_of(content)
        if judgement is None:
            judgement = self._judge(path, content)
            self._memory.judged(content, judgement)
        # The same content may lie elsewhere too, so that what is remembered names no file.
        fault = (judgement[0], f"{path}: {judgement[1]}") if judgement[0] else None
        return Verdict(fault, content)

    def _judge(self, path: str, content: bytes) -> tuple[str, str]:
        """Decode a file; return reason and detail of the fault, or two empty texts."""
        try:
            self._examine(path, content)
        except ImageFault as fault:
            return fault.reason, str(fault).removeprefix(f"{path}: ")
        return "", ""

    def _examine(self, path: str, content: bytes) -> None:
        check_image(Path(path), self.check)


_GOOD = Verdict(None, None)


class _Memory:
    """Contents of files and verdicts on contents, in an SQLite file or in this object alone."""

    def __init__(self, store: Path | None) -> None:
        self._store = _connect(store) if store is not None else None
        self._seen: dict[str, tuple[int, int, bytes]] = {}
        self._judged: dict[bytes, tuple[str, str]] = {}

    def content_of(self, path: str, status: os.stat_result) -> bytes:
        """Return the sha256 of a file, from memory where path, size and time of change are known."""
        mark = (status.st_size, status.st_mtime_ns)
        found = self._seen.get(path) or self._ask("SELECT size, mtime, content FROM seen WHERE path = ?", path)
        if found is not None and found[:2] == mark:
            return found[2]
        with open(path, "rb") as file:
            content = hashlib.file_digest(file, "sha256").digest()
        self._seen[path] = (*mark, content)
        self._flush_if_many()
        return content

    def judgement_of(self, content: bytes) -> tuple[str, str] | None:
        """Return reason and detail that were found for a content, both empty where it is good; None: not known."""
        return self._judged.get(content) or self._ask("SELECT reason, detail FROM judged WHERE content = ?", content)

    def judged(self, content: bytes, judgement: tuple[str, str]) -> None:
        """Remember a verdict."""
        self._judged[content] = judgement
        self._flush_if_many()

    def flush(self) -> None:
        """Write what is new; without a store it stays here."""
        if self._store is None:
            return
        try:
            with self._store:
                seen = [(path, *entry) for path, entry in self._seen.items()]
                self._store.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?, ?)", seen)
                judged = [(content, *judgement) for content, judgement in self._judged.items()]
                self._store.executemany("INSERT OR REPLACE INTO judged VALUES (?, ?, ?)", judged)
        except BROKEN:  # a full disk, a damaged file: what is not remembered is looked at again
            self._store = None
        self._seen.clear()
        self._judged.clear()

    def _flush_if_many(self) -> None:
        if len(self._seen) + len(self._judged) >= BATCH:
            self.flush()

    def _ask(self, query: str, name: str | bytes) -> tuple | None:
        if self._store is None:
            return None
        try:
            return self._store.execute(query, (name,)).fetchone()
        except BROKEN:
            self._store = None
            return None


def _connect(path: Path) -> sqlite3.Connection | None:
    """Open the store; None where it cannot be used, since a lost verdict costs a decode and nothing else."""
    try:
        connection = sqlite3.connect(path, timeout=60)
        connection.execute("PRAGMA synchronous = OFF")
        connection.executescript(_SCHEMA)
        for table in ("seen", "judged"):
            connection.execute(f"SELECT * FROM {table} LIMIT 1").fetchone()
        connection.commit()
    except BROKEN:
        return None
    return connection
