"""Replies of a language model: what is taken, and why the rest is not."""

import dataclasses
import json

import pytest

from dataprep.conversation import Refusal
from dataprep.generation.answers import REASONS, pairs_of
from dataprep.generation.objects import supported, unsupported
from dataprep.generation.prompts import CONVERSATION, DETAIL, GENERATION_PROMPTS, REASONING
from dataprep.generation.sources import Box, Record
from dataprep.llm.journal import Reply

RECORD = Record("7", "a.jpg", ["A cat sits on a red sofa."], [Box("cat", (0.1, 0.2, 0.5, 0.75))])
LONG = "The cat sits on the red sofa and looks out of the picture to the left. " * 3
GOOD = [("What animal is it?", "A cat."), ("Where does it sit?", "It sits on a red sofa.")]


def lines(*pairs: tuple[str, str]) -> str:
    return "\n".join(json.dumps({"question": question, "answer": answer}) for question, answer in pairs)


def read(text: str, prompt=CONVERSATION, kind: str = "answer"):
    return pairs_of(Reply("k", kind, text, "why"), prompt, RECORD, seed=0)


def test_lines_of_json_are_questions_and_answers():
    assert read(lines(*GOOD)) == (GOOD, [])


OTHER_WAYS = {
    "a list": json.dumps([{"question": q, "answer": a} for q, a in GOOD], indent=1),
    "commas": lines(*GOOD).replace("}\n", "},\n"),
    "over several lines": "\n".join(json.dumps({"question": q, "answer": a}, indent=2) for q, a in GOOD),
}


@pytest.mark.parametrize("text", OTHER_WAYS.values(), ids=OTHER_WAYS.keys())
def test_json_may_be_laid_out_otherwise(text):
    assert read(text) == (GOOD, [])
    assert read(f"```json\n{text}\n```") == (GOOD, ["code_fence"])


def test_a_description_gets_a_question_that_the_seed_draws():
    pairs, _ = read(LONG, DETAIL)
    assert pairs == [(pairs[0][0], LONG.strip())] and pairs[0][0] in DETAIL.questions
    drawn = {
        pairs_of(Reply("k", "answer", LONG), DETAIL, dataclasses.replace(RECORD, id=str(number)), seed)[0][0][0]
        for number in range(20)
        for seed in range(2)
    }
    assert len(drawn) > 4


REFUSED = {
    "cut": ("cut", CONVERSATION, lines(*GOOD), "cut"),
    "filtered": ("filtered", CONVERSATION, "", "filtered"),
    "too long a request": ("request_too_long", CONVERSATION, "", "too_long"),
    "given up": ("no_response", CONVERSATION, "", "gave_up"),
    "interrupted": ("no_response", CONVERSATION, "", "interrupted"),
    "not json": ("bad_response", CONVERSATION, "", "not_json"),
    "too big": ("bad_response", CONVERSATION, "", "too_big"),
    "prose": ("wrong_format", CONVERSATION, "Sure! Here are five questions.", "answer"),
    "prose before": ("wrong_format", CONVERSATION, f"Sure!\n{lines(*GOOD)}", "answer"),
    "torn json": ("wrong_format", CONVERSATION, lines(*GOOD)[:-2], "answer"),
    "other keys": ("wrong_format", CONVERSATION, '{"q": "What?", "a": "That."}', "answer"),
    "more keys": ("wrong_format", CONVERSATION, '{"question": "a?", "answer": "b", "c": 1}', "answer"),
    "numbers": ("wrong_format", CONVERSATION, '{"question": "How many?", "answer": 3}', "answer"),
    "an empty answer": ("wrong_format", CONVERSATION, lines(("What?", " "), GOOD[0]), "answer"),
    "nested": ("wrong_format", CONVERSATION, "[" * 100_000, "answer"),
    "json for a description": ("wrong_format", DETAIL, lines(GOOD[0]), "answer"),
    "too few": ("wrong_turns", CONVERSATION, lines(GOOD[0]), "answer"),
    "too many": ("wrong_turns", CONVERSATION, lines(*[(f"Q {n}?", f"A {n}.") for n in range(11)]), "answer"),
    "two of reasoning": ("wrong_turns", REASONING, lines(("Why?", LONG), ("How?", LONG)), "answer"),
    "no question": ("not_a_question", CONVERSATION, lines(GOOD[0], ("The cat.", "Yes.")), "answer"),
    "bold": ("markdown", DETAIL, f"**A cat.** {LONG}", "answer"),
    "a heading": ("markdown", DETAIL, f"# Description\n{LONG}", "answer"),
    "a list": ("markdown", CONVERSATION, lines(GOOD[0], ("What?", "- a cat\n- a sofa")), "answer"),
    "numbered": ("markdown", REASONING, lines(("Why?", f"1. It sits.\n2. {LONG}")), "answer"),
    "caption": ("speaks_of_the_source", CONVERSATION, lines(GOOD[0], ("What?", "The caption says so.")), "answer"),
    "box": ("speaks_of_the_source", DETAIL, f"{LONG} Its bounding box is small.", "answer"),
    "coordinates": ("speaks_of_the_source", DETAIL, f"{LONG} It is at [0.1, 0.2].", "answer"),
    "given text": ("speaks_of_the_source", DETAIL, f"{LONG} The provided description ends here.", "answer"),
    "mentioned": ("speaks_of_the_source", CONVERSATION, lines(GOOD[0], ("Who?", "No one is mentioned.")), "answer"),
    "a machine": ("generic", DETAIL, f"As an AI language model, I guess. {LONG}", "answer"),
    "sorry": ("generic", CONVERSATION, lines(GOOD[0], ("Who?", "I'm sorry, that is not clear.")), "answer"),
    "cannot tell": ("generic", CONVERSATION, lines(GOOD[0], ("Who?", "It cannot be determined.")), "answer"),
    "short": ("too_short", DETAIL, "A cat on a sofa.", "answer"),
    "short reasons": ("too_short", REASONING, lines(("Why does it sit?", "Because it is tired.")), "answer"),
    "twice": ("repeats", CONVERSATION, lines(GOOD[0], ("what animal is IT?", "A tom.")), "answer"),
    "a long answer twice": ("repeats", CONVERSATION, lines(("What?", LONG), ("Where?", LONG)), "answer"),
    "the example": ("copies_the_example", DETAIL, DETAIL.answer, "answer"),
    "the example's pairs": ("copies_the_example", REASONING, REASONING.answer, "answer"),
    "the picture's tag": ("image_tag", CONVERSATION, lines(GOOD[0], ("What is <image>?", "A cat.")), "answer"),
}


@pytest.mark.parametrize(("reason", "prompt", "text", "kind"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_trained_on_is_refused_by_name(reason, prompt, text, kind):
    with pytest.raises(Refusal) as caught:
        read(text, prompt, kind)
    assert caught.value.reason == reason and reason in REASONS
    assert caught.value.detail and len(caught.value.detail) < 300


def test_what_was_not_asked_is_refused_by_name():
    with pytest.raises(Refusal, match="not_asked"):
        pairs_of(None, CONVERSATION, RECORD, 0)


TAKEN = [
    "There is text on the sign, and it describes a shop.",
    "It costs 3.50 or so; the price stands on a tag.",
    "He is 1.5 m tall - about as tall as the door.",
    "What the scene shows is clear: a cat.",
]


@pytest.mark.parametrize("answer", TAKEN)
def test_common_words_are_not_taken_for_faults(answer):
    assert read(lines(GOOD[0], ("What is it?", answer)))[0][1][1] == answer


@pytest.mark.parametrize("prompt", GENERATION_PROMPTS.values(), ids=GENERATION_PROMPTS.keys())
def test_each_example_keeps_the_rules_that_it_teaches(prompt):
    other = dataclasses.replace(prompt, answer="")
    pairs, rules = pairs_of(Reply("k", "answer", prompt.answer), other, prompt.example, 0)
    assert rules == [] and pairs
    known = supported(prompt.example.captions, [box.category for box in prompt.example.boxes])
    assert unsupported(pairs, known) == []


def test_a_changed_wording_has_another_fingerprint():
    assert len({prompt.fingerprint for prompt in GENERATION_PROMPTS.values()}) == 3
    assert dataclasses.replace(DETAIL, system="x").fingerprint != DETAIL.fingerprint
    # Raise `version` together with these.
    assert {prompt.name for prompt in GENERATION_PROMPTS.values()} == {"conversation/1", "detail/1", "reasoning/1"}
    prints = {prompt.fingerprint for prompt in GENERATION_PROMPTS.values()}
    assert prints == {"deb4dc34b16a3abf", "a4e74a172c61b276", "930b252322e0d63f"}
