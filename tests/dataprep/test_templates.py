"""The wording of each template, as text: what is learned stands in [brackets], what is hidden in (parentheses)."""

import pytest

from dataprep.conversation import Conversation, Refusal, Turn
from dataprep.templates import TEMPLATES, VICUNA_SYSTEM, Kind, Span

MARKS = {Kind.BOS: "<s>", Kind.EOS: "</s>", Kind.IMAGE: "<IMAGE>"}


def drawn(spans: list[Span]) -> str:
    text = ""
    for span in spans:
        piece = MARKS.get(span.kind, span.text)
        text += f"[{piece}]" if span.trained else piece if span.attended else f"({piece})"
    return text.replace(VICUNA_SYSTEM, "SYSTEM")


def talk(*values: str, image: str | None = "a.jpg") -> Conversation:
    return Conversation("1", image, [Turn("gpt" if i % 2 else "human", value) for i, value in enumerate(values)])


CASES = [
    ("plain", talk("Describe.\n<image>", "a bus"), False, "<s><IMAGE>[ a bus\n]"),
    ("plain_eos", talk("Describe.\n<image>", "a bus"), False, "<s><IMAGE>[ a bus][</s>]"),
    ("vicuna_v1", talk("<image>\nq", "a"), False, "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>]"),
    ("vicuna_v1", talk("q\n<image>", "a"), False, "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>]"),
    ("vicuna_v1", talk("  p <image> q ", " a "), False, "<s> SYSTEM USER: <IMAGE> \np  q ASSISTANT:[  a ][</s>]"),
    ("vicuna_v1", talk("<image>", "a"), False, "<s> SYSTEM USER: <IMAGE>  ASSISTANT:[ a][</s>]"),
    ("vicuna_v1", talk("q ", "a", image=None), False, "<s> SYSTEM USER:( )(<IMAGE>) q  ASSISTANT:[ a][</s>]"),
    (
        "vicuna_v1",
        talk("<image>\nq", "a", "q2", "a2"),
        False,
        "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>]USER: q2 ASSISTANT:[ a2][</s>]",
    ),
    (
        "vicuna_v1",
        talk("<image>\nq", "a", "q2", "a2"),
        True,
        "<s> SYSTEM USER: <IMAGE> \nq ASSISTANT:[ a][</s>] USER: q2 ASSISTANT:[ a2][</s>]",
    ),
]


@pytest.mark.parametrize(("name", "conversation", "legacy", "expected"), CASES)
def test_the_wording_is_the_golden_one(name, conversation, legacy, expected):
    assert drawn(TEMPLATES[name].render(conversation, legacy)) == expected


def test_every_template_has_a_golden_case():
    assert {case[0] for case in CASES} == set(TEMPLATES)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_prompt_at_inference_is_the_beginning_of_what_was_trained(name):
    template = TEMPLATES[name]
    whole = drawn(template.render(talk("<image>\nq", "a"), False))
    assert whole.startswith(drawn(template.prompt("<image>\nq", True, False)))
    assert "[" not in drawn(template.prompt("<image>\nq", True, False))


@pytest.mark.parametrize("name", ["plain", "plain_eos"])
def test_a_caption_needs_one_pair_and_a_picture(name):
    with pytest.raises(Refusal, match="plain_needs_a_pair"):
        TEMPLATES[name].render(talk("<image>", "a", "q", "a"), False)
    with pytest.raises(Refusal, match="plain_needs_an_image"):
        TEMPLATES[name].render(talk("q", "a", image=None), False)
