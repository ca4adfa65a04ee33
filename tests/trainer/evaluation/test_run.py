"""Asking a tiny model a benchmark: what the file holds, how a run goes on, and what it refuses."""

import json
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.trainer.evaluation import layouts
from trainer.evaluation import run, score
from trainer.evaluation.answering import batches
from trainer.evaluation.benchmarks import BENCHMARKS, Asked
from trainer.evaluation.settings import model_digest

ROOT = Path(__file__).parents[3]
LLAVAS_KEYS = ["question_id", "prompt", "text", "answer_id", "model_id", "metadata"]


def arguments(model, data, output, *more, benchmark="chartqa", tokens=4):
    own = ["--benchmark", benchmark, "--data", data, "--output", output, "--max-new-tokens", tokens]
    return [str(argument) for argument in (model, *own, *more)]


def ask(*given, **named):
    """Run the command in this process; return its exit code, stdout and stderr."""
    done = CliRunner().invoke(run.command, arguments(*given, **named), catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def process(*given, ranks=1, **named):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "trainer.evaluation.run", *arguments(*given, **named)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def records(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def whole(model, charts, tmp_path_factory):
    """What an uninterrupted run writes, a question at a time and then in batches of four."""
    folder = tmp_path_factory.mktemp("whole")
    for size in (1, 4):
        code, _, said = ask(model, charts, folder / f"{size}.jsonl", "--batch-size", size, tokens=24)
        assert code == 0, said
    return folder


def test_the_file_has_the_original_keys_and_all_that_scoring_needs(whole, charts):
    found = records(whole / "4.jsonl")
    assert [one["question_id"] for one in found] == [
        *(f"human-{number}" for number in range(1, 17)),
        *(f"augmented-{number}" for number in range(1, 9)),
    ]
    assert all(list(one) == LLAVAS_KEYS for one in found)
    first = found[0]
    assert first["model_id"].endswith("_final")
    metadata = first["metadata"]
    assert metadata == {
        "benchmark": "chartqa",
        "answers": ["red"],
        "kind": "human",
        "options": [],
        "image": str(charts / "ChartQA Dataset" / "test" / "png" / "0000.png"),
        "num_tokens": metadata["num_tokens"],
        "ended": metadata["ended"],
    }
    assert 0 < metadata["num_tokens"] <= 24
    assert len({one["answer_id"] for one in found}) == 24
    # Were all answers alike, no comparison of two files here could fail.
    assert len({one["text"] for one in found}) > 3
    assert leftovers(whole) == ["1.jsonl", "1.run.json", "4.jsonl", "4.run.json"]


def test_batches_change_no_answer(whole):
    assert (whole / "1.jsonl").read_bytes() == (whole / "4.jsonl").read_bytes()


def test_a_finished_run_is_not_asked_again_and_its_file_can_be_scored(whole, model, charts):
    before = (whole / "4.jsonl").stat().st_mtime_ns
    code, said, _ = ask(model, charts, whole / "4.jsonl", tokens=24)
    assert code == 0 and "finished before" in said
    assert "python -m trainer.evaluation.score" in said
    assert (whole / "4.jsonl").stat().st_mtime_ns == before
    scored = CliRunner().invoke(score.command, [str(whole / "4.jsonl"), "--json"])
    assert scored.exit_code == 0, scored.stderr
    rows = json.loads(scored.stdout)["rows"]
    assert [(row["kind"], row["n"]) for row in rows] == [("all", 24), ("human", 16), ("augmented", 8)]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"tokens": 25}, "max_new_tokens was 24, is 25"),
        ({"more": ("--limit", "3")}, "limit was None, is 3"),
        ({"more": ("--dtype", "bfloat16")}, "dtype was float32, is bfloat16"),
        ({"benchmark": "docvqa"}, "benchmark was chartqa, is docvqa"),
    ],
)
def test_other_settings_in_the_same_file_are_refused_by_name(whole, model, charts, tmp_path, changes, named):
    data = layouts.docvqa(tmp_path / "raw") if "benchmark" in changes else charts
    more = changes.pop("more", ())
    code, _, said = ask(model, data, whole / "4.jsonl", *more, **{"tokens": 24, **changes})
    assert code == 4 and named in said
    assert not (whole / "4.jsonl.parts").exists()


def test_another_model_and_other_questions_are_refused_and_a_moved_model_is_not(whole, model, charts, tmp_path):
    moved = tmp_path / "elsewhere" / "final"
    shutil.copytree(model, moved)
    assert ask(moved, charts, whole / "4.jsonl", tokens=24)[0] == 0
    content = bytearray((moved / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (moved / "model.safetensors").write_bytes(content)
    code, _, said = ask(moved, charts, whole / "4.jsonl", tokens=24)
    assert code == 4 and "the model is another one" in said
    code, _, said = ask(model, layouts.chartqa(tmp_path / "other", 9), whole / "4.jsonl", tokens=24)
    assert code == 4 and "the questions of" in said
    foreign = layouts.write(tmp_path / "foreign.jsonl", "{}\n")
    code, _, said = ask(model, charts, foreign)
    assert code == 4 and "foreign.run.json" in said and foreign.read_text() == "{}\n"


def batches_of(output, rank=0):
    """Return the numbers of the questions in each batch that a rank of an unfinished run has on disk."""
    path = output.with_name(f"{output.name}.parts") / f"rank-{rank:05d}.jsonl"
    whole = (
        [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if path.exists() else []
    )
    return [[index for index, *_ in json.loads(line)] for line in whole]


def wait_until(condition, running):
    for _ in range(1200):
        if condition():
            return
        assert running.poll() is None, running.communicate()[0]
        time.sleep(0.05)
    raise AssertionError("nothing happened in a minute")


def test_terminated_torn_and_gone_on_is_the_same_as_uninterrupted(whole, model, charts, tmp_path):
    output = tmp_path / "answers.jsonl"
    running = process(model, charts, output, "--batch-size", 1, tokens=24)
    wait_until(lambda: len(batches_of(output)) >= 3, running)
    code, _, said = ask(model, charts, output, tokens=24)
    assert code == 4 and "another run" in said
    running.terminate()
    said = running.communicate()[0]
    assert running.returncode == 143, said
    assert "run the same command again" in said
    assert not output.exists()
    scored = CliRunner().invoke(score.command, [str(output)])
    assert scored.exit_code == 2 and "not finished" in scored.stderr
    # What a kill leaves that comes while a line is written.
    part = tmp_path / "answers.jsonl.parts" / "rank-00000.jsonl"
    content = part.read_bytes()
    part.write_bytes(content[: content.rfind(b"\n", 0, -1) + 20])
    kept = len(batches_of(output))
    assert kept >= 2

    code, _, said = ask(model, charts, output, "--batch-size", 1, tokens=24)
    assert code == 0
    assert "mended: the last line of 1 part" in said and f"going on: {kept} of 24" in said
    assert output.read_bytes() == (whole / "1.jsonl").read_bytes()
    assert leftovers(tmp_path) == ["answers.jsonl", "answers.run.json"]


@pytest.mark.parametrize("name", ["publish", "whole_file", "shutil.rmtree"])
def test_a_run_that_ends_while_its_files_are_written_is_finished_by_the_next(
    whole, model, charts, tmp_path, monkeypatch, name
):
    from trainer.evaluation import session

    real, calls = operator.attrgetter(name)(session), []

    def ends(path, *given, **named):
        calls.extend([path] if Path(path).parent == tmp_path else [])
        # The first that is published says what the run is, before anything is asked.
        if len(calls) > (name == "publish"):
            raise KeyboardInterrupt
        return real(path, *given, **named)

    output = tmp_path / "answers.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(f"trainer.evaluation.session.{name}", ends)
        assert ask(model, charts, output, "--batch-size", 1, tokens=24)[0] == 130
    code, said, error = ask(model, charts, output, "--batch-size", 1, tokens=24)
    assert code == 0, error
    assert re.search(r"^questions +24$", said, re.MULTILINE)
    assert output.read_bytes() == (whole / "1.jsonl").read_bytes()
    assert leftovers(tmp_path) == ["answers.jsonl", "answers.run.json"]


@pytest.mark.parametrize("name", ["model.safetensors", "checkpoints/step-00000004/__0_0.distcp"])
def test_a_model_is_known_by_every_stretch_of_a_large_file(tmp_path, name):
    # As two models of a first phase: they differ in the projector, some MB of many GB.
    weights = tmp_path / name
    weights.parent.mkdir(parents=True, exist_ok=True)
    with open(weights, "wb") as file:
        file.truncate(1 << 30)
    before = model_digest([tmp_path])
    with open(weights, "r+b") as file:
        file.seek(900_000_123)
        file.write(b"\x01" * (2 << 20))
    assert model_digest([tmp_path]) != before


def processes_of_rank(rank, parent):
    """Return the ids of a launcher's processes that are a rank."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes().split(b"\0")
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(stat[1]) == parent and f"RANK={rank}".encode() in environment:
            yield int(folder.name)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to find a rank's process")
def test_two_ranks_share_the_questions_and_one_that_dies_leaves_nothing_that_looks_finished(
    whole, model, charts, tmp_path
):
    output = tmp_path / "answers.jsonl"
    running = process(model, charts, output, "--batch-size", 1, ranks=2, tokens=24)
    wait_until(lambda: batches_of(output, 0) and batches_of(output, 1), running)
    (victim,) = processes_of_rank(1, running.pid)
    os.kill(victim, signal.SIGKILL)
    said = running.communicate(timeout=120)[0]
    assert running.returncode != 0, said
    assert not output.exists()
    begun = [len(batches_of(output, rank)) for rank in (0, 1)]
    first, second = ({index for batch in batches_of(output, rank) for index in batch} for rank in (0, 1))
    assert first and second and not first & second

    running = process(model, charts, output, "--batch-size", 1, ranks=2, tokens=24)
    wait_until(lambda: len(batches_of(output, 1)) > begun[1], running)
    (slow,) = processes_of_rank(1, running.pid)
    os.kill(slow, signal.SIGSTOP)
    left = 24 - sum(begun)
    wait_until(lambda: len(batches_of(output, 0)) == begun[0] + (left + 1) // 2, running)
    # The first rank has nothing left to ask, and waits for the other.
    assert not output.exists()
    os.kill(slow, signal.SIGCONT)
    said = running.communicate(timeout=120)[0]
    assert running.returncode == 0, said
    assert said.count("score: python -m") == 1 and "going on" in said
    assert output.read_bytes() == (whole / "1.jsonl").read_bytes()


def test_bad_pictures_are_counted_and_told_apart_and_stop_nothing(model, charts, tmp_path):
    data = tmp_path / "charts"
    shutil.copytree(charts, data)
    folder = data / "ChartQA Dataset" / "test" / "png"
    (folder / "0001.png").unlink()
    (folder / "0002.png").write_bytes((folder / "0003.png").read_bytes()[:60])
    output = tmp_path / "answers.jsonl"
    code, said, _ = ask(model, data, output, "--batch-size", 5)
    assert code == 0
    assert "not answered: missing_image" in said and "not answered: unreadable_image" in said
    found = records(output)
    bad = [one for one in found if "error" in one["metadata"]]
    assert len(found) == 24 and len(bad) == 6
    assert all(one["text"] == "" for one in bad)
    assert {one["metadata"]["error"].partition(":")[0] for one in bad} == {"missing_image", "unreadable_image"}
    # The others of a batch with a bad picture say what they say without it.
    untouched = tmp_path / "untouched.jsonl"
    assert ask(model, charts, untouched)[0] == 0
    good = {one["question_id"]: one["text"] for one in found if "error" not in one["metadata"]}
    assert good == {one["question_id"]: one["text"] for one in records(untouched) if one["question_id"] in good}
    scored = CliRunner().invoke(score.command, [str(output)])
    assert "not answered: missing_image 3, unreadable_image 3" in scored.stdout


def test_pictures_that_are_nowhere_end_the_run_before_a_model_is_opened(model, tmp_path):
    path = layouts.write(tmp_path / "q.jsonl", layouts.lines({"question_id": 1, "image": "x.png", "text": "What?"}))
    code, _, said = ask(tmp_path, path, tmp_path / "a.jsonl", benchmark="questions")
    assert code == 2 and "none of the 1 pictures is there" in said and "--image-dir" in said
    assert leftovers(tmp_path) == ["q.jsonl"]


def test_nothing_but_bad_pictures_is_exit_code_3(model, tmp_path):
    (tmp_path / "x.png").write_bytes(b"no picture")
    path = layouts.write(tmp_path / "q.jsonl", layouts.lines({"question_id": 1, "image": "x.png", "text": "What?"}))
    code, said, _ = ask(model, path, tmp_path / "a.jsonl", benchmark="questions")
    assert code == 3 and "not answered: unreadable_image  1" in said


@pytest.mark.parametrize(
    ("benchmark", "count", "kinds"),
    [
        ("scienceqa", 2, {"social science", "natural science"}),
        ("pope", 4, {"random", "popular"}),
        ("mmbench", 3, {"logic"}),
        ("mmmu", 2, {"Art_Theory"}),
        ("textvqa", 1, {""}),
    ],
)
def test_other_benchmarks_end_to_end_with_a_limit_in_whole_groups(benchmark, count, kinds, model, tmp_path):
    data = getattr(layouts, benchmark)(tmp_path / "raw")
    limit = {"mmbench": 1, "pope": 4}.get(benchmark, 5)
    output = tmp_path / "answers.jsonl"
    code, _, said = ask(model, data, output, "--limit", limit, benchmark=benchmark)
    assert code == 0, said
    found = records(output)
    assert len(found) == count
    assert {one["metadata"]["kind"] for one in found} == kinds
    if benchmark == "scienceqa":  # its original scoring tells by the tag who had a picture
        assert [one["prompt"].startswith("<image>\n") for one in found] == [True, False]
    else:
        assert not any("<image>" in one["prompt"] for one in found)
    if benchmark == "mmmu":
        said = json.loads((tmp_path / "answers.run.json").read_bytes())["left_out"]
        assert said == {"bad_options": 1, "not_multiple_choice": 1, "several_images": 1}
    scored = CliRunner().invoke(score.command, [str(output)])
    assert scored.exit_code == 0, scored.stderr


def test_questions_without_truth_are_answered_and_pointed_to_a_judge(model, tmp_path):
    path = layouts.write(tmp_path / "q.jsonl", layouts.lines({"question_id": 1, "text": "Hello?"}))
    assert ask(model, path, tmp_path / "a.jsonl", benchmark="questions")[0] == 0
    scored = CliRunner().invoke(score.command, [str(tmp_path / "a.jsonl")])
    assert scored.exit_code == 2 and "judge" in scored.stderr


def test_json_is_one_object_on_stdout(model, charts, tmp_path):
    code, said, _ = ask(model, charts, tmp_path / "a.jsonl", "--limit", 2, "--json")
    values = json.loads(said)
    assert code == 0 and values["questions"] == values["answered"] == 2


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"benchmark": "chartq"}, "choose from chartqa, docvqa"),
        ({"split": "train"}, "choose from test, val"),
        ({"output": "answers.txt"}, "expected the name of a .jsonl file"),
        ({"data": "nowhere"}, "no such file or folder"),
        ({"model": "nowhere"}, "no such model folder"),
        ({"image_dir": "nowhere"}, "--image-dir nowhere"),
    ],
)
def test_wrong_usage_is_one_sentence_that_names_the_choices(more, named, model, charts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [(f"--{name.replace('_', '-')}", more[name]) for name in ("split", "image_dir") if name in more]
    model, data, output = more.get("model", model), more.get("data", charts), more.get("output", "a.jsonl")
    benchmark = more.get("benchmark", "chartqa")
    code, said, error = ask(model, data, output, *sum(options, ()), benchmark=benchmark)
    assert code == 2 and said == ""
    assert named in error and error.startswith("error: ") and error.count("\n") == 1
    assert leftovers(tmp_path) == []


def test_what_is_left_falls_into_the_batches_that_it_would_have_been_in():
    questions = [Asked(number, "x" * (number * 7 % 11), None) for number in range(23)]
    every = batches(questions, range(23), 4)
    assert sorted(sum(every, [])) == list(range(23))
    lengths = [len(questions[index].prompt) for batch in every for index in batch]
    assert lengths == sorted(lengths, reverse=True)
    done = {index for batch in (every[1], every[4]) for index in batch}
    assert batches(questions, [index for index in range(23) if index not in done], 4) == [
        batch for batch in every if batch not in (every[1], every[4])
    ]


def test_help_lists_every_benchmark_and_loads_nothing_heavy():
    program = "import trainer.evaluation.run, trainer.evaluation.score, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert {"torch", "numpy", "PIL", "pyarrow", "transformers"}.isdisjoint(loaded.stdout.split())
    said = CliRunner().invoke(run.command, ["--help"]).stdout
    assert all(f"  {name} " in said for name in BENCHMARKS)
