"""Spans to Sample: token ids with their loss mask.

One tokenizer without any dummy prefix: `Prepend` normalizers are dropped and `Metaspace` is set to `never`, because
the templates write every space out. Control literals in a text (`</s>`) are text: `encode_special_tokens` makes the
`tokenizers` library encode them piece by piece. The recipe was proved against the original LLaVA's outputs on all of
its samples and some thousands of random conversations, for `legacy` true and false.
"""

from __future__ import annotations

import json
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

BLANK = "▁"


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
        self._wording: dict[str, list[int]] = {}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without any control id and without a dummy prefix."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; the same as `encode`, faster."""
        return [e.ids for e in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def wording(self, text: str) -> list[int]:
        """Return the ids of a template's own words, encoded once a process."""
        if text not in self._wording:
            self._wording[text] = self.encode(text)
        return self._wording[text]

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


def _join(spans: Sequence[Span], encoded: Iterator[list[int]], encoder: TextEncoder, num_patches: int) -> Sample:
    ids: list[int] = []
    sizes: list[int] = []
    image_start = -1
    for span in spans:
        if span.kind is Kind.IMAGE:
            image_start = len(ids)
        piece = next(encoded) if span.kind is Kind.TEXT else _own_ids(span, encoder, num_patches)
        ids += piece
        sizes.append(len(piece))
    return Sample(
        ids=np.array(ids, dtype=np.int32),
        trained=np.repeat([span.trained for span in spans], sizes),
        attended=np.repeat([span.attended for span in spans], sizes),
        image_start=image_start,
    )


def _own_ids(span: Span, encoder: TextEncoder, num_patches: int) -> list[int]:
    """Return the ids that come from our code alone: structure and the template's wording."""
    if span.kind is Kind.IMAGE:
        return [encoder.pad_id] * num_patches
    if span.kind is Kind.WORDING:
        return encoder.wording(span.text)
    return [encoder.bos_id if span.kind is Kind.BOS else encoder.eos_id]


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
