"""Spans to Sample: token ids with their loss mask.

One tokenizer without any dummy prefix: `Prepend` normalizers are dropped and `Metaspace` is set to `never`, because
the templates write every space out. Control literals in a text (`</s>`) are text: `encode_special_tokens` makes the
`tokenizers` library encode them piece by piece. The recipe was proved against the original LLaVA's outputs on all of
its samples and some thousands of random conversations, for `legacy` true and false.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Int32
from tokenizers import Tokenizer

from dataprep.shards.fingerprint import (
    BLANK_RULE,
    legacy,
    read_tokenizer_files,
    special_token,
    text_rules,
    tokenizer_fingerprint,
)
from dataprep.templates import Kind, Span
from dataprep.word_cache import word_cache

BLANK = "▁"

#: Texts that the word cache encodes and the tokenizer too: the first of each process, and then one in so many.
COMPARE_FIRST = 256
COMPARE_EVERY = 512

#: Environment variable that turns the word cache off.
CACHE_SWITCH = "LLAVA_PREP_WORD_CACHE"

_TRUE, _FALSE = b"\1", b"\0"


class TokenizerError(ValueError):
    """A tokenizer that this recipe cannot be exact with."""


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


class TextEncoder:
    """The tokenizer of a folder, set up so that text stays text.

    Build one in every process: the setting that keeps control literals out does not survive pickling.

    Attributes:
        legacy: whether later turns open with a blank.
        fingerprint: see `dataprep.shards.fingerprint`.

    Raises:
        TokenizerError: the vocabulary breaks a property that exactness needs.
        FileNotFoundError: no `tokenizer.json`.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        files, config = read_tokenizer_files(folder)
        self.legacy = legacy(config, files)
        self.fingerprint = tokenizer_fingerprint(folder)
        _refuse_unsafe(files, self.folder)
        self._tokenizer = Tokenizer.from_str(json.dumps(_without_prefix(files)))
        self._tokenizer.encode_special_tokens = True
        self.vocab_size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        self.bos_id = self._special(config, "bos_token")
        self.eos_id = self._special(config, "eos_token")
        self.pad_id = self._pad(config)
        self._control = {Kind.BOS: _bytes([self.bos_id]), Kind.EOS: _bytes([self.eos_id])}
        self._pad_bytes = _bytes([self.pad_id])
        self._wording: dict[str, bytes] = {}
        self._num_texts = 0
        self._cache = None if os.environ.get(CACHE_SWITCH) == "off" else word_cache(self._tokenizer, files)

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

    def wording(self, text: str) -> bytes:
        """Return the ids of a template's own words as bytes, encoded once a process."""
        if text not in self._wording:
            self._wording[text] = _bytes(self.encode(text))
        return self._wording[text]

    def control(self, kind: Kind) -> bytes:
        """Return the id of a span that is one control token, as bytes."""
        return self._control[kind]

    def image_slots(self, num_patches: int) -> bytes:
        """Return what stands in the slots of a picture: the pad id, as in the Model Zoo's rows."""
        return self._pad_bytes * num_patches

    def decode(self, ids: Sequence[int]) -> list[str]:
        """Return the piece of each id as it reads: blanks for `▁`, byte pieces as `<0x0A>`."""
        return [(self._tokenizer.id_to_token(int(i)) or f"<{int(i)}>").replace(BLANK, " ") for i in ids]

    def _special(self, config: dict[str, Any], name: str) -> int:
        token = special_token(config, name)
        index = self._tokenizer.token_to_id(token) if token else None
        if index is None:
            raise TokenizerError(f"{self.folder}/tokenizer_config.json: {name} is {token!r}, which has no id")
        return index

    def _pad(self, config: dict[str, Any]) -> int:
        """The pad id only fills slots that masks hide, so any id will do: pad, else unk, else eos, as Model Zoo."""
        for name in ("pad_token", "unk_token"):
            token = special_token(config, name)
            index = self._tokenizer.token_to_id(token) if token else None
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
    attended: list[bytes] = []
    size, image_start = 0, -1
    for kind, text, is_trained, is_attended in spans:
        if kind is Kind.TEXT:
            piece = next(encoded)
        elif kind is Kind.IMAGE:
            piece, image_start = encoder.image_slots(num_patches), size
        else:
            piece = encoder.wording(text) if kind is Kind.WORDING else encoder.control(kind)
        count = len(piece) >> 2
        pieces.append(piece)
        trained.append((_TRUE if is_trained else _FALSE) * count)
        attended.append((_TRUE if is_attended else _FALSE) * count)
        size += count
    return Sample(
        ids=np.frombuffer(b"".join(pieces), np.int32),
        trained=np.frombuffer(b"".join(trained), bool),
        attended=np.frombuffer(b"".join(attended), bool),
        image_start=image_start,
    )


def _bytes(ids: Sequence[int]) -> bytes:
    return np.array(ids, dtype=np.int32).tobytes()


def _without_prefix(files: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer file with nothing that adds, cuts or fills text on its own."""
    files = {**files, "truncation": None, "padding": None, "normalizer": _no_prepend(files.get("normalizer"))}
    pre = files.get("pre_tokenizer")
    if pre and pre.get("type") == "Metaspace":
        kept = {key: value for key, value in pre.items() if key != "add_prefix_space"}
        files["pre_tokenizer"] = {**kept, "prepend_scheme": "never"}
    return files


def _no_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer.get("type") == "Prepend":
        return None
    if normalizer.get("type") == "Sequence":
        kept = [_no_prepend(inner) for inner in normalizer["normalizers"]]
        return {**normalizer, "normalizers": [inner for inner in kept if inner]}
    return normalizer


def _refuse_unsafe(files: dict[str, Any], folder: Path) -> None:
    """Check what the recipe stands on; a tokenizer of another kind would be silently inexact."""
    kind, rules = files["model"].get("type"), text_rules(files)
    if kind != "BPE" or rules != [BLANK_RULE]:
        raise TokenizerError(
            f"{folder}: a {kind} tokenizer with the text rules {str(rules)[:200]};"
            f" this template needs a Llama-type one: BPE, and nothing but {BLANK_RULE!r}"
        )
    crossing = [piece for piece in files["model"]["vocab"] if BLANK in piece.lstrip(BLANK)]
    if crossing:
        raise TokenizerError(
            f"{folder}: {len(crossing)} pieces have a blank behind another character ({crossing[0]!r}), so prompts"
            " cannot be cut at blanks; this template needs a Llama-type (SentencePiece) vocabulary"
        )
    if BLANK not in "".join(files["model"]["vocab"]):
        raise TokenizerError(f"{folder}: no piece has {BLANK!r}; this template needs a Llama-type vocabulary")
    plain = [entry["content"] for entry in files.get("added_tokens", []) if not entry.get("special")]
    if plain:
        raise TokenizerError(
            f"{folder}: the added tokens {plain} are not marked special and would be found inside text; use the base"
            " tokenizer, not that of an export"
        )
