"""Draw the loss curve of training runs, one after the other: `python examples/curve.py OUT.png METRICS.jsonl ...`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

WINDOW = 20


def read_losses(metrics: Path) -> list[float]:
    """Read the loss of every optimizer step from a trainer's `metrics.jsonl`, in step order.

    A run that was resumed may have written a step twice; the later line counts.
    """
    with metrics.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    by_step = {row["step"]: row["loss"] for row in rows if "loss" in row}
    return [by_step[step] for step in sorted(by_step)]


def smooth(losses: Sequence[float], window: int) -> list[float]:
    """Average each loss with those just before it, at most `window` in all."""
    starts = (max(0, end - window) for end in range(1, len(losses) + 1))
    return [sum(losses[start:end]) / (end - start) for end, start in enumerate(starts, start=1)]


def plot(runs: Sequence[tuple[str, Sequence[float]]], out: Path) -> None:
    """Draw the runs side by side along one axis of optimizer steps, the loss on a logarithmic scale."""
    from matplotlib.figure import Figure  # the extra `viewer`: reading losses needs none of it

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    first = 1
    for index, (name, losses) in enumerate(runs):
        steps = range(first, first + len(losses))
        axes.plot(steps, losses, color=f"C{index}", alpha=0.3, linewidth=0.8)
        axes.plot(steps, smooth(losses, WINDOW), color=f"C{index}", label=name)
        first += len(losses)
    axes.set(yscale="log", xlabel="optimizer step", ylabel=f"loss a trained token (bold: mean of {WINDOW} steps)")
    axes.legend()
    figure.savefig(out, dpi=120)


def main() -> None:
    """Read the command line and draw; a run is called after the folder of its metrics."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("metrics", type=Path, nargs="+")
    options = parser.parse_args()
    plot([(path.parent.name, read_losses(path)) for path in options.metrics], options.out)
    print(f"loss curve: {options.out}")


if __name__ == "__main__":
    main()
