"""Whether a picture file is there to its end.

Pillow stops reading a PNG or a GIF where it has its pixels: it takes a PNG whose last bytes are lost, and an animation
of which only the first frame is left. A file that was cut off is not what was meant to be there, so we do not. All
other common formats are refused by Pillow itself at every cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from typing import BinaryIO

#: Length of a PNG's signature and of a GIF's header with its screen descriptor.
PNG_START, GIF_START = 8, 13


def is_whole(file: BinaryIO | BytesIO, format_name: str | None) -> bool:
    """Return whether a file that Pillow could read has its end; `format_name` is Pillow's."""
    if format_name == "PNG":
        return any(name == b"IEND" for name in png_chunks(file))
    return format_name != "GIF" or _gif_ends(file)


def png_chunks(file: BinaryIO | BytesIO) -> Iterator[bytes]:
    """Yield the names of a PNG's chunks (length, name, data, CRC) in their order; IEND only if all of it is there."""
    place = PNG_START
    while True:
        file.seek(place)
        head = file.read(8)
        place += 12 + int.from_bytes(head[:4], "big")
        if head[4:] == b"IEND":
            if len(file.read(4)) == 4:
                yield b"IEND"
            return
        if len(head) < 8:
            return
        yield head[4:]


def _gif_ends(file: BinaryIO | BytesIO) -> bool:
    """Walk over the blocks to the trailer, a semicolon; bytes that begin no block are passed over, as Pillow does."""
    file.seek(0)
    content = file.read()
    place = GIF_START + _num_colour_bytes(content[10:11])
    while place < len(content):
        kind = content[place : place + 1]
        if kind == b";":
            return True
        if kind == b",":  # a frame: its place, its flags, perhaps colours, the code size
            place = _after_blocks(content, place + 11 + _num_colour_bytes(content[place + 9 : place + 10]))
        elif kind == b"!":
            place = _after_blocks(content, place + 2)
        else:
            place += 1
    return False


def _num_colour_bytes(flags: bytes) -> int:
    return 3 << ((flags[0] & 7) + 1) if flags and flags[0] & 0x80 else 0


def _after_blocks(content: bytes, place: int) -> int:
    """Return the place behind data blocks, each led by its length; an empty one is the last."""
    while place < len(content) and content[place]:
        place += content[place] + 1
    return place + 1
