"""Pixels, exact and fast: the same as by the plain way, however large the picture is and however it is coded."""

import hashlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dataprep import fitting, images, plain_decoders
from dataprep.images import check_image, decode_image, load_image

ROOT = Path(__file__).parent.parent.parent
COLOUR = (122, 116, 104)
SIZES = [(50, 30), (30, 50), (41, 41), (333, 100), (56, 56), (56, 200), (7, 9), (640, 480)]


def photo(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    """Coarse shapes with grain: smooth and sharp parts both."""
    generator = np.random.default_rng(seed)
    coarse = Image.fromarray(generator.integers(0, 256, (9, 12, 4), dtype=np.uint8), "RGBA")
    pixels = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    grainy = np.clip(pixels + generator.integers(-20, 21, pixels.shape), 0, 255).astype(np.uint8)
    grainy[: height // 3, : width // 3, :3] = 255
    return Image.fromarray(grainy, "RGBA").convert(mode)


def plain_way(picture: Image.Image, size: int, fit: str) -> np.ndarray:
    """What LLaVA and CLIP do, on the whole picture."""
    picture = picture.convert("RGB")
    width, height = picture.size
    if fit == "pad":
        side = max(width, height)
        square = Image.new("RGB", (side, side), COLOUR)
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        return np.asarray(square.resize((size, size), Image.Resampling.BICUBIC))
    short = min(width, height)
    width, height = int(size * width / short), int(size * height / short)
    left, top = (width - size) // 2, (height - size) // 2
    scaled = picture.resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(scaled.crop((left, top, left + size, top + size)))


def difference(one: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(one.astype(int) - other).max())


@pytest.mark.parametrize("strip_pixels", [1 << 22, 1000])
@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", SIZES)
def test_pixels_equal_those_of_the_plain_way(tmp_path, monkeypatch, size, fit, strip_pixels):
    monkeypatch.setattr(fitting, "STRIP_PIXELS", strip_pixels)
    photo(*size).save(tmp_path / "a.png")
    expected = plain_way(photo(*size), 56, fit)
    assert np.array_equal(load_image(tmp_path / "a.png", 56, fit, COLOUR), expected)
    assert difference(load_image(tmp_path / "a.png", 56, fit, COLOUR, "fast"), expected) <= 2


SAVED = {
    "baseline": ("RGB", {"format": "JPEG", "quality": 90}),
    "full colour": ("RGB", {"format": "JPEG", "subsampling": 0}),
    "progressive": ("RGB", {"format": "JPEG", "progressive": True}),
    "restarts": ("RGB", {"format": "JPEG", "restart_marker_blocks": 3}),
    "gray": ("L", {"format": "JPEG"}),
    "cmyk": ("CMYK", {"format": "JPEG"}),
    "rgb": ("RGB", {"format": "JPEG", "keep_rgb": True}),
    "palette": ("P", {"format": "GIF"}),
    "webp": ("RGB", {"format": "WEBP"}),
    "tiff": ("RGB", {"format": "TIFF", "compression": "jpeg"}),
    "transparent": ("RGBA", {"format": "PNG"}),
    "gray and alpha": ("LA", {"format": "PNG"}),
    "bits": ("1", {"format": "PNG"}),
}


@pytest.mark.parametrize("kind", SAVED)
def test_fast_pixels_are_exact_ones_to_two_levels(tmp_path, kind):
    mode, options = SAVED[kind]
    for seed, size in enumerate([(123, 77), (77, 123), (300, 299)]):
        photo(*size, mode, seed).save(tmp_path / "a", **options)
        for fit in ("pad", "crop"):
            exact, fast = (load_image(tmp_path / "a", 56, fit, COLOUR, pixels) for pixels in images.PIXELS)
            assert difference(exact, fast) <= 2
            assert exact.std() > 10


def test_plain_jpeg_is_decoded_by_the_fast_decoder_and_others_are_not(tmp_path, monkeypatch):
    decoded = []
    real = plain_decoders.simplejpeg.decode_jpeg
    monkeypatch.setattr(
        plain_decoders.simplejpeg, "decode_jpeg", lambda *given, **options: decoded.append(1) or real(*given, **options)
    )
    for kind, (mode, options) in SAVED.items():
        photo(123, 77, mode).save(tmp_path / "a", **options)
        decoded.clear()
        load_image(tmp_path / "a", 56, "pad", COLOUR, "fast")
        check_image(tmp_path / "a", "decode")
        assert len(decoded) == (
            2 if kind in ("baseline", "full colour", "progressive", "restarts", "gray", "rgb") else 0
        )
        load_image(tmp_path / "a", 56, "pad", COLOUR)
        assert len(decoded) in (0, 2)


@pytest.mark.parametrize("kind", ["baseline", "full colour", "progressive", "restarts", "gray", "rgb"])
def test_the_fast_decoder_gives_pillows_pixels(tmp_path, kind):
    mode, options = SAVED[kind]
    photo(123, 77, mode).save(tmp_path / "a", **options)
    with open(tmp_path / "a", "rb") as file, Image.open(file) as picture:
        pixels = plain_decoders.decode_jpeg(file, picture)
        assert pixels is not None
        assert np.array_equal(pixels, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("size", [(200, 90), (90, 200), (64, 64), (20, 31)])
def test_fast_scaling_is_torchs_own(size):
    pixels = np.asarray(photo(*size))
    planes = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(planes, size=(56, 48), mode="bicubic", antialias=True)
    ours = fitting._scale(pixels, np.empty((56, 48, 3), np.uint8))
    assert np.array_equal(ours, expected[0].permute(1, 2, 0))


PROGRAM = """
import hashlib, sys
from pathlib import Path
from dataprep.images import load_image
load_image(Path(sys.argv[1]), 56, "pad", (122, 116, 104))
assert "torch" not in sys.modules
import torch
for threads in (1, 2, 5):
    torch.set_num_threads(threads)
    print(hashlib.sha256(load_image(Path(sys.argv[1]), 56, "pad", (122, 116, 104), "fast").tobytes()).hexdigest())
"""


def run(program: str, *arguments: object, **environment: str) -> str:
    words = [sys.executable, "-c", program, *map(str, arguments)]
    options = {"cwd": ROOT, "env": {**os.environ, **environment}, "capture_output": True, "text": True}
    return subprocess.run(words, check=True, **options).stdout


def test_fast_pixels_do_not_depend_on_threads_or_vector_instructions_and_exact_ones_load_no_torch(tmp_path):
    photo(400, 311).save(tmp_path / "a.jpg")
    # Without vector instructions, each with another number of threads; and as this machine would have it.
    found = run(PROGRAM, tmp_path / "a.jpg", ATEN_CPU_CAPABILITY="default").split()
    here = hashlib.sha256(load_image(tmp_path / "a.jpg", 56, "pad", COLOUR, "fast").tobytes()).hexdigest()
    assert found == [here] * 3


PEAKS = """
import sys
from pathlib import Path
import torch
from dataprep.images import load_image
def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(status.partition(name)[2].split()[0]) / 1024
for pixels in ("exact", "fast"):
    for fit in ("pad", "crop"):
        for page in ("small.jpg", "page.png"):
            Path("/proc/self/clear_refs").write_text("5")
            before = memory("VmRSS:")
            load_image(Path(sys.argv[1]) / page, 336, fit, (122, 116, 104), pixels)
        print(memory("VmHWM:") - before)
"""


def test_a_long_page_takes_little_more_memory_than_its_pixels(tmp_path):
    photo(10, 10).save(tmp_path / "small.jpg")
    Image.new("RGBA", (1000, 12_000), (9, 9, 9, 128)).save(tmp_path / "page.png")
    peaks = [float(peak) for peak in run(PEAKS, tmp_path).split()]
    # 48 MB of pixels; the padded square alone would be 576 MB.
    assert len(peaks) == 4 and min(peaks) > 40 and max(peaks) < 200, peaks


def test_sixteen_bits_are_scaled_by_the_whole_picture_however_it_is_cut(tmp_path, monkeypatch):
    values = np.zeros((40, 30), np.int32)
    values[30:] = 60_000
    Image.fromarray(values).save(tmp_path / "a.tif")
    whole = np.asarray(decode_image(tmp_path / "a.tif"))
    assert whole.max() == 233
    monkeypatch.setattr(fitting, "STRIP_PIXELS", 100)
    cut = load_image(tmp_path / "a.tif", 40, "pad", (0, 0, 0))
    assert np.array_equal(cut, plain_way_black(Image.fromarray(whole)))


def plain_way_black(picture: Image.Image) -> np.ndarray:
    square = Image.new("RGB", (40, 40))
    square.paste(picture, ((40 - picture.width) // 2, 0))
    return np.asarray(square)


def test_running_short_of_memory_is_no_fault_of_the_picture(tmp_path, monkeypatch):
    photo(30, 30, "LA").save(tmp_path / "a.png")

    def fail(*_, **__):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", fail)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(images.ImageFault, match="more memory than its pixels need"):
        check_image(tmp_path / "a.png", "decode")
    monkeypatch.setattr(images.np, "empty", fail)
    with pytest.raises(MemoryError):
        check_image(tmp_path / "a.png", "decode")


def test_a_picture_that_is_a_program_is_refused(tmp_path):
    photo(30, 30).save(tmp_path / "a.png", format="EPS")
    with pytest.raises(images.ImageFault, match="EPS is a program for a printer"):
        check_image(tmp_path / "a.png", "header")


def encoded(picture: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, **options)
    return buffer.getvalue()


def test_a_png_and_a_gif_must_have_their_ends(tmp_path):
    frames = [photo(40, 30, seed=seed) for seed in range(3)]
    png = encoded(frames[0], format="PNG")
    gif = encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:])
    for name, content in (("a.png", png), ("a.gif", gif)):
        path = tmp_path / name
        path.write_bytes(content)
        check_image(path, "decode")
        path.write_bytes(content + b"some bytes more")
        check_image(path, "decode")
        path.write_bytes(content[:-1])
        with Image.open(path) as picture:
            picture.load()
        for look in (lambda path=path: check_image(path, "decode"), lambda path=path: decode_image(path)):
            with pytest.raises(images.ImageFault, match="the end of the file is missing"):
                look()
