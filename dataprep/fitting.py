"""A decoded picture to the tower's square: pad or crop, and bicubic scaling, by Pillow or by torch.

Both scale in two passes of whole numbers, columns first, and round to bytes in between. So a strip of rows may be
narrowed on its own, and rows of padding, which are one colour, need no first pass at all: the result is the same to the
bit, and neither the padded square nor a second copy of the picture is ever held. torch's pass has coefficients of 15
bits where Pillow's have 22: its pixels may differ from Pillow's by 1 or 2 levels. It uses vector instructions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

#: Pixels of the strip that is converted, padded and narrowed at once.
STRIP_PIXELS = 1 << 22

#: What a decoder gives: Pillow's picture, or its bytes, gray, RGB or RGBA.
Decoded = Image.Image | UInt8[np.ndarray, "height width channels"]


class Raster:
    """A decoded picture as RGB, strip by strip.

    Transparent pixels are laid on white and 16 bits scaled to 8. The EXIF orientation is left as stored: boxes in
    RefCOCO and Visual Genome refer to the stored raster, and LLaVA ignores the tag too.
    """

    def __init__(self, decoded: Decoded) -> None:
        picture = _as_picture(decoded) if isinstance(decoded, np.ndarray) else decoded
        self.size = picture.size
        self._picture = picture
        self._convert = _conversion(picture)

    def rows(self, top: int, bottom: int) -> Image.Image:
        """Return rows `top` to `bottom`, RGB."""
        width, height = self.size
        whole = (top, bottom) == (0, height)
        return self._convert(self._picture if whole else self._picture.crop((0, top, width, bottom)))


def fit_exactly(
    decoded: Decoded, size: int, fit: str, colour: tuple[int, int, int]
) -> UInt8[np.ndarray, "size size 3"]:
    """Return the pixels that Pillow gives for LLaVA's expand2square or CLIP's centre crop, scaled bicubically.

    Args:
        decoded: the picture.
        size: side of the result in pixels.
        fit: `pad` (to a square with `colour`, then scaled) or `crop` (short side scaled, then the middle).
    """
    raster = Raster(decoded)
    width, height = raster.size
    if fit == "crop":
        scaled_width, scaled_height = _scaled_size(width, height, size)
        left, top = (scaled_width - size) // 2, (scaled_height - size) // 2
        narrow = Image.new("RGB", (size, height))
        for start, stop in _strips(width, height):
            strip = _resize(raster.rows(start, stop), scaled_width, stop - start)
            narrow.paste(strip.crop((left, 0, left + size, stop - start)), (0, start))
        return np.asarray(_resize(narrow, size, scaled_height).crop((0, top, size, top + size)))
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = Image.new("RGB", (size, side), colour)
    for start, stop in _strips(side, height):
        strip = raster.rows(start, stop)
        if width < side:
            wide = Image.new("RGB", (side, stop - start), colour)
            wide.paste(strip, (left, 0))
            strip = wide
        narrow.paste(_resize(strip, size, stop - start), (0, top + start))
    return np.asarray(_resize(narrow, size, size))


def fit_fast(decoded: Decoded, size: int, fit: str, colour: tuple[int, int, int]) -> UInt8[np.ndarray, "size size 3"]:
    """Return what `fit_exactly` does to 1 or 2 levels, several times as fast. Loads torch."""
    way = _crop_fast if fit == "crop" else _pad_fast
    if isinstance(decoded, np.ndarray) and _is_opaque(decoded):
        height, width, channels = decoded.shape
        # Each channel is scaled on its own: an alpha of 255 goes along and is dropped, which costs less than before.
        fitted = way(lambda start, stop: decoded[start:stop], width, height, size, (*colour, 255)[:channels])
        return fitted if channels == 3 else _without_alpha(fitted)
    raster = Raster(decoded)
    return way(lambda start, stop: np.asarray(raster.rows(start, stop)), *raster.size, size, colour)


def _without_alpha(pixels: UInt8[np.ndarray, "height width 4"]) -> UInt8[np.ndarray, "height width 3"]:
    colours = np.empty((*pixels.shape[:2], 3), np.uint8)
    for channel in range(3):  # numpy copies triples out of fours five times as slowly
        colours[..., channel] = pixels[..., channel]
    return colours


def _pad_fast(rows: _Rows, width: int, height: int, size: int, colour: tuple[int, ...]) -> np.ndarray:
    side, channels = max(width, height), len(colour)
    left, top = (side - width) // 2, (side - height) // 2
    narrow = np.empty((side, size, channels), np.uint8)
    _paint(narrow[:top], colour)
    _paint(narrow[top + height :], colour)
    for start, stop in _strips(side, height):
        strip = rows(start, stop)
        if width < side:
            wide = np.empty((stop - start, side, channels), np.uint8)
            _paint(wide[:, :left], colour)
            _paint(wide[:, left + width :], colour)
            wide[:, left : left + width] = strip
            strip = wide
        _scale(strip, narrow[top + start : top + stop])
    return _scale(narrow, np.empty((size, size, channels), np.uint8))


def _crop_fast(rows: _Rows, width: int, height: int, size: int, colour: tuple[int, ...]) -> np.ndarray:
    scaled_width, scaled_height = _scaled_size(width, height, size)
    left, top = (scaled_width - size) // 2, (scaled_height - size) // 2
    narrow = np.empty((height, size, len(colour)), np.uint8)
    for start, stop in _strips(width, height):
        strip = _scale(rows(start, stop), np.empty((stop - start, scaled_width, len(colour)), np.uint8))
        narrow[start:stop] = strip[:, left : left + size]
    scaled = _scale(narrow, np.empty((scaled_height, size, len(colour)), np.uint8))
    return np.ascontiguousarray(scaled[top : top + size])


_Rows = Callable[[int, int], np.ndarray]


def _strips(width: int, height: int) -> list[tuple[int, int]]:
    step = max(1, STRIP_PIXELS // width)
    return [(start, min(start + step, height)) for start in range(0, height, step)]


def _scaled_size(width: int, height: int, size: int) -> tuple[int, int]:
    """CLIPImageProcessor's shortest edge, with its roundings."""
    short = min(width, height)
    return int(size * width / short), int(size * height / short)


def _resize(picture: Image.Image, width: int, height: int) -> Image.Image:
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _paint(area: np.ndarray, colour: tuple[int, ...]) -> None:
    # As rows of bytes: numpy fills an area of triples thirty times as slowly.
    rows, columns, channels = area.shape
    area[...] = np.tile(np.array(colour, np.uint8), columns).reshape(1, columns, channels) if rows else 0


def _scale(source: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Scale `source` into `out`; a side that stays as it is costs nothing and changes nothing."""
    if source.shape == out.shape:
        out[...] = source
        return out
    import torch

    # What torch.nn.functional.interpolate(mode="bicubic", antialias=True) calls. Given the place, it keeps the order
    # of the bytes; without one it returns planes, and putting them in order again takes longer than the scaling.
    torch.ops.aten._upsample_bicubic2d_aa.out(
        _as_torch(source), list(out.shape[:2]), False, None, None, out=_as_torch(out)
    )
    return out


def _as_torch(pixels: np.ndarray) -> Any:
    import torch

    if not pixels.flags.writeable:  # Pillow's memory; torch asks for a copy, though nothing is written
        pixels = pixels.copy()
    return torch.from_numpy(pixels[None]).permute(0, 3, 1, 2)


def _as_picture(pixels: UInt8[np.ndarray, "height width channels"]) -> Image.Image:
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def _is_opaque(pixels: UInt8[np.ndarray, "height width channels"]) -> bool:
    """Return whether these are colours as they stand."""
    channels = pixels.shape[2]
    return channels == 3 or (channels == 4 and int(pixels[..., 3].min()) == 255)


def _conversion(picture: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return what makes RGB of a picture or of any strip of it."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return lambda strip: strip
    if picture.mode.startswith("I") or picture.mode == "F":
        scale = _depth_scale(picture)
        return lambda strip: _eight_bits(strip, scale)
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return _on_white
    return lambda strip: strip.convert("RGB")


def _on_white(strip: Image.Image) -> Image.Image:
    layers = strip.convert("RGBA")
    if layers.getchannel("A").getextrema() == (255, 255):
        return layers.convert("RGB")
    white = Image.new("RGB", layers.size, "white")
    white.paste(layers, mask=layers)  # what alpha_composite gives, in a quarter of its time
    return white


def _depth_scale(picture: Image.Image) -> int | None:
    """Return what values are divided by; None where they are bytes already.

    A 16-bit file whose values all fit a byte is still 16-bit, unless it came as 32-bit integers.
    """
    width, height = picture.size
    strips = (np.asarray(picture.crop((0, start, width, stop))) for start, stop in _strips(width, height))
    peak = np.max([strip.max(initial=0) for strip in strips])
    if picture.mode == "F" and not peak > 255:
        return None
    return 257 if picture.mode.startswith("I;16") or peak > 255 else 1


def _eight_bits(strip: Image.Image, scale: int | None) -> Image.Image:
    values = np.asarray(strip)
    values = values if scale is None else values / scale
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8), "L").convert("RGB")
