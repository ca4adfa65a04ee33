"""A trial run: what it says of the sample is what a run makes of it, and what it scales is near the truth."""

import json

import pytest

from dataprep.dry_run import describe, duration, forecast, sample_of
from dataprep.pipeline import input_files, run_job
from dataprep.plan import InputFile


def mixture(workspace, count):
    """Each tenth record without its picture's file, each seventh without an answer, each third text-only."""
    records = []
    for number in range(count):
        image = f"pictures/{'none' if number % 10 == 0 else number % 5}.jpg" if number % 3 else None
        records.append(workspace.record(number, image, 1 + number % 4))
        if number % 7 == 0:
            records[-1]["conversations"][1]["value"] = ""
    return workspace.write("a.jsonl", records)


def test_of_a_small_input_everything_is_counted(workspace):
    job = workspace.job(mixture(workspace, 300))
    values = forecast(job)
    assert not job.output.exists()
    tally = run_job(job, 1, lambda *_: None)
    assert values["records"] == values["sampled"] == 300
    assert values["in_the_sample"]["refused"] == values["in_all"]["refused"] == dict(tally.refused)
    for name in ("rows", "text_only", "truncated", "split"):
        assert values["in_all"][name] == getattr(tally, name)
    assert values["in_all"]["attended_tokens"] == tally.attended_tokens
    assert values["layout"]["image_start_idx"] == 68
    text = describe(values)
    assert "all of them" in text and "the whole run, counted" in text and "95 %" not in text


def test_of_a_large_input_a_sample_is_scaled_and_kept_apart(workspace):
    job = workspace.job(mixture(workspace, 3_000))
    values = forecast(job, workers=2)
    tally = run_job(job, 1, lambda *_: None)
    assert values["records"] == 3_000 and 900 < values["sampled"] <= 1024
    assert values["in_all"]["rows"] == pytest.approx(tally.rows, rel=0.1)
    assert values["in_all"]["attended_tokens"] == pytest.approx(tally.attended_tokens, rel=0.1)
    for reason, count in tally.refused.items():
        assert values["in_all"]["refused"][reason] == pytest.approx(count, rel=0.5)
    size = sum(path.stat().st_size for path in job.output.glob("*.h5"))
    assert values["run"]["disk_bytes"] == pytest.approx(size, rel=0.3)
    text = describe(values)
    assert "of them, at places spread over the input. Nothing was written." in text
    assert "the whole run, scaled from the sample (about)" in text
    assert "can still be in 0.3% of the records" in text


def test_each_reason_has_an_example_with_its_place(workspace):
    values = forecast(workspace.job(mixture(workspace, 100)))
    examples = values["in_the_sample"]["examples"]
    assert set(examples) == set(values["in_all"]["refused"]) == {"missing_image", "empty_answer"}
    assert (examples["empty_answer"]["file"], examples["empty_answer"]["line"]) == ("a.jsonl", 1)
    text = describe(values)
    assert "refused: missing_image" in text and "a.jsonl:11 id 'r10': " in text
    json.dumps(values)


def test_control_characters_of_the_data_do_not_reach_the_terminal(workspace):
    record = workspace.record(1, "pictures/\x1b[31m\u202e.jpg")
    text = describe(forecast(workspace.job(workspace.write("a.jsonl", [record]))))
    assert "\x1b" not in text and "\u202e" not in text and "pictures/" in text


def test_an_input_without_a_good_record_can_be_told(workspace):
    values = forecast(workspace.job(workspace.write("a.jsonl", [b"{broken"])))
    assert values["in_all"]["rows"] == 0 and values["in_all"]["refused"] == {"not_json": 1}
    assert "not_json" in describe(values)


def test_the_disk_is_compared_with_what_is_needed(workspace):
    values = forecast(workspace.job(mixture(workspace, 20)))
    assert values["run"]["disk_free_bytes"] > values["run"]["disk_bytes"] > 0
    assert "are free: enough" in describe(values)
    values["run"]["disk_free_bytes"] = 3
    assert "3 bytes are free: NOT ENOUGH" in describe(values)


def test_places_are_spread_over_files_by_their_lines(workspace):
    files = [
        workspace.write(f"{n}.jsonl", [workspace.record(n)] * count) for n, count in enumerate((500, 9_500, 20_000))
    ]
    segments = sample_of(input_files(files))
    by_file = {name: sum(s.name == name for s in segments) for name in ("0.jsonl", "1.jsonl", "2.jsonl")}
    assert len(segments) == 32 and by_file["1.jsonl"] in (10, 11) and by_file["2.jsonl"] in (21, 22)
    for segment in segments:
        assert segment.path.read_bytes()[: segment.start].count(b"\n") == segment.first_line - 1
        assert segment.path.read_bytes()[segment.start : segment.stop].count(b"\n") == 32


def test_an_empty_file_among_others_is_no_place(workspace):
    empty = workspace.write("empty.jsonl", [])
    files = input_files([empty, workspace.write("a.jsonl", [workspace.record(1)])])
    assert isinstance(files[0], InputFile) and [segment.name for segment in sample_of(files)] == ["a.jsonl"]


def test_options_that_leave_rows_out_are_named(workspace):
    values = forecast(workspace.job(mixture(workspace, 20), dedup="exact", holdout=0.1))
    assert "without --dedup exact and --holdout 0.1, which will leave some rows out." in describe(values)
    assert "leave some rows out" not in describe(forecast(workspace.job(mixture(workspace, 20))))


def test_durations_are_said_as_people_say_them():
    assert [duration(seconds) for seconds in (0.01, 59.6, 600, 12_000)] == ["1 s", "60 s", "10 min", "3 h 20 min"]
