"""Word by word is exact: on text of every kind, and where it would not be, there is no cache."""

import json
import os
import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from dataprep import word_cache as module
from dataprep import word_table
from dataprep.encoding import CACHE_SWITCH, TextEncoder, TokenizerError, encode_batch
from dataprep.shards.fingerprint import read_tokenizer_files
from dataprep.templates import Kind, Span
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


def encoded(cache: module.WordCache, texts: list[str]) -> list[list[int]]:
    ids, counts = cache.encode([module.TEXT + text.encode() for text in texts])
    ends = np.cumsum(counts)
    return [ids[end - count : end].tolist() for end, count in zip(ends, counts, strict=True)]


def test_the_cache_gives_what_the_tokenizer_gives(encoder):
    texts = fuzz(COUNT)
    expected = [encoder.encode(text) for text in texts]
    cache = cache_of(encoder)
    for _ in range(2):  # cold and warm
        got = [ids for begin in range(0, COUNT, 1000) for ids in encoded(cache, texts[begin : begin + 1000])]
        assert got == expected


def test_a_full_cache_begins_anew_and_stays_exact(encoder, monkeypatch):
    monkeypatch.setattr(word_table, "MAX_WORDS", 10)
    cache, sizes = cache_of(encoder), []
    for text in fuzz(300, seed=1):
        assert encoded(cache, [text]) == [encoder.encode(text)]
        sizes.append(len(cache.table))
    assert max(sizes) > 10 and any(after < before for before, after in pairwise(sizes))


def test_marks_stand_for_their_ids_among_texts(encoder):
    cache = cache_of(encoder)
    system, end = cache.mark(np.array([7, 8, 9], np.int32).tobytes()), cache.mark(np.array([2], np.int32).tobytes())
    assert cache.mark(np.array([2], np.int32).tobytes()) == end != system
    for _ in range(2):
        ids, counts = cache.encode([system, module.TEXT + b" a red", end, module.TEXT, end, system])
        text = encoder.encode(" a red")
        assert ids.tolist() == [7, 8, 9, *text, 2, 2, 7, 8, 9] and counts.tolist() == [3, len(text), 1, 0, 1, 3]
        cache.table.clear()  # marks are no words, and stay


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
    assert cache is not None
    for text in ("a.\nb", "\n", ".\n\n."):
        assert encoded(cache, [text]) == [tokenizer.encode(text, add_special_tokens=False).ids]


def poison(encoder: TextEncoder, text: str) -> None:
    """Give one word another id in the cache."""
    assert encoder._cache is not None
    raw, table = text.encode() + word_table.PADDING, encoder._cache.table
    number = table.find(raw, np.array([0]), np.array([len(text)]))[0]
    table._pool.values[table._firsts.values[number]] += 1


def texts(*words: str) -> list[Span]:
    return [Span(Kind.TEXT, word) for word in words]


def test_the_first_difference_stops_the_run(tiny_tokenizer_dir):
    encoder = TextEncoder(tiny_tokenizer_dir)
    poison(encoder, " red")
    with pytest.raises(TokenizerError, match="the word cache and the tokenizer differ on ' very red'"):
        encoder.encode_spans(texts(" green", " very red"), 4)


def test_differences_are_looked_for_all_along(tiny_tokenizer_dir):
    encoder = TextEncoder(tiny_tokenizer_dir)
    for _ in range(5):
        encoder.encode_spans(texts(*[" green"] * 1000), 4)
    poison(encoder, " red")
    with pytest.raises(TokenizerError, match="differ on ' red'"):
        encoder.encode_spans([*texts(" red") * 600, Span(Kind.BOS)], 4)


def test_samples_are_the_same_without_the_cache(tiny_tokenizer_dir, monkeypatch):
    with_cache = TextEncoder(tiny_tokenizer_dir)
    monkeypatch.setenv(CACHE_SWITCH, "off")
    without = TextEncoder(tiny_tokenizer_dir)
    assert with_cache._cache is not None and without._cache is None
    draw, words = random.Random(5), fuzz(400, seed=5)

    def spans() -> list[Span]:
        """A picture's slots somewhere, or a text-only sample's hole, or neither."""
        hole = [[Span(Kind.IMAGE)], [Span(Kind.IMAGE, attended=False)], []][draw.randrange(3)]
        rest = [Span(Kind.TEXT, draw.choice(words), trained=draw.random() < 0.5) for _ in range(draw.randrange(6))]
        return [Span(Kind.BOS), *hole, *rest, Span(Kind.EOS, trained=True)]

    samples = [spans() for _ in range(500)]
    for mine, theirs in zip(encode_batch(samples, with_cache, 4), encode_batch(samples, without, 4), strict=True):
        assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(mine[:3], theirs[:3], strict=True))
        assert mine.image_start == theirs.image_start
    assert {sample.image_start for sample in encode_batch(samples, with_cache, 4)} == {-1, 1}
