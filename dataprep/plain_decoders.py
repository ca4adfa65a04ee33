"""Plain JPEG and PNG by decoders that are several times as fast as Pillow's, with the same pixels.

A file goes to them by its kind alone, read from its markers and chunks: what they know as Pillow does. They never give
a verdict against a file: where one has as much as a warning, Pillow decodes it and decides.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO

import numpy as np
import simplejpeg
from jaxtyping import UInt8
from kornia_rs import io as kornia_io
from PIL import Image

from dataprep.wholeness import png_chunks

#: Larger files are left to Pillow, which reads them piece by piece.
MAX_BYTES = 64 << 20

#: Pillow's modes of PNG of 8 bits a sample: how the decoder calls each, and its bytes a pixel.
PNG_MODES = {"L": ("mono", 1), "RGB": ("rgb", 3), "RGBA": ("rgba", 4)}

#: Chunks of a PNG with several frames.
FRAMES = (b"acTL", b"fcTL", b"fdAT")

#: Chunks that may stand behind the data of a plain PNG. Pillow reads all that do, and may stumble over others.
BEHIND_DATA = (b"tEXt", b"tIME")


def decode_jpeg(
    file: BinaryIO, picture: Image.Image, smallest: bool = False
) -> UInt8[np.ndarray, "height width 3"] | None:
    """Return the pixels of a plain JPEG, equal to Pillow's, or None for anything else.

    libjpeg fills what is missing with grey and only warns; `strict` turns each warning into an error.

    Args:
        file: the file; Pillow may read on in it afterwards.
        picture: what Pillow read of its header.
        smallest: every coded bit is decoded, but the inverse transform done at an eighth of the size: it cannot fail.
    """
    if picture.format != "JPEG" or picture.mode not in ("RGB", "L"):
        return None
    content = _content(file)
    if content is None or not _is_plain_jpeg(content):
        return None
    scale = {"min_height": 1, "min_width": 1} if smallest else {}
    try:
        pixels = simplejpeg.decode_jpeg(content, "RGB", strict=True, **scale)
    except ValueError:
        return None
    return pixels if smallest or pixels.shape == (picture.height, picture.width, 3) else None


def decode_png(file: BinaryIO, picture: Image.Image) -> UInt8[np.ndarray, "height width channels"] | None:
    """Return the pixels of a plain PNG (1, 3 or 4 channels), equal to Pillow's, or None for anything else.

    The decoder checks the CRC of every chunk with pixels, which Pillow does not. Memory is the file and its pixels.

    Args:
        file: the file; Pillow may read on in it afterwards.
        picture: what Pillow read of its header. Its size must have been looked at: memory is taken for all of it.
    """
    if picture.format != "PNG" or picture.mode not in PNG_MODES or "transparency" in picture.info:
        return None
    content = _content(file)
    if content is None or not _is_plain_png(content):
        return None
    mode, channels = PNG_MODES[picture.mode]
    shape = (picture.height, picture.width)
    # Short of memory, the decoder panics, or ends the process. Here it is a MemoryError, which the caller knows.
    np.empty((*shape, channels), np.uint8)
    try:
        return kornia_io.decode_image_png_u8(content, shape, mode)
    except Exception:  # its errors are of no class of their own; Pillow decodes the file anew
        return None


def _content(file: BinaryIO) -> bytes | None:
    size = os.fstat(file.fileno()).st_size
    if size > MAX_BYTES:
        return None
    place = file.tell()
    file.seek(0)
    content = file.read(size)
    file.seek(place)
    return content


def _is_plain_jpeg(content: bytes) -> bool:
    """Return whether a JPEG is baseline or progressive, Huffman coded, of 8 bits, its markers without junk between.

    Decoders differ in which of the other kinds they know.
    """
    place = 2
    while content[place : place + 1] == b"\xff" and place + 4 < len(content):
        marker = content[place + 1]
        if marker in (0xC0, 0xC1, 0xC2):
            return content[place + 4] == 8
        if not (0xE0 <= marker <= 0xFE or marker in (0xC4, 0xDB, 0xDD)):
            return False
        place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return False


def _is_plain_png(content: bytes) -> bool:
    """Return whether a PNG is of 8 bits and one frame, its data in one run, with its end there."""
    if content[12:16] != b"IHDR" or content[24:25] != b"\x08":
        return False
    before, data = b"", False
    for name in png_chunks(io.BytesIO(content)):
        if name == b"IEND":
            return data
        if name == b"IDAT":
            if data and before != b"IDAT":
                return False
            data = True
        elif name in FRAMES or (data and name not in BEHIND_DATA):
            return False
        before = name
    return False
