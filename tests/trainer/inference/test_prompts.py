"""A prompt is what training saw before the answer: ids, picture and place are those of the compiled row."""

import json

import numpy as np
import pytest
import torch

from dataprep.conversation import Conversation, Refusal, Turn
from dataprep.encoding import TextEncoder, encode
from dataprep.images import ImageFault, load_image, pad_colour
from dataprep.templates import TEMPLATES
from tests.dataprep.chat_families import FAMILIES
from tests.trainer.inference.conftest import fingerprint
from trainer.inference import Request, open_assistant
from trainer.inference.drafts import Draft, text_of
from trainer.inference.prompts import Ending, PromptMaker, sentence

#: A template and a tokenizer that it fits.
BOTH = [
    ("vicuna_v1", "llama2"),
    ("vicuna_v1", "llama2-legacy"),
    ("llama2", "llama2"),
    ("llama3", "llama3"),
    ("chatml", "qwen2"),
    ("mistral", "mistral-v3"),
    ("mistral", "mistral-tekken"),
    ("zephyr", "zephyr"),
    ("tokenizer", "qwen3"),
    ("plain", "llama2"),
    ("plain_eos", "qwen2"),
]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    made = {}

    def make(name):
        if name not in made:
            made[name] = FAMILIES[name](tmp_path_factory.mktemp("families") / name)
        return made[name]

    return make


@pytest.mark.parametrize(("template", "name"), BOTH)
def test_ids_are_those_of_the_compiled_row_up_to_the_answer(assistant, family, pictures, template, name):
    encoder = TextEncoder(family(name))
    prompter = TEMPLATES[template].bind(encoder.dialect)
    maker = PromptMaker(prompter, encoder, assistant.config, "pad")
    words = ["How many bars?", "Seven.", "And why?", "Because (so) it is 1,000."]
    pairs = [1] if template.startswith("plain") else [1, 2]
    compared = 0
    for num_pairs in pairs:
        for image in (pictures[0], None) if pairs == [1, 2] else (pictures[0],):
            said = words[: 2 * num_pairs]
            shown = [f"<image>\n{said[0]}" if image else said[0], *said[1:]]
            turns = [Turn("gpt" if i % 2 else "human", text) for i, text in enumerate(shown)]
            whole = encode(prompter.render(Conversation("", "a" if image else None, turns)), encoder, 9)
            ids, trained = whole.ids[whole.attended].tolist(), whole.trained[whole.attended]
            last = int(np.flatnonzero(~trained & np.append(trained[1:], False))[-1]) + 1
            prompt = maker.make(Request(said[:-1], image))
            assert prompt.ids == ids[:last]
            assert list(prompt.image_slots) == (list(range(whole.image_start, whole.image_start + 9)) if image else [])
            assert trained[last:].any() and text_of(encoder, ids[last:]) == said[-1]
            compared += 1
    assert compared == len(pairs) ** 2


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_pixels_are_those_of_compiling_from_a_file_or_its_bytes(save_checkpoint, tiny_tokenizer_dir, pictures, fit):
    assistant = open_assistant(save_checkpoint(data=fingerprint(tiny_tokenizer_dir, fit=fit)), device="cpu")
    expected = load_image(pictures[1], 12, fit, pad_colour(assistant.config.image_mean)).transpose(2, 0, 1)
    for image in (pictures[1], pictures[1].read_bytes()):
        pixels = assistant.prompts.make(Request(["a"], image)).pixels
        assert pixels.dtype == torch.uint8 and np.array_equal(pixels[0].numpy(), expected)
    assert assistant.prompts.make(Request(["a"])).pixels.shape == (0, 3, 12, 12)


def test_a_tag_in_the_first_turn_is_taken_out_wherever_it_stands(assistant, pictures):
    plain = assistant.prompts.make(Request(["Why?"], pictures[0])).ids
    for words in ("<image>\nWhy?", "Why?<image>", "Why?\n<image>", "  Why? "):
        assert assistant.prompts.make(Request([words], pictures[0])).ids == plain
    # Without a picture it is text, as in compiling.
    assert assistant.prompts.make(Request(["<image>\nWhy?"])).ids != assistant.prompts.make(Request(["Why?"])).ids


REFUSED = [
    ([], False, "roles_do_not_alternate"),
    (["q", "a"], False, "roles_do_not_alternate"),
    ([""], False, "empty_question"),
    (["q", "a", ""], True, "empty_question"),
    (["<image> <image>"], True, "image_count"),
    (["q", "a", "<image>"], True, "image_not_in_first_turn"),
    (["<im<image>age>"], True, "nested_image_tag"),
    (["\udcff"], False, "not_utf8"),
]


@pytest.mark.parametrize(("turns", "has_image", "reason"), REFUSED)
def test_words_that_compiling_would_refuse_are_refused(assistant, pictures, turns, has_image, reason):
    with pytest.raises(Refusal) as refused:
        assistant.answer([Request(turns, pictures[0] if has_image else None)])
    assert refused.value.reason == reason
    assert "(" in sentence(refused.value) and reason not in sentence(refused.value)


def test_a_picture_alone_and_an_empty_answer_before_can_be_asked(assistant, pictures):
    assert assistant.prompts.make(Request([""], pictures[0])).ids
    assert assistant.prompts.make(Request(["q", "", "why?"])).ids


def test_a_picture_that_cannot_be_used_is_a_fault_of_the_picture(assistant, tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(ImageFault, match=r"a\.png: of no picture format"):
        assistant.answer([Request(["q"], tmp_path / "a.png")])
    with pytest.raises(ImageFault, match="^the picture of 10 bytes: of no picture format"):
        assistant.answer([Request(["q"], b"no picture")])
    with pytest.raises(ImageFault, match="no such file"):
        assistant.answer([Request(["q"], tmp_path / "none.png")])


TEXTS = ["Seven.", "café 中文 🍜🚌!", " two  blanks\n\tand lines\n\n", "naïve </s> <image> [INST]", "é" * 40, ""]


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen2", "mistral-tekken"])
def test_a_draft_never_shows_half_a_character_and_its_pieces_are_the_text(family, name):
    encoder = TextEncoder(family(name))
    split = 0
    for text in TEXTS:
        draft, shown = Draft(encoder, Ending(frozenset({encoder.eos_id})), 1000), []
        ids = encoder.encode(text)
        for token in ids:
            assert draft.take(token)
            now = draft.so_far()
            assert "\ufffd" not in now and now.startswith("".join(shown))
            shown.append(now[len("".join(shown)) :])
        assert not draft.take(encoder.eos_id) and draft.ended
        assert draft.text() == text_of(encoder, ids) == text.strip()
        assert "".join(shown) == draft.text()
        assert draft.ids == ids
        split += sum(not piece for piece in shown)
    assert split > 3


def test_text_equals_what_the_tokenizer_itself_decodes(family):
    from transformers import AutoTokenizer

    for name in ("llama2", "llama3", "qwen2"):
        encoder, reference = TextEncoder(family(name)), AutoTokenizer.from_pretrained(family(name))
        for text in TEXTS[:4]:
            ids = [encoder.control_ids.get("<s>", encoder.eos_id), *encoder.encode(text), encoder.eos_id]
            expected = reference.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
            assert text_of(encoder, ids) == expected.strip()


def test_bytes_that_are_no_character_are_marked_at_the_end_and_not_before(tiny_tokenizer_dir):
    encoder = TextEncoder(tiny_tokenizer_dir)
    e_acute = encoder.encode("é")
    draft = Draft(encoder, Ending(frozenset({2})), 10)
    assert draft.take(e_acute[-2]) and draft.so_far() == ""
    assert draft.text() == "\ufffd"
    assert draft.take(e_acute[-1]) and draft.text() == draft.so_far() == "é"
    assert draft.take(1) and draft.take(9999) and draft.text() == "é"


def test_a_caption_ends_with_its_newline_and_asks_nothing(save_checkpoint, tiny_tokenizer_dir, pictures):
    data = fingerprint(tiny_tokenizer_dir, "plain")
    assistant = open_assistant(save_checkpoint(data=data), device="cpu")
    prompts = [assistant.prompts.make(Request([words], pictures[0])).ids for words in ("Describe.", "")]
    assert prompts[0] == prompts[1] == [1] + [0] * 9
    with pytest.raises(Refusal, match="plain_needs_an_image"):
        assistant.answer([Request(["q"])])
    encoder = assistant.prompts.encoder
    assert assistant.prompts.ending == Ending(frozenset({2}), "\n")
    draft = Draft(encoder, assistant.prompts.ending, 50)
    ids = encoder.encode(" a bus\n")
    assert [draft.take(token) for token in ids] == [True] * (len(ids) - 1) + [False]
    assert (draft.text(), draft.ended, draft.ids) == ("a bus", True, ids[:-1])


def test_a_template_of_headers_ends_at_its_own_token(assistant, family):
    encoder = TextEncoder(family("qwen2"))
    config = json.loads((family("qwen2") / "tokenizer_config.json").read_text())
    assert config["eos_token"] == "<|im_end|>"
    maker = PromptMaker(TEMPLATES["chatml"].bind(encoder.dialect), encoder, assistant.config, "pad")
    assert maker.ending.ids == {encoder.control_ids["<|im_end|>"]}
    encoder.eos_id = encoder.control_ids["<|endoftext|>"]
    maker = PromptMaker(TEMPLATES["chatml"].bind(encoder.dialect), encoder, assistant.config, "pad")
    assert maker.ending.ids == {encoder.control_ids[token] for token in ("<|im_end|>", "<|endoftext|>")}
