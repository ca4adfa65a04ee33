"""Reading one record: what is good, what is normalised, what is refused and by which reason."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.conversation import (
    REASONS,
    Conversation,
    Refusal,
    Turn,
    encode_line,
    parse,
    read_lines,
    validate,
)


def record(*values: str, image: object = "a.jpg", **more: object) -> dict:
    turns = [{"from": "gpt" if i % 2 else "human", "value": value} for i, value in enumerate(values)]
    return {"id": "7", "image": image, "conversations": turns, **more}


def without(key: str, **values: object) -> dict:
    return {k: v for k, v in {**record("<image>\nq", "a"), **values}.items() if k != key}


def read(value: object) -> Conversation:
    conversation, _ = parse(value if isinstance(value, bytes) else json.dumps(value).encode())
    validate(conversation)
    return conversation


def test_a_good_record_is_read_as_it_is():
    conversation = read(record("<image>\nq ", " a", "q2", "a2", model="gpt-4"))
    assert conversation.image == "a.jpg"
    assert [turn.value for turn in conversation.turns] == ["<image>\nq ", " a", "q2", "a2"]


TURN = {"from": "human", "value": "q"}
REFUSED = [
    ("not_utf8", b'{"id": "7", "conversations": [{"from": "human", "value": "\xff"}]}'),
    ("not_json", b'{"id": "7", "conversations": ['),
    ("not_json", b'{"id": NaN}'),
    ("not_json", rb'{"id": "\ud800", "conversations": []}'),
    ("line_too_long", b" " * ((16 << 20) + 1)),
    ("not_a_record", [1, 2]),
    ("not_a_record", "text"),
    ("not_a_record", {"id": "7", "conversations": "q"}),
    ("not_a_record", {"id": "7", "conversations": ["q"]}),
    ("value_not_text", {"id": "7", "conversations": [{"from": "human", "value": None}]}),
    ("value_not_text", {"id": "7", "conversations": [{"from": "human", "value": 3}]}),
    ("value_not_text", {"id": "7", "conversations": [{"from": "human"}]}),
    ("bad_id", record("<image>\nq", "a") | {"id": ["7"]}),
    ("bad_id", record("<image>\nq", "a") | {"id": "x" * 513}),
    ("bad_image_key", record("<image>\nq", "a", image={"path": "a"})),
    ("bad_image_key", record("<image>\nq", "a", image="")),
    ("bad_image_key", record("<image>\nq", "a", image="x" * 1025)),
    ("bad_image_key", record("<image>\nq", "a", image="None")),
    ("several_images", record("<image>\nq", "a", image=["a.jpg", "b.jpg"])),
    ("no_turns", without("conversations")),
    ("no_turns", record()),
    ("unknown_role", {"id": "7", "conversations": [{"from": "system", "value": "q"}]}),
    ("not_human_first", {"id": "7", "conversations": [{"from": "gpt", "value": "q"}]}),
    ("roles_do_not_alternate", {"id": "7", "conversations": [TURN, TURN]}),
    ("ends_on_human", record("<image>\nq", "a", "q")),
    ("empty_answer", record("<image>\nq", "")),
    ("empty_question", record("<image>\nq", "a", "", "a")),
    ("image_count", record("q", "a")),
    ("image_count", record("<image><image>q", "a")),
    ("image_count", record("<image>q", "a", "<image>q", "a")),
    ("image_not_in_first_turn", record("q", "a", "<image>q", "a")),
    ("nested_image_tag", record("<ima<image>ge>q", "a")),
]


@pytest.mark.parametrize(("reason", "value"), REFUSED)
def test_each_fault_has_its_reason(reason, value):
    with pytest.raises(Refusal) as caught:
        read(value)
    assert caught.value.reason == reason
    assert reason in REASONS


def test_a_refusal_keeps_the_id_and_names_the_turn():
    with pytest.raises(Refusal) as caught:
        read(record("<image>\nq", "a", "q2", ""))
    assert (caught.value.record_id, caught.value.detail) == ("7", "turn 4")


NORMALISED = [
    (record("<image>\nq", "a") | {"id": 33}, ["number_as_id"], "33", "a.jpg"),
    (without("id"), ["no_id"], "", "a.jpg"),
    (record("q", "a", image=None), ["null_image"], "7", None),
    (record("<image>\nq", "a", image=["a.jpg"]), ["image_list_of_one"], "7", "a.jpg"),
    (record("q", "a", image=[]), ["empty_image_list"], "7", None),
    (without("image") | {"conversations": record("q", 'has "image" in it')["conversations"]}, [], "7", None),
]


@pytest.mark.parametrize(("value", "rules", "record_id", "image"), NORMALISED)
def test_what_has_one_meaning_is_normalised_by_a_named_rule(value, rules, record_id, image):
    conversation, found = parse(json.dumps(value).encode())
    validate(conversation)
    assert (found, conversation.id, conversation.image) == (rules, record_id, image)


def test_tags_in_answers_and_in_records_without_a_picture_are_text():
    assert read(record("<image>\nq", "use <image> here")).turns[1].value == "use <image> here"
    assert read(record("what is <image>?", "a tag", image=None)).image is None


def test_blanks_are_text():
    assert read(record("<image>\nq", " ")).turns[1].value == " "


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


@given(TEXTS, TEXTS, st.none() | st.just("p/ü.jpg"))
def test_a_line_written_is_the_line_read(question, answer, image):
    question = question.replace("<image>", "") + "?"
    shown = f"<image>\n{question}" if image else question
    conversation = Conversation("é", image, [Turn("human", shown), Turn("gpt", answer)])
    line = encode_line(conversation)
    assert line.count(b"\n") == 1
    assert parse(line)[0] == conversation


def test_lines_are_cut_at_newlines_only(tmp_path):
    conversations = [
        Conversation(str(i), None, [Turn("human", "a\u2028b\x85"), Turn("gpt", "c\r\nd")]) for i in range(3)
    ]
    (tmp_path / "x.jsonl").write_bytes(b"".join(map(encode_line, conversations)))
    assert [parse(line)[0] for line in read_lines(tmp_path / "x.jsonl")] == conversations


def test_a_byte_range_holds_whole_lines(tmp_path):
    (tmp_path / "x").write_bytes(b"aa\nbbb\nc\ndd")
    assert list(read_lines(tmp_path / "x", 3, 9)) == [b"bbb", b"c"]
    assert list(read_lines(tmp_path / "x", 9)) == [b"dd"]
