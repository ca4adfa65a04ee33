"""The wording of each template, as text: what is learned stands in [brackets], what is hidden in (parentheses)."""

import pytest

from dataprep.conversation import Conversation, Refusal, Turn
from dataprep.templates import TEMPLATES, VICUNA_SYSTEM, AddedToken, Dialect, Kind, Span, TemplateError
from dataprep.templates.llama2 import LLAMA2_SYSTEM
from tests.dataprep import chat_families

MARKS = {Kind.BOS: "<s>", Kind.EOS: "</s>", Kind.IMAGE: "<IMAGE>"}


def with_tokens(*tokens: str, **changed) -> Dialect:
    return Dialect(added={**Dialect().added, **{token: AddedToken() for token in tokens}}, **changed)


LLAMA, LEGACY = Dialect(), Dialect(legacy=True)
MISTRAL_V3 = with_tokens("[INST]", "[/INST]")
TEKKEN = with_tokens("[INST]", "[/INST]", byte_level=True)
LLAMA3 = Dialect(
    byte_level=True,
    specials={"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"},
    added={token: AddedToken() for token in chat_families.LLAMA3_CONTROLS},
)
QWEN2, QWEN3 = (
    Dialect(
        byte_level=True,
        specials={"eos_token": "<|im_end|>"},
        added={token: AddedToken() for token in chat_families.QWEN_CONTROLS}
        | {token: AddedToken(special=False) for token in chat_families.QWEN_PLAIN},
        chat_template=chat,
    )
    for chat in (chat_families.QWEN2_CHAT, chat_families.QWEN3_CHAT)
)


def drawn(spans: list[Span]) -> str:
    text = ""
    for span in spans:
        piece = MARKS.get(span.kind, span.text)
        text += f"[{piece}]" if span.trained else piece if span.attended else f"({piece})"
    return text.replace(VICUNA_SYSTEM, "SYSTEM").replace(LLAMA2_SYSTEM, "SYSTEM")


def talk(*values: str, image: str | None = "a.jpg") -> Conversation:
    return Conversation("1", image, [Turn("gpt" if i % 2 else "human", value) for i, value in enumerate(values)])


ONE, TEXT = talk("<image>\nq", "a"), talk("q ", "a", image=None)
TWO = talk("<image>\nq", "a", "q2", "a2")

CASES = [
    ("plain", LLAMA, talk("Describe.\n<image>", "a bus"), "<s><IMAGE>[ a bus\n]"),
    ("plain", LLAMA3, ONE, "<s><IMAGE>[a\n]"),
    ("plain", QWEN2, ONE, "<IMAGE>[a\n]"),
    ("plain_eos", LLAMA, talk("Describe.\n<image>", "a bus"), "<s><IMAGE>[ a bus][</s>]"),
    ("vicuna_v1", LLAMA, ONE, "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>]"),
    ("vicuna_v1", LLAMA, talk("q\n<image>", "a"), "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>]"),
    ("vicuna_v1", LLAMA, talk("  p <image> q ", " a "), "<s> SYSTEM USER: <IMAGE> \np  q ASSISTANT:[  a ][</s>]"),
    ("vicuna_v1", LLAMA, talk("<image>", "a"), "<s> SYSTEM USER: <IMAGE>  ASSISTANT:[ a][</s>]"),
    ("vicuna_v1", LLAMA, TEXT, "<s> SYSTEM USER:( )(<IMAGE>) q  ASSISTANT:[ a][</s>]"),
    (
        "vicuna_v1",
        LLAMA,
        TWO,
        "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>]USER: q2 ASSISTANT:[ a2][</s>]",
    ),
    (
        "vicuna_v1",
        LEGACY,
        TWO,
        "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>] USER: q2 ASSISTANT:[ a2][</s>]",
    ),
    (
        "llama2",
        LLAMA,
        TWO,
        "<s> [INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\n<IMAGE> \nq [/INST][ a ][</s>]<s>[INST] q2 [/INST][ a2 ][</s>]",
    ),
    ("llama2", LEGACY, TEXT, "<s> [INST] <<SYS>>\nSYSTEM\n<</SYS>>\n\n(<IMAGE>)q  [/INST][ a ][</s>]"),
    ("mistral", LLAMA, TWO, "<s> [INST] <IMAGE>\nq [/INST][ a][</s>] [INST] q2 [/INST][ a2][</s>]"),
    ("mistral", LEGACY, ONE, "<s> [INST] <IMAGE> \nq [/INST][ a][</s>]"),
    ("mistral", LEGACY, TEXT, "<s> [INST]( )(<IMAGE>) q  [/INST][ a][</s>]"),
    ("mistral", MISTRAL_V3, TWO, "<s>[INST] <IMAGE>\nq[/INST][ a][</s>][INST] q2[/INST][ a2][</s>]"),
    ("mistral", MISTRAL_V3, TEXT, "<s>[INST]( )(<IMAGE>) q [/INST][ a][</s>]"),
    ("mistral", TEKKEN, TWO, "<s>[INST]<IMAGE>\nq[/INST][a][</s>][INST]q2[/INST][a2][</s>]"),
    (
        "llama3",
        LLAMA3,
        ONE,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<IMAGE>\nq<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[a][<|eot_id|>]",
    ),
    (
        "llama3",
        LLAMA3,
        TEXT,
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>(\n\n)(<IMAGE>)\n\nq <|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n[a][<|eot_id|>]",
    ),
    (
        "chatml",
        QWEN2,
        TWO,
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<IMAGE>\nq<|im_end|>\n"
        "<|im_start|>assistant\n[a][<|im_end|>]\n<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[a2][<|im_end|>]\n",
    ),
    (
        "chatml",
        QWEN3,
        TEXT,
        "<|im_start|>(user\n)(<IMAGE>)user\nq <|im_end|>\n<|im_start|>assistant\n[a][<|im_end|>]\n",
    ),
    (
        "zephyr",
        LLAMA,
        TWO,
        " <|user|>\n<IMAGE>\nq</s>\n<|assistant|>\n[a][</s>]\n<|user|>\nq2</s>\n<|assistant|>\n[a2][</s>]\n",
    ),
    ("zephyr", LEGACY, ONE, " <|user|>\n<IMAGE> \nq</s> \n<|assistant|>\n[a][</s>] \n"),
    ("zephyr", LEGACY, TEXT, " <|user|>\n(<IMAGE>)q </s> \n<|assistant|>\n[a][</s>] \n"),
    (
        "tokenizer",
        QWEN3,
        TWO,
        "<|im_start|>user\n<IMAGE>\nq<|im_end|>\n<|im_start|>assistant\n[a][<|im_end|>]\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n[<think>][\n\n][</think>][\n\na2][<|im_end|>]\n",
    ),
]


@pytest.mark.parametrize(("name", "dialect", "conversation", "expected"), CASES)
def test_the_wording_is_the_golden_one(name, dialect, conversation, expected):
    assert drawn(TEMPLATES[name].bind(dialect).render(conversation)) == expected


def test_every_template_has_a_golden_case():
    assert {case[0] for case in CASES} == set(TEMPLATES)


@pytest.mark.parametrize(("name", "dialect", "conversation", "expected"), CASES)
def test_the_prompt_at_inference_is_the_beginning_of_what_was_trained(name, dialect, conversation, expected):
    prompter = TEMPLATES[name].bind(dialect)
    question, has_image = conversation.turns[0].value, conversation.image is not None
    prompt = prompter.prompt(question, has_image)
    assert not any(span.trained for span in prompt)
    single = prompter.render(Conversation("1", conversation.image, conversation.turns[:2]))
    assert single[: len(prompt)] == prompt and single[len(prompt)].trained
    assert drawn(single[len(prompt) :]).startswith("[")


SYSTEMS = [
    ("vicuna_v1", LLAMA, "S", "<s> S USER:( )(<IMAGE>) q  ASSISTANT:"),
    ("vicuna_v1", LLAMA, "", "<s> USER:( )(<IMAGE>) q  ASSISTANT:"),
    ("llama2", LLAMA, "S", "<s> [INST] <<SYS>>\nS\n<</SYS>>\n\n(<IMAGE>)q  [/INST]"),
    ("llama2", LLAMA, "", "<s> [INST]( )(<IMAGE>) q  [/INST]"),
    ("mistral", LLAMA, "S", "<s> [INST] S\n\n(<IMAGE>)q  [/INST]"),
    ("mistral", TEKKEN, "S", "<s>[INST](S\n\n)(<IMAGE>)S\n\nq [/INST]"),
    ("zephyr", LLAMA, "S", " <|system|>\nS</s>\n<|user|>\n(<IMAGE>)q </s>\n<|assistant|>\n"),
    (
        "llama3",
        LLAMA3,
        "S",
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>(\n\n)(<IMAGE>)\n\nq <|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    (
        "chatml",
        QWEN2,
        "S",
        "<|im_start|>system\nS<|im_end|>\n<|im_start|>(user\n)(<IMAGE>)user\nq <|im_end|>\n<|im_start|>assistant\n",
    ),
    ("chatml", QWEN2, "", "<|im_start|>(user\n)(<IMAGE>)user\nq <|im_end|>\n<|im_start|>assistant\n"),
]


@pytest.mark.parametrize(("name", "dialect", "system", "expected"), SYSTEMS)
def test_a_system_prompt_replaces_the_templates_own_and_an_empty_one_leaves_it_out(name, dialect, system, expected):
    prompter = TEMPLATES[name].bind(dialect, system)
    assert drawn(prompter.prompt("q ", False)) == expected
    assert prompter.system == system


def test_chatml_takes_its_system_prompt_from_the_tokenizers_own_template():
    own = {
        None: "You are a helpful assistant.",
        chat_families.QWEN2_CHAT: "You are a helpful assistant.",
        chat_families.QWEN25_CHAT: "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.",
        chat_families.QWEN3_CHAT: "",
    }
    for chat, system in own.items():
        dialect = Dialect(byte_level=True, added=QWEN2.added, chat_template=chat)
        assert TEMPLATES["chatml"].bind(dialect).system == system


MISFITS = [
    ("llama3", LLAMA, r"template llama3: the tokenizer has no <\|start_header_id\|>"),
    ("chatml", LLAMA3, r"template chatml: the tokenizer has no <\|im_start\|>"),
    ("llama2", LLAMA3, "template llama2: needs a Llama-type"),
    ("vicuna_v1", QWEN2, "template vicuna_v1: needs a Llama-type"),
    ("vicuna_v1", Dialect(specials={"eos_token": "</s>"}), "template vicuna_v1: the tokenizer has no bos_token"),
    ("zephyr", Dialect(specials={}), "template zephyr: the tokenizer has no eos_token"),
    ("mistral", LLAMA3, r"template mistral: the tokenizer has no \[INST\]"),
    ("mistral", with_tokens("[INST]"), r"only one of \[INST\] and \[/INST\]"),
    ("tokenizer", LLAMA, "template tokenizer: the tokenizer has no chat template"),
    ("zephyr", Dialect(newline_cuts=False), r"an answer begins behind '.*assistant\|>\\n'"),
]


@pytest.mark.parametrize(("name", "dialect", "message"), MISFITS)
def test_a_template_that_does_not_fit_the_tokenizer_says_what_is_missing(name, dialect, message):
    with pytest.raises(TemplateError, match=message):
        TEMPLATES[name].bind(dialect).render(TEXT)


@pytest.mark.parametrize("name", ["plain", "plain_eos"])
def test_a_caption_needs_one_pair_and_a_picture_and_no_system_prompt(name):
    prompter = TEMPLATES[name].bind(LLAMA)
    with pytest.raises(Refusal, match="plain_needs_a_pair"):
        prompter.render(talk("<image>", "a", "q", "a"))
    with pytest.raises(Refusal, match="plain_needs_an_image"):
        prompter.render(talk("q", "a", image=None))
    with pytest.raises(TemplateError, match="captions have no system prompt"):
        TEMPLATES[name].bind(LLAMA, "S")


def test_a_conversation_of_very_many_turns_costs_no_memory_that_stays():
    prompter = TEMPLATES["vicuna_v1"].bind(LLAMA)
    spans = prompter.render(talk(*["q", "a"] * 2000, image=None))
    assert sum(span.kind is Kind.EOS for span in spans) == 2000
    assert prompter.render(talk(*["q", "a"] * 2000, image=None)) == spans
    assert not any(4000 in plans for plans in prompter._plans.values())


@pytest.mark.parametrize(("name", "dialect", "conversation", "expected"), CASES)
@pytest.mark.parametrize("num_pairs", [1, 2, 3, 7])
@pytest.mark.parametrize("has_image", [True, False])
def test_the_prompt_of_any_turn_is_the_beginning_of_the_whole_conversation(
    name, dialect, conversation, expected, num_pairs, has_image
):
    prompter = TEMPLATES[name].bind(dialect)
    if prompter.template.phase == 1 and (num_pairs > 1 or not has_image):
        with pytest.raises(Refusal, match="plain_needs"):
            prompter.prompt_of(["q"] * (2 * num_pairs - 1), has_image)
        return
    words = [f"{'answer' if turn % 2 else 'question'} {turn}" for turn in range(2 * num_pairs)]
    words[0] = f"<image>\n{words[0]}" if has_image else words[0]
    whole = prompter.render(talk(*words, image="a.jpg" if has_image else None))
    prompt = prompter.prompt_of(words[:-1], has_image)
    assert whole[: len(prompt)] == prompt
    after = drawn(whole[len(prompt) :])
    assert whole[len(prompt)].trained and not whole[len(prompt) - 1].trained
    # Nothing but the last answer, whole, comes behind; all others are in the prompt.
    assert words[-1] in after and "question" not in after
    assert drawn(prompt).count("answer") == num_pairs - 1


@pytest.mark.parametrize(("name", "dialect", "conversation", "expected"), CASES)
def test_an_answer_ends_with_what_is_learned_last(name, dialect, conversation, expected):
    token, wording = TEMPLATES[name].bind(dialect).ending()
    last = expected[expected.rindex("[") + 1 : expected.rindex("]")]
    if token is None:
        assert name == "plain" and wording == "\n" and last.endswith(wording)
    else:
        assert last == MARKS.get(token.kind, token.text)
        assert wording == (" " if name == "llama2" else "")
