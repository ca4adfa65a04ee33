"""A page in one file: no script, no font, no request.

The head forbids every request (`Content-Security-Policy`), so that even a fault in the escaping could not call home.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from importlib import resources

from dataprep.report.markup import Markup, tag

#: Nothing may be requested; pictures and the style are in the file.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

#: Anchor, heading and content of a section.
Section = tuple[str, str, Markup]


def document(title: str, opening: Markup, sections: Sequence[Section], foot: Markup) -> str:
    """Return a whole page; `title` also stands in the tab, `opening` before the links to the sections."""
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
    links = tag("nav", *(tag("a", name, href=f"#{key}") for key, name, _ in sections), aria_label="Sections")
    parts = (
        tag("section", tag("h2", name, id=f"{key}-h"), body, id=key, aria_labelledby=f"{key}-h")
        for key, name, body in sections
    )
    body = tag("body", opening, links, tag("main", *parts), tag("footer", foot))
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def header(title: str, sentence: Markup, tiles: Iterable[tuple[str, str, str]]) -> Markup:
    """Return the top of a page; a tile is a name, a figure and what more there is to say of it."""
    drawn = (tag("div", tag("dt", name), tag("dd", tag("b", value), tag("span", more))) for name, value, more in tiles)
    brand = tag("p", "llava-prep", class_="brand")
    return tag("header", brand, tag("h1", title), tag("p", sentence), tag("dl", *drawn, class_="tiles"))


@cache
def style() -> Markup:
    """Return the style sheet, which is ours and holds no end tag."""
    text = resources.files("dataprep.report").joinpath("style.css").read_text("utf-8")
    assert "</" not in text
    return Markup(text)
