"""The sections with figures, one function each: Facts to HTML."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dataprep.report.charts import evenly, from_nothing, histogram, share_bar
from dataprep.report.efficiency import BUDGETS, GPUS, SAMPLES_PER_STEP, dealt_efficiency, other_ways
from dataprep.report.gather import COUNTS, Facts, SourceTotals
from dataprep.report.markup import Markup, join, tag
from dataprep.report.parts import name, table
from dataprep.report.wording import big, number, percent, quantiles

#: Lines of a table that may be as long as the data has kinds of something.
MAX_SOURCES, MAX_RULES = 24, 40


#: Where a record may end, and what may be made of a written one: key of the accounting, as the page has it.
ENDS = (
    ("written", "written"),
    ("num_refused", "refused"),
    ("deduplicated", "dropped as a duplicate"),
)
MADE = (("text_only", "text-only"), ("truncated", "truncated"), ("split", "split into several rows"))


def accounting(facts: Facts) -> Markup:
    """Where each record ended, and what was done to it."""
    counts = facts.accounting
    records = counts["records"]
    ends = [(text, counts[key]) for key, text in ENDS if key in COUNTS or counts.get(key)]
    stack = (
        tag("span", style=f"flex-grow:{max(value, records / 400):.0f}", class_=f"series{n}")
        for n, (_, value) in enumerate(ends)
        if value
    )
    lines = [
        [join(tag("i", class_=f"swatch series{n}"), text), big(value), percent(value, records)]
        for n, (text, value) in enumerate(ends)
    ]
    more = [[text, counts[key]] for key, text in MADE if key in counts]
    more += [[join("normalised: ", name(rule)), count] for rule, count in sorted(counts.get("normalised", {}).items())]
    made = [[text, big(count), percent(count, counts["written"])] for text, count in more[:MAX_RULES]]
    return join(
        tag("div", *stack, class_="stack", aria_hidden="true"),
        table(f"Where the {number(records, 'record')} ended", ("", "records", "share"), lines),
        table("Of the written ones", ("", "records", "share"), made),
        _held_out(facts),
    )


def _held_out(facts: Facts) -> Markup | None:
    if not facts.num_held_out:
        return None
    records = number(facts.num_held_out, "record")
    text = f"Beside these, {records} were held out: they are in holdout/, which has a report of its own."
    return tag("p", text, class_="note")


def _sampled(facts: Facts) -> str | None:
    columns = facts.columns
    if facts.whole:
        return None
    return (
        f"Counted on {big(columns.num_rows)} rows of {big(facts.accounting['rows'])}: {big(columns.num_shards)} shards,"
        " evenly over the folder."
    )


def _quantile_table(caption: str, series: Sequence[tuple[str, np.ndarray]], note: str | None = None) -> Markup:
    head = ("", "least", "10 %", "median", "90 %", "99 %", "most", "mean")
    lines = []
    for text, by_value in series:
        if values := quantiles(by_value):
            mean = float((by_value * np.arange(len(by_value))).sum() / by_value.sum())
            lines.append([text, *(big(value) for value in values), f"{mean:,.1f}"])
    return table(caption, head, lines, note)


def lengths(facts: Facts) -> Markup:
    """Attended positions a row, the image slots counted."""
    text_only, pictures = facts.columns.lengths
    slots = facts.layout.max_seq_length
    shown = [
        (label, counts) for label, counts in (("with a picture", pictures), ("text-only", text_only)) if counts.any()
    ]
    if not shown:
        return tag("p", "There are no rows.")
    bars = evenly(np.stack([counts for _, counts in shown]), slots)
    marks = {"image slots": facts.layout.num_patches, "a full row": slots}
    cut_off = facts.accounting.get("truncated")
    sentence = (
        f"Attended positions of each row. A picture takes {facts.layout.num_patches:,} of them; padding and the hole of"
        " a text-only row take none."
        + (f" {big(cut_off)} records were too long and lost their end." if isinstance(cut_off, int) and cut_off else "")
    )
    chart = histogram(bars, [label for label, _ in shown], "attended positions", "Lengths of the rows", marks)
    return join(tag("p", sentence), chart, _quantile_table("Attended positions a row", shown, _sampled(facts)))


def trained(facts: Facts) -> Markup:
    """Positions with a loss, a row."""
    by_value = facts.columns.trained
    if not by_value.any():
        return tag("p", "There are no rows.")
    counts = facts.accounting
    bars = from_nothing(by_value[None])
    sentence = (
        f"Positions with a loss: {percent(counts['loss_tokens'], counts['attended_tokens'])} of the attended ones."
    )
    chart = histogram(bars, ["all rows"], "trained tokens", "Trained tokens of the rows", {})
    return join(
        tag("p", sentence), chart, _quantile_table("Trained tokens a row", [("all rows", by_value)], _sampled(facts))
    )


def packing(facts: Facts) -> Markup:
    """Useful over computed tokens, by the trainer's own dealing code."""
    drawn = facts.columns.sample.length
    if not len(drawn) or not drawn.min():
        return tag("p", "There are no rows to deal out.")
    samples = SAMPLES_PER_STEP.get(facts.layout.phase, 128)
    dealt = dealt_efficiency(drawn, samples)
    too_long = tag("span", "–", title="a row is longer than the budget")
    lines = [
        [f"{gpus} GPU{'s' if gpus > 1 else ''}", *(too_long if share is None else _share(share) for share in line)]
        for gpus, line in zip(GPUS, dealt.shares, strict=True)
    ]
    best = table(
        "Useful / computed tokens, by GPUs and tokens a micro-batch",
        ("", *(f"{budget:,}" for budget in BUDGETS)),
        lines,
        f"The trainer's own dealing of {samples} samples a step, over {number(dealt.num_steps, 'step')} of an epoch"
        + ("." if len(drawn) == facts.accounting["rows"] else f" of {big(len(drawn))} rows drawn from all."),
    )
    ways = [[text, _share(share)] for text, share in other_ways(drawn, facts.layout.max_seq_length)]
    rest = table("The same rows, batched in other ways", ("", "useful / computed"), ways)
    why = "Attended tokens over the tokens that the GPUs work through: what is missing to 100 % is padding and waiting."
    return join(tag("p", why), best, rest)


def _share(share: float) -> Markup:
    return join(percent(share), share_bar(share))


def sources(facts: Facts) -> Markup:
    """What each input file became, and its part of the rows and tokens."""
    found = facts.columns.sources
    total = (
        SourceTotals(*(sum(column) for column in zip(*found.values(), strict=True)))
        if found
        else SourceTotals(0, 0, 0, 0)
    )
    ordered = sorted(found.items(), key=lambda item: (-item[1].rows, item[0]))
    lines = [[name(file), *_source_cells(values, total)] for file, values in ordered[:MAX_SOURCES]]
    if rest := ordered[MAX_SOURCES:]:
        other = SourceTotals(*(sum(column) for column in zip(*(values for _, values in rest), strict=True)))
        lines.append([f"{big(len(rest))} more files", *_source_cells(other, total)])
    head = ("file", "rows", "share of rows", "with a picture", "attended tokens", "share", "trained tokens", "share")
    return table("Rows and tokens by source file", head, lines, _sampled(facts))


def _source_cells(values: SourceTotals, total: SourceTotals) -> list[object]:
    share = values.rows / max(1, total.rows)
    return [
        big(values.rows),
        _share(share),
        percent(values.pictures, values.rows),
        big(values.attended),
        percent(values.attended, total.attended),
        big(values.trained),
        percent(values.trained, total.trained),
    ]
