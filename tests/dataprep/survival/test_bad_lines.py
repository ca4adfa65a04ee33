"""Bad lines cost themselves and nothing else: one record of every fault, and lines damaged in every way.

10,000 damaged lines in `make test-long`, 1,000 in `make test`.
"""

import contextlib
import dataclasses
import json
import os
import random
import resource

import numpy as np
import pytest
from PIL import Image

from dataprep import conversation
from dataprep.conversation import MAX_LINE_BYTES, REASONS, placed_lines
from dataprep.pipeline import make_verdicts, run_job
from dataprep.shards import ShardReader
from tests.dataprep.survival.kills import FULL, start, words
from tests.dataprep.survival.mutations import MUTATIONS, VERY_LONG

#: These are given by `preprocess`, which makes the jsonl, and by tokenizers whose own template fails on a record.
OTHERS = {
    "ambiguous_answer",
    "bad_options",
    "chat_template",
    "damaged_text",
    "missing_labels",
    "no_answer",
    "not_in_split",
    "picture_not_published",
    "repeated_id",
    "too_short",
}


def quiet(*_):
    pass


def rows(folder, ids=""):
    """All that is trained on, by the id of the record, of the records whose id begins so."""
    found = {}
    with ShardReader(folder) as reader:
        for row in reader:
            if row.source.id.startswith(ids):
                assert row.source.id not in found
                found[row.source.id] = [
                    value.tobytes() if isinstance(value, np.ndarray) else value
                    for field in dataclasses.fields(row)
                    if field.name != "source"
                    for value in [getattr(row, field.name)]
                ]
    return found


def refusals(folder):
    return [json.loads(line) for line in (folder / "refused.jsonl").read_text().splitlines()]


def record(*turns, **more):
    """A record from its turns, human first."""
    roles = ("human", "gpt")
    said = [{"from": roles[index % 2], "value": value} for index, value in enumerate(turns)]
    return {"id": "bad", "conversations": said, **more}


def asked(question="<image>\nWhat?", **more):
    return record(question, "red", **more)


#: For each reason a record that is refused for it, and the settings under which it is.
BAD = {
    "line_too_long": (b'{"id": "bad", "x": "' + b"a" * MAX_LINE_BYTES + b'"}', {}),
    "not_utf8": (b'{"id": "bad", "conversations": [{"from": "human", "value": "\xff"}]}', {}),
    "not_json": (b'{"id": "bad", "conversations": [', {}),
    "not_a_record": ({"id": "bad", "conversations": "What?"}, {}),
    "value_not_text": (record("What?", 7), {}),
    "bad_id": (record("What?", "red", id=["bad"]), {}),
    "bad_image_key": (asked(image=""), {}),
    "several_images": (asked(image=["pictures/0.jpg", "pictures/1.jpg"]), {}),
    "no_turns": (record(), {}),
    "unknown_role": ({"id": "bad", "conversations": [{"from": "system", "value": "x"}]}, {}),
    "not_human_first": ({"id": "bad", "conversations": [{"from": "gpt", "value": "x"}]}, {}),
    "roles_do_not_alternate": ({"id": "bad", "conversations": [{"from": "human", "value": "x"}] * 2}, {}),
    "ends_on_human": (record("What?", "red", "And?"), {}),
    "empty_answer": (record("What?", ""), {}),
    "empty_question": (record("", "red"), {}),
    "image_count": (asked("<image><image>\nWhat?", image="pictures/0.jpg"), {}),
    "image_not_in_first_turn": (record("What?", "red", "<image>\nAnd?", "blue", image="pictures/0.jpg"), {}),
    "nested_image_tag": (asked("<ima<image>ge>\nWhat?", image="pictures/0.jpg"), {}),
    "plain_needs_a_pair": (record("<image>", "a", "b", "c", image="pictures/0.jpg"), {"template": "plain", "phase": 1}),
    "plain_needs_an_image": (record("What?", "red"), {"template": "plain", "phase": 1}),
    "no_room_for_an_answer": (record("word " * 500, "red"), {}),
    "too_long": (record("What?", "red " * 500), {"overlong": "drop"}),
    "unsafe_image_path": (asked(image="../../etc/passwd"), {}),
    "missing_image": (asked(image="pictures/none.jpg"), {}),
    "unreadable_image": (asked(image="pictures/cut.jpg"), {}),
    "image_too_large": (asked(image="pictures/large.png"), {}),
    "image_too_thin": (asked(image="pictures/thin.png"), {}),
}


def test_every_reason_is_tried_here_or_given_by_another_command():
    assert BAD.keys() | OTHERS >= REASONS.keys() >= BAD.keys()
    assert not BAD.keys() & OTHERS


def bad_pictures(folder):
    folder.joinpath("cut.jpg").write_bytes(folder.joinpath("4.jpg").read_bytes()[:-200])
    Image.new("1", (9500, 9500)).save(folder / "large.png")
    Image.new("RGB", (1, 300)).save(folder / "thin.png")


@pytest.mark.parametrize("reason", BAD)
def test_one_bad_record_costs_one_record(workspace, reason):
    bad, settings = BAD[reason]
    bad_pictures(workspace.root / "pictures")
    good = [workspace.record(number, f"pictures/{number % 5}.jpg") for number in range(12)]
    found = []
    for name, records in (("clean", good), ("bad", [*good[:6], bad, *good[6:]])):
        job = workspace.job(workspace.write(f"{name}.jsonl", records), output=name, **settings)
        tally = run_job(job, 1, quiet)
        assert (tally.written, tally.num_refused) == (12, len(records) - 12)
        found.append(rows(job.output))
    assert found[0] == found[1] and len(found[0]) == 12
    (refusal,) = refusals(workspace.root / "bad")
    assert (refusal["reason"], refusal["file"], refusal["line"]) == (reason, "bad.jsonl", 7)


#: In several scripts, with what JSON escapes, and with what other programs take for the end of a line.
ANSWERS = ("red", "«naïve» 图表 \U0001f4ca", 'a \\ and a " and\ttab', "\u2028 \x85")


def base(workspace, number, name):
    """A good record with words of several scripts, with and without a picture."""
    made = workspace.record(number, f"pictures/{number % 5}.jpg" if number % 3 else None, 1 + number % 3)
    made["id"] = f"{name}{number}"
    made["conversations"][1]["value"] = ("red", "«naïve» 图表 \U0001f4ca", 'a \\ and a " and\ttab', "\u2028 \x85")[
        number % 4
    ]
    return json.dumps(made, ensure_ascii=number % 2 == 0).encode()


@pytest.mark.parametrize("part", range(5))
def test_damaged_lines_crash_nothing_and_cost_no_good_line(workspace, part):
    chance = random.Random(part)
    count = 2000 if FULL else 200
    good = [base(workspace, number, "good") for number in range(count + 1)]
    lines, kinds = [good[0]], list(MUTATIONS)
    for number, line in enumerate(good[1:]):
        kind = kinds[number % len(kinds)]
        lines += [MUTATIONS[kind](base(workspace, number, "bad"), chance), line]
    lines[3:3] = VERY_LONG[: None if part == 0 else 1]
    clean = workspace.job(workspace.write("clean.jsonl", good), output="clean")
    run_job(clean, 1, quiet)
    job = workspace.job(workspace.write("lines.jsonl", lines), output="lines")
    tally = run_job(job, 1, quiet)
    assert tally.balanced()

    ours = set(good)
    content = (b"\n".join(lines) + b"\n").split(b"\n")  # damage may have made one line into two
    records = {number for number, line in enumerate(content, 1) if line.strip()}
    with ShardReader(job.output) as reader:
        written = [(row.source.line, row.source.id) for row in reader]
    refused = [refusal["line"] for refusal in refusals(job.output)]
    assert sorted([line for line, _ in written] + refused) == sorted(records)
    assert {line for line, _ in written} >= {number for number, line in enumerate(content, 1) if line in ours}
    assert min(len(refused), len(written) - len(good)) > count // 20, "what is damaged is refused, or still a record"

    expected, found = rows(clean.output), rows(job.output, "good")
    assert found == expected and len(expected) == count + 1


@pytest.fixture
def no_more_files():
    """Leave room for so many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = []

    def limit(room: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
        with contextlib.suppress(OSError):
            while True:
                opened.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(room):
            os.close(opened.pop())

    yield limit
    for descriptor in opened:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("check", ["decode", "header"])
def test_a_machine_that_opens_no_more_files_refuses_no_picture(workspace, no_more_files, check):
    verdicts = make_verdicts(workspace.job(workspace.write("a.jsonl", []), check_images=check), remember=False)
    assert verdicts.good("pictures/1.jpg")
    no_more_files(0)
    with pytest.raises(OSError, match="Too many open files"):
        verdicts.good("pictures/0.jpg")
    assert not verdicts.good("pictures/none.jpg")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_line_of_gigabytes_costs_no_memory(workspace, workers):
    good = [workspace.record(number) for number in range(20)]
    peaks = []
    for name, hole in (("short", 0), ("long", 3 << 30 if FULL else 200 << 20)):
        path = workspace.write(f"{name}/a.jsonl", good)
        with open(path, "ab") as file:
            file.write(b'{"id": "')
            file.truncate(file.tell() + hole)
            file.seek(0, 2)
            file.write(b'"}\n' + json.dumps(workspace.record(99)).encode() + b"\n")
        line = words(workspace, f"h5-{name}", "--workers", workers, "--max-refused", 1)
        process = start(workspace, [path.parent.as_posix() if word == "jsonl/phase2" else word for word in line])
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, process.stderr.read()
        process.communicate()
        peaks.append(usage.ru_maxrss)
        assert [entry["line"] for entry in refusals(workspace.root / f"h5-{name}")] == [21]
        with ShardReader(workspace.root / f"h5-{name}") as reader:
            assert [row.source.line for row in reader] == [*range(1, 21), 22]
    assert refusals(workspace.root / "h5-long")[0]["reason"] == "line_too_long"
    assert peaks[1] - peaks[0] < 100_000, "kilobytes"


@pytest.mark.parametrize("seed", range(200 if FULL else 30))
def test_lines_of_any_length_are_placed_and_bounded(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(conversation, "MAX_LINE_BYTES", 50)
    monkeypatch.setattr(conversation, "_REST_BYTES", 7)
    chance, path = random.Random(seed), tmp_path / "a.jsonl"
    lines = [chance.randbytes(chance.choice((0, 1, 7, 49, 50, 51, 52, 300))).replace(b"\n", b"x") for _ in range(30)]
    ended = chance.random() < 0.5
    path.write_bytes(b"\n".join(lines) + b"\n" * ended)
    if not ended and not lines[-1]:
        lines.pop()
    starts = [sum(len(line) + 1 for line in lines[:number]) for number in range(len(lines))]
    expected = [(begin, line[:51]) for begin, line in zip(starts, lines, strict=True)]
    assert list(placed_lines(path)) == expected
    first, last = sorted(chance.sample(range(len(lines)), 2))
    assert list(placed_lines(path, starts[first], starts[last])) == expected[first:last]
