"""From drawn charts to a model that answers, by the commands that a user would type: `python examples/demo.py`.

Each command is shown as it runs. Everything is written under `demo-out/`, which is made anew each time:

    data/            the data root: raw charts, jsonl, shards
    parts/           a tiny random CLIP tower and Llama decoder, with a tokenizer
    start/           both joined by a fresh projector, in the trainer's format
    phase1/ phase2/  the two training runs; `final/` in each holds the weights
    hf/              the export that transformers loads
    loss.png         the loss curve
    scores.json      the held-out scores through transformers, by kind of question
    answers.jsonl    the same questions answered by the trainer's own model, with a key/value cache
    answers.html     a page of them: pictures, questions, answers, truths; open it in a browser

Exit code 1 when the model does not answer far better than chance, when it does not look (its answers survive a
shuffle of the pictures), when transformers computes other logits, or answers otherwise than the trainer's own model.
"""

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

OUT = Path("demo-out")
DATA = OUT / "data"
REPOSITORY = Path(__file__).resolve().parent.parent

#: How the charts are compiled: what `parts/` was made for, instead of LLaVA-1.5's 336 pixels and 2048 tokens.
COMPILE = ("--set", "image.size=84", "--set", "image.patch_size=14")
#: Small batches: these weights learn by the number of their steps.
TRAIN = (f"data.image_dir={DATA}", "global_batch_size=32", "num_workers=0", "log_every=50")

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("python", "examples/charts.py", f"{DATA}"),
    ("llava-prep", "--root", f"{DATA}", "preprocess", "--dataset", "json", "--phase", "1",
     "--input", f"{DATA}/raw/captions/captions.json"),
    ("llava-prep", "--root", f"{DATA}", "preprocess", "--dataset", "chartqa"),
    ("python", "examples/start.py", f"{OUT}/parts",
     f"{DATA}/jsonl/phase1/captions.jsonl", f"{DATA}/jsonl/phase2/chartqa.jsonl"),
    ("llava-convert", "components", "trainer", "--vision", f"{OUT}/parts/vision",
     "--language", f"{OUT}/parts/language", f"{OUT}/start"),
    ("llava-prep", "--root", f"{DATA}", "to-h5", "--phase", "1", "--tokenizer", f"{OUT}/start/tokenizer",
     *COMPILE, "--set", "max_seq_length=128"),
    ("llava-prep", "--root", f"{DATA}", "to-h5", "--phase", "2", "--tokenizer", f"{OUT}/start/tokenizer",
     *COMPILE, "--set", "max_seq_length=256"),
    ("torchrun", "trainer/run.py", "configs/train/phase1_tiny.yaml", f"model={OUT}/start", f"output_dir={OUT}/phase1",
     f"data.shards={DATA}/h5/phase1", *TRAIN, "epochs=6"),
    ("torchrun", "trainer/run.py", "configs/train/phase2_tiny.yaml", f"model={OUT}/phase1/final",
     f"output_dir={OUT}/phase2", f"data.shards={DATA}/h5/phase2", *TRAIN, "epochs=4", "optimizer.peak_lr=1e-3"),
    ("python", "examples/curve.py", f"{OUT}/loss.png", f"{OUT}/phase1/metrics.jsonl", f"{OUT}/phase2/metrics.jsonl"),
    ("llava-convert", "trainer", "hf", f"{OUT}/phase2/final", f"{OUT}/hf"),
    ("python", "examples/ask.py", f"{OUT}/hf", f"{DATA}", "--json", f"{OUT}/scores.json"),
)  # fmt: skip
EVALUATE: tuple[tuple[str, ...], ...] = (
    ("python", "-m", "trainer.evaluation.run", f"{OUT}/phase2/final", "--benchmark", "chartqa",
     "--data", f"{DATA}/raw/chartqa", "--output", f"{OUT}/answers.jsonl"),
    ("python", "-m", "trainer.evaluation.score", f"{OUT}/answers.jsonl"),
    ("python", "-m", "trainer.evaluation.page", f"{OUT}/answers.jsonl"),
)  # fmt: skip
SCORE = (*EVALUATE[1], "--json")
VERIFY = (
    "llava-convert", "verify", f"{OUT}/phase2/final", f"{OUT}/hf",
    "--image", f"{DATA}/raw/chartqa/ChartQA Dataset/test/png/00000.png",
    "--prompt", "How many bars are there?", "--json",
)  # fmt: skip

#: Far above chance: a quarter of all questions more than constant answers get right.
LEAST_GAIN = 0.25
#: With shuffled pictures nothing but luck may be left.
MOST_SHUFFLED_GAIN = 0.1
MOST_LOGIT_DIFFERENCE = 1e-4
#: The trainer's own model and transformers answer the same questions: a tie of two logits may fall otherwise.
MOST_SCORE_DIFFERENCE = 0.002


def environment() -> dict[str, str]:
    """Let commands find this interpreter's own scripts first, stay off the network and be good neighbours."""
    return {
        # Matrices this small are slower on many threads than on few.
        "OMP_NUM_THREADS": str(min(2, os.cpu_count() or 1)),
        # Threads that spin while they wait are a little faster on idle cores, and thirty times slower on busy ones.
        "OMP_WAIT_POLICY": "PASSIVE",
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }


def run(command: tuple[str, ...], capture: bool = False) -> str:
    """Show a command, run it in the repository and show how long it took; return its stdout if captured.

    Raises `SystemExit` with the command's own exit code when it fails.
    """
    print(f"\n$ {shlex.join(command)}", flush=True)
    started = time.monotonic()
    stdout = subprocess.PIPE if capture else None
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(), stdout=stdout, text=True)
    if done.returncode:
        print(f"demo: `{command[0]}` ended with exit code {done.returncode}", file=sys.stderr)
        raise SystemExit(done.returncode)
    if capture:
        print(done.stdout, end="")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return done.stdout or ""


def faults(accuracy: float, chance: float, shuffled: float, difference: float, own: float) -> list[str]:
    """Say what the demo did not show; nothing, if it showed all."""
    found = []
    # `not >=` and `not <=`: a NaN is a fault too.
    if not accuracy >= chance + LEAST_GAIN:
        found.append(f"held-out accuracy {accuracy:.3f} is not far above chance {chance:.3f}")
    if not shuffled <= chance + MOST_SHUFFLED_GAIN:
        found.append(f"with shuffled pictures it still answers {shuffled:.3f}, above chance {chance:.3f}")
    if not difference <= MOST_LOGIT_DIFFERENCE:
        found.append(f"logits differ from Hugging Face's by {difference:.2g}, more than {MOST_LOGIT_DIFFERENCE:g}")
    if not abs(own - accuracy) <= MOST_SCORE_DIFFERENCE:
        found.append(f"the trainer's own model answers {own:.3f} of the questions right, transformers {accuracy:.3f}")
    return found


def main() -> int:
    """Run the whole path; return the exit code."""
    if find_spec("matplotlib") is None:  # said now, and not after minutes of training
        print(
            "demo: matplotlib is not installed, which draws the loss curve: pip install -e '.[viewer]'", file=sys.stderr
        )
        return 2
    started = time.monotonic()
    shutil.rmtree(REPOSITORY / OUT, ignore_errors=True)
    for command in (*COMMANDS, *EVALUATE):
        run(command)
    own = json.loads(run(SCORE, capture=True))["rows"][0]["score"]
    difference = json.loads(run(VERIFY, capture=True))["max_difference"]
    mean = json.loads((REPOSITORY / OUT / "scores.json").read_text())[-1]
    accuracy, chance, shuffled = mean["accuracy"], mean["constant"], mean["shuffled"]
    print(f"\nthe whole path: {time.monotonic() - started:.0f} s; with the pictures shuffled: {shuffled:.3f}")
    found = faults(accuracy, chance, shuffled, difference, own)
    for fault in found:
        print(f"demo: {fault}", file=sys.stderr)
    sys.stderr.flush()
    print(
        f"demo: held-out accuracy {accuracy:.3f} (chance {chance:.3f}), by the trainer's own model {own:.3f}, "
        f"largest logit difference to Hugging Face {difference:.2g}",
        flush=True,
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
