"""`llava-prep report` as typed."""

import json

import pytest

SMALL = ["--set", "max_seq_length=200", "--set", "image.size=28"]


@pytest.fixture
def compiled(workspace, command):
    workspace.write("a.jsonl", [workspace.record(n, "pictures/1.jpg" if n % 2 else None) for n in range(20)])
    words = ["to-h5", "--phase", 2, "--input", "jsonl/phase2", "--image-dir", ".", "--tokenizer", workspace.tokenizer]
    done = command(*words, *SMALL)
    assert done.returncode == 0, done.stderr
    return workspace.root / "data/h5/phase2"


def test_it_makes_page_and_card_again_and_prints_a_table(compiled, command):
    for name in ("report.html", "README.md"):
        (compiled / name).unlink(missing_ok=True)
    done = command("report", "data/h5/phase2")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split(maxsplit=1) == ["rows", lines[0].split(maxsplit=1)[1]] and "20 in 1 shard, " in lines[0]
    assert lines[-1] == "data/h5/phase2/report.html"
    assert any(line.startswith("packing") and "on 8 GPUs with 16,384 tokens" in line for line in lines)
    assert any(line.split()[0] == "a.jsonl" and "100.0 % of the rows" in line for line in lines)
    assert "20 rows for phase 2" in (compiled / "report.html").read_text()
    assert (compiled / "README.md").read_text().startswith("---\npretty_name: ")


def test_the_page_can_be_written_elsewhere(compiled, command, workspace):
    done = command("report", "data/h5/phase2", "--output", "there.html", "--json")
    values = json.loads(done.stdout)
    assert (values["report"], values["rows"], values["shards"]) == ("there.html", 20, 1)
    assert values["sources"]["a.jsonl"]["rows"] == 20 and values["sources"]["a.jsonl"]["pictures"] == 10
    assert values["length"]["least"] < values["length"]["most"]
    assert values["useful_over_computed_8_gpus_16384_tokens"] > 0.5
    assert (workspace.root / "there.html").is_file()


def test_without_shards_it_ends_in_a_sentence(command, workspace):
    done = command("report", "nowhere")
    assert (done.returncode, done.stderr) == (2, "llava-prep: report nowhere: no such file or folder\n")
    (workspace.root / "empty").mkdir()
    done = command("report", "empty")
    assert done.returncode == 5 and "manifest.json" in done.stderr and "Traceback" not in done.stderr


def test_damage_ends_it_with_5(compiled, command):
    path = compiled / "shard-00000.h5"
    path.write_bytes(path.read_bytes()[:-1])
    done = command("report", "data/h5/phase2")
    assert done.returncode == 5 and "shard-00000.h5" in done.stderr
