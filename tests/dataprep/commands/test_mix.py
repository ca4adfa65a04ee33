"""`llava-prep mix` as typed: what it writes and prints, and how it ends."""

import hashlib
import json
from pathlib import Path

import pytest

TEXTS = {
    "academic": ("How many bars?\nAnswer the question using a single word or phrase.", "4"),
    "conversation": ("What colour is the bus?", "White."),
    "reasoning": ("Why might the bus wait?", "Its passengers may be late. " * 20),
    "caption": ("Describe the following image.", "A bus."),
    "text-only": ("Write a poem.", "Roses are red."),
}


def records(name: str, folder: str = "raw", **counts: int) -> list[bytes]:
    lines = []
    for kind, count in counts.items():
        question, answer = TEXTS[kind.replace("_", "-")]
        for number in range(count):
            record = {"id": f"{name}-{kind}-{number}"}
            if kind != "text_only":
                record["image"] = f"{folder}/{number}.jpg"
            asked = question if kind == "text_only" else f"<image>\n{question}"
            turns = [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
            lines.append(json.dumps({**record, "conversations": turns}).encode())
    return lines


@pytest.fixture
def root(tmp_path) -> Path:
    """A workspace `data` with two files, and a config `small.yaml` beside it."""
    write(tmp_path / "data", "one", records("one", academic=30, conversation=10))
    write(tmp_path / "data", "two", records("two", "raw/two", reasoning=20, text_only=5))
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


SMALL = """\
sources:
  - file: jsonl/phase2/one.jsonl
    max: 25
  - file: jsonl/phase2/two.jsonl
    images: "*two/*"
"""


def write(data: Path, name: str, lines: list[bytes]) -> Path:
    path = data / "jsonl/phase2" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def test_a_mixture_its_report_and_the_next_command(root, command):
    done = command("mix", "small.yaml")
    assert (done.returncode, done.stderr) == (0, "")
    content = (root / "data/mix/small.jsonl").read_bytes()
    report = json.loads((root / "data/reports/mix/small.json").read_text())
    sha256 = hashlib.sha256(content).hexdigest()
    assert content.count(b"\n") == report["records"] == 45
    assert report["sha256"] == sha256 and report["output"] == "data/mix/small.jsonl"
    assert report["config"]["seed"] == 0 and report["name"] == "small"
    for name, unwanted in (("one", 0), ("two", 5)):
        file = f"jsonl/phase2/{name}.jsonl"
        raw = (root / "data" / file).read_bytes()
        assert report["inputs"][file] == hashlib.sha256(raw).hexdigest()
        assert report["files"][file] == {"records": raw.count(b"\n"), "unwanted": unwanted, "refused": {}}
    assert report["sources"]["one"]["available"] == 40 and report["sources"]["two"]["kinds"] == {"reasoning": 20}
    academic = report["kinds"]["academic"]["chosen"]
    assert report["kinds"]["academic"]["available"] == 30 and academic == content.count(b"one-academic")
    assert done.stdout.splitlines() == [
        "data/mix/small.jsonl: 45 records",
        "source    available       chosen   share",
        "one              40           25   55.6%",
        "two              20           20   44.4%",
        "kind            available       chosen   share",
        f"academic               30           {academic}  {academic / 45:>6.1%}",
        f"conversation           10            {25 - academic}  {(25 - academic) / 45:>6.1%}",
        "reasoning              20           20   44.4%",
        "fit no source's images: 5",
        f"sha256: {sha256}",
        "next: llava-prep to-h5 --phase 2 --input data/mix/small.jsonl --output data/h5/small",
    ]


def test_the_same_command_makes_the_same_bytes_wherever_it_runs(root, command):
    assert command("mix", "small.yaml").returncode == 0
    before = (root / "data/mix/small.jsonl").read_bytes()
    done = command("--root", root / "data", "mix", root / "small.yaml")
    assert done.returncode == 0
    assert (root / "data/mix/small.jsonl").read_bytes() == before
    output = root / "data/mix/small.jsonl"
    assert f"next: llava-prep --root {root}/data to-h5 --phase 2 --input {output} " in done.stdout


def test_the_next_command_compiles_the_mixture(workspace, command):
    data = workspace.root / "data"
    write(data, "one", records("one", "pictures", academic=3, reasoning=2))
    (data / "pictures").symlink_to(workspace.root / "pictures")
    (workspace.root / "m.yaml").write_text("sources: [{file: jsonl/phase2/one.jsonl}]")
    words = command("mix", "m.yaml").stdout.split("next: llava-prep ")[1].split()
    small = ["--set", "max_seq_length=600", "--set", "image.size=28", "--tokenizer", workspace.tokenizer]
    done = command(*words, *small, "--json")
    assert (done.returncode, json.loads(done.stdout)["rows"]) == (0, 5), done.stderr


def test_captions_of_phase_1_go_on_in_phase_1(root, command):
    (root / "data/jsonl/phase2").rename(root / "data/jsonl/phase1")
    (root / "small.yaml").write_text(SMALL.replace("phase2", "phase1"))
    assert "to-h5 --phase 1 --input" in command("mix", "small.yaml").stdout


def test_a_dry_run_says_the_same_and_writes_nothing(root, command):
    dry = command("mix", "small.yaml", "--dry-run")
    assert dry.returncode == 0 and not (root / "data/mix").exists() and not (root / "data/reports").exists()
    wet = command("mix", "small.yaml").stdout.splitlines()
    assert dry.stdout.splitlines() == [wet[0].replace("45", "would be 45"), *wet[1:-2]]


def test_json_is_one_object_on_stdout(root, command):
    done = command("mix", "small.yaml", "--json")
    assert done.stderr == ""
    assert json.loads(done.stdout) == json.loads((root / "data/reports/mix/small.json").read_text())


def test_shares_leave_out_the_kinds_that_they_do_not_name(root, command):
    (root / "s.yaml").write_text(SMALL.replace("max: 25", "max: 40") + "shares: {academic: 50, reasoning: 50}\n")
    done = command("mix", "s.yaml", "--json")
    kinds = json.loads(done.stdout)["kinds"]
    assert {kind: counts["chosen"] for kind, counts in kinds.items()} == {
        "academic": 21,  # of 41 in all the odd one is rounded to the first
        "conversation": 0,
        "reasoning": 20,
    }
    assert "not among the shares, so none of them: conversation\n" in command("mix", "s.yaml").stdout


def test_another_config_or_input_does_not_replace_a_mixture(root, command):
    assert command("mix", "small.yaml").returncode == 0
    before = (root / "data/mix/small.jsonl").read_bytes()
    done = command("mix", "small.yaml", "--set", "seed=1")
    assert done.returncode == 4
    sentence = "data/mix/small.jsonl: made by another command: config.seed was 0, is 1. Give another name"
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    (root / "small.yaml").write_text(SMALL.replace("25", "24"))
    assert "config.sources.jsonl/phase2/one.jsonl.max was 25, is 24" in command("mix", "small.yaml").stderr
    (root / "small.yaml").write_text(SMALL.split("  - file: jsonl/phase2/two")[0])
    assert "config.sources.jsonl/phase2/two.jsonl was there, is null" in command("mix", "small.yaml").stderr
    (root / "small.yaml").write_text(SMALL)
    write(root / "data", "two", records("two", "raw/two", reasoning=21))
    done = command("mix", "small.yaml")
    assert done.returncode == 4 and "inputs.jsonl/phase2/two.jsonl was " in done.stderr
    assert (root / "data/mix/small.jsonl").read_bytes() == before
    assert not list((root / "data").rglob("*.tmp"))
    assert command("mix", "small.yaml", "--set", "seed=1", "--set", "name=other").returncode == 0
    (root / "data/mix/small.jsonl").unlink()
    assert command("mix", "small.yaml").returncode == 0


def test_a_report_that_cannot_be_read_does_not_let_a_mixture_be_replaced(root, command):
    assert command("mix", "small.yaml").returncode == 0
    (root / "data/reports/mix/small.json").write_text("{cut off")
    done = command("mix", "small.yaml")
    assert done.returncode == 4 and "there already, and no report says how it was made" in done.stderr
    assert command("mix", "small.yaml", "--overwrite").returncode == 0


def test_bad_lines_are_refused_by_file_and_line_and_end_with_3(root, command):
    path = write(root / "data", "one", [*records("one", academic=60), b"{bad", b'{"id": "x", "conversations": []}'])
    done = command("mix", "small.yaml")
    assert done.returncode == 3
    assert done.stderr == "llava-prep: 2 of 87 records refused: more than 1.00%\n"
    assert (
        "refused: no_turns: 1\nrefused: not_json: 1\nwhich ones: data/reports/mix/small.refused.jsonl\n" in done.stdout
    )
    refused = [json.loads(line) for line in (root / "data/reports/mix/small.refused.jsonl").read_text().splitlines()]
    assert [(item["reason"], item["line"], item["id"]) for item in refused] == [
        ("not_json", 61, ""),
        ("no_turns", 62, "x"),
    ]
    assert {item["file"] for item in refused} == {str(path)}
    assert len((root / "data/mix/small.jsonl").read_bytes().splitlines()) == 45
    assert command("mix", "small.yaml", "--max-refused", 0.1).returncode == 0
    assert command("mix", "small.yaml", "--dry-run").returncode == 3


def test_all_missing_files_are_named_with_the_commands_that_make_them(root, command):
    done = command("mix", "consensus_50_30_20")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    sentence, *commands = done.stderr.splitlines()
    names = [
        "chartqa",
        "dvqa",
        "ai2d",
        "docvqa",
        "infographicvqa",
        "scienceqa",
        "arxivqa",
        "mix665k",
        "sharegpt4v-100k",
    ]
    files = ", ".join(f"data/jsonl/phase2/{name}.jsonl" for name in names)
    assert sentence == f"llava-prep: no such file: {files}; these commands make them:"
    assert commands == [f"  llava-prep preprocess --dataset {name}" for name in names]
    (root / "small.yaml").write_text(SMALL.replace("one", "none").replace("two.jsonl", "chartqa.jsonl"))
    done = command("--root", "data", "mix", "small.yaml")
    assert done.stderr == (
        "llava-prep: no such file: data/jsonl/phase2/none.jsonl, data/jsonl/phase2/chartqa.jsonl; these commands make"
        " what is a known dataset:\n  llava-prep --root data preprocess --dataset chartqa\n"
    )


def made(root: Path, stem: str, folder: str = "reports/phase2", **values) -> None:
    """Write what `preprocess` reports of a file."""
    report = root / "data" / folder / f"{stem}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    known = {"dataset": "chartqa", "source": "/else where/chartqa", "splits": ["train"]}
    report.write_text(json.dumps({**known, "output": f"data/jsonl/phase2/{stem}.jsonl", **values}))


def test_a_file_whose_pictures_lie_outside_the_root_is_refused_with_the_way_out(root, command):
    made(root, "one", image_root=str(root / "data"))
    assert command("mix", "small.yaml").returncode == 0
    made(root, "one", image_root=str(root))
    done = command("--root", "data", "mix", "small.yaml")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert f"one.jsonl: its image keys begin at {root}, not at the root data; link the raw data there" in done.stderr
    assert "(mkdir -p data/raw && ln -s '/else where/chartqa' data/raw/chartqa), and preprocess it again" in done.stderr
    for other in ({"output": "data/elsewhere/one.jsonl"}, {"image_root": str(root / "moved away")}):
        made(root, "one", **{"image_root": str(root), **other})
        assert command("mix", "small.yaml").returncode == 0
    (root / "data/reports/phase2/one.json").write_text("{cut off")
    assert command("mix", "small.yaml").returncode == 0


def test_a_real_report_of_preprocess_is_understood(root, workspace, command, chart_folder):
    chart_folder()
    (root / "elsewhere").mkdir()
    (root / "data/raw/chartqa").rename(root / "elsewhere/chartqa")
    assert command("preprocess", "--dataset", "chartqa", "--input", "elsewhere/chartqa").returncode == 0
    (root / "m.yaml").write_text("sources: [{file: jsonl/phase2/chartqa.jsonl}]")
    done = command("mix", "m.yaml")
    assert done.returncode == 2 and f"its image keys begin at {root}/elsewhere, not at the root data" in done.stderr
    (root / "data/raw/chartqa").symlink_to(done.stderr.split("ln -s ")[1].split()[0])
    assert command("preprocess", "--dataset", "chartqa", "--overwrite").returncode == 0
    assert command("mix", "m.yaml").returncode == 0


def test_evaluation_files_are_warned_of(root, command):
    path = root / "data/jsonl/eval/chartqa-test.jsonl"
    path.parent.mkdir()
    path.write_bytes(records("t", academic=1)[0])
    made(root, "chartqa-test", image_root=str(root / "data"), output=str(path), splits=["test"], evaluation=True)
    (root / "m.yaml").write_text("sources: [{file: jsonl/eval/chartqa-test.jsonl}]")
    done = command("mix", "m.yaml")
    assert done.returncode == 0
    assert "chartqa-test.jsonl: made from test: do not train on what you evaluate on\n" in done.stderr


MISTAKES = [
    (["nowhere"], "nowhere: no such config file; shipped are: consensus_50_30_20, llava15_665k"),
    (["small.yaml", "--set", "total=9"], "a total needs a source with a weight, or shares"),
    (["small.yaml", "--set", "shuffel=no"], "shuffel: unknown key, did you mean shuffle?"),
    (["counted.yaml"], "source two: count asks for 99 records, 25 are there; lower it, or say `repeat: true`"),
    (["array.yaml"], "array.yaml:1: sources.0.file: string should match pattern"),
    (["empty.yaml"], "source empty: "),
]


@pytest.mark.parametrize(("words", "sentence"), MISTAKES)
def test_a_mistake_gets_one_sentence_and_exit_2_and_leaves_nothing(root, command, words, sentence):
    (root / "counted.yaml").write_text("sources: [{file: jsonl/phase2/two.jsonl, count: 99}]")
    (root / "array.yaml").write_text("sources: [{file: raw/a.json}]")
    (root / "empty.yaml").write_text("sources: [{file: jsonl/phase2/empty.jsonl}]")
    write(root / "data", "empty", [])
    done = command("mix", *words)
    assert done.returncode == 2
    assert sentence in done.stderr and len(done.stderr.splitlines()) == 1
    assert not list((root / "data").glob("mix/*")) and not list((root / "data/reports").rglob("*small*"))


def test_no_room_ends_with_6_and_the_rerun_finishes(root, command):
    done = command("mix", "small.yaml", max_file_bytes=500)
    assert (done.returncode, len(done.stderr.splitlines())) == (6, 1), done.stderr
    assert "no space left" in done.stderr and not list((root / "data/mix").iterdir())
    assert command("mix", "small.yaml").returncode == 0


def test_the_shipped_consensus_makes_its_proportions(tmp_path, command):
    data = tmp_path / "data"
    for name in ["chartqa", "dvqa", "ai2d", "docvqa", "infographicvqa", "arxivqa"]:
        write(data, name, records(name, academic=10))
    write(data, "scienceqa", records("scienceqa", academic=5, text_only=5))
    write(data, "sharegpt4v-100k", records("s", caption=15))
    parts = {"coco/train2017": {"academic": 20, "conversation": 10, "reasoning": 20, "caption": 9}}
    parts |= dict.fromkeys(
        ("vg/VG_100K", "vg/VG_100K_2", "ocr_vqa/images", "gqa/images", "textvqa/train_images"), {"academic": 10}
    )
    lines = [line for part, kinds in parts.items() for line in records(part, f"raw/mix665k/{part}", **kinds)]
    write(data, "mix665k", lines + records("t", text_only=10))
    done = command("mix", "consensus_50_30_20", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert {kind: counts["chosen"] for kind, counts in report["kinds"].items()} == {
        "academic": 51,  # 20 of reasoning allow for 102: of 103 they would be 21
        "conversation": 31,
        "reasoning": 20,
        "caption": 0,
    }
    conversations = {name: source["kinds"].get("conversation", 0) for name, source in report["sources"].items()}
    assert {name: count for name, count in conversations.items() if count} == {
        "mix665k-coco": 9,
        "mix665k-text-only": 9,
        "sharegpt4v-100k": 13,
    }
    assert report["sources"]["scienceqa"]["available"] == 10


def test_the_shipped_parts_of_llava15_need_every_part(tmp_path, command):
    write(tmp_path / "data", "mix665k", records("c", "raw/mix665k/coco/train2017", conversation=3, text_only=3))
    done = command("mix", "llava15_665k")
    assert done.returncode == 2
    assert "source vg: " in done.stderr and "no usable record whose image fits images: *vg/VG_100K*" in done.stderr


def test_a_key_mistyped_inside_a_source_names_line_and_nearest_key(workspace, command):
    (workspace.root / "my.yaml").write_text("sources:\n  - file: a.jsonl\n    counts: 5\n")
    done = command("mix", "my.yaml")
    assert done.returncode == 2
    assert done.stderr == "llava-prep: my.yaml:3: sources.0.counts: unknown key, did you mean count?\n"
