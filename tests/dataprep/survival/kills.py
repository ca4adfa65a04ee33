"""A compile as its own processes, to be interrupted; and what must hold of its folder whenever one looks."""

import hashlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import IO

from PIL import Image

from tests.dataprep import conftest
from tests.dataprep.conftest import PROGRAM, ROOT, prepare_child

FULL = os.environ.get("LLAVA_PREP_PROOFS") == "full"
INSIDE = Path(__file__).parent / "inside"
RECORDS, SHARD_ROWS = 9000, 500

#: What a run keeps for itself: it is not part of the result.
OWN = (".lock", ".pictures.sqlite")


def mixture(workspace, count: int = RECORDS, name: str = "a.jsonl") -> Path:
    """Records with and without pictures, a new picture with every tenth, and two bad ones."""
    for index in range(5, count // 10):
        picture = Image.new("RGB", (30 + index % 7, 28), (index % 256, index // 256, 9))
        picture.save(workspace.root / f"pictures/{index}.jpg")
    return conftest.mixture(workspace, count, name, records_a_picture=10)


def words(workspace, output: str = "h5", *more: object, shard_rows: int = SHARD_ROWS) -> list[str]:
    """What a user types."""
    settings = ["max_seq_length=200", "image.size=28", f"shard_rows={shard_rows}"]
    flags = [word for setting in settings for word in ("--set", setting)]
    paths = ["--input", "jsonl/phase2", "--image-dir", workspace.root, "--tokenizer", workspace.tokenizer]
    return [str(word) for word in ("to-h5", "--phase", 2, *paths, "--output", output, *flags, "--workers", 2, *more)]


def start(
    workspace,
    arguments: list[str],
    max_file_bytes: int | None = None,
    stdout: int | IO = subprocess.PIPE,
    **inside: object,
) -> subprocess.Popen:
    """Start `llava-prep ...` as the leader of its own process group.

    Args:
        inside: SURVIVAL_... variables, see `inside/sitecustomize.py`.
    """
    variables = {f"SURVIVAL_{name.upper()}": str(value) for name, value in inside.items()}
    environment = {**os.environ, "PYTHONPATH": f"{INSIDE}{os.pathsep}{ROOT}", **variables}
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=workspace.root,
        env=environment,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: prepare_child(max_file_bytes),
    )


def finish(process: subprocess.Popen, timeout: float = 300) -> tuple[int, str, str]:
    """Wait for a run: exit code, stdout, stderr. Where it hangs, all of it is killed and the test fails."""
    try:
        out, error = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # what is left open here would be held against whatever test comes next
        raise
    return process.returncode, out, error


def compiled(workspace, arguments: list[str], **inside: object) -> tuple[int, str, str]:
    """Run to the end."""
    return finish(start(workspace, arguments, **inside))


def contents(folder: Path) -> dict[str, str]:
    """The sha256 of every file of the result."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(OWN)
    }


def shards(folder: Path) -> dict[str, str]:
    """The sha256 of every shard."""
    return {name: digest for name, digest in contents(folder).items() if name.endswith(".h5")}


def recorded(folder: Path) -> dict[str, tuple[int, int]]:
    """The shards of every task that is done, with inode and time of change: they tell of a file written again."""
    found = {}
    for path in folder.glob(".tasks/[0-9]*.json"):
        for shard in json.loads(path.read_bytes())["shards"]:
            status = (folder / shard["file"]).stat()
            found[shard["file"]] = (status.st_ino, status.st_mtime_ns)
    return found


def check_whole_or_absent(folder: Path, clean: dict[str, str]) -> None:
    """Make sure that everything with a name is as in an uninterrupted run, and that nothing looks done too early."""
    found = contents(folder)
    named = {name: digest for name, digest in found.items() if not name.endswith(".tmp")}
    assert named.items() <= clean.items()
    if "manifest.json" in found:
        # The report is made behind the manifest: it tells of a folder that is whole already.
        assert {name: clean[name] for name in clean if name != "report.html" or name in named} == named


def children(process: subprocess.Popen) -> list[int]:
    """The worker processes of a run; the tracker of its semaphores is none."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            command = path.with_name("cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == process.pid and "spawn_main" in command:
            found.append(int(path.parent.name))
    return found


def wait_until(condition, process: subprocess.Popen, timeout: float = 60) -> bool:
    """Wait for something that a run does; False where the run ended first."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return True


def begun(log: Path) -> list[tuple[int, int]]:
    """The tasks that were begun: process and task."""
    if not log.exists():
        return []
    return [(int(line.split()[0]), int(line.split()[1])) for line in log.read_text().splitlines()]
