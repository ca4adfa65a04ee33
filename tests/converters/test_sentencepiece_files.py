"""tokenizer.json out of tokenizer.model: the same ids as SentencePiece, and Llama-2's published file."""

import io
import json
import os
import random

import pytest
import sentencepiece
from tokenizers import Tokenizer

from converters.sentencepiece_files import tokenizer_files
from dataprep.shards.fingerprint import tokenizer_fingerprint

NUM_TEXTS = 20_000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 300

TEXT = [
    "A chat between a curious user and an artificial intelligence assistant.",
    "The   assistant gives helpful,  detailed, and polite answers to the user's questions. 1234 + 5678 = 6912",
    "USER: What is shown? ASSISTANT: der Hund läuft über die Straße, 猫 и кот.",
    "    def f(x):\n        return x ** 2",
]


def trained(**settings) -> bytes:
    """A small vocabulary of Llama's kind."""
    model = io.BytesIO()
    own = {"model_type": "bpe", "vocab_size": 420, "byte_fallback": True, "split_digits": True} | settings
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT * 20),
        model_writer=model,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
        **own,
    )
    return model.getvalue()


def test_ids_are_those_of_sentencepiece():
    model = trained()
    ours = Tokenizer.from_buffer(tokenizer_files(model, {}, "x")["tokenizer.json"])
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model)
    draw = random.Random(0)
    letters = sorted({letter for text in TEXT for letter in text} | set("zQ~é🐈\t"))
    for _ in range(NUM_TEXTS):
        text = "".join(draw.choices(letters + [" "] * 20, k=draw.randint(1, 40)))
        assert ours.encode(text).ids == [theirs.bos_id(), *theirs.encode(text)], text


def test_a_folder_with_tokenizer_model_alone_is_read(run, tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "tokenizer.model").write_bytes(trained())
    (tmp_path / "src" / "added_tokens.json").write_text('{"<pad>": 420}')
    (tmp_path / "src" / "tokenizer_config.json").write_text(
        '{"bos_token": "<s>", "eos_token": "</s>", "legacy": false}'
    )
    assert run("tokenizer", tmp_path / "src", tmp_path / "out").exit_code == 0
    written = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert [(t["content"], t["id"]) for t in written["added_tokens"]] == [
        ("<unk>", 0),
        ("<s>", 1),
        ("</s>", 2),
        ("<pad>", 420),
    ]
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())["legacy"] is False
    assert len(tokenizer_fingerprint(tmp_path / "out")) == 64


def test_llama_2_comes_out_as_published(shared, run, tmp_path):
    source = shared / "tokenizer-llama2"
    (tmp_path / "src").mkdir()
    for name in ("tokenizer.model", "tokenizer_config.json"):
        (tmp_path / "src" / name).write_bytes((source / name).read_bytes())
    assert run("tokenizer", tmp_path / "src", tmp_path / "out").exit_code == 0
    assert tokenizer_fingerprint(tmp_path / "out") == tokenizer_fingerprint(source)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is no SentencePiece file"),
        (b"\xff" * 99, "is no SentencePiece file"),
        ("unigram", "a piece for each byte"),
    ],
)
def test_what_is_no_such_tokenizer_is_refused(run, tmp_path, content, said):
    (tmp_path / "src").mkdir()
    model = content if isinstance(content, bytes) else trained(byte_fallback=False, vocab_size=150)
    (tmp_path / "src" / "tokenizer.model").write_bytes(model)
    result = run("tokenizer", tmp_path / "src", tmp_path / "out")
    assert (result.exit_code, said in result.stderr) == (5, True), result.stderr
    assert not (tmp_path / "out").exists()
