"""How far a score would move with other pictures: percentile bootstrap, resampling pictures and not questions.

Several questions share a picture, and a model that misreads it misses them together: an interval that took them for
independent would be too narrow. Pictures are drawn with replacement, each with all its questions (a cluster bootstrap:
Field and Welsh 2007); the same seed gives the same interval.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95

#: Draws held in memory at a time.
_DRAWS = 1 << 22

Statistic = Callable[[NDArray[np.float64]], NDArray[np.float64]]


def interval(sums: NDArray[np.float64], statistic: Statistic, seed: int = 0) -> tuple[float, float] | None:
    """Return the limits of a statistic's interval, None where fewer than two pictures can say nothing about it.

    Args:
        sums: float64 (pictures, columns), what each picture adds to the totals.
        statistic: from totals, (n, columns), to values, (n,); NaN where it is not defined.
    """
    num_pictures = len(sums)
    if num_pictures < 2:
        return None
    generator = np.random.default_rng(seed)
    values = []
    block = max(1, _DRAWS // num_pictures)
    for start in range(0, RESAMPLES, block):
        draws = generator.integers(0, num_pictures, (min(block, RESAMPLES - start), num_pictures))
        counts = np.stack([np.bincount(draw, minlength=num_pictures) for draw in draws])
        values.append(statistic(counts @ sums))
    found = np.concatenate(values)
    found = found[~np.isnan(found)]
    if not len(found):
        return None
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)
