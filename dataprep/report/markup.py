"""HTML and SVG, written so that nothing foreign can become markup.

`tag` is the only way to make an element, and it escapes whatever is not `Markup` already, in content and in attributes.
So a string of a dataset (an id, a file name, a sentence of a conversation) cannot leave its place, and there is one
function to look at: `escape`.
"""

from __future__ import annotations

import html
import unicodedata

#: Letters and marks that show nothing although their category is that of a letter: fillers, joiners, braille's blank.
_INVISIBLE = frozenset(
    map(chr, (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x180B, 0x180C, 0x180D, 0x2800, 0x3164, 0xFFA0))
)

#: What the text of a conversation keeps: line breaks, tabs, and the joiners that Persian, Indic scripts and emoji need.
IN_TEXT = "\n\t\u200c\u200d"

#: Elements that have no content and no end tag.
_VOID = frozenset({"img", "link", "meta", "br"})


class Markup(str):
    """A string that is HTML already."""

    __slots__ = ()


def visible(text: str, keep: str = "") -> str:
    """Return `text` with every character written out that shows nothing or moves others: `⟨U+202E⟩`.

    These are control and format characters (NUL, zero-width, bidirectional), lone surrogates, private and unassigned
    ones, and line breaks other than those in `keep`.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c in keep or not _hidden(c) else f"⟨U+{ord(c):04X}⟩" for c in text)


def _hidden(character: str) -> bool:
    return unicodedata.category(character)[0] == "C" or character in "\u2028\u2029" or character in _INVISIBLE


def cut(text: str, limit: int) -> str:
    """Return at most `limit` characters of `text`, and how many are missing."""
    return text if len(text) <= limit else f"{text[:limit]}… [{len(text) - limit:,} more characters]"


def escape(value: object, keep: str = "") -> Markup:
    """Return a value as HTML that shows it, fit for content and for attributes in double quotes."""
    if isinstance(value, Markup):
        return value
    return Markup(html.escape(visible(str(value), keep), quote=True))


def tag(name: str, /, *content: object, **attributes: object) -> Markup:
    """Return an element.

    Args:
        content: escaped where it is not `Markup`; None is left out.
        attributes: `class_` and `aria_label` stand for `class` and `aria-label`; None and False are left out.
    """
    words = "".join(
        _attribute(key, value) for key, value in attributes.items() if not (value is None or value is False)
    )
    if name in _VOID:
        return Markup(f"<{name}{words}>")
    return Markup(f"<{name}{words}>{join(*content)}</{name}>")


def join(*content: object) -> Markup:
    """Return pieces behind each other, escaped where they are not `Markup`; None is left out."""
    return Markup("".join(escape(piece) for piece in content if piece is not None))


def foreign(text: object, limit: int = 120, keep: str = "") -> Markup:
    """Return a string that came with the data: cut, written out, and kept from reordering what stands around it."""
    return tag("bdi", escape(cut(str(text), limit), keep), class_="foreign")


def _attribute(key: str, value: object) -> str:
    key = key.rstrip("_").replace("_", "-")
    return f" {key}" if value is True else f' {key}="{escape(value)}"'
