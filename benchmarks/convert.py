"""How fast a checkpoint is converted, and in how much memory: `python benchmarks/convert.py [--gigabytes 3]`.

A checkpoint of random bf16 weights in a 7B's proportions (fewer layers) is made, and converted by `llava-convert` in a
process of its own, format by format. Each time stands against `cp -r` of the same source right after it, both ending
with fsync of every file written; the ratio is cp's time over the conversion's (1: as fast as copying), without the
program's start (Python and torch are loaded), which is the same for any size, and with it. Memory is the process's peak
beyond what loading the program takes, and the goal 1.5 times the largest tensor and 300 MB.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models

from trainer.model import LanguageConfig, LlavaConfig, VisionConfig, parameter_shapes

#: What of the checkpoint each line writes, and what it reads.
WAYS = (
    ("trainer", "hf"),
    ("hf", "trainer"),
    ("trainer", "llava"),
    ("llava", "trainer"),
    ("trainer", "components"),
    ("components", "trainer"),
    ("trainer", "cerebras"),
    ("cerebras", "trainer"),
)

#: The command, and then the peak of its memory in bytes: what a child's usage says counts its parent's too.
PROGRAM = """
from converters.cli import main
try:
    main()
finally:
    status = open("/proc/self/status").read()
    print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""
SHARE_OF_COPY, BESIDE_TENSOR = 0.6, 300 * 10**6


def config_of(num_layers: int) -> LlavaConfig:
    """CLIP-L/14 at 336 pixels, and so many layers of a Llama-2-7B."""
    vision = VisionConfig(
        hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, image_size=336, patch_size=14
    )
    language = LanguageConfig(
        vocab_size=32000,
        hidden_size=4096,
        intermediate_size=11008,
        num_layers=num_layers,
        num_heads=32,
        num_kv_heads=32,
        head_dim=128,
        max_position_embeddings=4096,
    )
    return LlavaConfig(vision=vision, language=language, image_mean=(0.5, 0.5, 0.5), image_std=(0.5, 0.5, 0.5))


def make_checkpoint(folder: Path, gigabytes: float) -> int:
    """Write random weights of about so many GB; return the bytes of the largest tensor."""
    num_layers = max(1, round((gigabytes * 1e9 - 1.2e9) / 405e6))
    config = config_of(num_layers)
    (folder / "tokenizer").mkdir(parents=True)
    config.to_json(folder / "config.json")
    torch.manual_seed(0)
    tensors = {name: torch.randn(shape).bfloat16() for name, shape in parameter_shapes(config).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    vocabulary = {f"t{number}": number for number in range(32000)}
    Tokenizer(models.BPE(vocab=vocabulary, merges=[])).save(str(folder / "tokenizer" / "tokenizer.json"))
    names = {"bos_token": "t1", "eos_token": "t2", "pad_token": "t0"}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(names))
    return max(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def measured(out: Path, *words: str | Path) -> tuple[float, str]:
    """Run a program that writes `out`; return its seconds, until that is on the disk, and what it said."""
    started = time.perf_counter()
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr)
    for path in out.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    return time.perf_counter() - started, done.stdout


def size_of(folder: Path) -> int:
    """Return the bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def convert(source: str, target: str, root: Path, rounds: int, start: tuple[float, int], limit: int) -> bool:
    """Measure one conversion against copying its source; print a line, return whether both goals are met."""
    ratios, without_start, times, peaks = [], [], [], []
    for _ in range(rounds):
        out = root / f"{target}.new"
        seconds, said = measured(out, sys.executable, "-c", PROGRAM, source, target, root / source, out)
        copying, _ = measured(root / "copy", "cp", "-r", root / source, root / "copy")
        shutil.rmtree(root / "copy")
        ratios.append(copying / seconds)
        without_start.append(copying / (seconds - start[0]))
        times.append(seconds)
        peaks.append(int(said) - start[1])
        if (root / target).exists():
            shutil.rmtree(out)
        else:
            out.rename(root / target)
    share, peak = statistics.median(without_start), max(peaks)
    rate = size_of(root / source) / statistics.median(times) / 1e9
    met = share >= SHARE_OF_COPY and peak <= limit
    each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(
        f"{source:>10} -> {target:10} {rate:5.2f} GB/s  {share:4.2f} of cp, with the start"
        f" {statistics.median(ratios):4.2f} ({each})  {peak / 1e6:5.0f} MB"
        f"  {'goals met' if met else 'GOAL MISSED'}",
        flush=True,
    )
    return met


def main() -> None:
    """Make the checkpoint and convert it each way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=3, help="pairs; the median counts")
    parser.add_argument("--only", help="comma-separated targets and sources")
    parser.add_argument(
        "--folder", type=Path, help="where to work, about five times the size; default: a temporary one"
    )
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = Path(folder)
        largest = make_checkpoint(root / "trainer", options.gigabytes)
        starts = [measured(root / "none", sys.executable, "-c", PROGRAM, "formats") for _ in range(3)]
        start = min(seconds for seconds, _ in starts), int(starts[0][1].split()[-1])
        limit = int(1.5 * largest + BESIDE_TENSOR)
        print(
            f"checkpoint {size_of(root / 'trainer') / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB;"
            f" goals: {SHARE_OF_COPY} of cp, {limit / 1e6:.0f} MB over the program's {start[1] / 1e6:.0f} MB;"
            f" its start takes {start[0]:.1f} s",
            flush=True,
        )
        chosen = set((options.only or "trainer,hf,llava,components,cerebras").split(","))
        ways = [way for way in WAYS if chosen.issuperset(way)]
        met = [convert(*way, root, options.rounds, start, limit) for way in ways]
        print(f"{sum(met)} of {len(met)} conversions meet both goals")


if __name__ == "__main__":
    main()
