"""The sections that show the data itself: what was refused, a few rows, how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from itertools import islice

from dataprep.conversation import REASONS
from dataprep.report.gather import Facts
from dataprep.report.markup import IN_TEXT, Markup, foreign, join, tag
from dataprep.report.parts import name, table
from dataprep.report.refusals import Example, refusal_examples
from dataprep.report.rows import Run, Shown, shown_rows
from dataprep.report.wording import big, number, percent, size

#: Lines of a list that may be as long as the data has kinds of something.
MAX_REASONS, MAX_INPUTS, MAX_SETTINGS = 40, 24, 80

#: Characters of a row's text, of a detail, of a setting.
MAX_TEXT, MAX_DETAIL, MAX_SETTING = 4_000, 300, 160


def refusals(facts: Facts) -> Markup:
    """Reasons with their counts, and the first examples of each."""
    refused = facts.accounting.get("refused", {})
    if not refused:
        return tag("p", "No record was refused.")
    ordered = sorted(refused.items(), key=lambda item: (-item[1], item[0]))
    root = facts.manifest.get("image_root")
    examples = refusal_examples(facts.folder, dict(ordered[:MAX_REASONS]), root if isinstance(root, str) else "")
    blocks = [_reason(reason, count, facts, examples[reason]) for reason, count in ordered[:MAX_REASONS]]
    more = len(ordered) - len(blocks)
    rest = tag("p", f"{big(more)} more reasons stand in refused.jsonl.", class_="note") if more else None
    return join(tag("p", "Every refused record stands in ", tag("code", "refused.jsonl"), "."), *blocks, rest)


def _reason(reason: str, count: int, facts: Facts, examples: Sequence[Example]) -> Markup:
    share = percent(count, facts.accounting["records"])
    means = REASONS.get(reason)
    heading = tag("h3", name(reason), tag("span", f"{number(count, 'record')}, {share}", class_="count"))
    if not examples:
        return join(heading, tag("p", means) if means else None, tag("p", "No example is at hand.", class_="note"))
    items = [
        tag(
            "li",
            _where(example.file, example.line, example.id),
            tag("p", foreign(example.detail, MAX_DETAIL), class_="detail"),
        )
        for example in examples
    ]
    return join(heading, tag("p", means) if means else None, tag("ul", *items, class_="examples"))


def _where(file: str, line: int, record_id: str) -> Markup:
    """Return where a record stands; a line that could not be read has no id."""
    known = join(", id ", name(record_id)) if record_id else None
    return tag("p", name(file), f" line {big(line)}", known, class_="where")


#: What the colours of a row mean.
KINDS = (("trained", "trained"), ("masked", "read, not trained"), ("image", "image slots"), ("hole", "masked hole"))


def rows(facts: Facts) -> Markup:
    """A handful of rows with their picture and their tokens in colour."""
    shown, fault = shown_rows(facts)
    if not shown:
        return tag("p", "There are no rows.")
    keys = tag("p", *(tag("mark", text, class_=f"run {kind}") for kind, text in KINDS), class_="keys")
    note = tag("p", fault, class_="note") if fault else None
    return join(keys, note, *(_row(entry, facts) for entry in shown))


def _row(entry: Shown, facts: Facts) -> Markup:
    row = entry.row
    slots, trained = facts.layout.max_seq_length, int(row.loss_mask.sum())
    counted = f"{row.length:,} of {slots:,} slots attended, {trained:,} trained"
    if row.img_path is None:
        counted += "; text-only"
    heading = tag("h3", f"Row {big(entry.index)}", tag("span", entry.why, class_="count"))
    text = tag(
        "div", *_text(entry.runs), class_="text", tabindex="0", role="region", aria_label=f"Text of row {entry.index}"
    )
    return tag(
        "article",
        heading,
        _where(*row.source),
        tag("p", counted, class_="note"),
        text if row.img_path is None else tag("div", _figure(entry, row.img_path), text, class_="pair"),
    )


def _figure(entry: Shown, key: str) -> Markup:
    if entry.picture is None:
        box = tag("div", entry.no_picture, class_="nothing")
    else:
        box = tag("img", src=entry.picture, alt=f"The picture of row {entry.index}, as the vision tower sees it")
    return tag("figure", box, tag("figcaption", name(key)), class_="picture")


def _text(runs: Sequence[Run]) -> list[Markup]:
    left = MAX_TEXT
    pieces = []
    for run in runs:
        label = f"{run.num_tokens:,} tokens" if run.num_tokens > 1 else "1 token"
        text: object = f"[{label}]"
        if run.kind == "image":
            text = f"[picture: {run.num_tokens:,} slots]"
        elif run.kind == "hole":
            text = f"[no picture: {run.num_tokens:,} slots masked]"
        elif run.text:
            text = foreign(run.text, max(left, 0), IN_TEXT)
            left -= len(run.text)
        classes = f"run {run.kind}{' control' if run.control else ''}"
        pieces.append(tag("mark", text, class_=classes, title=f"{label}, {run.kind}"))
        if left < 0:
            pieces.append(tag("p", "The rest of this row is not shown.", class_="note"))
            break
    return pieces


def made(facts: Facts) -> Markup:
    """The settings, the inputs and the layout, as the manifest has them."""
    settings = islice(_flat(facts.manifest.get("config", {})), MAX_SETTINGS)
    lines = [[name(key), foreign(_plain(value), MAX_SETTING)] for key, value in settings]
    inputs = facts.manifest.get("inputs", [])
    files = [
        [name(entry.get("file", "")), _size(entry), _hash(entry.get("sha256", ""))] for entry in inputs[:MAX_INPUTS]
    ]
    more = f"{big(len(inputs) - MAX_INPUTS)} more files stand in manifest.json." if len(inputs) > MAX_INPUTS else None
    layout = facts.layout
    hashed = "the sha256 of every shard" if facts.hashed else "sizes and totals; `llava-prep verify` checks the sha256"
    fixed = [
        ["image_start_idx", big(layout.image_start_idx)],
        ["hole of a text-only row", f"{layout.hole_length:,} slots from {layout.hole_start:,}"],
        ["special ids", f"begin {layout.bos_id}, end {layout.eos_id}, pad {layout.pad_id}, of {layout.vocab_size:,}"],
        ["tokenizer", _hash(layout.tokenizer_fingerprint)],
        ["checked for this page", hashed],
        ["shard format", foreign(facts.manifest.get("format_version", ""), 20)],
    ]
    return join(
        table("Input files", ("file", "size", "sha256"), files, more, "words"),
        table("Compile settings", ("setting", "value"), lines, kind="words"),
        table("Layout", ("what", "value"), fixed, kind="words"),
    )


def _flat(values: dict[str, object], before: str = "") -> Iterable[tuple[str, object]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _size(entry: dict[str, object]) -> str:
    num_bytes = entry.get("bytes")
    return size(num_bytes) if isinstance(num_bytes, int) else "–"


def _hash(value: object) -> Markup:
    """Return the beginning of a hash; the whole of it stands in the manifest."""
    return tag("code", foreign(str(value)[:16] + "…"))
