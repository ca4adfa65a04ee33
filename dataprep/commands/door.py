"""What every command shares: how it ends, and how it talks."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click

from dataprep.errors import CommandError, Exit, mendable


class _Terminated(BaseException):
    """The process was told to stop; no `except Exception` on the way may take it for a fault of what is worked on."""


def door(command: Callable[..., int | None]) -> Callable[..., None]:
    """Run a command's function; a fault that the user can mend ends it with one sentence and its exit code."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        signal.signal(signal.SIGTERM, _terminate)
        try:
            code = command(*args, **kwargs)
        except KeyboardInterrupt:
            fail("interrupted; run the same command again to go on", Exit.INTERRUPTED)
        except _Terminated:
            fail("terminated; run the same command again to go on", Exit.TERMINATED)
        except Exception as error:
            known = mendable(error)
            if known is None:
                raise
            if known.code == Exit.NO_SPACE:
                _give_stdout_up()
            fail(str(known), known.code)
        sys.exit(int(code or 0))

    return run


def _give_stdout_up() -> None:
    """Send what could not be printed nowhere: Python would try it again on its way out, and end with 120."""
    with suppress(OSError, ValueError):  # it may be no file of the system's
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, code: Exit) -> None:
    """Say what is wrong on stderr and end the process."""
    click.echo(f"llava-prep: {message}", err=True)
    sys.exit(int(code))


def say(message: str) -> None:
    """Tell a person something; stdout belongs to results."""
    click.echo(message, err=True)


def result(values: dict[str, Any], as_json: bool, text: str) -> None:
    """Print what a command found: one JSON object, or a text."""
    click.echo(json.dumps(values, ensure_ascii=False) if as_json else text)


def existing(path: Path, what: str) -> Path:
    """Return a path that must exist."""
    if not path.exists():
        raise CommandError(f"{what} {path}: no such file or folder")
    return path


def existing_folder(path: Path, what: str) -> Path:
    """Return a path that must be a folder of shards, or at least a folder."""
    if not existing(path, what).is_dir():
        raise CommandError(f"{what} {path}: is a file; give the folder that `llava-prep to-h5` has written")
    return path


def table(rows: list[tuple[str, Any]]) -> str:
    """Return two aligned columns."""
    width = max((len(name) for name, _ in rows), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)


@contextmanager
def records_bar(quiet: bool, what: str | None = None) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of records on a terminal, nothing elsewhere; give what is to be called with their number."""
    from tqdm import tqdm

    with tqdm(desc=what, unit=" records", disable=True if quiet else None) as bar:

        def progress(records: int) -> None:
            bar.update(records)

        yield progress


def _terminate(signum: int, frame: Any) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # A second one must not interrupt the tidying up.
    raise _Terminated
