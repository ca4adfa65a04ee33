"""Spans to Sample: token ids with their loss mask.

One tokenizer without any dummy prefix: `Prepend` normalizers are dropped and `Metaspace` is set to `never`, because
the templates write every space out. Control literals in a text (`</s>`) are text: the tokenizer that sees text knows
the vocabulary alone, and control ids come from the spans that name them. The recipe was proved against the original
LLaVA's outputs on all of its samples and some thousands of random conversations, for `legacy` true and false, and
against transformers' `apply_chat_template` for the other templates.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from jaxtyping import Bool, Int32, Int64
from tokenizers import Tokenizer

from dataprep.shards.fingerprint import (
    read_chat_template,
    read_tokenizer_files,
    special_token,
    tokenizer_fingerprint,
)
from dataprep.templates import Kind, Span
from dataprep.tokenizer_kinds import (
    TokenizerError,
    control_ids,
    dialect_of,
    piece_bytes,
    readable,
    refuse_unsafe,
    text_only,
)
from dataprep.word_cache import TEXT, word_cache

#: The `bos_id` of a tokenizer that has none (Qwen).
NO_ID = -1

#: Spans that the word cache encodes and the tokenizer too: the first of each process, and then one in so many.
COMPARE_FIRST = 512
COMPARE_EVERY = 2048

#: Characters that no vocabulary has: they must become bytes.
RARE = "\U0010fffd\x01"

#: Spans whose ids are kept.
MAX_FIXED = 10_000

#: Environment variable that turns the word cache off.
CACHE_SWITCH = "LLAVA_PREP_WORD_CACHE"

__all__ = ["NO_ID", "Sample", "TextEncoder", "TokenizerError", "encode", "encode_batch"]


class Sample(NamedTuple):
    """One conversation in tokens, the image slots included. T tokens."""

    ids: Int32[np.ndarray, " T"]
    trained: Bool[np.ndarray, " T"]
    attended: Bool[np.ndarray, " T"]
    image_start: int
    """The first image slot (in a text-only sample: of its hole)."""

    @property
    def num_trained(self) -> int:
        """Number of tokens that are learned."""
        return int(self.trained.sum())


class Fixed(NamedTuple):
    """What stands for a span that holds no words of a record."""

    piece: bytes
    """Its ids, or the word cache's mark for them."""
    span: Span
    """Kept, so that its identity stays its own."""


class TextEncoder:
    """The tokenizer of a folder, set up so that text stays text.

    Attributes:
        dialect: what templates have to know of it.
        control_ids: the ids of the tokens beside the vocabulary, by their text.
        bos_id: `NO_ID` where the tokenizer has none.

    Raises:
        TokenizerError: the vocabulary breaks a property that exactness needs.
        FileNotFoundError: no `tokenizer.json`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        files, config = read_tokenizer_files(folder)
        refuse_unsafe(files, self.folder)
        self._tokenizer = Tokenizer.from_buffer(msgspec.json.encode(text_only(files)))
        self.control_ids = control_ids(files, config)
        self.dialect = dialect_of(files, config, read_chat_template(folder, config), self.control_ids)
        self.vocab_size = _vocab_size(files["model"]["vocab"], self.control_ids)
        self.bos_id = self._special(config, "bos_token") if config.get("bos_token") else NO_ID
        self.eos_id = self._special(config, "eos_token")
        self.pad_id = self._pad(config)
        self._control_names = {index: token for token, index in self.control_ids.items()}
        self._fixed: dict[int, dict[int, Fixed]] = {}
        self._num_compared = 0
        self._cache = None if os.environ.get(CACHE_SWITCH) == "off" else word_cache(self._tokenizer, files)
        self._refuse_found_controls()

    @cached_property
    def fingerprint(self) -> str:
        """See `dataprep.shards.fingerprint`. Costs more than loading the tokenizer, and workers have no use for it."""
        return tokenizer_fingerprint(self.folder)

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any control id and without a dummy prefix."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_spans(
        self, spans: Sequence[Span], num_patches: int
    ) -> tuple[Int32[np.ndarray, " T"], Int64[np.ndarray, " S"]]:
        """Return the ids of all spans, one after the other, and the number of each one's.

        Raises:
            TokenizerError: the word cache and the tokenizer differ on a text of the sample that is compared.
        """
        if self._cache is None:
            return self._encode_plainly(spans, num_patches)
        # Templates give the same objects again and again; their identity is quicker to look up than what they say.
        fixed, text = self._fixed.setdefault(num_patches, {}), Kind.TEXT
        pieces = [
            TEXT + span[1].encode()
            if span[0] is text
            else (fixed.get(id(span)) or self._fix(span, num_patches, fixed))[0]
            for span in spans
        ]
        ids, counts = self._cache.encode(pieces)
        self._compare(spans, ids, counts)
        return ids, counts

    def _encode_plainly(self, spans: Sequence[Span], num_patches: int) -> tuple[np.ndarray, np.ndarray]:
        texts = [span.text for span in spans if span.kind is Kind.TEXT]
        encoded = iter(self._tokenizer.encode_batch_fast(texts, add_special_tokens=False))
        fixed = self._fixed.setdefault(num_patches, {})
        pieces = [
            _bytes(next(encoded).ids)
            if span.kind is Kind.TEXT
            else (fixed.get(id(span)) or self._fix(span, num_patches, fixed)).piece
            for span in spans
        ]
        counts = np.array([len(piece) >> 2 for piece in pieces], np.int64)
        return np.frombuffer(b"".join(pieces), np.int32), counts

    def _compare(self, spans: Sequence[Span], ids: np.ndarray, counts: np.ndarray) -> None:
        """Encode some texts once more: all of the first spans of a process, then the first text after one in many."""
        count = min(COMPARE_FIRST - self._num_compared, len(spans))
        self._num_compared += count
        first = [index for index in range(count) if spans[index].kind is Kind.TEXT]
        later = [_next_text(spans, index) for index in range(count, len(spans), COMPARE_EVERY)]
        for index in (*first, *later):
            if index is None:  # no text behind the last place
                return
            text, begin = spans[index].text, int(counts[:index].sum())
            if self.encode(text) != ids[begin : begin + int(counts[index])].tolist():
                raise TokenizerError(
                    f"{self.folder}: the word cache and the tokenizer differ on {text[:200]!r}; please report"
                    " this text and the tokenizer, and compile with LLAVA_PREP_WORD_CACHE=off"
                )

    def _fix(self, span: Span, num_patches: int, fixed: dict[int, Fixed]) -> Fixed:
        """Make and keep what stands for a span without words of a record."""
        if len(fixed) > MAX_FIXED:
            fixed.clear()
        ids = self._encode_fixed(span, num_patches)
        made = fixed[id(span)] = Fixed(ids if self._cache is None else self._cache.mark(ids), span)
        return made

    def _encode_fixed(self, span: Span, num_patches: int) -> bytes:
        if span.kind is Kind.IMAGE:  # its slots hold the pad id, as in the Model Zoo's rows
            return _bytes([self.pad_id] * num_patches)
        if span.kind is Kind.WORDING:
            return _bytes(self.encode(span.text))
        if span.kind is Kind.CONTROL:
            return _bytes([self.control_ids[span.text]])
        return _bytes([self.bos_id if span.kind is Kind.BOS else self.eos_id])

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id as it reads: blanks for `▁`, what is no whole character as bytes, `<0x0A>`."""
        return [self._piece(int(index)) for index in ids]

    def bytes_of(self, index: int) -> bytes:
        """Return what an id writes, in UTF-8: a whole piece or a byte of a character; a control token writes nothing.

        An id that the vocabulary does not have (a table may have rows to spare) writes nothing either.
        """
        piece = None if index in self._control_names else self._tokenizer.id_to_token(index)
        return b"" if piece is None else piece_bytes(piece, self.dialect.byte_level)

    def _piece(self, index: int) -> str:
        if index in self._control_names:
            return self._control_names[index]
        piece = self._tokenizer.id_to_token(index)
        return f"<{index}>" if piece is None else readable(piece, self.dialect.byte_level)

    def _refuse_found_controls(self) -> None:
        """Check that no text becomes a control token: a vocabulary may merge to one, or know no bytes, but `<unk>`."""
        controls = set(self.control_ids.values())
        for literal in (*self.control_ids, RARE):
            if controls & set(self.encode(literal)):
                raise TokenizerError(
                    f"{self.folder}: the text {literal!r} becomes a control token by the vocabulary's own rules, so"
                    " text could not stay text"
                )

    def _special(self, config: dict[str, Any], name: str) -> int:
        token = special_token(config, name)
        index = self.control_ids.get(token) if token else None
        if index is None:
            raise TokenizerError(f"{self.folder}/tokenizer_config.json: {name} is {token!r}, which has no id")
        return index

    def _pad(self, config: dict[str, Any]) -> int:
        """The pad id only fills slots that masks hide, so any id will do: pad, else unk, else eos, as Model Zoo."""
        for name in ("pad_token", "unk_token"):
            token = special_token(config, name)
            index = self.control_ids.get(token) if token else None
            if index is not None:
                return index
        return self.eos_id


def _next_text(spans: Sequence[Span], index: int) -> int | None:
    return next((place for place in range(index, len(spans)) if spans[place].kind is Kind.TEXT), None)


def encode(spans: Sequence[Span], encoder: TextEncoder, num_patches: int) -> Sample:
    """Turn the spans of one conversation into a sample; image slots hold the pad id, as the Model Zoo's rows do."""
    return encode_batch([spans], encoder, num_patches)[0]


def encode_batch(samples: Sequence[Sequence[Span]], encoder: TextEncoder, num_patches: int) -> list[Sample]:
    """Turn many conversations' spans into samples, tokenising all their texts in one call."""
    if not samples:
        return []
    spans = list(chain.from_iterable(samples))
    ids, counts = encoder.encode_spans(spans, num_patches)
    ends = np.cumsum(counts)
    # Through bytes, which take a list of flags five times as fast as an array does.
    trained = np.repeat(np.frombuffer(bytes([span[2] for span in spans]), bool), counts)
    attended = np.repeat(np.frombuffer(bytes([span[3] for span in spans]), bool), counts)
    stops = np.cumsum([len(some) for some in samples])
    pictures = [index for index, span in enumerate(spans) if span[0] is Kind.IMAGE]
    slots = np.full(len(samples), -1)
    slots[np.searchsorted(stops, pictures, "right")] = (ends - counts)[pictures]
    begin, made = 0, []
    for end, slot in zip(ends[stops - 1].tolist(), slots.tolist(), strict=True):
        made.append(Sample(ids[begin:end], trained[begin:end], attended[begin:end], slot - begin if slot >= 0 else -1))
        begin = end
    return made


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def _vocab_size(vocabulary: dict[str, int], controls: dict[str, int]) -> int:
    """Return one more than the largest id, or the number of tokens where that is more."""
    return max(len({*vocabulary, *controls}), 1 + max(vocabulary.values()), 1 + max(controls.values(), default=0))
