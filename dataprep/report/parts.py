"""What several sections are built of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dataprep.report.markup import Markup, foreign, join, tag


def name(text: object) -> Markup:
    """Return a name that came with the data: a file, a template, a key."""
    return tag("code", foreign(text))


def table(
    caption: str, head: Sequence[str], lines: Iterable[Sequence[object]], note: str | None = None, kind: str = "number"
) -> Markup:
    """Return a table in a box of its own that scrolls; the first cell of a line heads it.

    Args:
        kind: of the other cells: `number` or `words`.
    """
    top = tag("tr", *(tag("th", text, scope="col", class_=kind if n else None) for n, text in enumerate(head)))
    body = [
        tag("tr", tag("th", first, scope="row"), *(tag("td", cell, class_=kind) for cell in rest))
        for first, *rest in lines
    ]
    whole = tag("table", tag("caption", caption), tag("thead", top), tag("tbody", *body))
    note_line = tag("p", note, class_="note") if note else None
    return join(tag("div", whole, class_="scroll", tabindex="0", role="region", aria_label=caption), note_line)
