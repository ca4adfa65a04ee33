"""Spans to Sample: token ids with their loss mask.

One tokenizer without any dummy prefix: `Prepend` normalizers are dropped and `Metaspace` is set to `never`, because
the templates write every space out. Control literals in a text (`</s>`) are text: the tokenizer that sees text knows
the vocabulary alone, and control ids come from the spans that name them. The recipe was proved against the original
LLaVA's outputs on all of its samples and some thousands of random conversations, for `legacy` true and false, and
against transformers' `apply_chat_template` for the other templates.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer

from dataprep.shards.fingerprint import (
    read_chat_template,
    read_tokenizer_files,
    special_token,
    tokenizer_fingerprint,
)
from dataprep.templates import Kind, Span
from dataprep.tokenizer_kinds import TokenizerError, control_ids, dialect_of, readable, refuse_unsafe, text_only
from dataprep.word_cache import word_cache

#: The `bos_id` of a tokenizer that has none (Qwen).
NO_ID = -1

#: Texts that the word cache encodes and the tokenizer too: the first of each process, and then one in so many.
COMPARE_FIRST = 256
COMPARE_EVERY = 512

#: Characters that no vocabulary has: they must become bytes.
RARE = "\U0010fffd\x01"

#: Spans whose ids are kept.
MAX_FIXED = 10_000

#: Environment variable that turns the word cache off.
CACHE_SWITCH = "LLAVA_PREP_WORD_CACHE"

_TRUE, _FALSE = b"\1", b"\0"

__all__ = ["NO_ID", "Sample", "TextEncoder", "TokenizerError", "encode", "encode_batch"]


@dataclass(frozen=True, slots=True)
class Sample:
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
    """What a span becomes that holds no words of a record."""

    ids: bytes
    """int32."""
    trained: bytes
    """A byte a token."""
    count: int
    is_image: bool
    span: Span
    """Kept, so that its identity stays its own."""


class TextEncoder:
    """The tokenizer of a folder, set up so that text stays text.

    Attributes:
        dialect: what templates have to know of it.
        fingerprint: see `dataprep.shards.fingerprint`.
        control_ids: the ids of the tokens beside the vocabulary, by their text.
        bos_id: `NO_ID` where the tokenizer has none.

    Raises:
        TokenizerError: the vocabulary breaks a property that exactness needs.
        FileNotFoundError: no `tokenizer.json`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        files, config = read_tokenizer_files(folder)
        self.fingerprint = tokenizer_fingerprint(folder)
        refuse_unsafe(files, self.folder)
        self._tokenizer = Tokenizer.from_str(json.dumps(text_only(files)))
        self.control_ids = control_ids(files, config)
        self.dialect = dialect_of(files, config, read_chat_template(folder, config), self.control_ids)
        self.vocab_size = _vocab_size(files["model"]["vocab"], self.control_ids)
        self.bos_id = self._special(config, "bos_token") if config.get("bos_token") else NO_ID
        self.eos_id = self._special(config, "eos_token")
        self.pad_id = self._pad(config)
        self._control_names = {index: token for token, index in self.control_ids.items()}
        self._fixed: dict[tuple[int, int], Fixed] = {}
        self._num_texts = 0
        self._cache = None if os.environ.get(CACHE_SWITCH) == "off" else word_cache(self._tokenizer, files)
        self._refuse_found_controls()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any control id and without a dummy prefix."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[bytes]:
        """Return the ids of each text as bytes (int32, the machine's order); the same as `encode`, faster.

        Raises:
            TokenizerError: the word cache and the tokenizer differ on a text of the sample that is compared.
        """
        if self._cache is None:
            return [_bytes(e.ids) for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]
        encoded = [self._cache.encode(text) for text in texts]
        self._compare(texts, encoded)
        return encoded

    def _compare(self, texts: list[str], encoded: list[bytes]) -> None:
        """Encode a sample of what the cache encodes once more: the first texts of a process, then one in many."""
        count = max(0, COMPARE_FIRST - self._num_texts)
        sample = [*range(min(count, len(texts))), *range(count, len(texts), COMPARE_EVERY)]
        self._num_texts += len(texts)
        for index in sample:
            if _bytes(self.encode(texts[index])) != encoded[index]:
                raise TokenizerError(
                    f"{self.folder}: the word cache and the tokenizer differ on {texts[index][:200]!r}; please report"
                    " this text and the tokenizer, and compile with LLAVA_PREP_WORD_CACHE=off"
                )

    def fixed(self, span: Span, num_patches: int) -> Fixed:
        """Return what a span becomes that holds no words of a record: wording, a control token, the picture's slots."""
        # Templates give the same object again and again, and its identity is quicker to look up than what it says.
        known = self._fixed.get((id(span), num_patches))
        if known is None:
            if len(self._fixed) > MAX_FIXED:
                self._fixed.clear()
            piece = self._encode_fixed(span, num_patches)
            count = len(piece) >> 2
            mask = (_TRUE if span.trained else _FALSE) * count
            known = self._fixed[id(span), num_patches] = Fixed(piece, mask, count, span.kind is Kind.IMAGE, span)
        return known

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


def encode(spans: Sequence[Span], encoder: TextEncoder, num_patches: int) -> Sample:
    """Turn the spans of one conversation into a sample; image slots hold the pad id, as the Model Zoo's rows do."""
    return encode_batch([spans], encoder, num_patches)[0]


def encode_batch(samples: Sequence[Sequence[Span]], encoder: TextEncoder, num_patches: int) -> list[Sample]:
    """Turn many conversations' spans into samples, tokenising all their texts in one call."""
    texts = [span.text for spans in samples for span in spans if span.kind is Kind.TEXT]
    encoded = iter(encoder.encode_batch(texts))
    return [_join(spans, encoded, encoder, num_patches) for spans in samples]


def _join(spans: Sequence[Span], encoded: Iterator[bytes], encoder: TextEncoder, num_patches: int) -> Sample:
    pieces: list[bytes] = []
    trained: list[bytes] = []
    hidden: list[tuple[int, int]] = []
    size, image_start = 0, -1
    for span in spans:
        if span[0] is Kind.TEXT:
            piece = next(encoded)
            count = len(piece) >> 2
            mask = (_TRUE if span[2] else _FALSE) * count
        else:
            piece, mask, count, is_image, _ = encoder.fixed(span, num_patches)
            if is_image:
                image_start = size
        pieces.append(piece)
        trained.append(mask)
        if not span[3]:
            hidden.append((size, size + count))
        size += count
    return Sample(
        ids=np.frombuffer(b"".join(pieces), np.int32),
        trained=np.frombuffer(b"".join(trained), bool),
        attended=_attended(size, hidden),
        image_start=image_start,
    )


def _attended(size: int, hidden: Sequence[tuple[int, int]]) -> Bool[np.ndarray, " T"]:
    attended = np.ones(size, bool)
    for start, stop in hidden:
        attended[start:stop] = False
    return attended


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def _vocab_size(vocabulary: dict[str, int], controls: dict[str, int]) -> int:
    """Return one more than the largest id, or the number of tokens where that is more."""
    return max(len({*vocabulary, *controls}), 1 + max(vocabulary.values()), 1 + max(controls.values(), default=0))
