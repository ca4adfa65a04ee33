"""Pictures inside a shard: each once, at the tower's size, coded without loss.

The code needs numpy and deflate alone, so that any language can read it: the colours of a row lie one after the other
(red less green, green, blue less green), less the row above, all modulo 256, then zlib. On photographs it is a fifth
smaller than QOI; deflate of the bare pixels is half as large again.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import h5py
import numpy as np
from isal import isal_zlib
from jaxtyping import Int32, Int64, UInt8

from dataprep.shards.content import ContentHash
from dataprep.shards.layout import ShardError

#: How `pictures/code` is coded; stored as an attribute.
CODEC = "rgb-up-zlib"

#: isal's level 1: level 2 and 3 are no smaller on such differences.
DEFLATE_LEVEL = 1

#: The column of a row without an embedded picture.
NO_PICTURE = -1


class CodedPicture(NamedTuple):
    """A picture as a shard stores it."""

    code: bytes
    sha256: bytes
    """Of the pixels: what makes two pictures one, and what the content hash covers."""


class PictureTable:
    """Collects the pictures of a shard; equal pixels are stored once, whatever they are called."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._index: dict[bytes, int] = {}
        self._by_pixels: dict[bytes, int] = {}
        self._codes: list[bytes] = []

    def __contains__(self, key: str) -> bool:
        return key.encode() in self._index

    def add(self, key: str, picture: CodedPicture) -> int:
        """Add the picture of an image key; return the bytes that the shard grows by."""
        name = key.encode()
        if name in self._index:
            return 0
        index = self._by_pixels.get(picture.sha256)
        new = index is None
        if index is None:
            index = self._by_pixels[picture.sha256] = len(self._codes)
            self._codes.append(picture.code)
        self._index[name] = index
        return len(picture.code) if new else 0

    def write(self, file: h5py.File, paths: list[bytes], content: ContentHash) -> None:
        """Write the pictures, and which of them each row has; `paths` are the rows' image keys.

        A shard without pictures stays as it would be without this.
        """
        if not self._codes:
            return
        of_row = np.array([self._index.get(path, NO_PICTURE) for path in paths], dtype=np.int32)
        file.create_dataset("picture", data=of_row, track_times=False)
        group = file.create_group("pictures")
        group.attrs["codec"] = CODEC
        group.attrs["size"] = self._size
        starts = np.cumsum([0, *(len(code) for code in self._codes)], dtype=np.int64)
        group.create_dataset("offset", data=starts, track_times=False)
        codes: Any = group.create_dataset("code", shape=(int(starts[-1]),), dtype="uint8", track_times=False)
        for index, code in enumerate(self._codes):
            codes[starts[index] : starts[index + 1]] = np.frombuffer(code, np.uint8)
            self._codes[index] = b""  # the file in memory has it now
        _add_to_content(content, of_row, list(self._by_pixels))


@dataclass(frozen=True, slots=True)
class StoredPictures:
    """The pictures of an open shard."""

    size: int
    of_row: Int32[np.ndarray, " N"]
    starts: Int64[np.ndarray, " P_plus_1"]
    codes: Any

    def of(self, row: int) -> UInt8[np.ndarray, "size size 3"] | None:
        """Return the picture of a row; None where it has none here.

        Raises:
            ShardError: its code is damaged.
        """
        index = int(self.of_row[row])
        return None if index == NO_PICTURE else self.decode(index)

    def decode(self, index: int) -> UInt8[np.ndarray, "size size 3"]:
        """Return one picture.

        Raises:
            ShardError: its code is damaged.
        """
        name = f"{self.codes.file.filename}: picture {index}"
        if not 0 <= index < len(self.starts) - 1:
            raise ShardError(f"{name}: there are {len(self.starts) - 1}")
        try:
            code = self.codes[self.starts[index] : self.starts[index + 1]].tobytes()
            return decode_picture(code, self.size)
        except (OSError, RuntimeError, ValueError) as error:
            raise ShardError(f"{name}: damaged: {error}") from None


def code_picture(pixels: UInt8[np.ndarray, "size size 3"]) -> CodedPicture:
    """Code a picture."""
    pixels = np.ascontiguousarray(pixels)
    green = pixels[..., 1]
    rows = np.empty((len(pixels), 3, len(pixels)), np.uint8)
    np.subtract(pixels[..., 0], green, out=rows[:, 0])
    rows[:, 1] = green
    np.subtract(pixels[..., 2], green, out=rows[:, 2])
    differences = rows.copy()
    differences[1:] -= rows[:-1]
    return CodedPicture(isal_zlib.compress(differences, DEFLATE_LEVEL), _sha256(pixels))


def decode_picture(code: bytes, size: int) -> UInt8[np.ndarray, "size size 3"]:
    """Return the pixels of a coded picture; in memory they lie colour by colour, as models take them.

    Raises:
        ValueError: it is damaged.
    """
    num_bytes = size * size * 3
    unpacker = isal_zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(code, num_bytes + 1)
    except isal_zlib.error as error:  # pyright: ignore[reportGeneralTypeIssues] (its stub has an instance)
        raise ValueError(str(error)) from None
    if len(unpacked) != num_bytes or not unpacker.eof:
        raise ValueError(f"not {size} x {size} pixels")
    rows = np.frombuffer(unpacked, np.uint8).reshape(size, 3 * size).copy()
    # Row by row: numpy's own running sum over bytes takes four times as long.
    add, lines = np.add, list(rows)
    for above, line in zip(lines, lines[1:], strict=False):
        add(line, above, line)
    planes = rows.reshape(size, 3, size)
    pixels = np.empty((3, size, size), np.uint8)
    green = planes[:, 1]
    np.add(planes[:, 0], green, out=pixels[0])
    pixels[1] = green
    np.add(planes[:, 2], green, out=pixels[2])
    return pixels.transpose(1, 2, 0)


def open_pictures(file: Any, num_rows: int, size: int) -> StoredPictures | None:
    """Return the pictures of an open HDF5 file; None where there are none.

    Args:
        size: side of the pictures in pixels, as the layout has it.

    Raises:
        ShardError: they are coded in a way that is not known here, or do not fit together or to the layout.
    """
    group = file.get("pictures")
    if group is None or "codec" not in group.attrs:
        return None
    name = file.filename
    if group.attrs["codec"] != CODEC:
        raise ShardError(f"{name}: pictures coded as {group.attrs['codec']}, this program reads {CODEC}")
    if group.attrs["size"] != size:
        raise ShardError(f"{name}: pictures of {group.attrs['size']} pixels, image_size is {size}")
    of_row, starts = file["picture"][:], group["offset"][:]
    stored = StoredPictures(size, of_row, starts, group["code"])
    whole = len(starts) > 0 and starts[0] == 0 and starts[-1] == len(stored.codes) and (np.diff(starts) > 0).all()
    if not whole or of_row.shape != (num_rows,) or not ((of_row >= NO_PICTURE) & (of_row < len(starts) - 1)).all():
        raise ShardError(f"{name}: its column picture, pictures/offset and pictures/code do not fit together")
    return stored


def add_pictures(file: Any, num_rows: int, size: int, content: ContentHash) -> None:
    """Decode every picture of an open HDF5 file and add it to the content hash, as the writer does.

    Raises:
        ShardError: a picture is damaged.
    """
    stored = open_pictures(file, num_rows, size)
    if stored is not None:
        digests = [_sha256(stored.decode(index)) for index in range(len(stored.starts) - 1)]
        _add_to_content(content, stored.of_row, digests)


def _sha256(pixels: np.ndarray) -> bytes:
    return hashlib.sha256(pixels.tobytes()).digest()


def _add_to_content(content: ContentHash, of_row: Int32[np.ndarray, " N"], digests: list[bytes]) -> None:
    content.add_bytes(of_row.astype("<i4").tobytes())
    for digest in digests:
        content.add_bytes(digest)
