"""Text is text, structure is ours, and tokenizers that the recipe cannot be exact with are refused."""

import json
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep.conversation import Conversation, Turn
from dataprep.encoding import NO_ID, TextEncoder, TokenizerError, encode, encode_batch
from dataprep.shards.fingerprint import TokenizerFileError, tokenizer_fingerprint
from dataprep.templates import TEMPLATES
from tests.dataprep.chat_families import FAMILIES

CONTROL = ["<s>", "</s>", "<unk>", "<image>", " </s>", "</s>USER:", "<s><s>"]


@pytest.fixture(scope="module")
def encoder(tiny_tokenizer_dir):
    return TextEncoder(tiny_tokenizer_dir)


def changed(source, folder, **config):
    """Copy a tokenizer with some of its config changed."""
    shutil.copytree(source, folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return folder


def talk(question: str, answer: str, image: str | None = "a.jpg"):
    shown = f"<image>\n{question}" if image else question
    return Conversation("1", image, [Turn("human", shown), Turn("gpt", answer)])


def joined(encoder, ids):
    """Undo byte fallback and blanks."""
    out = b""
    for piece in encoder.decode(ids):
        is_byte = len(piece) == 6 and piece.startswith("<0x")
        out += bytes([int(piece[3:5], 16)]) if is_byte else piece.encode()
    return out.decode("utf-8")


@pytest.mark.parametrize("text", CONTROL)
def test_control_literals_in_text_are_text(encoder, text):
    ids = encoder.encode(text)
    assert not {encoder.bos_id, encoder.eos_id, 0} & set(ids)
    assert joined(encoder, ids) == text


def test_control_literals_stay_text_in_a_worker(tiny_tokenizer_dir):
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        ids = pool.submit(_encode_in_worker, tiny_tokenizer_dir).result()
    assert ids == TextEncoder(tiny_tokenizer_dir).encode("</s>")
    assert 2 not in ids


def _encode_in_worker(folder):
    return TextEncoder(folder).encode("</s>")


TEXT = st.text(st.sampled_from("ab USER:\n\t  ▁é中🍜</s><unk>"), min_size=1, max_size=40)


@settings(deadline=None)
@given(TEXT, TEXT)
def test_no_control_id_that_the_structure_did_not_put_there(encoder, question, answer):
    spans = TEMPLATES["vicuna_v1"].bind(encoder.dialect).render(talk(question.replace("<image>", ""), answer))
    sample = encode(spans, encoder, 4)
    ids = np.delete(sample.ids, np.arange(sample.image_start, sample.image_start + 4))
    assert (ids == encoder.bos_id).sum() == (ids == encoder.eos_id).sum() == 1
    assert 0 not in ids
    learned = joined(encoder, sample.ids[sample.trained][:-1].tolist())
    assert learned == " " + answer.replace("▁", " ")


def test_a_batch_gives_what_single_samples_give(encoder):
    prompter = TEMPLATES["vicuna_v1"].bind(encoder.dialect)
    spans = [prompter.render(talk(f"q {i}", f"a {i}" * i, "x" if i % 2 else None)) for i in range(1, 9)]
    for one, many in zip((encode(s, encoder, 4) for s in spans), encode_batch(spans, encoder, 4), strict=True):
        assert (one.ids == many.ids).all() and (one.trained == many.trained).all()
        assert one.image_start == many.image_start


def test_no_prefix_is_added_and_none_is_lost(encoder):
    assert encoder.decode(encoder.encode(" red"))[0].startswith(" ")
    assert not encoder.decode(encoder.encode("red"))[0].startswith(" ")
    assert joined(encoder, encoder.encode("  red ")) == "  red "


def test_a_metaspace_file_encodes_as_a_prepend_file(tiny_tokenizer_dir, tmp_path):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    files["normalizer"] = None
    files["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}
    (folder / "tokenizer.json").write_text(json.dumps(files))
    ours, theirs = TextEncoder(tiny_tokenizer_dir), TextEncoder(folder)
    for text in (" red bar", "red  bar ", "\n a", ""):
        assert ours.encode(text) == theirs.encode(text)
    assert ours.fingerprint == theirs.fingerprint


def test_the_fingerprint_sees_what_changes_ids_and_nothing_else(tiny_tokenizer_dir, tmp_path):
    before = tokenizer_fingerprint(tiny_tokenizer_dir)
    assert tokenizer_fingerprint(changed(tiny_tokenizer_dir, tmp_path / "a", padding_side="left")) == before
    assert tokenizer_fingerprint(changed(tiny_tokenizer_dir, tmp_path / "b", legacy=True)) != before
    assert tokenizer_fingerprint(changed(tiny_tokenizer_dir, tmp_path / "c", eos_token="<s>")) != before
    folder = changed(tiny_tokenizer_dir, tmp_path / "d")
    files = json.loads((folder / "tokenizer.json").read_text())
    image = {**files["added_tokens"][0], "id": 999, "content": "<image>"}
    (folder / "tokenizer.json").write_text(json.dumps({**files, "added_tokens": [*files["added_tokens"], image]}))
    assert tokenizer_fingerprint(folder) == before
    files["model"]["merges"] = files["model"]["merges"][::-1]
    (folder / "tokenizer.json").write_text(json.dumps(files))
    assert tokenizer_fingerprint(folder) != before


def test_an_added_token_is_structure_and_never_found_in_text_special_or_not(tiny_tokenizer_dir, tmp_path):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    files["added_tokens"].append({**files["added_tokens"][0], "id": 999, "content": "<image>", "special": False})
    (folder / "tokenizer.json").write_text(json.dumps(files))
    encoder = TextEncoder(folder)
    ids = encoder.encode("a<image>b")
    assert encoder.control_ids["<image>"] == 999 and 999 not in ids
    assert joined(encoder, ids) == "a<image>b"
    assert encoder.vocab_size == 1000 and encoder.decode([999]) == ["<image>"]


def test_a_vocabulary_that_merges_to_a_control_token_is_refused(tiny_tokenizer_dir, tmp_path):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    piece = next(piece for piece in files["model"]["vocab"] if len(piece) == 3 and piece.isalpha())
    files["added_tokens"].append(
        {**files["added_tokens"][0], "id": files["model"]["vocab"][piece], "content": piece, "special": True}
    )
    (folder / "tokenizer.json").write_text(json.dumps(files))
    with pytest.raises(TokenizerError, match=f"the text '{piece}' becomes a control token"):
        TextEncoder(folder)


def test_a_vocabulary_without_bytes_for_rare_characters_is_refused(tiny_tokenizer_dir, tmp_path):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    files["model"]["byte_fallback"] = False
    (folder / "tokenizer.json").write_text(json.dumps(files))
    with pytest.raises(TokenizerError, match="becomes a control token by the vocabulary's own rules"):
        TextEncoder(folder)
    assert tokenizer_fingerprint(folder) != tokenizer_fingerprint(tiny_tokenizer_dir)


def test_a_byte_level_vocabulary_without_all_bytes_is_refused(tmp_path):
    folder = FAMILIES["qwen2"](tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    del files["model"]["vocab"]["\u0100"]  # byte 0
    (folder / "tokenizer.json").write_text(json.dumps(files))
    with pytest.raises(TokenizerError, match=r"1 of the 256 bytes are no piece of the vocabulary \(byte 0\)"):
        TextEncoder(folder)


def test_a_vocabulary_whose_pieces_cross_blanks_is_refused(tiny_tokenizer_dir, tmp_path):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    files["model"]["vocab"]["e▁t"] = 5000
    (folder / "tokenizer.json").write_text(json.dumps(files))
    with pytest.raises(TokenizerError, match="1 pieces have a blank behind another character"):
        TextEncoder(folder)


RULES = [
    {"normalizer": {"type": "Lowercase"}},
    {"normalizer": None},
    {"normalizer": {"type": "Sequence", "normalizers": [{"type": "NFKC"}]}},
    {"pre_tokenizer": {"type": "Whitespace"}},
    {"normalizer": None, "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True}},
    {
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": " "}, "behavior": "Removed", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
    },
]


@pytest.mark.parametrize("rules", RULES)
def test_other_rules_for_text_are_another_tokenizer_and_refused(tiny_tokenizer_dir, tmp_path, rules):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    files = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(files | rules))
    assert tokenizer_fingerprint(folder) != tokenizer_fingerprint(tiny_tokenizer_dir)
    with pytest.raises(TokenizerError, match="templates need a Llama-type one"):
        TextEncoder(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"model": 3}', '{"model": {"type": "Unigram", "vocab": [["a", 0.1]]}}'])
def test_a_file_that_is_no_tokenizer_is_named(tiny_tokenizer_dir, tmp_path, text):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t")
    (folder / "tokenizer.json").write_text(text)
    with pytest.raises(TokenizerFileError, match=r"t/tokenizer\.json: "):
        TextEncoder(folder)


def test_a_missing_legacy_is_true_as_transformers_has_it(tiny_tokenizer_dir, tmp_path):
    folder = changed(tiny_tokenizer_dir, tmp_path / "t", legacy=None)
    assert TextEncoder(folder).dialect.legacy
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["legacy"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert TextEncoder(folder).dialect.legacy and not TextEncoder(tiny_tokenizer_dir).dialect.legacy


@pytest.mark.parametrize("setting", [True, False])
def test_legacy_survives_saving_by_transformers(tiny_tokenizer_dir, tmp_path, setting):
    from transformers import AutoTokenizer

    folder = changed(tiny_tokenizer_dir, tmp_path / "t", legacy=setting)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert TextEncoder(tmp_path / "saved").dialect.legacy is setting
    assert tokenizer_fingerprint(tmp_path / "saved") == tokenizer_fingerprint(folder)


def test_a_folder_without_tokenizer_json_says_what_to_do(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=r"there is a tokenizer\.model: `llava-convert tokenizer "):
        TextEncoder(tmp_path)


def test_text_stays_text_in_a_pickled_tokenizer(encoder):
    """A flag for this (`encode_special_tokens`) is lost by pickling; a tokenizer without added tokens has none."""
    copy = pickle.loads(pickle.dumps(encoder._tokenizer))
    assert copy.encode("</s>", add_special_tokens=False).ids == encoder.encode("</s>")
    assert encoder.eos_id not in encoder.encode("</s>")


@pytest.mark.parametrize("family", ["qwen2", "llama3", "mistral-v3", "mistral-tekken", "llama2-legacy"])
def test_a_tokenizer_saved_again_by_transformers_is_the_same(tmp_path, family):
    from transformers import AutoTokenizer

    folder = FAMILIES[family](tmp_path / "t")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "saved")
    assert tokenizer_fingerprint(tmp_path / "saved") == tokenizer_fingerprint(folder)
    before, after = TextEncoder(folder), TextEncoder(tmp_path / "saved")
    assert after.control_ids == before.control_ids and after.vocab_size == before.vocab_size
    assert after.dialect.chat_template == before.dialect.chat_template is not None


def _dropped(files):
    files["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] += "|x"


def _composed(files):
    files["normalizer"] = None


def _moved(files):
    files["added_tokens"][1]["id"], files["added_tokens"][2]["id"] = 1000, 1001


def _merged(files):
    files["model"]["ignore_merges"] = True


@pytest.mark.parametrize("change", [_dropped, _composed, _moved, _merged])
def test_the_fingerprint_sees_the_pattern_the_rules_and_the_ids_of_chat_tokens(tmp_path, change):
    folder = FAMILIES["qwen2"](tmp_path / "t")
    before = tokenizer_fingerprint(folder)
    files = json.loads((folder / "tokenizer.json").read_text())
    change(files)
    (folder / "tokenizer.json").write_text(json.dumps(files))
    assert tokenizer_fingerprint(folder) != before


def test_the_fingerprint_of_llama2_is_what_it_always_was(shared):
    """Shards written before there were other templates must still fit."""
    known = "1e34dca82022fbc7bfff347497d064b7fbcb06b4856d6db5a6a62c26691a07cc"
    assert tokenizer_fingerprint(shared / "tokenizer-llama2") == known


def test_a_byte_level_tokenizer_reads_back_as_text(tmp_path):
    encoder = TextEncoder(FAMILIES["qwen2"](tmp_path / "t"))
    assert encoder.bos_id == NO_ID and encoder.pad_id == encoder.control_ids["<|endoftext|>"]
    ids = [encoder.eos_id, *encoder.encode("user caf\u00e9 \U00010ffd")]
    assert joined(encoder, ids) == "<|im_end|>user caf\u00e9 \U00010ffd"


def test_a_chat_template_of_its_own_file_goes_before_the_configs_and_lists_have_a_default(tmp_path):
    folder = FAMILIES["qwen2"](tmp_path / "t")
    path = folder / "tokenizer_config.json"
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    assert TextEncoder(folder).dialect.chat_template == "d"
    (folder / "chat_template.jinja").write_text("own")
    assert TextEncoder(folder).dialect.chat_template == "own"
    (folder / "chat_template.jinja").unlink()
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": 3}))
    with pytest.raises(TokenizerFileError, match="chat_template is a int, expected a text"):
        TextEncoder(folder)
