"""What a command ends with, and how it says so."""

from __future__ import annotations

import errno
from enum import IntEnum

#: What the system says where nothing more can be written.
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

#: What it says where it is short of something itself, or a server is away: no fault of the file that was asked for.
NOT_THE_FILE = (
    *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ENOBUFS),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH),
)


class Exit(IntEnum):
    """Exit codes of every command."""

    OK = 0
    BUG = 1
    USAGE = 2
    REFUSED = 3
    CONFLICT = 4
    INTEGRITY = 5
    NO_SPACE = 6
    INTERRUPTED = 130
    TERMINATED = 143


class CommandError(Exception):
    """An end that the user can do something about: one sentence, and the exit code."""

    def __init__(self, message: str, code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.code = code
