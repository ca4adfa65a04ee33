"""`verify` and `inspect` as typed: what they print, and how they end."""

import json
import os
import shutil
import subprocess
import sys
import termios
from contextlib import suppress

import pytest

from dataprep.inspection import _shown
from tests.dataprep.shards import made

SMALL = ["--set", "max_seq_length=200", "--set", "image.size=28"]


@pytest.fixture
def compiled(workspace, command):
    """Two records, compiled by the command into `data/h5/phase2`."""
    workspace.write("a.jsonl", [workspace.record(0, "pictures/1.jpg"), workspace.record(1)])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words, *SMALL)
    assert done.returncode == 0, done.stderr
    return workspace.root / "data/h5/phase2"


def test_verify_tells_what_it_checked_and_what_it_found(compiled, command):
    done = command("verify", "data/h5/phase2")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "data/h5/phase2: 1 shard, 2 rows: all as written\n"
    (compiled / ".shard-00009.h5.1.tmp").touch()
    found = json.loads(command("verify", "data/h5/phase2", "--json").stdout)
    leftovers = ["data/h5/phase2/.shard-00009.h5.1.tmp"]
    assert found == {"folder": "data/h5/phase2", "shards": 1, "rows": 2, "faults": [], "leftovers": leftovers}
    done = command("verify", "data/h5/phase2", "--quick")
    assert done.returncode == 0
    assert done.stderr.endswith(".tmp: left by a run that was killed; it can be deleted when no `to-h5` runs\n")


def test_damage_ends_verify_and_inspect_with_5_and_a_rerun_mends_it(workspace, compiled, command):
    path = compiled / "shard-00000.h5"
    path.write_bytes(path.read_bytes()[:-1])
    for words in (
        ["verify", "data/h5/phase2"],
        ["inspect", "data/h5/phase2"],
        ["inspect", "data/h5/phase2/" + path.name],
    ):
        done = command(*words)
        assert done.returncode == 5
        assert done.stderr.startswith("llava-prep: data/h5/phase2/shard-00000.h5: damaged: sha256 ")
        assert len(done.stderr.splitlines()) == 1
    assert "the same `to-h5` again makes damaged shards anew" in command("verify", "data/h5/phase2").stdout
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    assert command(*words, *SMALL).returncode == 0
    assert command("verify", "data/h5/phase2").returncode == 0


WRONG_PLACES = [
    ("data/h5", 5, "data/h5: no manifest.json there, but in data/h5/phase2: give that folder"),
    ("data", 5, "data: no manifest.json there, but in data/h5/phase2: give that folder"),
    ("foreign", 5, "foreign: *.h5 files without a manifest.json: they were not compiled by `llava-prep to-h5`"),
    ("unfinished", 5, "unfinished: the compile is unfinished; run the same `llava-prep to-h5` again"),
]


@pytest.mark.parametrize("name", ["verify", "inspect"])
def test_another_folder_gets_a_sentence_that_says_what_to_do(workspace, compiled, command, name):
    (workspace.root / "foreign").mkdir()
    made.write_foreign(workspace.root / "foreign/examples_0_0.h5", made.rows(2))
    (workspace.root / "unfinished/.tasks").mkdir(parents=True)
    for place, code, sentence in WRONG_PLACES:
        done = command(name, place)
        assert (done.returncode, done.stdout) == (code, "")
        assert done.stderr.startswith(f"llava-prep: {sentence}") and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["verify", "nothere"], "verify nothere"),
        (["inspect", "nothere"], "inspect nothere"),
        (["inspect", "nothere/shard-00000.h5"], "inspect nothere/shard-00000.h5"),
        (["report", "nothere"], "report nothere"),
        (["to-h5", "--phase", 2, "--tokenizer", "jsonl", "--input", "nothere.jsonl"], "--input nothere.jsonl"),
        (["preprocess", "--dataset", "chartqa", "--input", "nothere"], "--input nothere"),
    ],
)
def test_a_path_that_is_not_there_is_a_mistake_of_the_command_line(workspace, command, words, named):
    workspace.write("a.jsonl", [])
    done = command(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"llava-prep: {named}: no such file or folder\n"


@pytest.mark.parametrize("name", ["verify", "report"])
def test_a_file_in_the_place_of_a_folder_is_one_too(workspace, command, name):
    workspace.write("a.jsonl", [])
    done = command(name, "jsonl/phase2/a.jsonl")
    sentence = "is a file; give the folder that `llava-prep to-h5` has written"
    assert (done.returncode, done.stderr) == (2, f"llava-prep: {name} jsonl/phase2/a.jsonl: {sentence}\n")


def test_inspect_of_a_foreign_shard_says_who_reads_it(workspace, command):
    made.write_foreign(workspace.root / "examples_0_0.h5", made.rows(2))
    done = command("inspect", "examples_0_0.h5")
    assert done.returncode == 5
    assert "not compiled by `llava-prep to-h5` (ShardReader.open_cerebras reads" in done.stderr


def test_inspect_without_the_tokenizer_says_how_to_give_one(workspace, compiled, command):
    shutil.rmtree(compiled / "tokenizer")
    done = command("inspect", "data/h5/phase2")
    sentence = (
        "llava-prep: data/h5/phase2/tokenizer: no such folder; give the tokenizer by --tokenizer FOLDER_OR_HUB_ID\n"
    )
    assert (done.returncode, done.stderr) == (2, sentence)
    assert "ASSISTANT: red" in command("inspect", "data/h5/phase2", "--tokenizer", workspace.tokenizer).stdout


def test_a_bar_is_shown_on_a_terminal_only(compiled, command):
    assert command("verify", "data/h5/phase2").stderr == ""
    leader, follower = os.openpty()
    termios.tcsetwinsize(follower, (24, 80))
    program = [sys.executable, "-c", "from dataprep.cli import main; main()", "verify", str(compiled)]
    subprocess.run(program, stdout=subprocess.DEVNULL, stderr=follower, check=True, timeout=120)
    os.close(follower)
    shown = b""
    with suppress(OSError):  # EIO: nobody has the other end any more
        while part := os.read(leader, 1 << 16):
            shown += part
    os.close(leader)
    assert b"100%" in shown


def test_control_characters_of_a_record_do_not_reach_the_terminal():
    assert _shown("a\x1b]0;title\x07b\nc\td é 漢 \x9b") == "a\\x1b]0;title\\x07b\nc\td é 漢 \\x9b"
