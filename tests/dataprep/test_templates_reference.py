"""Ids equal transformers' `apply_chat_template`, position by position; what is learned equals offsets in its text.

The reference sees `<image>` as one control token where our samples have the picture's slots. llama2 follows the
original LLaVA instead, whose way of making tokens is written out here a second time.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken as Added
from transformers import AutoTokenizer

from dataprep.conversation import Conversation, Turn
from dataprep.encoding import TextEncoder, encode
from dataprep.templates import TEMPLATES, Prompter
from dataprep.whole_chat import check_against_whole
from tests.dataprep.chat_families import FAMILIES

EXAMPLES = 300 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 12

#: Template and family; those without a template of ours are reached by their own chat template alone.
OURS = {
    "llama3": "llama3",
    "qwen2": "chatml",
    "qwen2.5": "chatml",
    "mistral-v1": "mistral",
    "mistral-v1-legacy": "mistral",
    "mistral-v3": "mistral",
    "mistral-v3-legacy": "mistral",
    "mistral-tekken": "mistral",
    "zephyr": "zephyr",
    "zephyr-legacy": "zephyr",
    "chatml-llama": "chatml",
}
CASES = [(family, "tokenizer") for family in FAMILIES] + list(OURS.items())

#: Whose chat templates strip what is said: the words are compared without blanks around them.
STRIPS = ("llama2", "llama3", "qwen3", "phi3")

#: What the published templates are asked beside the messages, so that they write no date of today.
ASKED = {"llama3.1": {"date_string": "26 Jul 2024"}}

#: Published without a system prompt (phi3's here), or for lists.
NO_SYSTEM = ("phi3",)

WORDS = st.text(
    st.sampled_from("ab Zé中🍜 USERassistntm:.,?!'\"()<>/|[]INST0123\n\t\r#-_\u3000\u00a0"), min_size=1, max_size=30
)


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    """Each family's folder, encoder and reference tokenizer, made once."""
    made = {}

    def make(name: str) -> SimpleNamespace:
        if name not in made:
            folder = FAMILIES[name](tmp_path_factory.mktemp("families") / name)
            made[name] = SimpleNamespace(folder=folder, encoder=TextEncoder(folder), reference=reference_of(folder))
        return made[name]

    return make


def reference_of(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([Added("<image>", special=True, normalized=False)], special_tokens=True)
    return tokenizer


def well_formed(family: str, prompter: Prompter, words: Sequence[str], byte_level: bool, tokens: Sequence[str]) -> list:
    """Make what the reference keeps as it is: see `docs/decisions.md` for what becomes of the rest."""
    made = list(words)
    if any(name in family for name in STRIPS):
        made = [text.strip() for text in made]
    if byte_level:
        # Newlines in front of an answer run together with the header's in the reference, but not at inference.
        made[1::2] = [text.lstrip() for text in made[1::2]]
    assume(all(made))
    assume(not any(token in text for token in (*tokens, "<image>") for text in made))
    return made


def messages_of(words: Sequence[str], family: str, system: str | None, has_image: bool) -> list[dict]:
    shown = [f"<image>\n{words[0].strip()}" if has_image else words[0], *words[1:]]
    messages: list[dict] = [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(shown)]
    messages = ([] if system is None else [{"role": "system", "content": system}]) + messages
    if family == "lists":
        for place, message in enumerate(messages):
            text = message["content"].removeprefix("<image>\n")
            picture = [{"type": "image"}] if has_image and place == (system is not None) else []
            message["content"] = [*picture, {"type": "text", "text": text}]
    return messages


def sample_of(prompter: Prompter, encoder: TextEncoder, words: Sequence[str], has_image: bool):
    said = [f"{words[0]}\n<image>" if has_image else words[0], *words[1:]]
    turns = [Turn("gpt" if i % 2 else "human", text) for i, text in enumerate(said)]
    return encode(prompter.render(Conversation("1", "x.jpg" if has_image else None, turns)), encoder, 3)


def attended(sample, has_image: bool, image_id: int):
    """Return ids and trained positions that are attended, with one slot for the picture."""
    ids, trained = sample.ids.tolist(), sample.trained.tolist()
    kept = [i for i in range(len(ids)) if sample.attended[i] and not 0 < i - sample.image_start < 3]
    return [image_id if has_image and i == sample.image_start else ids[i] for i in kept], [trained[i] for i in kept]


@pytest.mark.parametrize(("name", "template"), CASES)
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much],
)
@given(st.lists(WORDS, min_size=2, max_size=6), st.booleans(), st.one_of(st.none(), WORDS))
def test_ids_equal_apply_chat_template(family, name, template, words, has_image, system):
    made = family(name)
    words = words[: len(words) // 2 * 2]
    if system is not None and (name in NO_SYSTEM or not system.strip()):
        system = None
    system = system and system.strip()
    prompter = TEMPLATES[template].bind(made.encoder.dialect, system)
    words = well_formed(name, prompter, words, made.encoder.dialect.byte_level, list(made.encoder.control_ids))
    assume(system is None or not any(token in system for token in (*made.encoder.control_ids, "<image>")))
    assume(not has_image or words[0].strip())
    messages = messages_of(words, name, system, has_image)
    expected = made.reference.apply_chat_template(messages, tokenize=True, return_dict=False, **ASKED.get(name, {}))
    image_id = made.reference.convert_tokens_to_ids("<image>")
    ids, _ = attended(sample_of(prompter, made.encoder, words, has_image), has_image, image_id)
    tokens = made.reference.convert_ids_to_tokens
    assert tokens(ids) == tokens(expected)
    assert ids == expected


@pytest.mark.parametrize(("name", "template"), CASES)
@pytest.mark.parametrize("has_image", [True, False])
def test_what_is_learned_equals_the_offsets_of_the_answers_in_the_reference_text(family, name, template, has_image):
    made = family(name)
    prompter = TEMPLATES[template].bind(made.encoder.dialect)
    words = ["What is it, 3?", "A (red) bus.", "Why so?", "No idea: 42", "Then?", "é中"]
    ids, trained = attended(
        sample_of(prompter, made.encoder, words, has_image), has_image, made.reference.convert_tokens_to_ids("<image>")
    )
    messages = messages_of(words, name, None, has_image)
    asked = ASKED.get(name, {})
    text = made.reference.apply_chat_template(messages, tokenize=False, **asked)
    spans = []
    for place, answer in list(enumerate(words))[1::2]:
        prompt = made.reference.apply_chat_template(
            messages[:place], tokenize=False, add_generation_prompt=True, **asked
        )
        assert text.startswith(prompt)
        end = text.index(answer, len(prompt)) + len(answer)
        following = [(text.index(t, end), len(t)) for t in made.encoder.control_ids if t in text[end:]]
        first = min(place for place, _ in following)
        spans.append((len(prompt), first + max(size for place, size in following if place == first)))
    whole = made.reference(text, add_special_tokens=False, return_offsets_mapping=True)
    assert whole["input_ids"] == ids
    inside = [any(start <= begin < end for start, end in spans) for begin, _ in whole["offset_mapping"]]
    assert inside == trained
    assert sum(trained) > 6


@pytest.mark.parametrize(("name", "template"), CASES)
def test_the_prompt_equals_the_generation_prompt(family, name, template):
    made = family(name)
    prompter = TEMPLATES[template].bind(made.encoder.dialect)
    for has_image in (True, False):
        sample = encode(prompter.prompt("What is it?", has_image), made.encoder, 3)
        ids, _ = attended(sample, has_image, made.reference.convert_tokens_to_ids("<image>"))
        messages = messages_of(["What is it?"], name, None, has_image)
        assert ids == made.reference.apply_chat_template(
            messages, tokenize=True, return_dict=False, add_generation_prompt=True, **ASKED.get(name, {})
        )


@pytest.mark.parametrize(
    "name", [name for name in FAMILIES if "qwen" in name or name in ("llama3.1", "mistral-tekken")]
)
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("a \n\r\t."), min_size=1, max_size=8), st.booleans())
def test_an_answer_begins_as_behind_the_generation_prompt_whatever_its_blanks(family, name, answer, has_image):
    """In the reference's whole text, newlines before an answer merge with the header's; at inference they cannot."""
    made = family(name)
    prompter = TEMPLATES["tokenizer"].bind(made.encoder.dialect)
    sample = sample_of(prompter, made.encoder, ["q", answer], has_image)
    ids, trained = attended(sample, has_image, made.reference.convert_tokens_to_ids("<image>"))
    prompt = made.reference.apply_chat_template(
        messages_of(["q"], name, None, has_image),
        tokenize=True,
        return_dict=False,
        add_generation_prompt=True,
        **ASKED.get(name, {}),
    )
    assert ids[: len(prompt)] == prompt and not any(trained[: len(prompt)])
    if "qwen3" not in name:
        learned = [index for index, yes in zip(ids, trained, strict=True) if yes]
        assert learned[:-1] == made.reference.encode(answer, add_special_tokens=False)


# --- llama2, as the original LLaVA makes it -------------------------------------------------------------------------


def llava_llama2(tokenizer, words: Sequence[str], system: str, has_image: bool) -> tuple[list[int], list[bool]]:
    """conv_llava_llama_2, tokenizer_image_token and preprocess_llama_2, in the fewest words.

    The prompt is tokenised in chunks around `<image>`, each with the bos that the tokenizer adds, which is kept once.
    A round is learned behind its "[/INST]", `</s>` included.
    """
    text = ""
    for place in range(0, len(words), 2):
        question = f"<image>\n{words[0].strip()}" if has_image and place == 0 else words[place]
        if place == 0 and system:
            question = f"<<SYS>>\n{system}\n<</SYS>>\n\n{question}"
        text += f"{'<s>' if place else ''}[INST] {question} [/INST] {words[place + 1]} </s>"
    ids = tokenizer("").input_ids
    image_id = tokenizer.convert_tokens_to_ids("<image>")
    for number, chunk in enumerate(text.split("<image>")):
        ids += ([image_id] if number else []) + tokenizer(chunk).input_ids[1:]
    trained, learning = [], False
    pieces = tokenizer.convert_ids_to_tokens(ids)
    for place, token in enumerate(ids):
        trained.append(learning)
        read = "".join(pieces[: place + 1])
        learning = (learning or read.endswith("[/INST]")) and token != tokenizer.eos_token_id
    return ids, trained


@pytest.fixture(scope="module", params=["llama2", "llama2-legacy"])
def llama2(request, family):
    return family(request.param)


LETTERS = st.text(st.sampled_from("ab Zé中 USER:.,?()<>/0123\n"), min_size=1, max_size=30).map(str.strip).filter(bool)


@settings(max_examples=EXAMPLES * 3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(LETTERS, min_size=2, max_size=6), st.booleans(), st.one_of(st.none(), st.just(""), LETTERS))
def test_llama2_equals_llavas_ids_and_trained_positions(llama2, words, has_image, system):
    words = words[: len(words) // 2 * 2]
    assume(not any(token in text for token in llama2.encoder.control_ids for text in words))
    prompter = TEMPLATES["llama2"].bind(llama2.encoder.dialect, system)
    ids, trained = attended(
        sample_of(prompter, llama2.encoder, words, has_image),
        has_image,
        llama2.reference.convert_tokens_to_ids("<image>"),
    )
    expected, learned = llava_llama2(llama2.reference, words, prompter.system, has_image)
    assert ids == expected
    assert trained == learned


def test_llama2s_text_is_that_of_the_published_chat_template(llama2):
    """With `legacy` set the tokens are equal too; without it, LLaVA opens first turns with a blank, as Meta does."""
    prompter = TEMPLATES["llama2"].bind(llama2.encoder.dialect, "S")
    ids, _ = attended(sample_of(prompter, llama2.encoder, ["q", "a", "r", "b"], False), False, 0)
    messages = messages_of(["q", "a", "r", "b"], "llama2", "S", False)
    theirs = llama2.reference.apply_chat_template(messages, tokenize=True, return_dict=False)
    assert llama2.reference.decode(ids).replace("<s> [", "<s>[") == llama2.reference.decode(theirs).replace(
        "<s> [", "<s>["
    )
    assert (ids == theirs) is llama2.encoder.dialect.legacy


# --- the real Llama-2 tokenizer ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("legacy", ["true", "false"])
@pytest.mark.parametrize("name", ["llama2", "zephyr", "mistral-v1"])
def test_the_real_llama2_tokenizer_gives_the_reference_ids_too(shared, tmp_path, name, legacy):
    source = shared / "tokenizer-llama2"
    made = FAMILIES[name](tmp_path / name)
    shutil.copy(source / "tokenizer.json", made)
    config = (made / "tokenizer_config.json").read_text().replace('"legacy": false', f'"legacy": {legacy}')
    (made / "tokenizer_config.json").write_text(config)
    encoder, reference = TextEncoder(made), reference_of(made)
    image_id = reference.convert_tokens_to_ids("<image>")
    words = ["What is shown here?", "Two  buses\nand a\tcar.", "Ça va?", "Oui — 中文 🍜"]
    for template in ("tokenizer", {"llama2": "llama2", "zephyr": "zephyr", "mistral-v1": "mistral"}[name]):
        prompter = TEMPLATES[template].bind(encoder.dialect)
        check_against_whole(prompter, encoder)
        for has_image in (True, False):
            ids, trained = attended(sample_of(prompter, encoder, words, has_image), has_image, image_id)
            if template == "llama2":
                assert (ids, trained) == llava_llama2(reference, words, prompter.system, has_image)
                continue
            messages = messages_of(words, name, None, has_image)
            assert ids == reference.apply_chat_template(messages, tokenize=True, return_dict=False)
