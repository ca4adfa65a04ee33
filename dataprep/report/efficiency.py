"""Useful over computed tokens: what packing makes of these lengths, and what other ways of batching would.

useful    the attended tokens of the samples
computed  what the GPUs work through: for the trainer's deal, ranks x the heaviest rank of each micro-step, since the
          others wait for it; for bins and padded batches, their number x their size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

#: Samples an optimizer step, by phase: LLaVA-1.5's global batch sizes.
SAMPLES_PER_STEP = {1: 256, 2: 128}

GPUS = (1, 8, 16, 64)
BUDGETS = (4096, 8192, 16384, 32768)

#: Steps that are dealt out, evenly over an epoch.
STEPS = 24

#: Samples that the other ways of batching are counted on; first-fit looks through all open bins for each.
COMPARED = 8_000

#: Samples a GPU and micro-batch in LLaVA-1.5's scripts.
LLAVA_BATCH = 16


class Dealt(NamedTuple):
    """What the trainer's deal reaches."""

    shares: list[list[float | None]]
    """Useful/computed by number of GPUs, then by budget; None where a sample alone is longer than the budget."""
    num_steps: int
    """Steps that were dealt out."""


def dealt_efficiency(
    lengths: np.ndarray, samples_per_step: int, gpus: Sequence[int] = GPUS, budgets: Sequence[int] = BUDGETS
) -> Dealt:
    """Deal out steps of an epoch of these samples.

    Args:
        lengths: attended tokens of each sample, int32 (N,), N > 0.
    """
    from trainer.packing import SampleOrder

    order = SampleOrder(lengths, seed=0, samples_per_step=samples_per_step)
    num_steps = order.num_steps(epochs=1)
    chosen = sorted(set(np.linspace(0, num_steps - 1, min(STEPS, num_steps)).round().astype(int).tolist()))
    steps = [lengths[order.samples(step)] for step in chosen]
    longest = int(lengths.max())
    shares = [[_deal(steps, ranks, budget) if longest <= budget else None for budget in budgets] for ranks in gpus]
    return Dealt(shares, len(steps))


def _deal(steps: Sequence[np.ndarray], num_ranks: int, max_tokens: int) -> float:
    from trainer.packing import computed_tokens, deal

    computed = sum(computed_tokens(step, deal(step, num_ranks, max_tokens)) for step in steps)
    return int(sum(step.sum(dtype=np.int64) for step in steps)) / computed


def other_ways(lengths: np.ndarray, slots: int) -> list[tuple[str, float]]:
    """Return useful/computed of what is done elsewhere with the same lengths, drawn at random from them.

    Args:
        lengths: attended tokens of each sample, int32 (N,), N > 0.
        slots: of a row, `max_seq_length`.
    """
    drawn = np.random.default_rng(0).permutation(lengths)[:COMPARED]
    useful = int(drawn.sum(dtype=np.int64))
    batches = [drawn[start : start + LLAVA_BATCH] for start in range(0, len(drawn), LLAVA_BATCH)]
    padded = sum(len(batch) * int(batch.max()) for batch in batches)
    bins = sorted({slots, max(slots, BUDGETS[-1])})
    return [
        ("rows padded to their full width", useful / (len(drawn) * slots)),
        (f"batches of {LLAVA_BATCH} padded to their longest row", useful / padded),
        *((f"first-fit bins of {size:,} tokens", useful / (first_fit(drawn, size) * size)) for size in bins),
    ]


def first_fit(lengths: np.ndarray, size: int) -> int:
    """Return how many bins are opened if each sample goes to the first with room for it."""
    room = np.full(len(lengths), size)
    num_bins = 0
    for length in lengths.tolist():
        number = int(np.argmax(room[: num_bins + 1] >= length))
        room[number] -= length
        num_bins = max(num_bins, number + 1)
    return num_bins
