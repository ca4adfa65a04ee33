"""What is known about each picture, so that a file is decoded once however many records, workers and runs use it."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from dataprep.images import ImageFault, check_image, resolve_key

#: Verdicts kept back until they are written together; a commit each would cost more than many a decode.
BATCH = 200

_SCHEMA = """CREATE TABLE IF NOT EXISTS verdict (
    path TEXT, level TEXT, size INTEGER, mtime INTEGER, reason TEXT, detail TEXT, PRIMARY KEY (path, level))"""


class ImageVerdicts:
    """Checks pictures under one root and remembers the result by path, size and time of change.

    Args:
        root: the image root.
        check: how thoroughly (`images.CHECKS`).
        store: an SQLite file shared by the workers of a run and by later runs; None keeps the memory to this object.
    """

    def __init__(self, root: Path, check: str, store: Path | None = None) -> None:
        self.root = root
        self.check = check
        self._known: dict[str, tuple[str, str] | None] = {}
        self._fresh: list[tuple] = []
        self._store = _connect(store) if store is not None and check in ("header", "decode") else None

    def require(self, key: str) -> None:
        """Make sure that the picture of an image key can be used.

        Raises:
            ImageFault: it cannot.
        """
        if key not in self._known:
            self._known[key] = self._look_up(key)
        fault = self._known[key]
        if fault is not None:
            raise ImageFault(*fault)

    def flush(self) -> None:
        """Hand what was found to the other workers."""
        if self._store is not None and self._fresh:
            try:
                with self._store:
                    self._store.executemany("INSERT OR REPLACE INTO verdict VALUES (?, ?, ?, ?, ?, ?)", self._fresh)
            except sqlite3.Error:  # a full disk, a damaged file: what is not remembered is looked at again
                self._store = None
        self._fresh.clear()

    def good(self, key: str) -> bool:
        """Return whether the picture of an image key can be used."""
        try:
            self.require(key)
        except ImageFault:
            return False
        return True

    def _look_up(self, key: str) -> tuple[str, str] | None:
        try:
            path = resolve_key(self.root, key)
            if self._store is None:
                check_image(path, self.check)
                return None
            check_image(path, "exists")
        except ImageFault as fault:
            return fault.reason, str(fault)
        return self._remembered(path)

    def _remembered(self, path: Path) -> tuple[str, str] | None:
        assert self._store is not None
        status = path.stat()
        mark = (str(path), self.check, status.st_size, status.st_mtime_ns)
        query = "SELECT reason, detail FROM verdict WHERE path = ? AND level = ? AND size = ? AND mtime = ?"
        found = self._store.execute(query, mark).fetchone()
        if found is None:
            found = _fault_of(path, self.check)
            self._fresh.append((*mark, *found))
            if len(self._fresh) >= BATCH:
                self.flush()
        return found if found[0] is not None else None


def _fault_of(path: Path, check: str) -> tuple[str, str] | tuple[None, None]:
    try:
        check_image(path, check)
    except ImageFault as fault:
        return fault.reason, str(fault)
    return None, None


def _connect(path: Path) -> sqlite3.Connection | None:
    """Open the store; None where it cannot be used, since a lost verdict costs a decode and nothing else."""
    try:
        connection = sqlite3.connect(path, timeout=60)
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(_SCHEMA)
        connection.execute("SELECT COUNT(*) FROM verdict").fetchone()
        connection.commit()
    except sqlite3.DatabaseError:
        return None
    return connection
