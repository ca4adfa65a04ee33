"""`--template tokenizer` where it cannot work, layouts of every family, and what shards say of their template."""

import json

import numpy as np
import pytest

from dataprep import layouts
from dataprep.config import CompileConfig, ImageConfig
from dataprep.conversation import Conversation, Refusal, Turn
from dataprep.encoding import NO_ID, TextEncoder, encode
from dataprep.layouts import LayoutError, find_layout, find_prompter
from dataprep.rows import lay_out
from dataprep.shards.layout import RowLayout, Source, feature
from dataprep.templates import TEMPLATES, Kind, Prompter, Span, TemplateError
from dataprep.templates.chat import MAX_PAIRS, render_chat
from dataprep.templates.dialect import Dialect
from tests.dataprep.chat_families import FAMILIES, QWEN2_CHAT, QWEN3_CHAT, QWEN25_CHAT

TURN = "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
EACH = "{% for message in messages %}" + TURN + "{% endfor %}"
PROMPT = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """Make an encoder of the Qwen family with another chat template."""

    def make(chat: str | None, family: str = "qwen2") -> TextEncoder:
        folder = FAMILIES[family](tmp_path_factory.mktemp("chat") / "t")
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": chat}))
        return TextEncoder(folder)

    return make


def config(template: str = "tokenizer", **changed) -> CompileConfig:
    settings = {"phase": 2, "template": template, "max_seq_length": 400, "image": ImageConfig(size=28)}
    return CompileConfig(**settings | changed)


def talk(*values: str, image: str | None = None) -> Conversation:
    return Conversation("1", image, [Turn("gpt" if i % 2 else "human", value) for i, value in enumerate(values)])


REFUSED = [
    (
        "{{ messages|length }} turns\n" + EACH + PROMPT,
        r"it writes '2 turns.* and '1 turns.* image_start_idx is not constant",
    ),
    (
        "{{ 'long' if messages[0].content|length > 9 }}" + EACH + PROMPT,
        "does more than write words between control tokens",
    ),
    (EACH.replace("message.content", "message.content|upper") + PROMPT, "of 2 turns it writes 2|in pieces"),
    (EACH.replace("<|im_end|>", "") + PROMPT, "no control token ends an answer"),
    ("{% for message in messages %}{{ message.content }}{% endfor %}", "without a control token|could not stop"),
    (EACH.replace("message.content", "message.content[:3]") + PROMPT, "of 2 turns it writes 1|in pieces"),
    ("{{ messages[-1].content }}<|im_end|>", "of 2 turns it writes 1"),
    ("{{ strftime_now('%d %b %Y') }}" + EACH + PROMPT, "today's date, so the same records would give other shards"),
    ("{{ raise_exception('No pictures\nhere') }}", "its chat template fails: No pictures here"),
    ("{% for x %}", "its chat template is not Jinja"),
    ("{{ messages.__class__.__mro__ }}", "its chat template fails: SecurityError"),
    ("{% for x in range(999999999) %}{% endfor %}", "its chat template fails: OverflowError"),
    (
        EACH + "{% if add_generation_prompt %}Answer: {% endif %}",
        "its generation prompt is not how its conversations go on",
    ),
    (None, "the tokenizer has no chat template"),
    # Of 6 turns alone, which no plan is made of before the layout asks where the picture stands.
    (
        "{{ 'six' if messages|length == 6 }}" + EACH + PROMPT,
        "before the first question it writes 'six.* image_start_idx is not constant; templates that fit it: chatml",
    ),
]


@pytest.mark.parametrize(("chat", "message"), REFUSED)
def test_a_chat_template_that_rows_cannot_follow_is_refused_with_the_reason(qwen, chat, message):
    with pytest.raises(LayoutError, match=f"template tokenizer: .*({message})"):
        find_layout(config(), qwen(chat))


class Wandering(Prompter):
    """A prompter that puts a word before the picture where there are four turns."""

    def render(self, conversation: Conversation) -> list[Span]:
        spans = super().render(conversation)
        return [Span(Kind.WORDING, "well")] * (len(conversation.turns) == 4) + spans


def test_a_picture_that_does_not_always_stand_at_one_token_is_refused(qwen):
    encoder = qwen(EACH + PROMPT)
    bound = find_prompter(config("chatml"), encoder)
    place = find_layout(config("chatml"), encoder).image_start_idx
    wandering = Wandering(bound.template, encoder.dialect, bound.writer)
    moved = place + len(encode([Span(Kind.WORDING, "well")], encoder, 4).ids)
    expected = f"template chatml: the picture stands at token {place} in one conversation and at {moved} in another;"
    with pytest.raises(TemplateError, match=f"^{expected} rows need a constant image_start_idx$"):
        layouts._find_image(wandering, encoder, config("chatml"))


def test_a_template_without_a_generation_prompt_learns_behind_the_header(qwen):
    encoder = qwen(EACH)
    spans = TEMPLATES["tokenizer"].bind(encoder.dialect).render(talk("q", "a"))
    assert [span.text for span in spans if span.trained] == ["a", "<|im_end|>"]


def test_words_that_a_template_looks_for_are_words(qwen):
    """Qwen3's cuts an answer at `</think>`; here an answer is written as it is."""
    prompter = TEMPLATES["tokenizer"].bind(qwen(QWEN3_CHAT, "qwen3").dialect)
    spans = prompter.render(talk("q", "x</think>y"))
    assert "\n\nx</think>y" in [span.text for span in spans if span.trained]


def test_a_conversation_that_the_chat_template_refuses_is_one_refusal(qwen):
    chat = "{% if messages|length > 9 %}{{ raise_exception('too many turns') }}{% endif %}" + EACH + PROMPT
    prompter = find_prompter(config(), qwen(chat))
    assert prompter.render(talk(*["q", "a"] * 4))
    with pytest.raises(Refusal, match="chat_template: template tokenizer: its chat template fails: too many turns"):
        prompter.render(talk(*["q", "a"] * 5))


def test_a_conversation_of_too_many_turns_is_refused_before_it_is_rendered(qwen):
    prompter = find_prompter(config(), qwen(QWEN2_CHAT))
    with pytest.raises(Refusal, match=f"{MAX_PAIRS + 1} questions; at most {MAX_PAIRS}"):
        prompter.render(talk(*["q", "a"] * (MAX_PAIRS + 1)))


def test_a_system_prompt_that_the_chat_template_drops_is_refused(qwen):
    encoder = qwen(EACH.replace("in messages", "in messages if message.role != 'system'") + PROMPT)
    with pytest.raises(TemplateError, match="does not write a system prompt"):
        TEMPLATES["tokenizer"].bind(encoder.dialect, "S")


def test_jinja_renders_as_transformers_does():
    """Blocks, loop controls, `generation`, `tojson` and namespaces, against transformers' own rendering."""
    from transformers.utils.chat_template_utils import render_jinja_template

    chat = (
        "{{- bos_token }}\n{% set ns = namespace(n=0) %}\n  {% for m in messages %}\n    {% if m.role == 'x' %}"
        "{% continue %}{% endif %}\n{% set ns.n = ns.n + 1 %}  {{ m | tojson }} {{ m.content | tojson(indent=2) }}\n"
        "{% generation %}\n[{{ m.content | trim }}]{% set inner = 1 %}{% endgeneration %}{{ inner is defined }}\n"
        "{% if loop.index0 > 3 %}{% break %}{% endif %}{% endfor %}{{ ns.n }}{{ tools is none }}{{ documents is none }}"
        "{{ nothing }}{{ add_generation_prompt }}\n"
    )
    messages = [
        {"role": "user", "content": " <a> é\n"},
        {"role": "x", "content": ""},
        {"role": "user", "content": "b"},
    ] * 3
    theirs, _ = render_jinja_template([messages], chat_template=chat, bos_token="<s>", eos_token="</s>")
    assert render_chat(Dialect(chat_template=chat), messages) == theirs[0]


LAYOUTS = [
    ("llama3", "llama3", 5, 1, 0),
    ("qwen2", "chatml", None, 2, NO_ID),
    ("qwen3", "chatml", 3, 2, NO_ID),
    ("mistral-tekken", "mistral", 2, 0, 0),
    ("mistral-v3", "mistral", 3, 1, 0),
    ("mistral-v1", "mistral", None, 1, 0),
    ("zephyr", "zephyr", None, 0, 0),
    ("llama2", "llama2", None, 0, 0),
    ("lists", "tokenizer", None, 1, 0),
    ("qwen3", "tokenizer", 3, 2, NO_ID),
]


@pytest.mark.parametrize(("family", "template", "start", "before_hole", "bos"), LAYOUTS)
def test_the_pictures_place_is_found_and_the_hole_ends_with_it(
    qwen, tmp_path, family, template, start, before_hole, bos
):
    encoder = TextEncoder(FAMILIES[family](tmp_path / "t"))
    layout = find_layout(config(template), encoder)
    assert start is None or layout.image_start_idx == start
    assert (layout.hole_start, layout.hole_length) == (layout.image_start_idx - before_hole, 4 + before_hole)
    assert (layout.bos_id == NO_ID) is (bos == NO_ID)
    prompter = find_prompter(config(template), encoder)
    for image in (None, "a.jpg"):
        words = ["<image>\nWhat?" if image else "What?", "This.", "And?", "That."]
        sample = encode(prompter.render(talk(*words, image=image)), encoder, 4)
        assert sample.image_start == layout.image_start_idx
        row = lay_out(sample, layout, image, Source("", 0, ""))
        hidden = np.flatnonzero(feature(row.data, "key_padding_mask")[: len(sample.ids) - 1])
        assert hidden.tolist() == (
            [] if image else list(range(layout.hole_start, layout.hole_start + layout.hole_length))
        )
        assert row.num_loss_tokens == sample.num_trained


def test_phase_1_begins_with_the_picture_where_there_is_no_bos(tmp_path):
    layout = find_layout(config("plain", phase=1), TextEncoder(FAMILIES["qwen2"](tmp_path / "t")))
    assert (layout.image_start_idx, layout.hole_start, layout.hole_length) == (0, 0, 4)


def test_shards_name_what_their_template_writes(qwen):
    """The hash sees the chat template's text, the wording, the system prompt and the ids of control tokens."""
    one, two = qwen(QWEN2_CHAT), qwen(QWEN2_CHAT + "{# a note #}")
    hashes = {
        find_layout(config(template), encoder).template_sha256
        for encoder in (one, two, qwen(QWEN25_CHAT))
        for template in ("tokenizer", "chatml")
    }
    # chatml: Qwen2 and Qwen2.5 differ by their system prompt, a note in the Jinja text changes nothing.
    assert len(hashes) == 3 + 2
    layout = find_layout(config("chatml"), one)
    assert layout.system_prompt == "You are a helpful assistant."
    assert RowLayout.from_attributes(layout.attributes(), "x") == layout


def test_shards_of_before_there_were_other_templates_are_still_read(qwen):
    attributes = find_layout(config("chatml"), qwen(None)).attributes()
    del attributes["template_sha256"], attributes["system_prompt"]
    assert RowLayout.from_attributes(attributes, "x").template_sha256 == ""
    del attributes["eos_id"]
    with pytest.raises(ValueError, match="attributes missing: eos_id"):
        RowLayout.from_attributes(attributes, "x")
