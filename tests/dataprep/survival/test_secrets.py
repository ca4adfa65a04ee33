"""Tokens and credentials of the environment never reach a file or the screen, however a run ends."""

import gzip
import os
import signal
from pathlib import Path

import h5py
import pytest

from dataprep.errors import Exit
from tests.dataprep.survival.kills import begun, compiled, finish, mixture, start, wait_until, words

#: What must not be found anywhere: in the environment each stands as it would in real life.
CANARY = "CANARY7f3a"
SECRETS = {
    "HF_TOKEN": f"hf_{CANARY}HuggingFace",
    "HUGGING_FACE_HUB_TOKEN": f"hf_{CANARY}Hub",
    "HF_ENDPOINT": f"http://user:{CANARY}Endpoint@127.0.0.1:9",
    "AWS_ACCESS_KEY_ID": f"AKIA{CANARY}Id",
    "AWS_SECRET_ACCESS_KEY": f"{CANARY}Secret",
    "AWS_SESSION_TOKEN": f"{CANARY}Session",
    "GOOGLE_APPLICATION_CREDENTIALS": f"/home/{CANARY}Google/key.json",
    "AZURE_STORAGE_CONNECTION_STRING": f"AccountKey={CANARY}Azure;",
    "WANDB_API_KEY": f"{CANARY}Wandb",
    "HTTPS_PROXY": f"http://user:{CANARY}Proxy@127.0.0.1:9",
    "HTTP_PROXY": f"http://user:{CANARY}Proxy@127.0.0.1:9",
    "DATABASE_URL": f"postgres://user:{CANARY}Database@host/db",
    "USER": f"{CANARY}User",
    "LOGNAME": f"{CANARY}Logname",
    "LLAVA_PREP_TOKEN": f"{CANARY}Ours",
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch, tmp_path):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))


def leaks(folder: Path, *printed: str) -> list[str]:
    """Where a secret stands: in what was printed, or in a file, packed or not."""
    found = [text for text in printed if CANARY in text]
    for path in folder.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            seen = content + (gzip.decompress(content) if content[:2] == b"\x1f\x8b" else b"")
            if path.suffix == ".h5":
                seen += unpacked(path)
            if CANARY.encode() in seen or CANARY in str(path) or CANARY.encode("utf-16-le") in seen:
                found.append(str(path))
    return found


def unpacked(path: Path) -> bytes:
    """Every value and attribute of a shard."""
    seen = []

    def visit(name, item):
        seen.append(repr(dict(item.attrs)).encode())
        if isinstance(item, h5py.Dataset):
            seen.append(item[()].tobytes())

    with h5py.File(path) as file:
        seen.append(repr(dict(file.attrs)).encode())
        file.visititems(visit)
    return b"".join(seen)


def test_the_search_finds_what_it_should(tmp_path):
    assert leaks(tmp_path, "fine", f"x {CANARY}") == [f"x {CANARY}"]
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=[CANARY.encode() * 20], compression="gzip").attrs["y"] = "fine"
    (tmp_path / "a.gz").write_bytes(gzip.compress(CANARY.encode()))
    (tmp_path / "a.txt").write_text("fine")
    assert sorted(leaks(tmp_path)) == [str(tmp_path / "a.gz"), str(tmp_path / "a.h5")]
    assert all(CANARY in value for value in SECRETS.values()) and CANARY in os.environ["HF_TOKEN"]


#: Ways to end, with what is typed for it.
ENDS = {
    "done": ([], Exit.OK),
    "done, as json": (["--json"], Exit.OK),
    "tried": (["--dry-run"], Exit.OK),
    "too many refused": (["--max-refused", "0"], Exit.REFUSED),
    "no such option": (["--set", "nothing=1"], Exit.USAGE),
    "no such file": (["--input", "none.jsonl"], Exit.USAGE),
    "no such tokenizer": (["--tokenizer", "owner/name"], Exit.USAGE),
    "another folder's": (["--set", "max_seq_length=180"], Exit.CONFLICT),
}


@pytest.mark.parametrize("end", ENDS)
def test_no_secret_is_written_or_printed(workspace, end):
    mixture(workspace, 600)
    typed, code = ENDS[end]
    if code == Exit.CONFLICT:
        assert compiled(workspace, words(workspace))[0] == Exit.OK
    found, out, error = compiled(workspace, [*words(workspace), *typed])
    assert found == code, error
    assert out or error
    assert leaks(workspace.root, out, error) == []


def test_no_secret_is_written_or_printed_by_a_run_that_breaks(workspace, tmp_path):
    mixture(workspace, 600)
    gate, log = tmp_path / "gate", tmp_path / "begun.log"
    told = start(workspace, words(workspace), gate=gate, log=log)
    assert wait_until(lambda: begun(log), told)
    code, out, error = compiled(workspace, words(workspace))
    assert code == Exit.CONFLICT and leaks(workspace.root, out, error) == []
    told.send_signal(signal.SIGTERM)
    code, out, error = finish(told)
    assert code == Exit.TERMINATED and leaks(workspace.root, out, error) == []
    code, out, error = finish(start(workspace, words(workspace), max_file_bytes=9000))
    assert code == Exit.NO_SPACE and leaks(workspace.root, out, error) == []
    code, out, error = compiled(workspace, words(workspace), counter=1, log=log)
    assert code == Exit.BUG and leaks(workspace.root, out, error) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bug_prints_no_secret(workspace, workers):
    """A traceback shows code and messages, never the values of variables or of the environment."""
    mixture(workspace, 600)
    code, out, error = compiled(workspace, words(workspace, "h5", "--workers", workers), bug="yes")
    assert code == Exit.BUG and "ZeroDivisionError" in error and leaks(workspace.root, out, error) == []
