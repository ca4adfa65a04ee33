"""A disk of its own for a test, small enough to be filled."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

PAGE = os.sysconf("SC_PAGE_SIZE")


class Disk:
    """A folder with a file system of so many pages (of 4 KB, mostly) in memory."""

    def __init__(self, folder: Path, pages: int) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        _mount("-t", "tmpfs", "-o", f"size={pages * PAGE}", "tmpfs", str(folder))

    def resize(self, pages: int) -> None:
        """Give it more space."""
        _mount("-o", f"remount,size={pages * PAGE}", str(self.folder))

    def pages(self) -> int:
        """How many are in use."""
        status = os.statvfs(self.folder)
        return status.f_blocks - status.f_bfree

    def free(self) -> None:
        """Take it away with all that is on it."""
        subprocess.run(["umount", "-l", self.folder], check=True, capture_output=True)


@contextmanager
def disk(folder: Path, pages: int) -> Iterator[Disk]:
    """Give a small disk; the test is skipped, with the reason, where none may be mounted."""
    try:
        small = Disk(folder, pages)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", b"") or str(error).encode()
        pytest.skip(f"no tmpfs may be mounted here, so only the limit on file sizes is tried: {said.decode().strip()}")
    try:
        yield small
    finally:
        small.free()


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, capture_output=True)
