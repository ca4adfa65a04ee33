"""A handful of rows as a person reads them: their text in runs of one kind, and their picture as the tower sees it."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from dataprep.images import ImageFault, load_image, pad_colour, resolve_key
from dataprep.report.gather import Facts, RowSample
from dataprep.shards.fingerprint import tokenizer_fingerprint
from dataprep.shards.layout import RowLayout, StoredRow
from dataprep.shards.reader import ShardReader

#: Rows that are shown at most.
MAX_ROWS = 8

#: Sources that get a row of their own.
MAX_SOURCES = 4

#: A picture takes at most so many bytes of the page, and is made smaller until it does.
MAX_PICTURE_BYTES = 60_000

#: A picture is shown at the tower's size, but never larger than this.
MAX_PIXELS = 448


class Run(NamedTuple):
    """Tokens of one kind behind each other."""

    kind: str
    """`trained`, `masked` (attended, not learned), `image` or `hole` (masked out)."""
    text: str
    num_tokens: int
    control: bool
    """Whether it is a control token, which no text can make."""


@dataclass(frozen=True)
class Shown:
    """One row of the report."""

    why: str
    index: int
    row: StoredRow
    runs: list[Run]
    picture: str | None
    """A data: URI."""
    no_picture: str | None
    """Why there is none."""


class Decoder:
    """Turns ids into text, by the tokenizer's own decoder.

    Raises:
        ValueError: the folder has no tokenizer, or another than the shards were compiled with.
    """

    def __init__(self, folder: Path, layout: RowLayout) -> None:
        file = folder / "tokenizer.json"
        if not file.is_file():
            raise ValueError("tokenizer/tokenizer.json is not there")
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
            same = tokenizer_fingerprint(folder) == layout.tokenizer_fingerprint
        except Exception as error:  # the library raises a plain Exception for a file that it cannot read
            raise ValueError(f"tokenizer/ cannot be read ({type(error).__name__})") from None
        if not same:
            raise ValueError("tokenizer/ is not the one that the shards were compiled with")
        added = self._tokenizer.get_added_tokens_decoder()
        self.control = {number for number, token in added.items() if token.special}
        # Decoders drop the blank before the first token, so a token stands in front, and its text is taken off again.
        self._first = layout.eos_id
        self._skip = len(self._tokenizer.decode([self._first], skip_special_tokens=False))

    def __call__(self, ids: list[int]) -> str:
        """Return the text of tokens that stand behind others."""
        return self._tokenizer.decode([self._first, *ids], skip_special_tokens=False)[self._skip :]


def shown_rows(facts: Facts) -> tuple[list[Shown], str | None]:
    """Return the rows to show, and a sentence where their text cannot be shown.

    Raises:
        ShardError: a shard that holds one of them is damaged: each is hashed before a row of it is read.
    """
    decoder, fault = None, None
    try:
        decoder = Decoder(facts.folder / "tokenizer", facts.layout)
    except ValueError as error:
        fault = f"The texts are not shown: {error}."
    with ShardReader(facts.folder) as reader:
        return [_shown(facts, reader, why, index, decoder) for why, index in chosen_rows(facts)], fault


def chosen_rows(facts: Facts) -> list[tuple[str, int]]:
    """Choose the median row, the longest, the shortest, one without a picture, and one of each large source."""
    sample = facts.columns.sample
    if not len(sample.index):
        return []
    chosen: dict[int, str] = {}
    for why, place in _wishes(sample, facts):
        index = int(sample.index[place])
        if index in chosen or len(chosen) < MAX_ROWS:
            chosen[index] = f"{chosen[index]}; {why}" if index in chosen else why
    return [(why, index) for index, why in chosen.items()]


def _wishes(sample: RowSample, facts: Facts) -> Iterator[tuple[str, int]]:
    by_length = np.argsort(sample.length, kind="stable")
    yield "a row of median length", int(by_length[len(by_length) // 2])
    yield "the longest", int(np.argmax(sample.length))
    yield "the shortest", int(by_length[0])
    if not sample.has_image.all():
        yield "one without a picture", int(np.argmin(sample.has_image))
    names = list(facts.columns.sources)
    largest = sorted(range(len(names)), key=lambda number: -facts.columns.sources[names[number]].rows)
    for number in largest[:MAX_SOURCES] if len(names) > 1 else ():
        rows = np.flatnonzero(sample.source == number)
        if len(rows):
            yield "from a large source", int(rows[len(rows) // 2])
    yield "one from the middle", len(by_length) // 2


def _shown(facts: Facts, reader: ShardReader, why: str, index: int, decoder: Decoder | None) -> Shown:
    row = reader[index]
    picture, fault = None, None
    if row.has_image:
        picture, fault = _picture(facts, reader, row, index)
    return Shown(why, index, row, runs(row, facts.layout, decoder), picture, fault)


def runs(row: StoredRow, layout: RowLayout, decoder: Decoder | None) -> list[Run]:
    """Cut a row's tokens into runs of one kind; control tokens stand alone."""
    ids, kinds = _tokens(row, layout)
    control = {layout.bos_id, layout.eos_id} | (decoder.control if decoder else set())
    marks = [(kind, token in control and kind not in ("image", "hole")) for token, kind in zip(ids, kinds, strict=True)]
    found = []
    for (kind, is_control), pieces in groupby(zip(marks, ids, strict=True), key=lambda pair: pair[0]):
        tokens = [token for _, token in pieces]
        text = decoder(tokens) if decoder and kind not in ("image", "hole") else ""
        found.append(Run(kind, text, len(tokens), is_control))
    return found


def _tokens(row: StoredRow, layout: RowLayout) -> tuple[list[int], list[str]]:
    """Put the tokens together again: the inputs, and behind them the last label.

    A token is trained where the position before it, among the attended ones, has a loss.
    """
    attended = np.flatnonzero(~row.key_padding_mask)
    if not len(attended):
        return [], []
    end = int(attended[-1]) + 1
    ids = [*row.text_input_ids[:end].tolist(), int(row.labels[end - 1])]
    kinds = np.full(end + 1, "masked", dtype="<U7")
    kinds[np.append(attended[1:], end)[row.loss_mask[attended]]] = "trained"
    start = layout.image_start_idx if row.has_image else layout.hole_start
    length = layout.num_patches if row.has_image else layout.hole_length
    kinds[start : start + length] = "image" if row.has_image else "hole"
    return ids, kinds.tolist()


def _picture(facts: Facts, reader: ShardReader, row: StoredRow, index: int) -> tuple[str | None, str | None]:
    stored: Any = getattr(reader, "picture", None)
    if stored is not None and (pixels := stored(index)) is not None:
        return data_uri(pixels), None
    root = facts.manifest.get("image_root")
    if not isinstance(root, str) or row.img_path is None:
        return None, "the manifest names no image root"
    layout = facts.layout
    try:
        path = resolve_key(Path(root), row.img_path)
        size = min(layout.image_size, MAX_PIXELS)
        return data_uri(load_image(path, size, layout.image_fit, pad_colour(layout.image_mean))), None
    except ImageFault as fault:
        # Its message names a path of this machine.
        return None, f"the picture cannot be shown here: {fault.reason.replace('_', ' ')}"


def data_uri(pixels: np.ndarray) -> str:
    """Return a picture (uint8 RGB, height, width, 3) as a JPEG that takes little room, in a data: URI."""
    picture = Image.fromarray(pixels)
    picture.thumbnail((MAX_PIXELS, MAX_PIXELS))
    for quality in (88, 75, 60, 40):
        content = _jpeg(picture, quality)
        if len(content) <= MAX_PICTURE_BYTES:
            break
    while len(content) > MAX_PICTURE_BYTES:
        picture = picture.resize((max(1, picture.width // 2), max(1, picture.height // 2)))
        content = _jpeg(picture, 60)
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def _jpeg(picture: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
