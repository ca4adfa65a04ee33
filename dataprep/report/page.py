"""The compile report: the sections in their order, and what stands above them.

The page does not grow with the folder: every list is cut, every string is cut, and it says so where it is.
"""

from __future__ import annotations

from dataprep.report import evidence, sections
from dataprep.report.document import document, header
from dataprep.report.gather import Facts
from dataprep.report.markup import Markup, join, tag
from dataprep.report.parts import name
from dataprep.report.wording import big, number, size

#: The sections in their order: anchor, heading, what makes it.
SECTIONS = (
    ("accounting", "Every record", sections.accounting),
    ("lengths", "Lengths", sections.lengths),
    ("trained", "Trained tokens", sections.trained),
    ("packing", "What training will compute", sections.packing),
    ("sources", "Sources", sections.sources),
    ("refusals", "Refusals", evidence.refusals),
    ("rows", "A few rows", evidence.rows),
    ("made", "How it was made", evidence.made),
)


def page(facts: Facts) -> str:
    """Return the whole page. The same folder gives the same text."""
    title = f"{big(facts.accounting['rows'])} rows for phase {facts.layout.phase}"
    made = [(anchor, heading, make(facts)) for anchor, heading, make in SECTIONS]
    foot = join("Made by ", tag("code", "llava-prep report"), " from the folder alone; nothing was sent anywhere.")
    return document(title, _opening(facts, title), made, foot)


def _opening(facts: Facts, title: str) -> Markup:
    accounting, layout = facts.accounting, facts.layout
    rows = max(1, accounting["rows"])
    tiles = (
        (
            "rows",
            big(accounting["rows"]),
            f"in {number(len(facts.manifest['shards']), 'shard')}, {size(facts.num_bytes)}",
        ),
        ("attended tokens", big(accounting["attended_tokens"]), f"{accounting['attended_tokens'] / rows:,.0f} a row"),
        ("trained tokens", big(accounting["loss_tokens"]), f"{accounting['loss_tokens'] / rows:,.1f} a row"),
        ("records refused", big(accounting["num_refused"]), f"of {number(accounting['records'], 'record')}"),
    )
    sentence = join(
        "Template ",
        name(layout.template),
        f", rows of {layout.max_seq_length:,} slots, of them {layout.num_patches:,} for the picture from"
        f" {layout.image_start_idx:,}.",
    )
    return header(title, sentence, tiles)
