"""The ids of a text, word by word from memory: what makes compiling several times faster than the tokenizer alone.

In a Llama-type vocabulary no piece has a blank behind another character, so nothing is ever merged across the place
before a blank that follows a non-blank, and the ids of a text are those of its words one after the other. The same
holds at both sides of a character that stands in no longer piece, as the newline does. Both are properties of the
vocabulary that are looked up when a tokenizer is loaded, never assumed; where one fails, there is no cache.

Ids are kept as bytes (int32): joining bytes is an order of magnitude cheaper than joining lists of numbers.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE

BLANK = "▁"

#: Words kept, a table. 200,000 of them take about 40 MB.
MAX_WORDS = 200_000

#: A longer run of non-blanks (base64, a table without blanks) hardly comes twice.
MAX_CHARS = 64

_WORD = re.compile(" *[^ ]+| +")


class WordCache:
    """Encodes texts as a Llama-type tokenizer does, remembering words.

    Build it with `word_cache`, which knows what it may be used for.
    """

    def __init__(self, model: BPE, cut_at_newlines: bool) -> None:
        self._words = _Words(model, "")
        self._later_words = _Words(model, BLANK)
        self._later_words[""] = b""
        self._later_word = self._later_words.__getitem__
        self._newline = self._words["\n"] if cut_at_newlines else None

    def encode(self, text: str) -> bytes:
        """Return the ids of `text`, int32 in the machine's byte order, without control ids and dummy prefix."""
        if BLANK in text:  # the tokenizer cannot tell it from a blank
            text = text.replace(BLANK, " ")
        if "\n" not in text or self._newline is None:
            return self._line(text)
        return self._newline.join([self._line(line) for line in text.split("\n")])

    def _line(self, line: str) -> bytes:
        if "  " in line or line.endswith(" "):
            # A run of blanks belongs to the word behind it.
            return b"".join([self._words[word] for word in _WORD.findall(line)])
        words = line.split(" ")
        if words[0]:
            return self._words[words[0]] + b"".join(map(self._later_word, words[1:]))
        # The line opens with a blank, as nearly all do; its empty first word has no ids, and no other is empty.
        return b"".join(map(self._later_word, words))


class _Words(dict[str, bytes]):
    """Word to ids; a word that is not there is encoded. `opening` stands before each."""

    def __init__(self, model: BPE, opening: str) -> None:
        super().__init__()
        self._model = model
        self._opening = opening

    def __missing__(self, word: str) -> bytes:
        tokens = self._model.tokenize(self._opening + word.replace(" ", BLANK))
        ids = _format(len(tokens)).pack(*[token.id for token in tokens])
        if len(word) <= MAX_CHARS:
            if len(self) >= MAX_WORDS:
                self.clear()
                self[""] = b""
            self[word] = ids
        return ids


@lru_cache(maxsize=256)
def _format(count: int) -> struct.Struct:
    return struct.Struct(f"={count}i")


def word_cache(tokenizer: Tokenizer, files: dict[str, Any]) -> WordCache | None:
    """Return the cache over a tokenizer, or None where word by word is not exact.

    Args:
        tokenizer: as `TextEncoder` has set it up: nothing but blanks to `▁`, no dummy prefix.
        files: the contents of its `tokenizer.json`.
    """
    model, vocabulary = tokenizer.model, files["model"]["vocab"]
    if not isinstance(model, BPE) or not _whole(files["model"]) or files["model"].get("dropout"):
        return None
    if any(BLANK in piece.lstrip(BLANK) for piece in vocabulary):
        return None
    return WordCache(model, cut_at_newlines=not any("\n" in piece and len(piece) > 1 for piece in vocabulary))


def _whole(model: dict[str, Any]) -> bool:
    """Return whether every character has an id, so that unknown ones are never fused across words."""
    byte_pieces = all(f"<0x{byte:02X}>" in model["vocab"] for byte in range(256))
    return bool(model.get("byte_fallback")) and byte_pieces and not model.get("continuing_subword_prefix")
