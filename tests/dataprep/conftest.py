"""A small workspace with good and bad records, and the command as a user runs it."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from dataprep.config import CompileConfig, ImageConfig
from dataprep.llm_client import Patience, Settings, ask_all, open_endpoint
from dataprep.pipeline import Job
from tests.dataprep.llm_asking import KEY, QUICK, chat

ROOT = Path(__file__).parent.parent.parent

#: `llava-prep`, whatever is installed.
PROGRAM = (sys.executable, "-c", "from dataprep.cli import main; main(prog_name='llava-prep')")


def record(number: int, image: str | None = None, pairs: int = 1) -> dict:
    turns = []
    for pair in range(pairs):
        question = f"What colour is bar {pair} of chart {number}?"
        shown = f"<image>\n{question}" if image and pair == 0 else question
        turns += [{"from": "human", "value": shown}, {"from": "gpt", "value": "red " * (1 + number % 5)}]
    return {"id": f"r{number}", **({"image": image} if image else {}), "conversations": turns}


@pytest.fixture
def workspace(tmp_path, tiny_tokenizer_dir):
    """Pictures, a jsonl writer, and a job over them."""
    (tmp_path / "pictures").mkdir()
    for index in range(5):
        Image.new("RGB", (30 + index, 28), (50 * index, 9, 9)).save(tmp_path / f"pictures/{index}.jpg")

    def write(name: str, records: list) -> Path:
        path = tmp_path / "jsonl" / "phase2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    def job(*inputs: Path, output: str = "h5", **config) -> Job:
        settings = {"phase": 2, "template": "vicuna_v1", "max_seq_length": 200, "image": ImageConfig(size=28)}
        return Job(CompileConfig(**settings | config), tiny_tokenizer_dir, inputs, tmp_path, tmp_path / output)

    return SimpleNamespace(root=tmp_path, write=write, job=job, tokenizer=tiny_tokenizer_dir, record=record)


@pytest.fixture
def chart_folder(workspace):
    """Write ChartQA's layout with two pictures of the workspace, five questions, as `raw/chartqa` of the root."""

    def write(split: str = "train") -> Path:
        folder = workspace.root / "data/raw/chartqa/ChartQA Dataset" / split
        (folder / "png").mkdir(parents=True)
        for index in range(2):
            shutil.copy(workspace.root / f"pictures/{index}.jpg", folder / f"png/{index}.png")
        asked = [{"imgname": f"{n % 2}.png", "query": f"How many, number {n}?", "label": f"{n}"} for n in range(5)]
        (folder / f"{split}_human.json").write_text(json.dumps(asked[:3]))
        (folder / f"{split}_augmented.json").write_text(json.dumps(asked[3:]))
        return folder

    return write


@pytest.fixture
def no_sync(monkeypatch):
    """The machine's other writers are not waited for."""
    monkeypatch.setattr(os, "sync", lambda: None)


def mixture(workspace, count: int, name: str = "a.jsonl", records_a_picture: int | None = None) -> Path:
    """Records with and without pictures, and two bad ones: a line that is no JSON, and an empty answer.

    The workspace's five pictures take turns, or each serves so many records in a row.
    """
    records = []
    for number in range(count):
        picture = number // records_a_picture if records_a_picture else number % 5
        records.append(workspace.record(number, f"pictures/{picture}.jpg" if number % 3 else None, 1 + number % 4))
    records[7] = b"{broken"
    records[count // 2]["conversations"][1]["value"] = ""
    return workspace.write(name, records)


def prepare_child(max_file_bytes: int | None) -> None:
    """Set up a child: tests started in a shell's background inherit an ignored Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if max_file_bytes is not None:
        # Python ignores SIGXFSZ, so a write beyond the limit is an OSError, as on a full disk.
        resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, max_file_bytes))


@pytest.fixture
def command(tmp_path):
    """Run `llava-prep ...` in the workspace; returns the finished process."""

    def run(*arguments: object, start: bool = False, max_file_bytes: int | None = None):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        options = {"cwd": tmp_path, "env": environment, "text": True}
        options["preexec_fn"] = lambda: prepare_child(max_file_bytes)
        words = [*PROGRAM, *map(str, arguments)]
        if start:
            return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)
        return subprocess.run(words, capture_output=True, timeout=120, **options)

    return run


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """Ask a server; gives what came, the journal lies in `ask.journal`."""
    monkeypatch.setenv("LLM_KEY", KEY)
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    journal = tmp_path / "journal.jsonl"

    def run(llm, *texts: str, settings=None, limits=None, concurrency=1, model="tiny", key="LLM_KEY", **patience):
        endpoint = open_endpoint(llm.url, model, key)
        patience = Patience(**(QUICK | patience))
        requests = [chat(text) for text in texts or ("Hello?",)]
        return ask_all(endpoint, requests, settings or Settings(), journal, limits, patience, concurrency)

    run.journal = journal
    return run
