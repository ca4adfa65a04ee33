"""Pictures and paths made to do harm, or broken on the way: each is refused by name, and nothing else happens.

`make test` tries a sample, `make test-long` (LLAVA_PREP_PROOFS=full) the number that is promised.
"""

import json
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataprep.images import MAX_PIXELS, ImageFault, check_image, load_image
from tests.dataprep.test_images_fit import COLOUR, SAVED, encoded, photo

ROOT = Path(__file__).parent.parent.parent
FULL = os.environ.get("LLAVA_PREP_PROOFS") == "full"
NUM_TRUNCATED = 5_000 if FULL else 300
NUM_FLIPPED = 5_000 if FULL else 300
NUM_BOMBS = 200 if FULL else 48
NUM_PATHS = 500
TRICKY = json.loads(Path(__file__).with_name("tricky_pictures.json").read_text())


def whole_files() -> dict[str, bytes]:
    """A small file of each kind that records name, complete."""
    files = {kind: encoded(photo(60, 44, mode), **options) for kind, (mode, options) in SAVED.items()}
    frames = [photo(60, 44, seed=seed) for seed in range(3)]
    more = {"save_all": True, "append_images": frames[1:]}
    deep = Image.fromarray(np.random.default_rng(0).integers(0, 65_536, (44, 60), dtype=np.uint16))
    return files | {
        "png": encoded(frames[0], format="PNG"),
        "deep png": encoded(deep, format="PNG"),
        "opaque png": encoded(frames[0].convert("RGBA"), format="PNG"),
        "palette png": encoded(frames[0].convert("P"), format="PNG"),
        "animated gif": encoded(frames[0], format="GIF", **more),
        "animated webp": encoded(frames[0], format="WEBP", **more),
        "lossless webp": encoded(frames[0], format="WEBP", lossless=True),
        "bmp": encoded(frames[0], format="BMP"),
        "plain tiff": encoded(frames[0], format="TIFF"),
        "lzw tiff": encoded(frames[0], format="TIFF", compression="tiff_lzw"),
        "ppm": encoded(frames[0], format="PPM"),
    }


def verdict(path: Path) -> str:
    """What is said of a file, by all three ways of looking at it."""
    found = set()
    for look in (
        lambda: check_image(path, "decode"),
        lambda: load_image(path, 28, "pad", COLOUR),
        lambda: load_image(path, 28, "pad", COLOUR, "fast"),
    ):
        try:
            look()
            found.add("good")
        except ImageFault as fault:
            found.add(fault.reason)
    assert len(found) == 1, f"{path.read_bytes()[:40]!r}: {found}"
    return found.pop()


def test_no_truncated_picture_is_accepted(tmp_path):
    dice = random.Random(4)
    files = whole_files()
    path = tmp_path / "cut"
    for name, content in files.items():
        path.write_bytes(content)
        assert verdict(path) == "good", name
    cuts = [(name, cut) for name in files for cut in (1, 2, 9)]
    cuts += [(name, dice.randrange(1, len(files[name]))) for name in dice.choices(list(files), k=NUM_TRUNCATED)]
    for name, cut in cuts[:NUM_TRUNCATED]:
        path.write_bytes(files[name][:-cut])
        assert verdict(path) == "unreadable_image", (name, cut)


def pillows_verdict(path: Path) -> str:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path) as picture:
                picture.load()
                picture.convert("RGB")
    except Exception:
        return "refused"
    return "good"


def test_a_damaged_jpeg_gets_pillows_verdict(tmp_path):
    dice = random.Random(5)
    files = [content for kind, content in whole_files().items() if SAVED.get(kind, ("", {}))[1].get("format") == "JPEG"]
    path = tmp_path / "flipped.jpg"
    seen = {"good": 0, "refused": 0}
    for _ in range(NUM_FLIPPED):
        content = bytearray(dice.choice(files))
        for _ in range(dice.choice((1, 1, 2, 20))):
            content[dice.randrange(2, len(content))] = dice.choice((0, 255, dice.randrange(256)))
        path.write_bytes(content)
        expected = pillows_verdict(path)
        ours = verdict(path)
        # Beside Pillow's own reasons, a damaged header may ask for a picture that we do not want.
        assert (
            ours == expected or (expected == "refused" and ours == "unreadable_image") or ours.startswith("image_too")
        )
        seen[expected] += 1
    assert min(seen.values()) > NUM_FLIPPED // 20


# Bombs: small files whose header announces more pixels than are ever decoded.


def png_bomb(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(100_000), 9)), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def jpeg_bomb(width: int, height: int, progressive: bool = False) -> bytes:
    content = bytearray(encoded(photo(16, 16), format="JPEG", progressive=progressive))
    place = content.index(b"\xff\xc2" if progressive else b"\xff\xc0")
    content[place + 5 : place + 9] = struct.pack(">HH", height, width)
    return bytes(content)


def gif_bomb(width: int, height: int) -> bytes:
    content = bytearray(encoded(photo(16, 16, "P"), format="GIF"))
    content[6:10] = struct.pack("<HH", width, height)
    return bytes(content)


def gif_frame_bomb(width: int, height: int) -> bytes:
    content = bytearray(encoded(photo(16, 16, "P"), format="GIF"))
    place = content.index(b",", 13 + 768)
    content[place + 5 : place + 9] = struct.pack("<HH", width, height)
    return bytes(content)


def bmp_bomb(width: int, height: int) -> bytes:
    content = bytearray(encoded(photo(16, 16), format="BMP"))
    content[18:26] = struct.pack("<ii", width, height)
    return bytes(content)


def tiff_bomb(width: int, height: int, compression: int = 1) -> bytes:
    data = zlib.compress(bytes(100_000), 9)
    tags = {256: width, 257: height, 258: 8, 259: compression, 262: 1, 273: 8, 277: 1, 278: height, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    place = 8 + len(data) + len(data) % 2
    return (
        struct.pack("<2sHI", b"II", 42, place)
        + data.ljust(place - 8, b"\0")
        + struct.pack("<H", len(tags))
        + entries
        + bytes(4)
    )


def webp_bomb(width: int, height: int) -> bytes:
    content = bytearray(encoded(photo(16, 16), format="WEBP"))
    content[26:30] = struct.pack("<HH", min(width, 16383), min(height, 16383))
    return bytes(content)


def ppm_bomb(width: int, height: int) -> bytes:
    return b"P6 %d %d 255\n" % (width, height) + bytes(1000)


def icon_bomb(width: int, height: int) -> bytes:
    png = png_bomb(width, height)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 32, 32, 0, 0, 1, 32, len(png), 22) + png


def real_bomb(width: int, height: int) -> bytes:
    """Not a header alone: every pixel is there."""
    packed = zlib.compressobj(9)
    row = bytes(1 + -(-width // 8))
    data = b"".join([*(packed.compress(row * 500) for _ in range(height // 500)), packed.flush()])
    header = struct.pack(">IIBBBBB", width, height // 500 * 500, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    parts = (struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


BOMBS = (
    png_bomb,
    lambda width, height: png_bomb(width, height, 1, 0),
    lambda width, height: png_bomb(width, height, 16, 6),
    jpeg_bomb,
    lambda width, height: jpeg_bomb(width, height, progressive=True),
    gif_bomb,
    gif_frame_bomb,
    bmp_bomb,
    tiff_bomb,
    lambda width, height: tiff_bomb(width, height, compression=8),
    webp_bomb,
    ppm_bomb,
    icon_bomb,
    real_bomb,
)  # fmt: skip

DEFUSE = """
import json, sys
from pathlib import Path
import torch
from dataprep.images import ImageFault, check_image, load_image
reasons = {}
for path in sorted(Path(sys.argv[1]).iterdir()):
    for look in (lambda: check_image(path, "decode"), lambda: load_image(path, 336, "pad", (1, 2, 3), "fast")):
        try:
            look()
            reasons[path.name] = "good"
        except ImageFault as fault:
            reasons[path.name] = fault.reason
status = Path("/proc/self/status").read_text()
print(json.dumps([reasons, int(status.partition("VmHWM:")[2].split()[0]) / 1024]))
"""


def test_no_bomb_is_decoded_and_memory_stays_small(tmp_path):
    dice = random.Random(6)
    for number in range(NUM_BOMBS):
        width = dice.randrange(9_500, 65_000)
        height = dice.randrange(max(MAX_PIXELS // width + 501, width // 50), 65_000)
        make = BOMBS[number % len(BOMBS)]
        # Pillow itself stops at twice the limit; these lie between.
        width, height = (10_000, 9_500) if make in (real_bomb, icon_bomb) else (width, height)
        (tmp_path / f"{number:03d}").write_bytes(make(width, height))
    done = subprocess.run(
        [sys.executable, "-c", DEFUSE, tmp_path], cwd=ROOT, capture_output=True, text=True, check=True
    )
    reasons, megabytes = json.loads(done.stdout)
    assert len(reasons) == NUM_BOMBS
    assert set(reasons.values()) == {"image_too_large"}, {n: r for n, r in reasons.items() if r != "image_too_large"}
    assert megabytes < 600


def test_text_in_a_picture_does_not_unfold_either(tmp_path):
    profile = b"icc\0\0" + zlib.compress(bytes(200 << 20), 9)
    png = encoded(photo(16, 16), format="PNG")
    chunk = struct.pack(">I", len(profile)) + b"iCCP" + profile + struct.pack(">I", zlib.crc32(b"iCCP" + profile))
    (tmp_path / "a.png").write_bytes(png[:33] + chunk + png[33:])
    assert verdict(tmp_path / "a.png") == "unreadable_image"


# Paths that lead, or might lead, out of the image root.

STEPS = (
    "../",
    "..\\",
    "a/../../",
    "./../",
    "pictures/../../",
    "..//",
    ".../",
    "%2e%2e/",
    "．．/",
    "..%2f",
    "..;/",
    "....//",
)
TARGETS = ("secret.png", "etc/passwd", "root/pictures/a.png", "secret.png\0.png", "")
WHOLE = (
    "/etc/passwd", "//etc/passwd", "/proc/self/environ", "/dev/stdin", "/dev/zero", "~/secret.png",
    "~root/secret.png", "C:\\secret.png", "C:/secret.png", "c:secret.png", "\\\\server\\share\\a.png",
    "file:" + "///etc/passwd", "http://localhost/a.png", "https://localhost/a.png", "s3://bucket/a.png", "..", ".", "",
    "/", "//", "\0", "a\0", "\ud800.png", "\udcff.png", "$HOME/secret.png", "${HOME}/secret.png", "`id`", "$(id)",
    "a.png;id", "| id", "-rf", "--help", "con", "nul", "pictures/../../secret.png",
    "pictures/a.png/../../../secret.png", "pictures", "pictures/", "\u202egnp.terces", "secret.png\n",
    "\nsecret.png", " ../secret.png", "../ secret.png", "x" * 5_000, "a/" * 3_000 + "b",
)  # fmt: skip


def hostile_keys() -> list[str]:
    keys = list(WHOLE)
    for step, target, depth, lead in product(STEPS, TARGETS, (1, 2, 4, 9), ("", "pictures/", "/", "pictures/deep/")):
        keys.append(lead + step * depth + target)
    return list(dict.fromkeys(keys))[: NUM_PATHS * 2]


OPEN_ALL = """
import json, os, sys
from pathlib import Path
from PIL import Image
from dataprep.config import ImageConfig
from dataprep.embedding import EmbeddedPictures
from dataprep.images import CHECKS, ImageFault, load_image, resolve_key
from dataprep.verdicts import ImageVerdicts
root = Path(sys.argv[1])
Image.init()
verdicts = [ImageVerdicts(root, check) for check in CHECKS] + [EmbeddedPictures(root, ImageConfig(), "exact")]
load_image(root / "pictures/a.png", 28, "pad", (1, 2, 3))
keys = json.loads(sys.stdin.read())
opened, good = [], []
def watch(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened.append(os.path.realpath(os.fsdecode(arguments[0])))
sys.addaudithook(watch)
for key in ["pictures/a.png", *keys]:
    good += [(key, each.check) for each in verdicts if each.good(key)]
    try:
        load_image(resolve_key(root, key), 28, "pad", (1, 2, 3))
        good.append((key, "loaded"))
    except ImageFault as fault:
        pass
print(json.dumps([opened, good]))
"""


def test_nothing_outside_the_image_root_is_opened(tmp_path):
    keys = hostile_keys()
    assert len(keys) >= NUM_PATHS
    for name in ("secret.png", "root/pictures/a.png", "etc/passwd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        photo(16, 16).save(tmp_path / name, format="PNG")
    root = tmp_path / "root"
    words = [sys.executable, "-c", OPEN_ALL, root]
    done = subprocess.run(words, cwd=ROOT, input=json.dumps(keys), capture_output=True, text=True, check=True)
    opened, good = json.loads(done.stdout)
    assert opened and all(path.startswith(f"{root}/") for path in opened), opened
    # Without any check no key is looked up, only kept from leaving the root.
    checked = [key for key, check in good if check != "none"]
    assert set(checked) == {"pictures/a.png"}
    kept = {key for key, check in good if check == "none"}
    assert not any(key.startswith(("/", "~")) or ".." in key.split("/") or "\\" in key or "\0" in key for key in kept)


# Pillow's own test pictures, each with what becomes of it: its size and mean colour, or a reason.


@pytest.mark.parametrize("name", TRICKY)
def test_a_tricky_picture_gives_what_is_pinned(shared, name):
    expected = TRICKY[name]
    path = shared / "images-tricky" / name
    assert path.is_file()
    if isinstance(expected, str):
        assert verdict(path) == expected
        return
    assert verdict(path) == "good"
    mean = load_image(path, 56, "crop", COLOUR).mean((0, 1))
    assert np.abs(mean - expected).max() < 2


def test_every_tricky_picture_is_pinned(shared):
    folder = shared / "images-tricky"
    assert set(TRICKY) == {path.name for path in folder.iterdir()} - {"manifest.json", "LICENSE.pillow"}
