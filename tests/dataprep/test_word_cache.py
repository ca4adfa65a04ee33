"""Word by word is exact: on text of every kind, and where it would not be, there is no cache."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dataprep import word_cache as module
from dataprep.encoding import CACHE_SWITCH, TextEncoder, TokenizerError
from dataprep.shards.fingerprint import read_tokenizer_files
from dataprep.word_cache import word_cache

COUNT = 300_000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 20_000

PIECES = [
    *(" ", "  ", "     ", "▁", "▁▁", "\n", "\n\n", "\t", "\r\n", "\0", "\x7f", "\u200b", "\u3000", "\ufeff"),
    *("a", "the", "The", "ing", "é", "e\u0301", "日本", "😀", "👨‍👩‍👧", "ſ", "1", "23", "2024", ".", ",", "...", "--"),
    *(
        "</s>",
        "<s>",
        "<unk>",
        "<0x0A>",
        "<image>",
        "USER:",
        "ASSISTANT:",
        "{",
        "}\n",
        "def f(x):\n    return x",
        "x" * 70,
    ),
]


def fuzz(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)

    def piece() -> str:
        if draw.random() < 0.8:
            return draw.choice(PIECES)
        return chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)]))

    return ["".join(piece() for _ in range(draw.randrange(25))) for _ in range(count)]


@pytest.fixture(params=["tiny", "llama2"])
def encoder(request, tiny_tokenizer_dir, monkeypatch) -> TextEncoder:
    folder = tiny_tokenizer_dir
    if request.param == "llama2":
        folder = request.getfixturevalue("shared") / "tokenizer-llama2"
    monkeypatch.setenv(CACHE_SWITCH, "off")
    return TextEncoder(folder)


def cache_of(encoder: TextEncoder) -> module.WordCache:
    cache = word_cache(encoder._tokenizer, read_tokenizer_files(encoder.folder)[0])
    assert cache is not None
    return cache


def test_the_cache_gives_what_the_tokenizer_gives(encoder):
    texts = fuzz(COUNT)
    expected = encoder.encode_batch(texts)
    cache = cache_of(encoder)
    for _ in range(2):  # cold and warm
        assert [cache.encode(text) for text in texts] == expected


def test_a_full_cache_begins_anew_and_stays_exact(encoder, monkeypatch):
    monkeypatch.setattr(module, "MAX_WORDS", 10)
    cache = cache_of(encoder)
    for text in fuzz(300, seed=1):
        assert cache.encode(text) == np.array(encoder.encode(text), np.int32).tobytes()
    assert 0 < len(cache._words) <= 10


def changed(folder: Path, change) -> tuple[Tokenizer, dict]:
    files = json.loads((folder / "tokenizer.json").read_text())
    change(files["model"])
    return Tokenizer.from_str(json.dumps(files)), files


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model["vocab"].update({"a▁b": 10**6}),
        lambda model: model.update(byte_fallback=False),
        lambda model: model["vocab"].pop("<0x41>"),
        lambda model: model.update(dropout=0.1),
    ],
    ids=["a piece crosses a blank", "no byte pieces", "a byte piece is missing", "dropout"],
)
def test_there_is_no_cache_where_it_would_not_be_exact(tiny_tokenizer_dir, change):
    tokenizer, files = changed(tiny_tokenizer_dir, change)
    assert word_cache(tokenizer, files) is None


def test_a_piece_with_a_newline_keeps_lines_together(tiny_tokenizer_dir):
    def change(model):
        model["vocab"][".\n"] = max(model["vocab"].values()) + 1
        model["vocab"]["\n"] = max(model["vocab"].values()) + 1
        model["merges"].append([".", "\n"])

    tokenizer, files = changed(tiny_tokenizer_dir, change)
    tokenizer.normalizer = None
    cache = word_cache(tokenizer, files)
    assert cache is not None and cache._newline is None
    for text in ("a.\nb", "\n", ".\n\n."):
        assert cache.encode(text) == np.array(tokenizer.encode(text, add_special_tokens=False).ids, np.int32).tobytes()


def test_the_first_difference_stops_the_run(tiny_tokenizer_dir):
    encoder = TextEncoder(tiny_tokenizer_dir)
    assert encoder._cache is not None
    encoder._cache._later_words["red"] = b"\1\0\0\0"
    with pytest.raises(TokenizerError, match="the word cache and the tokenizer differ on ' very red'"):
        encoder.encode_batch([" green", " very red"])


def test_differences_are_looked_for_all_along(tiny_tokenizer_dir):
    encoder = TextEncoder(tiny_tokenizer_dir)
    assert encoder._cache is not None
    encoder.encode_batch([" green"] * 5000)
    encoder._cache._later_words["red"] = b"\1\0\0\0"
    with pytest.raises(TokenizerError, match="differ on ' red'"):
        encoder.encode_batch([" red"] * 600)
