"""The report as one HTML file: no script, no font, no request.

The head forbids every request (`Content-Security-Policy`), so that even a fault in the escaping could not call home.
The page does not grow with the folder: every list is cut, every string is cut, and it says so where it is.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from dataprep.report import evidence, sections
from dataprep.report.gather import Facts
from dataprep.report.markup import Markup, join, tag
from dataprep.report.parts import name
from dataprep.report.wording import big, number, size

#: Nothing may be requested; pictures and the style are in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

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
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · llava-prep"),
        # Browsers ask a server for an icon where a page names none.
        tag("link", rel="icon", href="data:,"),
        tag("style", style()),
    )
    made = [(anchor, heading, make(facts)) for anchor, heading, make in SECTIONS]
    links = tag("nav", *(tag("a", name, href=f"#{key}") for key, name, _ in made), aria_label="Sections")
    parts = (
        tag("section", tag("h2", name, id=f"{key}-h"), body, id=key, aria_labelledby=f"{key}-h")
        for key, name, body in made
    )
    foot = tag(
        "footer", "Made by ", tag("code", "llava-prep report"), " from the folder alone; nothing was sent anywhere."
    )
    body = tag("body", _opening(facts, title), links, tag("main", *parts), foot)
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


@cache
def style() -> Markup:
    """Return the style sheet, which is ours and holds no end tag."""
    text = resources.files("dataprep.report").joinpath("style.css").read_text("utf-8")
    assert "</" not in text
    return Markup(text)


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
    drawn = (tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", more))) for name, value, more in tiles)
    sentence = join(
        "Template ",
        name(layout.template),
        f", rows of {layout.max_seq_length:,} slots, of them {layout.num_patches:,} for the picture from"
        f" {layout.image_start_idx:,}.",
    )
    return tag(
        "header",
        tag("p", "llava-prep", class_="brand"),
        tag("h1", title),
        tag("p", sentence),
        tag("dl", *drawn, class_="tiles"),
    )
