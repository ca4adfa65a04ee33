"""The report in a few lines for a terminal, and as plain values for programs."""

from __future__ import annotations

from typing import Any

import numpy as np

from dataprep.report.efficiency import SAMPLES_PER_STEP, dealt_efficiency
from dataprep.report.gather import Facts
from dataprep.report.markup import cut, visible
from dataprep.report.wording import big, number, percent, quantiles, size

#: GPUs and tokens a micro-batch that the one line about packing speaks of.
GPUS, BUDGET = 8, 16384

MAX_SOURCES = 10


#: Names of the quantiles in `values`, with the part of the rows that does not exceed each.
QUANTILES = {"least": 0.0, "p10": 0.1, "median": 0.5, "p90": 0.9, "p99": 0.99, "most": 1.0}


def values(facts: Facts) -> dict[str, Any]:
    """Return plain values, for JSON: counts, quantiles of lengths and trained tokens, packing, sources."""
    columns = facts.columns
    return {
        "rows": facts.accounting["rows"],
        "rows_counted": columns.num_rows,
        "shards": len(facts.manifest["shards"]),
        "bytes": facts.num_bytes,
        "length": _quantiles(columns.lengths.sum(axis=0)),
        "trained_tokens": _quantiles(columns.trained),
        f"useful_over_computed_{GPUS}_gpus_{BUDGET}_tokens": _share(facts),
        "sources": {visible(file): totals._asdict() for file, totals in columns.sources.items()},
    }


def _quantiles(by_value: np.ndarray) -> dict[str, int]:
    return dict(zip(QUANTILES, quantiles(by_value, tuple(QUANTILES.values())), strict=False))


def summary(facts: Facts) -> list[tuple[str, str]]:
    """Return names and texts: lengths, trained tokens, packing, sources."""
    counts, columns = facts.accounting, facts.columns
    lines = [
        ("rows", f"{big(counts['rows'])} in {number(len(facts.manifest['shards']), 'shard')}, {size(facts.num_bytes)}")
    ]
    if facts.num_held_out:
        lines.append(("held out", f"{number(facts.num_held_out, 'record')}, in holdout/ and not in these figures"))
    for text, by_value in (("length of a row", columns.lengths.sum(axis=0)), ("trained tokens a row", columns.trained)):
        if found := quantiles(by_value, (0.0, 0.5, 0.99, 1.0)):
            low, median, high, top = map(big, found)
            lines.append((text, f"{low} to {top}, median {median}, 99 % at most {high}"))
    lines.append(("trained share", percent(counts["loss_tokens"], counts["attended_tokens"])))
    lines += _packing(facts)
    ordered = sorted(columns.sources.items(), key=lambda item: (-item[1].rows, item[0]))
    for file, totals in ordered[:MAX_SOURCES]:
        share, trained = percent(totals.rows, columns.num_rows), percent(totals.trained, columns_trained(facts))
        lines.append((f"  {cut(visible(file), 60)}", f"{share} of the rows, {trained} of the trained tokens"))
    if len(ordered) > MAX_SOURCES:
        lines.append((f"  {big(len(ordered) - MAX_SOURCES)} more files", "see report.html"))
    return lines


def columns_trained(facts: Facts) -> int:
    """Return the trained tokens of the rows that were read."""
    return sum(totals.trained for totals in facts.columns.sources.values())


def _packing(facts: Facts) -> list[tuple[str, str]]:
    share, lengths = _share(facts), facts.columns.sample.length
    if share is None:
        return []
    padded = int(lengths.sum()) / (len(lengths) * facts.layout.max_seq_length)
    text = f"useful/computed {percent(share)} on {GPUS} GPUs with {BUDGET:,} tokens; padded rows: {percent(padded)}"
    return [("packing", text)]


def _share(facts: Facts) -> float | None:
    lengths = facts.columns.sample.length
    if not len(lengths) or not lengths.min():
        return None
    return dealt_efficiency(lengths, SAMPLES_PER_STEP.get(facts.layout.phase, 128), (GPUS,), (BUDGET,)).shares[0][0]
