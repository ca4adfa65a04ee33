"""A stored row as people read it."""

from __future__ import annotations

import unicodedata
from itertools import groupby

import click
import numpy as np

from dataprep.encoding import TextEncoder
from dataprep.shards.layout import RowLayout, StoredRow

#: Text of a pad or masked slot in the table.
GAP = "·"


def draw(row: StoredRow, layout: RowLayout, encoder: TextEncoder) -> str:
    """Return a heading and the row's text: trained tokens green, others dim, image slots as one mark."""
    picture = row.img_path or "no picture"
    heading = (
        f"{_shown(row.source.file)}:{row.source.line} id {row.source.id!r}  {_shown(picture)}\n"
        f"{row.length} of {layout.max_seq_length} slots attended, {int(row.loss_mask.sum())} trained\n"
    )
    return heading + "".join(_paint(kind, ids, encoder) for kind, ids in _runs(row, layout))


def _runs(row: StoredRow, layout: RowLayout) -> list[tuple[str, list[int]]]:
    """Cut the row's tokens into runs of one kind: trained, masked, image, hole."""
    ids, trained, kinds = _tokens(row, layout)
    marks = [kind or ("trained" if learned else "masked") for kind, learned in zip(kinds, trained, strict=True)]
    pieces = groupby(zip(marks, ids, strict=True), key=lambda pair: pair[0])
    return [(mark, [token for _, token in run]) for mark, run in pieces]


def _tokens(row: StoredRow, layout: RowLayout) -> tuple[list[int], list[bool], list[str]]:
    """Put the tokens together again: the inputs, and behind them the last label.

    A token is trained where the position before it, among the attended ones, has a loss.
    """
    attended = np.flatnonzero(~row.key_padding_mask)
    end = int(attended[-1]) + 1
    ids = [*row.text_input_ids[:end].tolist(), int(row.labels[end - 1])]
    trained = [False] * (end + 1)
    for position, following in zip(attended, [*attended[1:], end], strict=True):
        trained[following] = bool(row.loss_mask[position])
    kinds = [""] * (end + 1)
    start = layout.image_start_idx if row.has_image else layout.hole_start
    length = layout.num_patches if row.has_image else layout.hole_length
    kinds[start : start + length] = ["image" if row.has_image else "hole"] * length
    return ids, trained, kinds


def _paint(kind: str, ids: list[int], encoder: TextEncoder) -> str:
    if kind == "image":
        return click.style(f"<image: {len(ids)} patches>", fg="cyan")
    if kind == "hole":
        return click.style(f"<no image: {len(ids)} slots masked>", fg="yellow")
    text = _shown("".join(piece.replace("<0x0A>", "\n") for piece in encoder.decode(ids)))
    return click.style(text, fg="green", bold=True) if kind == "trained" else click.style(text, dim=True)


def _shown(text: str) -> str:
    """Return a text with its control characters spelled out: a terminal would obey them."""
    return "".join(repr(character)[1:-1] if _obeyed(character) else character for character in text)


def _obeyed(character: str) -> bool:
    return unicodedata.category(character) == "Cc" and character not in "\n\t"


def table_of(row: StoredRow, layout: RowLayout, encoder: TextEncoder) -> str:
    """Return a line a position, up to the last attended one; runs of image slots as one line."""
    end = int(np.flatnonzero(~row.key_padding_mask)[-1]) + 1
    first, last = layout.image_start_idx, layout.image_start_idx + layout.num_patches
    lines = ["position      id  piece             label  piece             loss  attended"]
    for position in range(end):
        if first < position < last - 1:
            if position == first + 1:
                lines.append(f"{GAP:>8}")
            continue
        token, label = int(row.text_input_ids[position]), int(row.labels[position])
        piece, target = encoder.decode([token, label])
        loss, attended = int(row.loss_mask[position]), int(not row.key_padding_mask[position])
        lines.append(f"{position:8} {token:7}  {piece!r:16} {label:6}  {target!r:16} {loss:5} {attended:9}")
    return "\n".join(lines)
