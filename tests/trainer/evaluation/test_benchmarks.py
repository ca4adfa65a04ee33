"""Each reader on a benchmark in miniature, in its published layout, and on real samples where they are at hand."""

import json

import pytest

from dataprep.errors import CommandError
from tests.trainer.evaluation import layouts
from trainer.evaluation.benchmarks import BENCHMARKS, Asked, Left, Source, mmmu
from trainer.evaluation.metrics import METRICS, Truth

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


def read(name, data, tmp_path, split=None, image_dir=None):
    benchmark = BENCHMARKS[name]
    split = split or (benchmark.splits or ("",))[0]
    return list(benchmark.read(Source(data, split, image_dir, tmp_path / "pictures")))


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "questions"])
def test_every_question_of_a_benchmark_has_its_picture_and_is_answered_rightly_by_its_own_truth(name, tmp_path):
    items = read(name, getattr(layouts, name)(tmp_path / "raw"), tmp_path)
    asked = [item for item in items if isinstance(item, Asked)]
    assert asked
    assert len({(one.id, one.prompt) for one in asked}) == len(asked)
    for one in asked:
        assert one.image is None or one.image.is_file()
        assert "<image>" not in one.prompt
        if one.answers:
            judged = METRICS[BENCHMARKS[name].metric].judge(one.answers[0], Truth(one.answers, one.options, one.prompt))
            assert judged.score == 1 and judged.parsed


def test_chartqa_tells_human_and_augmented_questions_apart(tmp_path):
    items = read("chartqa", layouts.chartqa(tmp_path / "raw", 1), tmp_path)
    assert [(one.id, one.kind) for one in items] == [
        ("human-1", "human"),
        ("human-2", "human"),
        ("augmented-1", "augmented"),
    ]
    assert items[0].prompt == "What is the colour of bar 0?" + SHORT
    assert items[0].answers == ("red",)


def test_pictures_in_tables_are_taken_out_beside_the_answers(tmp_path):
    data = layouts.chartqa_table(tmp_path / "raw")
    human, augmented = read("chartqa", data, tmp_path)
    assert (human.kind, augmented.kind) == ("human", "augmented")
    assert human.image.is_relative_to(tmp_path / "pictures") and human.image == augmented.image
    assert human.image.read_bytes() == layouts.picture_bytes()


def test_letters_that_ai2d_asks_about_are_painted_beside_the_answers(tmp_path):
    (one,) = read("ai2d", layouts.ai2d(tmp_path / "raw", abc=True), tmp_path)
    assert one.image.is_relative_to(tmp_path / "pictures") and one.image.is_file()
    assert one.options == ("A", "B") and one.answers == ("B",)
    assert "A. A" not in one.prompt


def test_docvqa_has_all_answers_and_kinds_and_none_in_test(tmp_path):
    data = layouts.docvqa(tmp_path / "raw")
    (one,) = read("docvqa", data, tmp_path)
    assert one.id == "24580" and one.kind == "table/list+form"
    assert one.answers == ("university of california", "UC")
    (test,) = read("docvqa", data, tmp_path, "test")
    assert test.answers == ()


def test_scienceqa_keeps_the_problem_numbers_that_the_original_scoring_looks_for(tmp_path):
    with_picture, words_alone = read("scienceqa", layouts.scienceqa(tmp_path / "raw"), tmp_path)
    assert (with_picture.id, words_alone.id) == ("4", "5")
    assert with_picture.prompt == "Context: Look.\nWhich is farthest north?\nA. Ohio\nB. Maine" + LETTER
    assert with_picture.answers == ("B",) and with_picture.options == ("Ohio", "Maine")
    assert words_alone.image is None


def test_vqav2_joins_annotations_and_counts_questions_without(tmp_path):
    data = layouts.vqav2(tmp_path / "raw")
    asked, left = read("vqav2", data, tmp_path)
    assert asked.id == 262148000 and asked.kind == "other" and asked.answers == ("down",) * 10
    assert asked.prompt == "Where is he looking?" + SHORT
    assert asked.image == data / "val2014" / "COCO_val2014_000000262148.jpg"
    assert left.reason == "no_answer"
    submission = read("vqav2", data, tmp_path, "test-dev")
    assert [one.answers for one in submission] == [()]
    assert submission[0].image == data / "test2015" / "COCO_test2015_000000262148.jpg"


def test_textvqa_names_questions_by_their_picture_as_llava_does(tmp_path):
    asked, left = read("textvqa", layouts.textvqa(tmp_path / "raw"), tmp_path)
    assert asked.id == "003a8ae2ef43b901" and asked.prompt == "what is the brand?" + SHORT
    assert left.reason == "not_ten_answers"


def test_pope_reads_all_categories_or_one(tmp_path):
    data = layouts.pope(tmp_path / "raw")
    assert [one.id for one in read("pope", data, tmp_path)][:3] == ["random-1", "random-2", "popular-1"]
    assert [(one.kind, one.answers) for one in read("pope", data, tmp_path, "popular")] == [
        ("popular", ("yes",)),
        ("popular", ("no",)),
    ]


def test_mmbench_asks_every_rotation_and_follows_the_right_option(tmp_path):
    items = read("mmbench", layouts.mmbench(tmp_path / "raw"), tmp_path)
    assert [(one.id, one.options, one.answers) for one in items] == [
        (241, ("x", "y", "z"), ("B",)),
        (1_000_241, ("y", "z", "x"), ("A",)),
        (2_000_241, ("z", "x", "y"), ("C",)),
        (242, ("true", "false"), ("A",)),
        (1_000_242, ("false", "true"), ("B",)),
    ]
    assert items[0].prompt == "The passage.\nWhich one?\nA. x\nB. y\nC. z" + LETTER
    assert {one.group for one in items} == {241, 242}
    assert len({one.image for one in items}) == 1  # a row may point at another's picture
    assert items[0].image.read_bytes() == layouts.picture_bytes()


def test_mmbench_takes_the_rotations_that_a_table_holds_and_adds_none(tmp_path):
    items = read("mmbench", layouts.mmbench(tmp_path / "raw", rotated=True), tmp_path)
    assert [(one.id, one.group) for one in items] == [(241, 241), (1_000_241, 241), (242, 242)]


def test_mmmu_leaves_out_what_one_picture_and_letters_cannot_answer_and_runs_nothing(tmp_path):
    items = read("mmmu", layouts.mmmu(tmp_path / "raw"), tmp_path)
    first, last = items[0], items[-1]
    assert first.prompt == "Who painted <image 1>?\nA. Titian\nB. Dürer's pupil\nC. $7" + LETTER
    assert first.kind == "Art_Theory" and first.answers == ("B",)
    assert last.answers == ()
    assert [one.reason for one in items if isinstance(one, Left)] == [
        "several_images",
        "not_multiple_choice",
        "bad_options",
    ]


def test_any_question_file_is_read_with_or_without_truths(tmp_path):
    layouts.picture(tmp_path / "1.png")
    records = [
        {"question_id": 0, "image": "1.png", "text": "<image>\nWhat is it?", "category": "conv"},
        {"question_id": 1, "text": "Hello?", "answer": 7},
        {"question_id": 2, "image": "1.png", "text": "Which?", "answers": ["a", "b"], "options": ["a", "c"]},
        {"question_id": 3, "image": ["1.png"], "text": "Two?"},
        {"id": "x"},
    ]
    path = layouts.write(tmp_path / "questions.jsonl", layouts.lines(*records) + "\n{torn\n")
    first, second, third, *left = read("questions", path, tmp_path)
    assert first == Asked(0, "What is it?", tmp_path / "1.png", (), "conv")
    assert second.answers == ("7",) and second.image is None
    assert third.answers == ("a", "b") and third.options == ("a", "c")
    assert [(one.reason, one.detail[:7]) for one in left] == [("not_a_record", f"line {n}:") for n in (4, 5, 7)]


UNSAFE = ["../secret.png", "/etc/passwd", "a/../../secret.png", "C:\\secret.png", "a\0b.png"]


@pytest.mark.parametrize("name", UNSAFE)
def test_a_file_of_questions_names_no_picture_outside_its_folder(name, tmp_path):
    asked = {"question_id": 1, "image": name, "text": "What?"}
    made = {"id": "chartqa-test-human-1", "image": name, "answers": ["x"]}
    made["conversations"] = [{"from": "human", "value": "<image>\nWhat?"}]
    path = layouts.write(tmp_path / "q.jsonl", layouts.lines(asked, made))
    assert [one.reason for one in read("questions", path, tmp_path)] == ["unsafe_image_path"] * 2
    path = layouts.write(tmp_path / "made.jsonl", layouts.lines(made))
    assert [one.reason for one in read("chartqa", path, tmp_path, image_dir=tmp_path)] == ["unsafe_image_path"]
    pope = layouts.pope(tmp_path / "pope")
    line = {"question_id": 1, "image": name, "text": "Is there a cat?", "label": "no"}
    layouts.write(pope / "coco" / "coco_pope_random.json", layouts.lines(line) + "\n")
    (left,) = read("pope", pope, tmp_path, "random")
    assert left.reason == "unsafe_image_path" and left.detail.startswith("line 1: ")


def test_an_answer_of_two_letters_is_no_option(tmp_path):
    data = layouts.mmbench(tmp_path / "mmbench")
    table = data / "MMBench_DEV_EN.tsv"
    table.write_text(table.read_text().replace("\tB\tlogic", "\tAB\tlogic").replace("242\t", "\u00b2\t", 1))
    assert [one.reason for one in read("mmbench", data, tmp_path)] == ["not_a_record", "bad_options"]
    row = {"id": "validation_Art_1", "question": "Who?", "options": "['x', 'y', 'z']", "answer": "BC"}
    row |= {"question_type": "multiple-choice", "image_1": {"bytes": b"", "path": ""}}
    assert mmmu._question({name: None for name in mmmu.PICTURES} | row, None).reason == "bad_options"


def test_what_preprocess_made_for_evaluation_gives_the_same_questions_as_the_raw_data(tmp_path):
    from click.testing import CliRunner

    from dataprep.cli import main

    raw = layouts.chartqa(tmp_path / "raw" / "chartqa")
    made = CliRunner().invoke(
        main, ["--root", str(tmp_path), "preprocess", "--dataset", "chartqa", "--split", "test", "--workers", "1"]
    )
    assert made.exit_code == 0, made.stderr
    path = tmp_path / "jsonl" / "eval" / "chartqa-test.jsonl"
    assert read("chartqa", path, tmp_path, image_dir=tmp_path) == read("chartqa", raw, tmp_path)
    assert [one.kind for one in read("questions", path, tmp_path, image_dir=tmp_path)][0] == "human"
    with pytest.raises(CommandError, match="--image-dir"):
        read("chartqa", path, tmp_path)
    with pytest.raises(CommandError, match="questions of docvqa; found the id 'chartqa-test-human-1'"):
        read("docvqa", path, tmp_path, image_dir=tmp_path)
    with pytest.raises(CommandError, match="the split val .see --split.; found the id 'chartqa-test-human-1'"):
        read("chartqa", path, tmp_path, "val", image_dir=tmp_path)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_an_empty_or_wrong_folder_says_what_was_expected_and_found(name, tmp_path):
    empty, wrong = tmp_path / "empty", tmp_path / "wrong"
    empty.mkdir()
    layouts.write(wrong / "notes.txt", "nothing of the kind")
    for data in (empty, wrong):
        with pytest.raises(CommandError, match=str(data)) as raised:
            read(name, data, tmp_path)
        assert "--input" not in str(raised.value)
    if name not in ("chartqa", "docvqa", "infographicvqa", "ai2d", "scienceqa", "dvqa"):
        assert "notes.txt" in str(raised.value)


def test_pictures_that_lie_elsewhere_are_found_by_image_dir(tmp_path):
    data = layouts.pope(tmp_path / "raw")
    (data / "val2014").rename(tmp_path / "coco")
    with pytest.raises(CommandError, match="--image-dir"):
        read("pope", data, tmp_path)
    assert all(one.image.is_file() for one in read("pope", data, tmp_path, image_dir=tmp_path / "coco"))


def test_real_chartqa_is_read_whole(shared, tmp_path):
    items = read("chartqa", shared / "raw-chartqa", tmp_path)
    kinds = [one.kind for one in items if isinstance(one, Asked)]
    assert (kinds.count("human"), kinds.count("augmented")) == (289, 235)
    assert all(one.image.is_file() for one in items)


def test_real_docvqa_is_read_whole(shared, tmp_path):
    items = read("docvqa", shared / "raw-docvqa", tmp_path)
    assert len(items) == 12 and all(one.image.is_file() for one in items)
    published = json.loads((shared / "raw-docvqa" / "val_v1.0.json").read_bytes())["data"]
    assert [list(one.answers) for one in items] == [element["answers"] for element in published]
