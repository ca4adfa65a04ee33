"""Useful over computed tokens of an epoch, for our deal and for first-fit bins on the same lengths.

    python benchmarks/packing.py [--max-tokens 16384] [--every 1]

useful   = the tokens of the samples.
computed = ranks x the sum over micro-steps of the heaviest rank's tokens: the others wait for it, whatever they hold.
           For bins: their number x their size.
"""

import argparse
import os
import sys
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

if __name__ == "__main__":
    # As in trainer/run.py: a script's own folder comes first on sys.path, and holds a `packing.py` of its own.
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from benchmarks.lengths import phase1_lengths, phase2_lengths
from dataprep.report.efficiency import first_fit
from trainer.packing import SampleOrder, computed_tokens, deal

#: The least useful/computed that the project promises, by (phase, ranks).
GOALS = {(1, 1): 0.999, (1, 4): 0.999, (1, 8): 0.999, (1, 16): 0.999, (2, 1): 0.995, (2, 8): 0.99}
GOAL_MS = 5.0
RANKS = (1, 4, 8, 16)
BINS = (2048, 32768)

#: First-fit looks through all open bins for every sample; this many samples show its ratio to three digits.
FIRST_FIT_SAMPLES = 30_000


@dataclass(frozen=True, slots=True)
class Result:
    """One row of the table."""

    ratio: float
    milliseconds_per_step: float
    micro_steps: float


def deal_an_epoch(
    lengths: NDArray[np.int32], samples_per_step: int, num_ranks: int, max_tokens: int, every: int
) -> Result:
    """Deal out every `every`-th step of an epoch."""
    order = SampleOrder(lengths, seed=0, samples_per_step=samples_per_step)
    useful = computed = micro_steps = 0
    seconds = 0.0
    steps = range(0, order.num_steps(epochs=1), every)
    for step in steps:
        step_lengths = lengths[order.samples(step)]
        start = time.perf_counter()
        dealt = deal(step_lengths, num_ranks, max_tokens)
        seconds += time.perf_counter() - start
        useful += int(step_lengths.sum())
        computed += computed_tokens(step_lengths, dealt)
        micro_steps += len(dealt)
    return Result(useful / computed, 1000 * seconds / len(steps), micro_steps / len(steps))


def report(phase: int, lengths: NDArray[np.int32], samples_per_step: int, max_tokens: int, every: int) -> bool:
    """Print one phase's table; return whether every goal was met."""
    print(
        f"\nphase {phase}: {len(lengths):,} samples, mean {lengths.mean():.0f} tokens;"
        f" {samples_per_step} samples a step, micro-batches of at most {max_tokens:,} tokens"
    )
    met = True
    for num_ranks in RANKS:
        result = deal_an_epoch(lengths, samples_per_step, num_ranks, max_tokens, every)
        goal = GOALS.get((phase, num_ranks))
        good = result.ratio >= (goal or 0) and result.milliseconds_per_step < GOAL_MS
        met &= good
        promised = f"goal {goal}: {'met' if good else 'MISSED'}" if goal else ""
        print(
            f"  deal, {num_ranks:2d} ranks     {result.ratio:.5f}   {result.milliseconds_per_step:5.2f} ms a step"
            f"   {result.micro_steps:5.2f} micro-steps   {promised}"
        )
    sample = np.random.default_rng(0).permutation(lengths)[:FIRST_FIT_SAMPLES]
    for bin_tokens in BINS:
        ratio = int(sample.sum()) / (first_fit(sample, bin_tokens) * bin_tokens)
        print(f"  first-fit bins of {bin_tokens:<6d}{ratio:.5f}   ({len(sample):,} samples)")
    return met


def main() -> None:
    """Print both phases' tables; exit 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-tokens", type=int, default=16384, help="tokens a micro-batch (default: 16384)")
    parser.add_argument("--every", type=int, default=1, help="measure every n-th step of the epoch (default: 1)")
    arguments = parser.parse_args()
    print("useful/computed tokens over an epoch of synthetic LLaVA-1.5 lengths; planning time on one core")
    print("computed = ranks x sum over micro-steps of the heaviest rank's tokens; bins: their number x their size")
    results = [
        report(1, phase1_lengths(), 256, arguments.max_tokens, arguments.every),
        report(2, phase2_lengths(), 128, arguments.max_tokens, arguments.every),
    ]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
