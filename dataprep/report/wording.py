"""Numbers as people read them, the same on the page, in the card and on the terminal."""

from __future__ import annotations

import numpy as np


def big(value: int) -> str:
    """Return a count with separators."""
    return f"{value:,}"


def number(count: int, thing: str) -> str:
    """Return a count with its word: `1 shard`, `2,000 shards`."""
    return f"{count:,} {thing}{'' if count == 1 else 's'}"


def percent(part: int | float, whole: int | float = 1.0) -> str:
    """Return a share: `12.3 %`; what is there is never `0.0 %`, and what lacks something never `100.0 %`."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.05:
        return "< 0.1 %"
    return "> 99.9 %" if 99.95 <= share < 100 else f"{share:.1f} %"


def size(num_bytes: int | float) -> str:
    """Return bytes with a decimal unit: `1.2 GB`."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if num_bytes < 1000 or unit == "TB":
            break
        num_bytes /= 1000
    return f"{num_bytes:,.0f} {unit}" if unit == "bytes" else f"{num_bytes:,.1f} {unit}"


def quantiles(by_value: np.ndarray, parts: tuple[float, ...] = (0.0, 0.1, 0.5, 0.9, 0.99, 1.0)) -> list[int]:
    """Return the values that so large a part does not exceed, of counts by value (V,); nothing of no counts."""
    ends = np.cumsum(by_value)
    if not len(ends) or not ends[-1]:
        return []
    return [int(np.searchsorted(ends, max(1, np.ceil(part * ends[-1])))) for part in parts]
