"""ChartQA's original layout to jsonl: the golden file of the case folder, and the real samples."""

from pathlib import Path

import pytest

from dataprep.conversation import parse, validate
from dataprep.datasets import DATASETS
from dataprep.datasets.base import Duplicate, Options, Refused, Written
from dataprep.errors import CommandError
from dataprep.preprocess import convert
from dataprep.prompts import PROMPTS

CASE = Path(__file__).parent / "cases" / "chartqa"
CHARTQA = DATASETS["chartqa"]


def options(root, *splits, prompts="llava15"):
    return Options(root.absolute(), splits or ("train",), PROMPTS[prompts])


def items(folder, opts):
    return [item for part in CHARTQA.parts(folder, opts) for item in CHARTQA.read(part, opts)]


def test_the_jsonl_is_the_golden_one(tmp_path):
    accounting = convert(CHARTQA, CASE / "raw", options(CASE / "raw"), tmp_path / "out.jsonl", 1)
    assert (tmp_path / "out.jsonl").read_bytes() == (CASE / "expected.jsonl").read_bytes()
    assert accounting.balanced()
    assert (accounting.records, accounting.written, accounting.deduplicated) == (11, 5, 1)


def test_each_bad_question_is_refused_alone_with_its_place():
    found = [item for item in items(CASE / "raw", options(CASE / "raw")) if not isinstance(item, Written)]
    assert [(item.reason, item.line) for item in found if isinstance(item, Refused)] == [
        ("empty_question", 4),
        ("no_answer", 5),
        ("image_count", 7),
        ("not_a_record", 8),
        ("unsafe_image_path", 6),
    ]
    assert [item for item in found if isinstance(item, Duplicate)] == [
        Duplicate("train_augmented.json", 2, "41699051005347.png")
    ]


def test_the_folder_itself_or_the_one_around_it_may_be_given():
    opts = options(CASE / "raw")
    assert items(CASE / "raw" / "ChartQA Dataset", opts) == items(CASE / "raw", opts)


def test_without_prompts_the_question_stands_alone():
    (first, *_) = [
        item for item in items(CASE / "raw", options(CASE / "raw", prompts="none")) if isinstance(item, Written)
    ]
    assert first.conversation.turns[0].value == "<image>\nHow many food item is shown in the bar graph?"


def test_a_missing_split_names_the_file_it_looked_for():
    with pytest.raises(
        CommandError, match=r"val_human\.json: no such file; --input should be the folder 'ChartQA Dataset'"
    ):
        CHARTQA.parts(CASE / "raw", options(CASE / "raw", "val"))


def test_two_splits_in_two_workers_give_the_same_file(shared, tmp_path):
    opts = options(shared / "raw-chartqa", "test", "test")
    convert(CHARTQA, shared / "raw-chartqa", opts, tmp_path / "one.jsonl", 1)
    convert(CHARTQA, shared / "raw-chartqa", opts, tmp_path / "two.jsonl", 2)
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


def test_the_real_samples_are_all_read(shared, tmp_path):
    folder = shared / "raw-chartqa" / "ChartQA Dataset"
    accounting = convert(CHARTQA, folder, options(shared / "raw-chartqa", "test"), tmp_path / "out.jsonl", 1)
    assert (accounting.records, accounting.written, accounting.refused) == (524, 524, [])
    lines = (tmp_path / "out.jsonl").read_bytes().splitlines()
    assert len(lines) == accounting.conversations == 294
    for line in lines:
        conversation, rules = parse(line)
        validate(conversation)
        assert rules == []
        assert (shared / "raw-chartqa" / conversation.image).is_file()
        assert conversation.turns[0].value.endswith("\nAnswer the question using a single word or phrase.")
        assert all("single word or phrase" not in turn.value for turn in conversation.turns[1:])
