"""Shares started by datatrove's executors make what one run makes, and their errors reach whoever started them."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from dataprep.errors import CommandError
from dataprep.locking import Owner, only_share
from dataprep.pipeline import run_job
from tests.dataprep.test_cluster import inputs, make_job, quiet, tree, words

pytest.importorskip("datatrove", reason="datatrove is not installed: pip install -e '.[cluster]'")

HERE = Path(__file__).parent
__all__ = ["inputs", "make_job"]


@pytest.fixture
def start(workspace, inputs, command):
    """Run `to-h5` in shares with an executor; returns the finished process."""

    def run(engine: str, *more, **options):
        chosen = [word for pair in options.items() for word in ("--executor-option", "=".join(pair))]
        shards = ["--set", "shard_rows=40", "--max-refused", 1]
        return command(*words(workspace, *shards, "--executor", engine, *chosen, *more))

    return run


@pytest.fixture
def folder(workspace):
    return workspace.root / "data/h5/phase2"


@pytest.fixture
def expected(make_job):
    """What one run makes."""
    one = make_job(output="one")
    run_job(one, 1, quiet)
    return tree(one.output)


def test_on_this_machine(start, folder, expected):
    done = start("local", "--num-tasks", 2, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 360
    assert tree(folder) == expected
    assert list(folder.glob(".tasks/logs/completions/*"))
    # What datatrove believes to be complete is looked at again.
    shard = folder / "shard-00004.h5"
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    assert start("local", "--num-tasks", 2, workers="1").returncode == 0
    assert tree(folder) == expected


def test_what_fails_is_said_in_a_sentence_and_the_others_go_on(start, folder, expected):
    with only_share(folder / ".lock", folder, 1, 2):
        done = start("local", "--num-tasks", 2)
    assert done.returncode == 4
    (sentence,) = [line for line in done.stderr.splitlines() if line.startswith("llava-prep: ")]
    assert "1 of 2 shares failed, first share 1: " in sentence
    assert f"another run is writing it: process {os.getpid()} " in sentence
    assert tree(folder).keys() == {f"shard-0000{task}.h5" for task in range(0, 10, 2)} & expected.keys()


def test_a_share_that_is_killed_is_an_error_and_nothing_waits_for_it(workspace, start, folder, command):
    workspace.write("a.jsonl", [workspace.record(n) for n in range(20_000)])
    words_ = words(workspace, "--executor", "local", "--num-tasks", 2, "--executor-option", "workers=2")
    process = command(*words_, start=True)
    lock = folder / ".lock-1-of-2"
    while not list(folder.glob(".tasks/0*.json")) or not lock.exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    os.kill(msgspec.json.decode(lock.read_bytes(), type=Owner).pid, 9)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1, said
    assert "1 of 2 shares failed, first share 1: killed by SIGKILL" in said


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A Slurm that runs a job's tasks on this machine."""
    programs = {
        "sbatch": f'exec {sys.executable} {HERE / "fake_slurm.py"} "$@"',
        "srun": 'while case $1 in -n) shift 2;; -*) shift;; *) false;; esac; do :; done; exec "$@"',
        "scontrol": "echo here",
    }
    (tmp_path / "bin").mkdir()
    for name, program in programs.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/sh\n{program}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    return {"time": "10:00:00", "partition": "cpu", "sbatch_args": "{account: vision}", "mem_per_cpu_gb": "3"}


def test_by_slurm(workspace, start, folder, expected, slurm):
    with only_share(folder / ".lock", folder, 0, 2):
        done = start("slurm", "--num-tasks", 2, wait="yes", **slurm)
    assert done.returncode == 4
    assert "1 of 2 shares failed, first share 0: " in done.stderr
    done = start("slurm", "--num-tasks", 2, "--workers", 2, "--json", **slurm)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["job"] == "4242"
    assert tree(folder) == expected, done.stderr
    assert (folder / "report.html").is_file()
    script = (workspace.root / "sbatch.sh").read_text().splitlines()
    for line in ("array=0-1", "time=10:00:00", "partition=cpu", "account=vision", "cpus-per-task=2", "mem-per-cpu=3G"):
        assert f"#SBATCH --{line}" in script
    assert any(line.startswith("srun ") and line.endswith("/.tasks/logs/executor.pik") for line in script)


def test_without_slurm(start):
    done = start("slurm", "--num-tasks", 2, time="1:00", partition="cpu")
    assert done.returncode == 2
    assert "--executor slurm: sbatch is not on PATH" in done.stderr


@pytest.fixture
def ray_nodes():
    """Two Ray nodes; a function ends them and returns how many had work."""
    pytest.importorskip("ray", reason="ray is not installed: pip install -e '.[cluster]'")
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    program = [sys.executable, "-W", "ignore", str(HERE / "two_ray_nodes.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(program, env=environment, **pipes) as process:

        def end() -> int:
            return int(process.communicate("\n", timeout=60)[0])

        yield process.stdout.readline().strip(), end


def test_by_ray_on_two_nodes(start, folder, expected, ray_nodes):
    address, end = ray_nodes
    done = start("ray", "--num-tasks", 3, "--json", address=address, mem_per_cpu_gb="0.5")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == 360
    assert tree(folder) == expected
    assert end() == 2


@pytest.mark.parametrize(
    ("engine", "options", "message"),
    [
        ("slurm", {"time": "1:00"}, "--executor slurm needs --executor-option partition=..."),
        ("slurm", {"time": "1", "partition": "p", "tme": "1"}, "no option tme; it has condaenv, cpus_per_task,"),
        ("local", {"workers": "two"}, "--executor-option workers=two: Input should be a valid integer"),
        ("local", {"skip_completed": "true"}, "no option skip_completed"),
        ("slurm", {"time": "1", "partition": "p", "sbatch_args": "a: [b"}, "sbatch_args=a: [b: not YAML"),
        ("slurm", {"time": "1", "partition": "p", "sbatch_args": "3"}, "should be a valid dictionary"),
    ],
)
def test_options_are_checked_against_the_executor(engine, options, message):
    from dataprep.cluster.engines import executor_options

    with pytest.raises(CommandError) as caught:
        executor_options(engine, options)
    assert message in str(caught.value)


def test_values_of_options_are_what_the_executor_takes():
    from dataprep.cluster.engines import executor_options

    given = {"time": "10:00:00", "partition": "cpu", "qos": "normal", "requeue": "false", "srun_args": "{mpi: none}"}
    read = executor_options("slurm", {**given, "requeue_signals": "[SIGUSR2]", "mem_per_cpu_gb": "4", "wait": "true"})
    assert read == {
        **{"time": "10:00:00", "partition": "cpu", "qos": "normal", "requeue": False, "srun_args": {"mpi": "none"}},
        **{"requeue_signals": ("SIGUSR2",), "mem_per_cpu_gb": 4, "wait": True},
    }


@pytest.mark.parametrize("missing", ["datatrove", "ray"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(workspace, inputs, missing):
    arguments = [str(word) for word in words(workspace, "--executor", "ray", "--num-tasks", 2)]
    program = f"import sys; sys.modules[{missing!r}] = None; from dataprep.cli import main; main({arguments!r})"
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=workspace.root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert f"--executor ray needs {missing}: pip install -e '.[cluster]'" in done.stderr
