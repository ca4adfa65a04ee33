"""Turn and Conversation, the in-memory form of one LLaVA jsonl line; what makes one good; jsonl in and out.

    {"id": "000000033471", "image": "coco/train2017/000000033471.jpg",
     "conversations": [{"from": "human", "value": "<image>\\nWhat colour is the bus?"},
                       {"from": "gpt", "value": "White."}]}

A record without `image` is text-only. Other keys are ignored. A fault is a `Refusal` with a reason code; a record that
can be read in one sane way only is normalised, and the rule's name is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

IMAGE_TAG = "<image>"

#: Some editors begin a UTF-8 file with it.
BYTE_ORDER_MARK = b"\xef\xbb\xbf"

#: A line longer than this is not a conversation.
MAX_LINE_BYTES = 16 << 20
MAX_ID_CHARS = 512
MAX_PATH_CHARS = 1024

#: What is left of a line that is too long is read in pieces of this size.
_REST_BYTES = 1 << 20

#: What shards hold as the path of a row without a picture, so no picture may be called that.
NO_IMAGE_KEY = "None"


class Turn(msgspec.Struct, frozen=True, gc=False):
    """One side's words. `role` is `from` in the file: human or gpt."""

    role: str = msgspec.field(name="from")
    value: str


class Conversation(msgspec.Struct, frozen=True, omit_defaults=True):
    """One record. `image` is a path relative to the image root, None for text-only."""

    id: str
    image: str | None = None
    turns: list[Turn] = msgspec.field(name="conversations", default_factory=list)


class EvaluationRecord(Conversation, frozen=True, omit_defaults=True):
    """One question with all that scoring needs. Programs that read LLaVA jsonl read it too.

    The last turn is the first reference answer; it is missing where a split has no published answers.
    """

    answers: list[str] = msgspec.field(default_factory=list)
    """Every reference answer."""
    kind: str = ""
    """The dataset's own word for the kind of question."""
    options: list[str] = msgspec.field(default_factory=list)
    """The options of a multiple-choice question."""


class Refusal(Exception):
    """A record that cannot be trained on. `reason` is one of `REASONS`, `detail` what was found."""

    def __init__(self, reason: str, detail: str, record_id: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.record_id = record_id


#: Why a record is refused. Everything that refuses uses one of these.
REASONS = {
    "line_too_long": f"the line has more than {MAX_LINE_BYTES >> 20} MB",
    "not_utf8": "the line is not UTF-8",
    "not_json": "the line is not JSON",
    "not_a_record": "not an object with `conversations` as a list of {from, value}",
    "value_not_text": "a `from` or `value` is not a string",
    "bad_id": f"the id is not a string or number of at most {MAX_ID_CHARS} characters",
    "bad_image_key": "`image` is not a path",
    "several_images": "`image` is a list of more than one picture",
    "no_turns": "the conversation is empty",
    "unknown_role": "a role is neither human nor gpt",
    "not_human_first": "the first turn is not the human's",
    "roles_do_not_alternate": "the same role speaks twice in a row",
    "ends_on_human": "the last question has no answer",
    "empty_answer": "an answer is empty",
    "empty_question": "a question is empty",
    "image_count": "the number of <image> in the questions is not the number of pictures",
    "image_not_in_first_turn": "<image> stands in a later question, so the picture has no fixed place",
    "nested_image_tag": "removing <image> makes another one",
    "plain_needs_a_pair": "a caption template takes one question and one answer",
    "plain_needs_an_image": "a caption template takes a picture",
    "chat_template": "the tokenizer's chat template cannot write the conversation",
    "no_room_for_an_answer": "the prompt alone fills the row",
    "too_long": "longer than the row",
    "unsafe_image_path": "the image key does not stay under the image root",
    "missing_image": "there is no such picture",
    "unreadable_image": "the picture cannot be decoded",
    "image_too_large": "the picture has too many pixels",
    "image_too_thin": "the picture is a sliver",
    "no_answer": "the question has no reference answer",
    "bad_options": "the options are too few, too many, or none of them is the right one",
    "ambiguous_answer": "the label names none of the options, or more than one",
    "missing_labels": "the question is about letters that cannot be painted into the picture",
    "repeated_id": "another question of the split has this id, so a score could not tell them apart",
    "picture_not_published": "the picture is of a source that is not published in full (SA-1B) and is not there",
    "damaged_text": "what the text is kept in cannot be read",
    "too_short": "the text is shorter than what can be learned from",
    "not_in_split": "the record belongs to another split than the one that its file says",
}

_decoder = msgspec.json.Decoder(Conversation)
_encoder = msgspec.json.Encoder()


def parse(line: bytes) -> tuple[Conversation, list[str]]:
    """Read one json record.

    Returns:
        The conversation, and the names of the rules that normalised it (`number_as_id`, `null_image`, ...).

    Raises:
        Refusal: it is not a record.
    """
    if len(line) > MAX_LINE_BYTES:
        raise Refusal("line_too_long", f"{len(line)} bytes")
    try:
        conversation, rules = _decoder.decode(line), []
    except (msgspec.ValidationError, RecursionError):
        conversation, rules = _parse_loosely(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _undecodable(line, error) from None
    if conversation.image is None and b'"image"' in line:
        rules = rules or _null_image(line)
    _check_names(conversation)
    return conversation, rules


def check(conversation: Conversation) -> None:
    """Refuse a conversation that a converter made and `parse` and `validate` would refuse.

    Raises:
        Refusal: the first fault found.
    """
    _check_names(conversation)
    validate(conversation)


def _check_names(conversation: Conversation) -> None:
    if conversation.image is not None and not 0 < len(conversation.image) <= MAX_PATH_CHARS:
        raise Refusal("bad_image_key", f"{len(conversation.image)} characters", conversation.id)
    if conversation.image == NO_IMAGE_KEY:
        raise Refusal("bad_image_key", f"{NO_IMAGE_KEY!r} marks rows without a picture", conversation.id)
    if len(conversation.id) > MAX_ID_CHARS:
        raise Refusal("bad_id", f"{len(conversation.id)} characters", conversation.id[:MAX_ID_CHARS])


#: Who speaks in an even and in an odd turn, counted from 1.
_SPEAKERS = ("gpt", "human")


def validate(conversation: Conversation) -> None:
    """Refuse what LLaVA would crash on, mask wholly or train wrongly.

    Raises:
        Refusal: the first fault found; the detail names the turn, counted from 1.
    """
    turns = conversation.turns
    if not turns:
        raise Refusal("no_turns", "no turn", conversation.id)
    for number, turn in enumerate(turns, 1):
        if turn.role != _SPEAKERS[number % 2] or not turn.value:
            _validate_turn(turn, number, conversation.id)
    if len(turns) % 2:
        raise Refusal("ends_on_human", f"turn {len(turns)} has no answer", conversation.id)
    if conversation.image is not None:
        _validate_image_tags(conversation)


def _validate_turn(turn: Turn, number: int, record_id: str) -> None:
    expected = "human" if number % 2 else "gpt"
    if turn.role not in ("human", "gpt"):
        raise Refusal("unknown_role", f"turn {number} is from {turn.role!r}", record_id)
    if turn.role != expected:
        reason = "not_human_first" if number == 1 else "roles_do_not_alternate"
        raise Refusal(reason, f"turn {number} is from {turn.role}, expected {expected}", record_id)
    # Blanks are text: LLaVA trains on an answer of one space, and so do we. Only nothing is nothing.
    if not turn.value:
        raise Refusal("empty_question" if expected == "human" else "empty_answer", f"turn {number}", record_id)


def _validate_image_tags(conversation: Conversation) -> None:
    questions = [turn.value for turn in conversation.turns[::2]]
    count = sum(question.count(IMAGE_TAG) for question in questions)
    if count != 1:
        raise Refusal("image_count", f"{count} {IMAGE_TAG} in the questions, 1 picture", conversation.id)
    if IMAGE_TAG not in questions[0]:
        turn = next(2 * i + 1 for i, question in enumerate(questions) if IMAGE_TAG in question)
        raise Refusal("image_not_in_first_turn", f"{IMAGE_TAG} in turn {turn}", conversation.id)
    if IMAGE_TAG in questions[0].replace(IMAGE_TAG, ""):
        raise Refusal("nested_image_tag", "turn 1", conversation.id)


def encode_line(conversation: Conversation) -> bytes:
    """Return the jsonl line of a conversation, UTF-8, ending in a newline."""
    return _encoder.encode(conversation) + b"\n"


def read_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """Yield the lines of a byte range of a jsonl file, without their newline; `start` must begin a line.

    Lines end in `\\n` alone: U+2028 and U+0085 occur inside the texts. Of a line longer than `MAX_LINE_BYTES` only the
    first `MAX_LINE_BYTES + 1` bytes are had, so that it costs no more memory.
    """
    for _, line in placed_lines(path, start, stop):
        yield line


def placed_lines(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield the lines as `read_lines` does, each with the byte of the file at which it begins."""
    with open(path, "rb") as file:
        file.seek(start)
        end = start
        while line := file.readline(MAX_LINE_BYTES + 1):
            begin, end, rest = end, end + len(line), line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(_REST_BYTES)
                end += len(rest)
            yield begin, line.removesuffix(b"\n")
            if stop is not None and end >= stop:
                return


def _undecodable(line: bytes, error: Exception) -> Refusal:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError as fault:
        return Refusal("not_utf8", f"{fault.reason} at byte {fault.start}")
    return Refusal("not_json", str(error))


def _parse_loosely(line: bytes) -> tuple[Conversation, list[str]]:
    """Read a record that is not of the exact type: normalise what has one meaning, else say what is wrong."""
    try:
        record = msgspec.json.decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _undecodable(line, error) from None
    if not isinstance(record, dict):
        raise Refusal("not_a_record", f"a {type(record).__name__}, expected an object")
    rules: list[str] = []
    record_id = _loose_id(record.get("id"), rules)
    turns = _loose_turns(record.get("conversations"), record_id)
    return Conversation(record_id, _loose_image(record.get("image"), record_id, rules), turns), rules


def _loose_id(value: Any, rules: list[str]) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        rules.append("number_as_id")
        return str(value)
    if value is None:
        rules.append("no_id")
        return ""
    raise Refusal("bad_id", f"id is a {type(value).__name__}")


def _loose_turns(value: Any, record_id: str) -> list[Turn]:
    if not isinstance(value, list):
        raise Refusal("not_a_record", f"`conversations` is a {type(value).__name__}, expected a list", record_id)
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict):
            raise Refusal("not_a_record", f"turn {number} is a {type(turn).__name__}, expected an object", record_id)
        for key in ("from", "value"):
            if not isinstance(turn.get(key), str):
                found = f"is a {type(turn[key]).__name__}" if key in turn else "is missing"
                raise Refusal("value_not_text", f"turn {number}: `{key}` {found}", record_id)
        turns.append(Turn(turn["from"], turn["value"]))
    return turns


def _loose_image(value: Any, record_id: str, rules: list[str]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        if len(value) > 1:
            raise Refusal("several_images", f"{len(value)} pictures", record_id)
        rules.append("image_list_of_one" if value else "empty_image_list")
        return value[0] if value else None
    raise Refusal("bad_image_key", f"`image` is a {type(value).__name__}", record_id)


def _null_image(line: bytes) -> list[str]:
    """A key that is there but null is how tables with a column `image` write a text-only record."""
    record = msgspec.json.decode(line, type=dict)
    return ["null_image"] if "image" in record else []
