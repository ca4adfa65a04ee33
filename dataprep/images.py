"""Image file to verified picture: everything that can be wrong with one is found here, before training.

Pillow's `verify()` does not decode (truncated JPEGs pass it), so a picture counts as good only after a full decode.
Pixels equal what transformers' CLIPImageProcessor (crop) and LLaVA's expand2square (pad) give for opaque 8-bit
pictures; for others `convert("RGB")` would turn transparent pixels black and clip 16 bits to white, and we do not.

Whether a picture can be used is Pillow's verdict (and `wholeness.py`'s): the faster decoders are asked only about
plain JPEG and PNG (`plain_decoders.py`), and where one has as much as a warning, Pillow decides.
"""

from __future__ import annotations

import os
import re
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from dataprep.errors import NOT_THE_FILE
from dataprep.fitting import Decoded, Raster, fit_exactly, fit_fast
from dataprep.plain_decoders import decode_jpeg, decode_png
from dataprep.wholeness import is_whole

#: Header sizes above this are refused before decoding: 10 kB of PNG can unfold to gigabytes. Pillow's own limit.
MAX_PIXELS = 89_478_485

#: A 1 x 5000 sliver has nothing to show, and scaling its short side up to the tower's size makes gigabytes.
MAX_ASPECT = 100

#: What `check_image` does, cheapest first.
CHECKS = ("none", "exists", "header", "decode")

#: What `load_image` may do with pixels: Pillow's to the bit, or to 1 or 2 levels and several times as fast.
PIXELS = ("exact", "fast")

#: Formats that Pillow hands to another program.
FOREIGN_FORMATS = ("EPS",)

#: The largest array of a picture that is worth keeping; glibc then keeps at most twice as much.
KEPT_BYTES = 16 << 20

#: An allocation that must succeed where memory is not short; it is never touched.
SPARE_BYTES = 512 << 20


class ImageFault(ValueError):
    """A picture that cannot be used; `reason` is the code that refusals are counted by."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def resolve_key(root: Path, key: str) -> Path:
    """Return the file that a record's image key names under `root`.

    Keys are untrusted: absolute ones, `..`, backslashes and NULs are refused. Links that the user made under the root
    are followed.

    Raises:
        ImageFault: `unsafe_image_path`.
    """
    check_key(key)
    return root / key


def check_key(key: str) -> None:
    """Make sure that an image key stays under the image root.

    Raises:
        ImageFault: `unsafe_image_path`.
    """
    unsafe = key.startswith(("/", "~")) or "\\" in key or "\0" in key or key[1:2] == ":"
    # Few keys have two dots in a row, or nothing but dots; only those are looked at closely.
    if unsafe or (".." in key and ".." in key.split("/")) or not key.strip("./") or not key.isascii():
        parts = [part for part in key.split("/") if part not in ("", ".")]
        if unsafe or ".." in parts or not parts or not _is_utf8(key):
            raise ImageFault("unsafe_image_path", f"image key {key!r} does not stay under the image root")


def check_image(path: Path, check: str) -> None:
    """Make sure that a picture can be used, as thoroughly as `check` (one of `CHECKS`) says.

    Raises:
        ImageFault: `missing_image`, `unreadable_image`, `image_too_large` or `image_too_thin`.
    """
    if check == "none":
        return
    require_file(str(path))
    if check == "exists":
        return
    with _opened(path) as (file, picture):
        if check == "decode" and not _is_sound(file, picture):
            _load(file, picture)
            # Some colour spaces are read, but cannot be shown; one row of them tells.
            Raster(picture).rows(0, 1)


def load_image(
    path: Path, size: int, fit: str, colour: tuple[int, int, int], pixels: str = "exact"
) -> UInt8[np.ndarray, "size size 3"]:
    """Decode a picture and bring it to the tower's size.

    Args:
        path: any format that Pillow reads; recognised by content, never by extension.
        size: side of the result in pixels.
        fit: `pad` (to a square with `colour`, then scaled) or `crop` (short side scaled, then the middle).
        colour: RGB of the padding.
        pixels: one of `PIXELS`; `fast` loads torch.

    Raises:
        ImageFault: as `check_image`.
    """
    require_file(str(path))
    with _opened(path) as (file, picture):
        if pixels == "exact":
            return fit_exactly(_decode(file, picture), size, fit, colour)
        pixels_of_jpeg = decode_jpeg(file, picture)
        return fit_fast(_decode(file, picture) if pixels_of_jpeg is None else pixels_of_jpeg, size, fit, colour)


def decode_image(path: Path) -> Image.Image:
    """Return a picture, RGB, at its own size.

    Args:
        path: any format that Pillow reads; recognised by content, never by extension.

    Raises:
        ImageFault: as `check_image`.
    """
    require_file(str(path))
    with _opened(path) as (file, picture):
        return Raster(_decode(file, picture)).rows(0, picture.height).copy()


def keep_freed_memory() -> None:
    """Let one picture's memory serve the next, in this process.

    glibc gives what is freed back to the system, and getting it anew, page by page, takes up to a quarter of a
    picture's time. It stops for all sizes up to that of the largest array once freed (mallopt(3),
    M_MMAP_THRESHOLD). This one is never touched, so that it takes no memory itself.
    """
    np.empty(KEPT_BYTES, np.uint8)


def pad_colour(mean: Sequence[float]) -> tuple[int, int, int]:
    """Return the padding colour of a normalisation mean, as LLaVA computes it: `int(x * 255)`."""
    red, green, blue = (int(value * 255) for value in mean)
    return red, green, blue


def dummy_image(size: int, colour: tuple[int, int, int]) -> UInt8[np.ndarray, "size size 3"]:
    """Return the one picture that stands in a text-only row's hole: the padding colour, never decoded."""
    return np.full((size, size, 3), colour, dtype=np.uint8)


def require_file(path: str) -> os.stat_result:
    """Return the status of a regular file.

    Raises:
        ImageFault: `missing_image`, or `unreadable_image` for a name that no file can have.
    """
    try:
        status = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        status = None
    except (OSError, ValueError) as error:  # a name too long for any file, a folder that may not be entered
        _raise_if_not_of_the_file(error)
        detail = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageFault("unreadable_image", f"{path}: {detail}") from None
    if status is None or not stat.S_ISREG(status.st_mode):
        raise ImageFault("missing_image", f"{path}: no such file")
    return status


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """Give a picture whose header is good; what goes wrong with it in the block becomes an ImageFault of its file."""
    try:
        with open(path, "rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # broken EXIF is nobody's concern
            # Icons hold whole pictures with a header of their own, met while loading.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as picture:
                _check_header(path, picture)
                yield file, picture
    except ImageFault:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFault("image_too_large", f"{path}: {error}") from None
    except UnidentifiedImageError:
        raise ImageFault("unreadable_image", f"{path}: of no picture format that can be read") from None
    except MemoryError:
        # A damaged header may ask for any amount; where memory is really short, that is no fault of the picture.
        np.empty(SPARE_BYTES, np.uint8)
        raise ImageFault("unreadable_image", f"{path}: asks for more memory than its pixels need") from None
    except Exception as error:  # damage makes Pillow's plugins raise OSError, SyntaxError, struct.error, IndexError ...
        _raise_if_not_of_the_file(error)
        raise ImageFault("unreadable_image", f"{path}: {_sentence(error)}") from None


def _check_header(path: Path, picture: Image.Image) -> None:
    """Refuse by its header what must not be decoded."""
    width, height = picture.size
    if picture.format in FOREIGN_FORMATS:
        raise ImageFault("unreadable_image", f"{path}: {picture.format} is a program for a printer, not a picture")
    if width * height > MAX_PIXELS:
        raise ImageFault("image_too_large", f"{path}: {width} x {height} pixels, at most {MAX_PIXELS} are decoded")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageFault("image_too_thin", f"{path}: {width} x {height} pixels, at most 1 : {MAX_ASPECT} is usable")


def _is_sound(file: BinaryIO, picture: Image.Image) -> bool:
    """Return whether the file is a plain JPEG or PNG without any fault; otherwise Pillow has to say."""
    return decode_jpeg(file, picture, smallest=True) is not None or decode_png(file, picture) is not None


def _decode(file: BinaryIO, picture: Image.Image) -> Decoded:
    """Decode a picture to the pixels that Pillow gives. PNG is lossless: they are the same by whichever decoder."""
    pixels = decode_png(file, picture)
    if pixels is not None:
        return pixels
    _load(file, picture)
    return picture


def _load(file: BinaryIO, picture: Image.Image) -> None:
    picture.load()
    if not is_whole(file, picture.format):
        raise OSError("the end of the file is missing")


def _raise_if_not_of_the_file(error: Exception) -> None:
    """Refuse no record for what is the machine's trouble, and gone in the next run."""
    if isinstance(error, OSError) and error.errno in NOT_THE_FILE:
        raise error


def _sentence(error: Exception) -> str:
    # Pillow names some objects by their address, which differs from run to run.
    return re.sub(r" at 0x[0-9a-f]+", "", f"{type(error).__name__}: {error}".partition("\n")[0])


def _is_utf8(key: str) -> bool:
    try:
        key.encode()
    except UnicodeEncodeError:
        return False
    return True
