"""CPU time of making a sample ready for the device, against the loader of the original LLaVA.

    python benchmarks/loader.py [--rounds 5] [--samples 128] [--tokenizer FOLDER]

baseline    LLaVA's loader work with transformers and Pillow: open, RGB, expand2square, CLIPImageProcessor to normalised
            float32; with --tokenizer also the texts as `preprocess_v1` encodes them (all, then each round twice). It is
            written out here; LLaVA's own program also builds copies of lists, which are left out.
exact       a step of `StepDataset` on shards with picture files, `data.image_pixels=exact`: rows read and unpacked,
            pictures decoded and scaled, all of it laid end to end as one micro-batch of uint8 and whole numbers.
fast        the same with `data.image_pixels=fast`, the default.
embedded    the same from shards compiled with `--images embed`.

Pictures are the 640x480 JPEG of benchmarks/pictures.py; rows of 2,048 slots hold 760 tokens, 576 of them the picture.
The ways take turns; ratios are medians over the rounds. CPU time of one process with one thread.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

import json

import numpy as np
import torch
from PIL import Image

from benchmarks.pictures import COLOUR, SIZE, milliseconds, photo, ratio
from benchmarks.texts import sentences
from dataprep.images import load_image
from dataprep.shards import Row, RowLayout, ShardReader, ShardWriter
from dataprep.shards.embedded import code_picture
from dataprep.shards.layout import Source
from trainer.batches import StepDataset
from trainer.packing import SampleOrder

#: What the project promises, in times the baseline's rate; the second is what it would like.
GOALS = {"fast": (3.0, 17.7 / 2.6), "embedded": (10.0, 17.7 / 0.6)}

SLOTS, PATCHES, TOKENS, PER_STEP = 2048, 576, 760, 16
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
TEXT_CHARACTERS = 760


def layout() -> RowLayout:
    """Return the layout of rows as phase 2 has them."""
    return RowLayout(
        max_seq_length=SLOTS, num_patches=PATCHES, image_start_idx=35, hole_start=35, hole_length=PATCHES, phase=2,
        template="vicuna_v1", bos_id=1, eos_id=2, pad_id=0, vocab_size=32000, tokenizer_fingerprint="", image_size=SIZE,
        image_mean=MEAN, image_std=STD, image_fit="pad", config_sha256="",
    )  # fmt: skip


def make_row(number: int, key: str) -> Row:
    """Return a row whose last 120 tokens are trained."""
    data = np.zeros((4, SLOTS), np.int32)
    data[0, :TOKENS] = np.random.default_rng(number).integers(3, 32000, TOKENS)
    data[2, : TOKENS - 1] = data[0, 1:TOKENS]
    data[1, TOKENS - 120 : TOKENS] = 1
    data[3, TOKENS:] = 1
    return Row(data, key, TOKENS, 120, Source("benchmark", number, str(number)))


def write_shards(folder: Path, names: list[str], pictures: Path | None) -> ShardReader:
    """Write a shard of one row a picture; `pictures` is the folder of those that go into the shard."""
    writer = ShardWriter(layout())
    for number, name in enumerate(names):
        if pictures is not None:
            writer.add_picture(name, code_picture(load_image(pictures / name, SIZE, "pad", COLOUR, "fast")))
        writer.write(make_row(number, name))
    image = writer.finish()
    folder.mkdir()
    (folder / "shard.h5").write_bytes(image.content)
    shards = [{"file": "shard.h5", "rows": len(names), "sha256": image.sha256}]
    manifest = {"layout": layout().attributes(), "shards": shards, "accounting": {}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return ShardReader(folder)


def original(tokenizer_folder: Path | None) -> Callable[[Path, int], object]:
    """Return LLaVA's work on one sample."""
    from transformers import AutoTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    processor = CLIPImageProcessorPil(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    texts = None if tokenizer_folder is None else AutoTokenizer.from_pretrained(tokenizer_folder)
    prose = " ".join(sentences())

    def prepare(path: Path, number: int) -> object:
        ids = None
        if texts is not None:
            start = 997 * number % (len(prose) - TEXT_CHARACTERS)
            question, answer = prose[start : start + 100], prose[start + 100 : start + TEXT_CHARACTERS]
            whole = texts(f"USER: {question} ASSISTANT: {answer}</s>", return_tensors="pt").input_ids
            ids = whole, texts(f"USER: {question} ASSISTANT: {answer}").input_ids, texts(f"USER: {question}").input_ids
        picture = Image.open(path).convert("RGB")
        side = max(picture.size)
        square = Image.new("RGB", (side, side), COLOUR)
        square.paste(picture, ((side - picture.width) // 2, (side - picture.height) // 2))
        return ids, processor.preprocess(square, return_tensors="pt")["pixel_values"][0]

    return prepare


def dataset_of(rows: ShardReader, image_dir: Path | None, image_pixels: str) -> StepDataset:
    """Return the trainer's dataset with steps of `PER_STEP` samples in one micro-batch."""
    order = SampleOrder(rows.lengths, seed=0, samples_per_step=PER_STEP)
    return StepDataset(rows, order, image_dir, max_tokens=PER_STEP * TOKENS, image_pixels=image_pixels)


def main() -> None:
    """Measure, print, and exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokenizer", type=Path, help="folder of Llama-2's tokenizer.json: texts count too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    steps = options.samples // PER_STEP
    with TemporaryDirectory() as name:
        folder = Path(name)
        names = [f"{number}.jpg" for number in range(steps * PER_STEP)]
        for number, file in enumerate(names):
            photo(640, 480, number).save(folder / file, quality=90)
        prepare = original(options.tokenizer)
        files = write_shards(folder / "files", names, None)
        embedded = write_shards(folder / "embedded", names, folder)
        sets = {
            "exact": dataset_of(files, folder, "exact"),
            "fast": dataset_of(files, folder, "fast"),
            "embedded": dataset_of(embedded, None, "fast"),
        }
        assert all(len(step.micro_batches) == 1 and step.fault is None for step in (s[0] for s in sets.values()))
        ways: dict[str, Callable[[int], object]] = {
            "baseline": lambda step: [
                prepare(folder / names[i], i) for i in range(step * PER_STEP, (step + 1) * PER_STEP)
            ],
            **{way: dataset.__getitem__ for way, dataset in sets.items()},
        }
        found = milliseconds(ways, steps, options.rounds)
    met = True
    for way, values in found.items():
        times = ratio(found, way, "baseline")
        goal, stretch = GOALS.get(way, (0.0, 0.0))
        met &= times >= goal
        said = f"   {'met' if times >= goal else 'MISSED'}: {goal:.0f} (stretch {stretch:.1f})" if goal else ""
        print(f"{way:<10} {min(values) / PER_STEP:6.2f} ms a sample   {times:5.1f} times the baseline's rate{said}")
    sys.exit(not met)


if __name__ == "__main__":
    main()
