"""The elements of a huge JSON array as raw bytes, one after the other, in bounded memory.

The published files are single arrays of up to 1.5 GB. A parser that decodes as it goes ends at the first bad byte; here
the array is only cut, at the commas and brackets outside strings, so one bad record costs one record. The scan runs
over blocks of bytes with numpy.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from dataprep.errors import CommandError

BLOCK_BYTES = 1 << 20

_QUOTE, _BACKSLASH, _COMMA = ord('"'), ord("\\"), ord(",")

#: +1 for every opening bracket, -1 for every closing one.
_STEP = np.zeros(256, np.int8)
_STEP[[ord("["), ord("{")]] = 1
_STEP[[ord("]"), ord("}")]] = -1

#: The bytes that matter: a twentieth of a file of conversations.
_STRUCTURAL = _STEP != 0
_STRUCTURAL[[_QUOTE, _BACKSLASH, _COMMA]] = True


def is_array(path: Path) -> bool:
    """Return whether a file begins as a JSON array; a jsonl file begins with an object."""
    with open(path, "rb") as file:
        return file.read(64).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def array_elements(path: Path) -> Iterator[bytes]:
    """Yield each element of the array in `path`, undecoded.

    Raises:
        CommandError: the file ends inside the array (a broken download), or text follows it.
    """
    with open(path, "rb") as file:
        start = _opening(file)
        file.seek(start)
        pending = b""
        depth, in_string, escaped = 1, False, False
        while block := file.read(BLOCK_BYTES):
            cuts, depth, in_string, escaped, end = _scan(block, depth, in_string, escaped)
            begin = 0
            for cut in cuts:
                if element := (pending + block[begin:cut]).strip():
                    yield element
                pending, begin = b"", cut + 1
            if end is not None:
                _expect_nothing(path, block[end + 1 :] + file.read(BLOCK_BYTES))
                return
            pending += block[begin:]
    raise CommandError(f"{path}: the file ends inside the array; the download or the copy is incomplete")


def _opening(file: BinaryIO) -> int:
    head = file.read(64)
    return head.index(b"[") + 1


def _scan(block: bytes, depth: int, in_string: bool, escaped: bool) -> tuple[list[int], int, bool, bool, int | None]:
    """Find where elements end in one block.

    Returns:
        The positions of the commas (and of the closing bracket) at the array's own level, the state behind the block,
        and the position of the bracket that closes the array, if it is here.
    """
    data = np.frombuffer(block, np.uint8)
    places = np.flatnonzero(_STRUCTURAL[data])
    if not len(places):
        return [], depth, in_string, False, None
    marks = data[places]
    quotes, escaped = _real_quotes(marks, places, len(data), escaped)
    inside = (np.cumsum(quotes, dtype=np.int32) + in_string) % 2 == 1
    depths = depth + np.cumsum(np.where(inside, 0, _STEP[marks]), dtype=np.int32)
    ends = places[depths == 0]
    end = int(ends[0]) if len(ends) else None
    commas = places[(marks == _COMMA) & ~inside & (depths == 1)]
    cuts = commas.tolist() if end is None else [*commas[commas < end].tolist(), end]
    return cuts, int(depths[-1]), bool(inside[-1]), escaped, end


def _real_quotes(marks: np.ndarray, places: np.ndarray, size: int, escaped: bool) -> tuple[np.ndarray, bool]:
    """Mark the quotes that open or close a string: those behind an even number of backslashes.

    Args:
        marks: the structural bytes of a block of `size` bytes, at `places`.
        escaped: whether the block before ended in an odd number of backslashes.

    Returns:
        The mask over `marks`, and whether this block ends in an odd number of backslashes.
    """
    quotes = marks == _QUOTE
    slashes = marks == _BACKSLASH
    if not escaped and not slashes.any():
        return quotes, False
    index = np.arange(len(marks), dtype=np.int64)
    starts = slashes.copy()
    starts[1:] &= ~(slashes[:-1] & (np.diff(places) == 1))
    # Length of the run of backslashes that ends at each mark; a run carried over into the block is one longer.
    run = np.where(slashes, index - np.maximum.accumulate(np.where(starts, index, 0)) + 1, 0)
    if escaped and slashes[0] and places[0] == 0:
        first_run = np.cumprod(slashes & (places == index)).astype(bool)
        run[first_run] += 1
    before = np.zeros(len(marks), np.int64)
    before[1:] = np.where(np.diff(places) == 1, run[:-1], 0)
    before[0] = int(escaped and places[0] == 0)
    return quotes & (before % 2 == 0), bool(places[-1] == size - 1 and run[-1] % 2)


def _expect_nothing(path: Path, rest: bytes) -> None:
    if rest.strip():
        raise CommandError(f"{path}: text follows the end of the array: {rest.strip()[:40]!r}")
