"""`llava-prep preprocess` as typed: splits, settings, tables, places, and how it ends."""

import json
import shutil
import signal
import time
from pathlib import Path

import filelock
import pytest

from tests.dataprep.datasets.harness import IMAGE, bitmap, write_table

SMALL = ["--set", "max_seq_length=200", "--set", "image.size=28"]
CHARTQA = ["preprocess", "--dataset", "chartqa"]


def test_a_dataset_outside_the_root_gets_its_parent_as_image_root(workspace, command, chart_folder):
    chart_folder()
    shutil.move(workspace.root / "data/raw/chartqa", workspace.root / "elsewhere")
    done = command("preprocess", "--dataset", "chartqa", "--input", "elsewhere/ChartQA Dataset")
    words = done.stdout.split("next: llava-prep ")[1].split()
    assert words[-4:] == [
        "--input",
        "data/jsonl/phase2/chartqa.jsonl",
        "--image-dir",
        str(workspace.root / "elsewhere"),
    ]
    done = command(*words, *SMALL, "--tokenizer", workspace.tokenizer)
    assert done.returncode == 0, done.stderr


def test_an_evaluation_split_is_named_and_kept_apart(workspace, command, chart_folder):
    chart_folder()
    train = workspace.root / "data/raw/chartqa/ChartQA Dataset/train"
    for path in [train, *train.glob("*.json")][::-1]:
        path.rename(path.with_name(path.name.replace("train", "test")))
    done = command("preprocess", "--dataset", "chartqa", "--split", "test")
    assert "do not train on what you evaluate on" in done.stderr
    assert (workspace.root / "data/jsonl/eval/chartqa-test.jsonl").is_file()
    assert not (workspace.root / "data/jsonl/phase2").exists()
    looked_at = "--input data/jsonl/eval/chartqa-test.jsonl --output data/h5/eval/chartqa-test"
    assert f"to look at them: llava-prep to-h5 --phase 2 {looked_at}\n" in done.stdout


def test_a_trial_does_not_take_the_place_of_the_whole(workspace, command, chart_folder):
    chart_folder()
    words = ["preprocess", "--dataset", "chartqa"]
    assert command(*words).returncode == command(*words).returncode == 0
    whole = (workspace.root / "data/jsonl/phase2/chartqa.jsonl").read_bytes()
    done = command(*words, "--limit", 1)
    assert done.returncode == 4
    assert "chartqa.jsonl: made by another command: limit was null, is 1. Name another --output" in done.stderr
    assert (workspace.root / "data/jsonl/phase2/chartqa.jsonl").read_bytes() == whole


def test_preprocess_says_where_there_is_no_space(workspace, command, chart_folder):
    (workspace.root / "a.json").write_text(json.dumps([workspace.record(n) for n in range(500)]))
    done = command("preprocess", "--dataset", "json", "--phase", 2, "--input", "a.json", max_file_bytes=1000)
    assert done.returncode == 6 and "no space left" in done.stderr
    assert not (workspace.root / "data/jsonl/phase2/a.jsonl").exists()


def test_an_evaluation_record_holds_what_scoring_needs(workspace, command, chart_folder):
    chart_folder("test")
    assert command(*CHARTQA, "--split", "test").returncode == 0
    lines = (workspace.root / "data/jsonl/eval/chartqa-test.jsonl").read_bytes().splitlines()
    assert len(lines) == 5
    assert json.loads(lines[3]) == {
        "id": "chartqa-test-augmented-1",
        "image": "raw/chartqa/ChartQA Dataset/test/png/1.png",
        "conversations": [
            {
                "from": "human",
                "value": "<image>\nHow many, number 3?\nAnswer the question using a single word or phrase.",
            },
            {"from": "gpt", "value": "3"},
        ],
        "answers": ["3"],
        "kind": "augmented",
    }


def test_tables_give_the_same_questions_as_the_folder(workspace, command, chart_folder):
    chart_folder()
    assert command(*CHARTQA).returncode == 0
    rows = [
        {"image": {"bytes": bitmap(9, 9 + n % 2), "path": None}, "query": f"How many, number {n}?", "label": [f"{n}"],
         "human_or_machine": int(n > 2)}
        for n in range(5)
    ]  # fmt: skip
    write_table(workspace.root / "tables/data/train-00000-of-00001-0f.parquet", rows, {"image": IMAGE})
    for words in (["--input", "tables"], ["--hf", str(workspace.root / "tables"), "--overwrite"]):
        done = command(*CHARTQA, *words, "--output", "out.jsonl")
        assert done.returncode == 0, done.stderr
        made = [json.loads(line) for line in (workspace.root / "out.jsonl").read_bytes().splitlines()]
        whole = (workspace.root / "data/jsonl/phase2/chartqa.jsonl").read_bytes()
        folder = [json.loads(line) for line in whole.splitlines()]
        assert [record["conversations"] for record in made] == [record["conversations"] for record in folder]
        for record, height in zip(made, (9, 10), strict=True):
            assert record["image"].startswith("images/chartqa/train/")
            assert (workspace.root / "data" / record["image"]).read_bytes() == bitmap(9, height)
    to_h5 = ["to-h5", "--phase", 2, "--input", "out.jsonl", "--tokenizer", workspace.tokenizer]
    assert command(*to_h5, *SMALL).returncode == 0


def test_an_archive_is_read_as_it_was_downloaded(workspace, command, chart_folder):
    chart_folder()
    assert command(*CHARTQA).returncode == 0
    folder = (workspace.root / "data/jsonl/phase2/chartqa.jsonl").read_bytes()
    shutil.make_archive(str(workspace.root / "download"), "zip", workspace.root / "data/raw/chartqa")
    shutil.rmtree(workspace.root / "data")
    done = command(*CHARTQA, "--input", "download.zip")
    assert done.returncode == 0, done.stderr
    assert (workspace.root / "data/jsonl/phase2/chartqa.jsonl").read_bytes() == folder
    assert (workspace.root / "data/raw/chartqa/ChartQA Dataset/train/png/1.png").is_file()


def test_the_report_says_how_the_file_was_made(workspace, command, chart_folder):
    chart_folder()
    command(*CHARTQA, "--prompts", "cerebras", "--max-questions", 1, "--seed", 7)
    report = json.loads((workspace.root / "data/reports/phase2/chartqa.json").read_text())
    assert report["prompts"] == {"name": "cerebras", "version": 1}
    assert (report["max_questions"], report["seed"], report["records"], report["conversations"]) == (1, 7, 5, 5)


def test_pictures_that_are_known_to_be_missing_are_counted_and_not_fatal(workspace, command):
    records = [workspace.record(n, f"sam/images/{n}.jpg") for n in range(3)]
    (workspace.root / "data/sam/images").mkdir(parents=True)
    shutil.copy(workspace.root / "pictures/1.jpg", workspace.root / "data/sam/images/1.jpg")
    (workspace.root / "a.json").write_text(json.dumps(records))
    words = ["preprocess", "--dataset", "sharegpt4v-sft", "--input", "a.json"]
    done = command(*words, "--images", "data")
    assert done.returncode == 0, done.stderr
    assert "refused: picture_not_published  2" in done.stdout
    report = json.loads((workspace.root / "data/reports/phase2/sharegpt4v-sft.json").read_text())
    assert (report["written"], report["refused"]) == (1, {"picture_not_published": 2})


MISTAKES = [
    (["--dataset", "dvqa", "--hf", "some/thing"], "--hf: dvqa is not read from tables; give its files with --input"),
    (["--dataset", "docvqa", "--set", "answers=frist", "--input", "."], "answers: "),
    (["--dataset", "docvqa", "--set", "answer=first", "--input", "."], "answer: unknown key, did you mean answers?"),
    (["--dataset", "chartqa", "--set", "a=1", "--input", "."], "--set a=1: chartqa has no settings"),
    (["--dataset", "chartqa", "--input", ".", "--hf", "pictures"], "--hf and --input together: give one of them"),
    (["--dataset", "chartqa", "--input", ".", "--images", "pictures"], "--images: chartqa is no LLaVA json"),
    (["--dataset", "mix665k", "--input", "x.json", "--prompts", "none"], "--prompts: the records of mix665k are"),
    (["--dataset", "chartqa", "--input", "x.json"], "chartqa is not read from this file; give the folder that holds"),
    (["--dataset", "mix665k", "--input", "x.json", "--output", "pictures"], "--output pictures: is a folder; name the"),
    (["--dataset", "mix665k", "--input", "x.json", "--output", "x"], "--output x: expected a name that ends in .jsonl"),
    (["--dataset", "json", "--phase", 1, "--input", "in", "--output", "in/a.jsonl"], "lies in the folder that is read"),
    (["--dataset", "mix665k", "--input", "x.json", "--as", "evaluation"], "mix665k has no questions with reference"),
    (["--dataset", "mix665k", "--input", "x.json", "--images", "pictures"], "link it there: ln -s "),
    (["--dataset", "chartqa", "--hf", "./nothing/there"], "nothing/there"),
    (
        ["--dataset", "chartqa", "--prompts", "llava16"],
        "llava16: not known; choose from llava15, none, cerebras",
    ),
    (["--dataset", "chartqa", "--input", "not.zip"], "not.zip"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_a_mistake_gets_one_sentence(workspace, command, words, sentence):
    (workspace.root / "x.json").write_text("[]")
    (workspace.root / "not.zip").write_text("this is no archive")
    (workspace.root / "in").mkdir()
    (workspace.root / "in/x.json").write_text("[]")
    done = command("preprocess", *words)
    assert done.returncode in (2, 5)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr, done.stderr


def test_an_input_is_never_its_own_output(workspace, command):
    path = workspace.root / "data/jsonl/phase2/mine.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(workspace.record(1) | {"precious": 1}) + "\n{bad\n")
    before = path.read_bytes()
    done = command("preprocess", "--dataset", "json", "--phase", 2, "--input", path, "--overwrite")
    assert done.returncode == 2 and "mine.jsonl: is the input itself; name another --output" in done.stderr
    assert path.read_bytes() == before


def test_a_file_that_no_report_knows_is_not_replaced(workspace, command, chart_folder):
    chart_folder()
    path = workspace.root / "data/jsonl/phase2/chartqa.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("made by hand\n")
    done = command(*CHARTQA)
    assert done.returncode == 4
    assert "chartqa.jsonl: there already, and no report says how it was made. Name another --output, or" in done.stderr
    assert command(*CHARTQA, "--overwrite").returncode == 0
    (workspace.root / "data/reports/phase2/chartqa.json").write_text('{"output"')
    assert command(*CHARTQA).returncode == 4


def test_a_trial_elsewhere_leaves_the_wholes_report_alone(workspace, command, chart_folder):
    chart_folder()
    assert command(*CHARTQA).returncode == 0
    assert command(*CHARTQA, "--limit", 1, "--output", "trial/chartqa.jsonl").returncode == 0
    assert command(*CHARTQA, "--prompts", "none").returncode == 4
    assert command(*CHARTQA, "--limit", 2, "--output", "trial/chartqa.jsonl").returncode == 4


def test_where_no_record_is_good_there_is_no_jsonl_and_the_first_reason_is_said(workspace, command):
    (workspace.root / "a.json").write_text("[{}, 7]")
    done = command("preprocess", "--dataset", "json", "--phase", 2, "--input", "a.json")
    assert done.returncode == 3
    assert "no record could be used; the first: not_a_record: " in done.stderr
    assert "a.jsonl: not written" in done.stdout and "next:" not in done.stdout
    assert not (workspace.root / "data/jsonl/phase2/a.jsonl").exists()


def test_two_runs_do_not_write_one_file_at_once(workspace, command, chart_folder):
    chart_folder()
    command(*CHARTQA)
    with filelock.FileLock(workspace.root / "data/reports/phase2/.chartqa.lock"):
        done = command(*CHARTQA)
    assert done.returncode == 4 and "chartqa.jsonl: another run is writing it" in done.stderr


def test_what_a_killed_run_has_left_is_cleared_away(workspace, command, chart_folder):
    chart_folder()
    folder = workspace.root / "data/jsonl/phase2"
    (folder / ".chartqa.jsonl.scratch/0").mkdir(parents=True)
    (folder / ".chartqa.jsonl.123.tmp").write_text("half")
    assert command(*CHARTQA).returncode == 0
    assert [path.name for path in folder.iterdir()] == ["chartqa.jsonl"]


def test_evaluation_splits_may_be_trained_on_when_that_is_said(workspace, command, chart_folder):
    chart_folder()
    chart_folder("val")
    done = command(*CHARTQA, "--split", "train", "--split", "val", "--as", "training")
    assert done.returncode == 0
    assert "train and val for training; test kept out" in done.stderr
    lines = (workspace.root / "data/jsonl/phase2/chartqa-train-val.jsonl").read_bytes().splitlines()
    assert len(lines) == 4 and "answers" not in json.loads(lines[0])
    command(*CHARTQA, "--split", "train", "--as", "evaluation")
    assert (workspace.root / "data/jsonl/eval/chartqa-train.jsonl").is_file()


def test_to_h5_refuses_files_of_another_image_root_unless_it_is_given(workspace, command, chart_folder):
    chart_folder()
    shutil.move(workspace.root / "data/raw/chartqa", workspace.root / "elsewhere")
    command(*CHARTQA, "--input", "elsewhere")
    words = ["to-h5", "--phase", 2, "--tokenizer", workspace.tokenizer, *SMALL]
    done = command(*words)
    assert done.returncode == 2
    assert "its image keys begin at" in done.stderr and "--overwrite" in done.stderr
    assert command(*words, "--image-dir", ".").returncode == 0


def test_to_h5_warns_of_evaluation_data_among_the_training_files(workspace, command, chart_folder):
    chart_folder("val")
    command(*CHARTQA, "--split", "val", "--output", "data/jsonl/phase2/mine.jsonl")
    done = command("to-h5", "--phase", 2, "--tokenizer", workspace.tokenizer, *SMALL)
    assert "mine.jsonl: made from val: do not train on what you evaluate on" in done.stderr


def test_a_rerun_of_which_nothing_is_good_leaves_the_file_that_is_there(workspace, command):
    words = ["preprocess", "--dataset", "json", "--phase", 2, "--input", "a.json"]
    (workspace.root / "a.json").write_text(json.dumps([workspace.record(1)]))
    assert command(*words).returncode == 0
    path = workspace.root / "data/jsonl/phase2/a.jsonl"
    before = path.read_bytes()
    for content, code in (("[]", 2), ("[1]", 3)):
        (workspace.root / "a.json").write_text(content)
        assert command(*words).returncode == code
        assert path.read_bytes() == before
        assert json.loads((workspace.root / "data/reports/phase2/a.json").read_text())["conversations"] == 1


def children_of(pid):
    return [int(line) for line in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGTERM] * 3, 143), ([signal.SIGKILL], -9)]
)
def test_a_run_that_is_stopped_takes_its_workers_with_it(workspace, command, signals, code):
    (workspace.root / "in").mkdir()
    content = json.dumps([workspace.record(n) for n in range(60_000)])
    for name in "abcd":
        (workspace.root / "in" / f"{name}.json").write_text(content)
    words = ["preprocess", "--dataset", "json", "--phase", 2, "--input", "in", "--workers", 2]
    running = command(*words, start=True)
    scratch = workspace.root / "data/jsonl/phase2/.in.jsonl.scratch"
    while running.poll() is None and not (list(scratch.rglob("0")) and len(children_of(running.pid)) > 2):
        time.sleep(0.01)
    workers = children_of(running.pid)
    for number in signals:
        running.send_signal(number)
        time.sleep(0.05)
    running.communicate(timeout=60)
    assert running.returncode == code
    deadline = time.monotonic() + 30
    while any(map(alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(alive, workers))
    assert not (workspace.root / "data/jsonl/phase2/in.jsonl").exists()
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (workspace.root / "data/jsonl/phase2").iterdir()] == ["in.jsonl"]
