"""How the commands of this package end: one sentence and an exit code for what the user can put right."""

from __future__ import annotations

import functools
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import click

from dataprep.errors import CommandError, Exit, mendable

#: How long another rank than the first waits before it speaks: torchrun ends it as soon as the first has spoken.
SECONDS_FOR_THE_FIRST_RANK = 5


class Terminated(BaseException):
    """The process was told to stop; no `except Exception` on the way may take it for a fault of a question."""


def door(command: Callable[..., int | None]) -> Callable[..., None]:
    """Run a command's function; what it returns is the exit code, None for 0."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        before = signal.signal(signal.SIGTERM, _terminate)
        try:
            code = command(*args, **kwargs) or Exit.OK
        except KeyboardInterrupt:
            code = _fail("interrupted; run the same command again to go on", Exit.INTERRUPTED)
        except Terminated:
            code = _fail("terminated; run the same command again to go on", Exit.TERMINATED)
        except Exception as error:
            known = known_fault(error)
            if known is None:
                raise
            code = _fail(str(known), known.code)
        finally:
            signal.signal(signal.SIGTERM, before)
        sys.exit(int(code))

    return run


def shown(text: str) -> str:
    """Return a text with U+FFFD for every character that would steer a terminal; newlines stay."""
    return "".join(character if character.isprintable() or character == "\n" else "\ufffd" for character in text)


def known_fault(error: Exception) -> CommandError | None:
    """Return what a user is told of an error that they can do something about; None for a bug."""
    known = mendable(error)
    if known is not None:
        return known
    # By name: their modules load torch, and nothing of them was raised where they were not loaded.
    names = {kind.__name__ for kind in type(error).__mro__}
    home = type(error).__module__.split(".")[0]
    if "OutOfMemoryError" in names:
        return CommandError(f"the GPU's memory is full: try a smaller --batch-size ({str(error).splitlines()[0]:.120})")
    if home == "trainer" and "TrainError" in names:
        return CommandError(str(error), Exit(getattr(error, "exit_code", Exit.USAGE)))
    if home == "converters" and "UnsupportedError" in names:
        return CommandError(str(error))
    if home in ("converters", "trainer") and names & {"ConversionError", "FolderError"}:
        return CommandError(str(error), Exit.INTEGRITY)
    return None


def _fail(message: str, code: Exit) -> Exit:
    """Say what is wrong, once: all ranks find most faults alike, and the first speaks for them."""
    rank = int(os.environ.get("RANK", "0"))
    if rank != 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(SECONDS_FOR_THE_FIRST_RANK)
    click.echo(f"error{f' (rank {rank})' if rank else ''}: {message}", err=True)
    return code


def _terminate(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # A second one must not interrupt the tidying up.
    raise Terminated
