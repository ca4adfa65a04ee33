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


#: Whose `ValueError` kinds say what a user can mend; any other is a bug and keeps its traceback.
OURS = ("configs", "dataprep")


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


def mendable(error: Exception) -> CommandError | None:
    """Return what a user is told of an error that they can do something about; None for a bug."""
    if isinstance(error, CommandError):
        return error
    if isinstance(error, OSError):
        if error.errno in NO_SPACE:
            return CommandError(f"no space left: {error}", Exit.NO_SPACE)
        # What the system said of which file, without its number.
        said = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return CommandError(said)
    if isinstance(error, ValueError) and type(error).__module__.split(".")[0] in OURS:
        return CommandError(str(error), Exit.INTEGRITY if type(error).__name__ == "ShardError" else Exit.USAGE)
    return None
