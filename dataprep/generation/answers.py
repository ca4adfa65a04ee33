"""A language model's reply as questions and answers, or the reason why it is none that one could train on."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from dataprep.conversation import IMAGE_TAG, Refusal
from dataprep.generation.prompts import GenerationPrompt
from dataprep.generation.sources import Record
from dataprep.llm.journal import Reply
from dataprep.prompts import draw

#: A question and its answer.
Pair = tuple[str, str]

#: Why a picture has no conversation of a kind, beside `conversation.REASONS`.
REASONS = {
    "bad_record": "the line is not JSON of a picture's id, image and captions",
    "no_captions": "the picture has no caption",
    "bad_box": "a box does not lie in the picture",
    "unsafe_image_path": "the image key does not stay under the image root",
    "repeated_id": "another picture of the input has this id",
    "not_asked": "the budget was at its end",
    "no_response": "the endpoint gave no response, however often it was asked",
    "bad_response": "the endpoint's response held no answer",
    "cut": "the answer was cut at its longest length",
    "filtered": "the endpoint's content filter held the answer back",
    "request_too_long": "the request is longer than the model can read",
    "wrong_format": "the answer is not written as was asked for",
    "wrong_turns": "too few or too many questions",
    "not_a_question": "a question asks nothing",
    "markdown": "the answer has lists, headings or other markup",
    "speaks_of_the_source": "the answer speaks of captions, boxes or of a text, instead of a picture",
    "generic": "the answer says that it cannot tell, or that a machine speaks",
    "too_short": "an answer has fewer words than its kind needs",
    "repeats": "a question or a longer answer comes twice",
    "copies_the_example": "the answer is that of the prompt's example",
    "image_tag": f"the answer holds {IMAGE_TAG}",
    "unsupported_object": "an object is named that neither captions nor boxes have",
}

#: By the kind of reply.
_NO_ANSWER = {
    "gave_up": "no_response",
    "interrupted": "no_response",
    "cut": "cut",
    "filtered": "filtered",
    "too_long": "request_too_long",
}

_FENCED = re.compile(r"\s*```\w*\n(.*)\n```\s*", re.DOTALL)
_MARKUP = re.compile(r"\*\*|```|__\w|^\s*(?:#{1,6}\s|[-*•]\s|\d{1,2}[.)]\s|\|)", re.MULTILINE)
_SOURCE = re.compile(
    r"\bcaptions?\b|\bbounding[ -]box|\bbbox|\bcoordinates?\b|\[\s*[01]?\.\d+\s*,"
    r"|\b(?:given|provided|above) (?:description|sentence|text|information|context|annotation|detail)s?\b"
    r"|\b(?:description|sentence|information|text|context)s? (?:provided|given|above|mentions?|states?|says?)\b"
    r"|\b(?:is|are|was|were)(?: not|n't)? (?:mentioned|specified|described in|provided)\b"
    r"|\baccording to the (?:desc|sent)|\bannotat(?:ed|ions?)\b",
    re.IGNORECASE,
)
_GENERIC = re.compile(
    r"\bas an? (?:ai|language model|artificial)|\blanguage model\b|\bi(?:'m| am) (?:sorry|unable|not able)\b"
    r"|\bi (?:can ?not|can't|do not|don't) (?:see|view|know|determine|tell|have)\b"
    r"|\b(?:cannot|can't|can not|impossible to|difficult to|hard to) (?:be determined|be said|determine|tell|say)\b"
    r"|\bnot possible to (?:determine|tell|say)|\bwithout (?:more|further|additional) (?:context|information|details)\b"
    r"|\b(?:it is|it's|is) unclear\b|\blorem ipsum\b|\.\.\.\s*$|\[(?:insert|your)\b",
    re.IGNORECASE,
)
_ASKS = re.compile(
    r"(?:please |kindly )?(?:describe|explain|tell|name|list|identify|compare|discuss|count|give|write|imagine|share|"
    r"summari[sz]e|provide|point|suggest|walk|elaborate)\b",
    re.IGNORECASE,
)

#: Answers of so many words do not come twice by chance.
_LONG_ANSWER = 8


def pairs_of(reply: Reply | None, prompt: GenerationPrompt, record: Record, seed: int) -> tuple[list[Pair], list[str]]:
    """Return what a reply says, and the names of the rules that made it readable.

    Args:
        seed: draws the question where the model has written the answer alone.

    Raises:
        Refusal: with one of `REASONS`.
    """
    if reply is None:
        raise Refusal("not_asked", "the budget was at its end", record.id)
    if reply.kind != "answer":
        raise Refusal(_NO_ANSWER.get(reply.kind, "bad_response"), f"{reply.kind}: {reply.detail}", record.id)
    text, rules = reply.text.strip(), []
    if fenced := _FENCED.fullmatch(text):
        text, rules = fenced[1].strip(), ["code_fence"]
    if prompt.questions:
        if text[:1] in "{[":
            raise _refusal("wrong_format", "JSON where a description was asked for", text, record)
        pairs = [(draw(prompt.questions, seed, record.id), text)]
    else:
        pairs = _json_pairs(text, record)
    _check(pairs, prompt, record)
    return pairs, rules


def _json_pairs(text: str, record: Record) -> list[Pair]:
    """Read JSON objects one after the other, or a list of them."""
    decoder, place, found = json.JSONDecoder(), 0, []
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            found += value if isinstance(value, list) else [value]
            place += len(text[place:]) - len(text[place:].lstrip(" \t\r\n,"))
    except (ValueError, RecursionError) as error:
        raise _refusal("wrong_format", f"not JSON: {error}", text, record) from None
    pairs: list[Pair] = []
    for value in found:
        sides = [value.get("question"), value.get("answer")] if isinstance(value, dict) and len(value) == 2 else []
        words = [_whole(side) for side in sides if isinstance(side, str)]
        if len(words) != 2 or not all(words):
            raise _refusal("wrong_format", 'not {"question": "...", "answer": "..."}', str(value), record)
        pairs.append((words[0], words[1]))
    return pairs


def _whole(text: str) -> str:
    """Return words without blanks around them, and without what no file of UTF-8 holds: halves of surrogate pairs."""
    return text.encode("utf-8", "replace").decode("utf-8").strip()


def _check(pairs: Sequence[Pair], prompt: GenerationPrompt, record: Record) -> None:
    fewest, most = prompt.turns
    if not fewest <= len(pairs) <= most:
        found = f"{len(pairs)} questions, expected {fewest}" + (f" to {most}" if most > fewest else "")
        raise _refusal("wrong_turns", found, "", record)
    for question, answer in pairs:
        _check_pair(question, answer, prompt, record)
    questions = [question.casefold() for question, _ in pairs]
    answers = [answer.casefold() for _, answer in pairs if len(answer.split()) >= _LONG_ANSWER]
    if len(set(questions)) < len(questions) or len(set(answers)) < len(answers):
        raise _refusal("repeats", f"{len(pairs)} questions", "", record)


def _check_pair(question: str, answer: str, prompt: GenerationPrompt, record: Record) -> None:
    both = f"{question}\n{answer}"
    if not question.endswith("?") and not _ASKS.match(question) and not prompt.questions:
        raise _refusal("not_a_question", "neither a question mark nor a request", question, record)
    for reason, pattern in (("markdown", _MARKUP), ("speaks_of_the_source", _SOURCE), ("generic", _GENERIC)):
        if found := pattern.search(both):
            raise _refusal(reason, repr(found[0].strip()), both[max(0, found.start() - 40) :], record)
    if IMAGE_TAG in both:
        raise _refusal("image_tag", IMAGE_TAG, both, record)
    if json.dumps(answer)[1:-1] in prompt.answer and len(answer.split()) >= _LONG_ANSWER:
        raise _refusal("copies_the_example", "word for word", answer, record)
    if len(answer.split()) < prompt.min_words:
        raise _refusal("too_short", f"{len(answer.split())} words, expected {prompt.min_words}", answer, record)


def _refusal(reason: str, detail: str, text: str, record: Record) -> Refusal:
    """Return a refusal that shows the place."""
    shown = " ".join(text.split())[:80]
    return Refusal(reason, f"{detail}: {shown}" if shown else detail, record.id)
