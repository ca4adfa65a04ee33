"""The commands as typed: what they print, where things lie, and how they end."""

import json

import pytest

from dataprep.shards import ShardReader

SMALL = ["--set", "max_seq_length=200", "--set", "image.size=28"]


def test_both_commands_work_as_typed_in_a_workspace(workspace, command, chart_folder):
    chart_folder()
    (workspace.root / "llava-prep.yaml").write_text(f"tokenizer: {workspace.tokenizer}\n")
    words = ["preprocess", "--dataset", "chartqa"]
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "next: llava-prep to-h5 --phase 2\n" in done.stdout
    assert "next: llava-prep --root data to-h5 --phase 2\n" in command("--root", "data", *words).stdout
    lines = (workspace.root / "data/jsonl/phase2/chartqa.jsonl").read_bytes().splitlines()
    assert json.loads(lines[0])["image"] == "raw/chartqa/ChartQA Dataset/train/png/0.png"
    done = command("to-h5", "--phase", 2)
    assert done.returncode == 0, done.stderr
    with ShardReader(workspace.root / "data/h5/phase2") as reader:
        assert len(reader) == 2 and reader.layout.image_fit == "pad"
    report = json.loads((workspace.root / "data/reports/phase2/chartqa.json").read_text())
    assert report["prompts"] == {"name": "llava15", "version": 1}
    assert command("verify", "data/h5/phase2").stdout == "data/h5/phase2: 1 shard, 2 rows: all as written\n"


def test_json_prints_one_object_on_stdout(workspace, command):
    workspace.write("a.jsonl", [workspace.record(n) for n in range(9)])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words, *SMALL, "--json")
    assert json.loads(done.stdout)["rows"] == 9
    assert done.stderr == ""
    assert json.loads(command("verify", "data/h5/phase2", "--json").stdout)["faults"] == []


def test_a_dry_run_writes_nothing_and_says_what_would_be(workspace, command):
    workspace.write("a.jsonl", [workspace.record(n, "pictures/1.jpg") for n in range(600)])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words, *SMALL, "--dry-run", "--json")
    values = json.loads(done.stdout)
    assert (values["records"], values["sampled"]) == (600, 600)
    assert (values["in_all"]["rows"], values["in_all"]["refused"]) == (600, {})
    assert not (workspace.root / "data").exists()


def test_too_many_refusals_end_with_3_after_the_good_is_written(workspace, command):
    workspace.write("a.jsonl", [*[workspace.record(n) for n in range(9)], b"{bad"])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words, *SMALL)
    assert done.returncode == 3
    assert "1 of 10 records refused: more than 1.00%" in done.stderr
    assert len(ShardReader(workspace.root / "data/h5/phase2")) == 9
    assert command(*words, *SMALL, "--max-refused", 0.1).returncode == 0
    assert command(*words, *SMALL, "--max-refused", 0.09).returncode == 3


def test_inspect_draws_a_row(workspace, command):
    records = [workspace.record(0, "pictures/1.jpg"), workspace.record(1)]
    workspace.write("a.jsonl", records)
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    assert command(*words, *SMALL).returncode == 0
    shown = command("inspect", "data/h5/phase2", "--row", 0, "--ids").stdout
    assert "a.jsonl:1 id 'r0'  pictures/1.jpg" in shown
    assert "USER: <image: 4 patches> \nWhat colour is bar 0 of chart 0? ASSISTANT: red </s>" in shown
    assert "<no image: 5 slots masked>" in command("inspect", "data/h5/phase2/shard-00000.h5", "--row", 1).stdout
    done = command("inspect", "data/h5/phase2", "--row", 2)
    assert (done.returncode, done.stderr) == (2, "llava-prep: --row 2: data/h5/phase2 has rows 0 to 1\n")


MISTAKES = [
    (
        ["preprocess", "--dataset", "chartq"],
        "--dataset chartq: not known, did you mean chartqa?; choose from lcs",
    ),
    (
        ["preprocess", "--dataset", "chartqa"],
        "data/raw/chartqa: no such folder; put the raw dataset there, or give --input",
    ),
    (
        ["preprocess", "--dataset", "chartqa", "--input", "."],
        "train_human.json: no such file; --input should be the folder",
    ),
    (["preprocess", "--dataset", "json", "--input", "x"], "--dataset json can be of phase 1 or 2: give --phase"),
    (["preprocess", "--dataset", "chartqa", "--input", ".", "--split", "dev"], "choose from train, val, test"),
    (["to-h5", "--phase", 2], "no tokenizer: give --tokenizer FOLDER_OR_HUB_ID"),
    (["to-h5", "--phase", 2, "--tokenizer", "./no"], "--tokenizer ./no: no such folder"),
    (["to-h5", "--phase", 2, "--set", "max_seq_lenght=9"], "max_seq_lenght: unknown key, did you mean max_seq_length?"),
    (["to-h5", "--phase", 2, "--output", "a-file"], "a-file: File exists"),
    (["to-h5", "--phase", 2, "--set", "max_seq_length=50"], "max_seq_length 50: the prompt and 576 image slots take"),
    (["to-h5", "--phase", 2, "--input", "a.jsonl", "--input", "./a.jsonl"], "--input names a file twice: a.jsonl"),
    (["to-h5", "--phase", 2, "--input", "empty.jsonl"], "no records in empty.jsonl"),
    (["preprocess", "--dataset", "json", "--phase", 2, "--input", "empty.jsonl"], "empty.jsonl"),
    (["preprocess", "--dataset", "chartqa", "--split", "val", "--split", "val", "--input", "."], "twice: val val"),
    (["to-h5", "--phase", 1, "--config", "phase2"], "--phase 1: the config phase2 is of phase 2"),
    (["inspect", "nothing"], "inspect nothing: no such file or folder"),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_2(workspace, command, words, sentence):
    for name, content in (("a-file", ""), ("empty.jsonl", "\n"), ("a.jsonl", json.dumps(workspace.record(1)) + "\n")):
        (workspace.root / name).write_text(content)
    if words[0] == "to-h5" and "no tokenizer" not in sentence and "--tokenizer" not in words:
        given = [] if "--input" in words else ["--input", "a.jsonl"]
        words = [*words, *given, "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) <= 2 and "Traceback" not in done.stderr


def test_an_array_given_to_to_h5_says_how_to_convert_it(workspace, command):
    (workspace.root / "a.json").write_text("[]")
    done = command("to-h5", "--phase", 2, "--input", "a.json", "--image-dir", ".", "--tokenizer", workspace.tokenizer)
    assert "`llava-prep preprocess --dataset json --phase 2 --input a.json` makes one" in done.stderr


def test_damage_ends_verify_with_5(workspace, command):
    workspace.write("a.jsonl", [workspace.record(0)])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    command(*words, *SMALL)
    path = workspace.root / "data/h5/phase2/shard-00000.h5"
    path.write_bytes(path.read_bytes()[:-1])
    done = command("verify", "data/h5/phase2")
    assert done.returncode == 5 and "shard-00000.h5: damaged" in done.stderr


@pytest.mark.parametrize("room", [500, 5_000, 60_000])
def test_a_file_that_cannot_grow_ends_with_6_and_the_rerun_finishes(workspace, command, room):
    workspace.write("a.jsonl", [workspace.record(n, f"pictures/{n % 5}.jpg") for n in range(1200)])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words, *SMALL, max_file_bytes=room)
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1), done.stderr
    assert "no space left" in done.stderr
    assert not (workspace.root / "data/h5/phase2/manifest.json").exists()
    assert not list((workspace.root / "data/h5/phase2").glob("*.tmp"))
    assert command(*words, *SMALL).returncode == 0
    assert command("verify", "data/h5/phase2").returncode == 0
