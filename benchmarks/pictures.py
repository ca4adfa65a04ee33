"""CPU time of bringing a picture to the tower's size, against Pillow doing it as LLaVA does.

    python benchmarks/pictures.py [--rounds 7] [--count 16] [--photos FOLDER]

baseline    Pillow: open, decode, RGB, pasted on a square of the padding colour, scaled bicubically to 336 pixels.
exact       `load_image(pixels="exact")`: the same pixels.
fast        `load_image(pixels="fast")`: the same to 1 or 2 levels.
embedded    `ShardReader.picture`: read back from a shard that was compiled with `--images embed`.
verify      `check_image("decode")`, which decodes and keeps nothing; its baseline is Pillow's decode alone.

The pictures are made here (shapes, gradients and grain, saved as JPEG of quality 90 and as PNG, and flat charts as PNG
of each kind), and those of FOLDER where one is given. The ways take turns, round after round; the median of the rounds
counts. CPU time of one process with one thread.

RGBA soft: a quarter is half transparent; we lay it on white, which the baseline does not. Its pixels are compared with
`exact` alone, and so are those of palettes with alpha.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    # As in trainer/run.py: a script's own folder comes first on sys.path, and holds a `packing.py` of its own.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import numpy as np
import torch
from PIL import Image, ImageDraw

from dataprep.images import check_image, keep_freed_memory, load_image
from dataprep.shards import Row, RowLayout, ShardReader, ShardWriter
from dataprep.shards.embedded import code_picture
from dataprep.shards.layout import Source

#: What the project promises of `fast` on each kind of picture.
GOAL = 2.5

SIZE, COLOUR = 336, (122, 116, 104)
JPEG_SIZES = ((640, 480), (480, 640), (500, 375), (1024, 768))


def photo(width: int, height: int, seed: int) -> Image.Image:
    """A soft background with sharp shapes and grain, about as hard to code as a photograph."""
    generator = np.random.default_rng(seed)
    picture = Image.fromarray(generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((width, height), 3)
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        x, y = int(generator.integers(0, width)), int(generator.integers(0, height))
        reach = int(generator.integers(3, width // 6))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        (draw.ellipse if generator.random() < 0.5 else draw.rectangle)((x, y, x + reach, y + reach * 2 // 3), colour)
    grain = generator.normal(0, 6, (height, width, 1))
    return Image.fromarray(np.clip(np.asarray(picture) + grain, 0, 255).astype(np.uint8))


def chart(width: int, height: int, seed: int) -> Image.Image:
    """Bars, lines and words on white."""
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for bar in range(12):
        tall = int(generator.integers(20, height - 40))
        colour = tuple(int(value) for value in generator.integers(0, 256, 3))
        draw.rectangle((20 + bar * width // 13, height - tall, bar * width // 13 + 50, height - 20), colour)
        draw.text((20 + bar * width // 13, height - 15), f"year {2000 + bar}: {tall}", "black")
    return picture


def png_kinds() -> dict[str, Callable[[int], Image.Image]]:
    """Return what makes a picture of each kind of PNG from a number."""

    def soft(seed: int) -> Image.Image:
        picture = chart(800, 600, seed).convert("RGBA")
        picture.paste((200, 30, 30, 128), (0, 0, 400, 300))
        return picture

    return {
        "png chart RGB 800x600": lambda seed: chart(800, 600, seed),
        "png chart RGBA 800x600": lambda seed: chart(800, 600, seed).convert("RGBA"),
        "png chart RGBA soft 800x600": soft,
        "png chart gray 800x600": lambda seed: chart(800, 600, seed).convert("L"),
        "png chart palette 800x600": lambda seed: chart(800, 600, seed).quantize(200),
        "png chart 16 colours 800x600": lambda seed: chart(800, 600, seed).quantize(16),
        "png photo RGB 640x480": lambda seed: photo(640, 480, seed),
    }


def make_sets(folder: Path, count: int, photos: Path | None) -> dict[str, list[Path]]:
    """Write the pictures; return the files of each set."""
    sets = {}
    for width, height in JPEG_SIZES:
        paths = [folder / f"{width}x{height}-{seed}.jpg" for seed in range(count)]
        for seed, path in enumerate(paths):
            photo(width, height, seed).save(path, quality=90)
        sets[f"jpeg {width}x{height}"] = paths
    for name, make in png_kinds().items():
        paths = [folder / f"{name}-{seed}.png" for seed in range(count)]
        for seed, path in enumerate(paths):
            make(seed).save(path)
        sets[name] = paths
    if photos is not None:
        found = sorted(path for path in photos.rglob("*") if path.suffix in (".jpg", ".jpeg", ".png"))
        for name, suffixes in (("jpeg", (".jpg", ".jpeg")), ("png", (".png",))):
            chosen = [path for path in found if path.suffix in suffixes]
            if chosen:
                sets[f"{name} of {photos.name}"] = chosen
    return sets


def baseline(path: Path) -> np.ndarray:
    """LLaVA's expand2square and the processor's resize, plainly."""
    with Image.open(path) as file:
        picture = file.convert("RGB")
    width, height = picture.size
    if width != height:
        side = max(width, height)
        square = Image.new("RGB", (side, side), COLOUR)
        square.paste(picture, ((side - width) // 2, (side - height) // 2))
        picture = square
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def pillow_load(path: Path) -> None:
    """Pillow's decode, which is what tells a truncated file."""
    with Image.open(path) as picture:
        picture.load()


def write_shard(path: Path, pictures: list[Path]) -> int:
    """Write a shard of bare rows with these pictures; return the bytes of their codes."""
    third = (0.48145466, 0.4578275, 0.40821073)
    slots = RowLayout(
        max_seq_length=8, num_patches=1, image_start_idx=1, hole_start=1, hole_length=1, phase=2, template="vicuna_v1",
        bos_id=1, eos_id=2, pad_id=0, vocab_size=32000, tokenizer_fingerprint="", image_size=SIZE, image_mean=third,
        image_std=third, image_fit="pad", config_sha256="",
    )  # fmt: skip
    writer = ShardWriter(slots)
    num_bytes = 0
    for number, picture in enumerate(pictures):
        coded = code_picture(load_image(picture, SIZE, "pad", COLOUR, "fast"))
        num_bytes += len(coded.code)
        writer.add_picture(str(picture), coded)
        data = np.zeros((4, 8), np.int32)
        data[3, 4:] = 1
        writer.write(Row(data, str(picture), 4, 0, Source("benchmark", number, "")))
    image = writer.finish()
    path.mkdir()
    (path / "shard.h5").write_bytes(image.content)
    shards = [{"file": "shard.h5", "rows": len(pictures), "sha256": image.sha256}]
    manifest = {"layout": slots.attributes(), "shards": shards, "accounting": {}}
    (path / "manifest.json").write_text(json.dumps(manifest))
    return num_bytes


def milliseconds(ways: dict[str, Callable[[int], object]], count: int, rounds: int) -> dict[str, list[float]]:
    """Return CPU milliseconds a picture of each way, round by round."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            started = time.process_time()
            for index in range(count):
                way(index)
            found[name].append((time.process_time() - started) / count * 1e3)
    return found


def ratio(found: dict[str, list[float]], way: str, to: str) -> float:
    """Return how many times as fast `way` is as `to`: the median of the rounds' ratios."""
    return statistics.median(slow / fast for slow, fast in zip(found[to], found[way], strict=True))


def measure(paths: list[Path], shards: Path, rounds: int) -> tuple[dict[str, list[float]], int, int]:
    """Return milliseconds by way, the largest difference of `fast` in levels, and the mean bytes of a code."""
    num_bytes = write_shard(shards, paths)
    with ShardReader(shards) as reader:
        ways: dict[str, Callable[[int], object]] = {
            "baseline": lambda index: baseline(paths[index]),
            "exact": lambda index: load_image(paths[index], SIZE, "pad", COLOUR, "exact"),
            "fast": lambda index: load_image(paths[index], SIZE, "pad", COLOUR, "fast"),
            "embedded": lambda index: reader.picture(index),
            "pillow load": lambda index: pillow_load(paths[index]),
            "verify": lambda index: check_image(paths[index], "decode"),
        }
        found = milliseconds(ways, len(paths), rounds)
        difference = 0
        for index, path in enumerate(paths):
            exact = load_image(path, SIZE, "pad", COLOUR, "exact")
            with Image.open(path) as picture:
                opaque = picture.mode in ("RGB", "L")
            assert not opaque or np.array_equal(exact, baseline(path)), path
            fast = load_image(path, SIZE, "pad", COLOUR, "fast")
            assert np.array_equal(fast, reader.picture(index)), path
            difference = max(difference, int(np.abs(exact.astype(int) - fast).max()))
    return found, difference, num_bytes // len(paths)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--count", type=int, default=16, help="pictures of each made set")
    parser.add_argument("--photos", type=Path, help="a folder of photographs")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()  # as a compile does; the baseline has the use of it too
    print("CPU ms a picture, and how many times as fast as the baseline (verify: as Pillow's decode alone)\n")
    print(f"{'pictures':30}{'baseline':>9}{'exact':>16}{'fast':>16}{'embedded':>16}{'verify':>16}  levels  bytes")
    ratios = {}
    with TemporaryDirectory() as folder:
        for number, (name, paths) in enumerate(make_sets(Path(folder), options.count, options.photos).items()):
            found, difference, num_bytes = measure(paths, Path(folder) / f"shards-{number}", options.rounds)
            cells = f"{statistics.median(found['baseline']):9.2f}"
            for way in ("exact", "fast", "embedded", "verify"):
                times = ratio(found, way, "pillow load" if way == "verify" else "baseline")
                cells += f"{statistics.median(found[way]):9.2f} x{times:5.2f}"
            print(f"{name:30}{cells}{difference:8}{num_bytes:8}")
            ratios[name] = ratio(found, "fast", "baseline")
    print(f"\nfast, times the baseline; goal {GOAL}")
    for name, times in ratios.items():
        print(f"{name:30}{times:6.2f} {'met' if times >= GOAL else 'not met'}")


if __name__ == "__main__":
    main()
