import json

import pytest

from examples import start

CORPUS = [
    start.TEMPLATE,
    "\nHow many bars are there?\nAnswer the question.",
    "From left to right: red, blue.",
    "3",
    "Yes",
]


@pytest.fixture(scope="module")
def tokenizer():
    return start.make_tokenizer(CORPUS)


def test_no_piece_has_a_blank_after_another_character(tokenizer):
    pieces = tokenizer.get_vocab()
    assert not [piece for piece in pieces if "▁" in piece.lstrip("▁")]
    assert "▁assistant" in pieces and "▁" in pieces


def test_control_pieces_and_bytes_stand_where_llama_has_them(tokenizer):
    pieces = ["<unk>", "<s>", "</s>", "<0x00>", "<0x0A>", "<0xFF>"]
    assert [tokenizer.token_to_id(piece) for piece in pieces] == [0, 1, 2, 3, 13, 258]


def test_any_text_comes_back(tokenizer):
    for text in (*CORPUS, "Größe: 37 % — 図", "blue\n\n bars"):
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert 0 not in ids
        assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_a_word_of_the_template_is_one_token(tokenizer):
    ids = tokenizer.encode(start.TEMPLATE, add_special_tokens=False).ids
    assert len(ids) < 2 * len(start.TEMPLATE.split())
    assert tokenizer.encode("red", add_special_tokens=False).tokens == ["▁red"]


def test_the_tokenizer_is_the_same_each_time(tokenizer):
    assert start.make_tokenizer(CORPUS).to_str() == tokenizer.to_str()


def test_the_template_is_the_one_that_shards_are_compiled_with():
    from dataprep.templates import VICUNA_SYSTEM

    assert VICUNA_SYSTEM in start.TEMPLATE


def test_texts_are_the_turns_without_the_image_tag(tmp_path):
    turns = [{"from": "human", "value": "<image>\nHow many?"}, {"from": "gpt", "value": "3"}]
    (tmp_path / "one.jsonl").write_text(json.dumps({"id": "1", "image": "a.png", "conversations": turns}) + "\n")
    assert list(start.texts([tmp_path / "one.jsonl"])) == [start.TEMPLATE, "\nHow many?", "3"]
