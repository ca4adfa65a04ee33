"""Archives whose unpacking is killed, runs out of disk, or may not write."""

import fcntl
import gzip
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from dataprep import archives
from dataprep.archives import expect_own, unpack_archives
from dataprep.errors import CommandError, Exit
from tests.dataprep.archive_files import (
    FILES,
    NOISE,
    chartqa,
    made,
    refusal,
    tar_entry,
    tree,
)
from tests.dataprep.conftest import ROOT

pytestmark = pytest.mark.usefixtures("no_sync")


def test_a_zip_that_does_not_fit_is_refused_before_the_first_byte(tmp_path, monkeypatch):
    archive, into = made(tmp_path, "zip", FILES), tmp_path / "out"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4213))
    text = refusal(archive, into, code=Exit.NO_SPACE)
    assert text == f"{archive}: needs 4214 bytes in {into}, where 4213 bytes are free"
    assert tree(into) == {}
    (into / "train").mkdir()
    (into / "train" / "train_human.json").write_bytes(b"[]")
    assert tree(unpack_archives(archive, into)) == FILES


CHILD = """
import os, signal, sys
from pathlib import Path
import dataprep.archives as archives
seen, kill_at = 0, int(sys.argv[3])
replace = os.replace
def killed(*paths):
    global seen
    seen += 1
    if seen == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(*paths)
def say(text):
    print(text, file=sys.stderr, flush=True)
archives.os.replace = killed
archives.unpack_archives(Path(sys.argv[1]), Path(sys.argv[2]), say=say)
peak = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
print(peak[0].split()[1])
"""


def child(archive: Path, into: Path, kill_at: int = 0) -> subprocess.Popen:
    words = [sys.executable, "-c", CHILD, str(archive), str(into), str(kill_at)]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kind", ["zip", "tar", "tgz"])
@pytest.mark.parametrize("kill_at", [1, 3, 6])
def test_an_unpacking_that_is_killed_goes_on_where_it_was(tmp_path, kind, kill_at):
    archive, into, said = made(tmp_path, kind, FILES), tmp_path / "out", []
    killed = child(archive, into, kill_at)
    killed.communicate(timeout=60)
    assert killed.returncode == -signal.SIGKILL
    left = tree(into, hidden=True)
    assert len(left) == kill_at and any(archives.TEMPORARY in name for name in left)
    unpack_archives(archive, into, say=said.append)
    assert tree(into) == FILES
    there = f", {kill_at - 1} already there" if kill_at > 1 else ""
    assert said[-1] == f"data.{kind}: {6 - kill_at} files unpacked{there}"
    assert tree(into, hidden=True).keys() - FILES.keys() == {f".data.{kind}.unpacked.json"}


def test_a_second_process_waits_and_finds_the_work_done(tmp_path):
    archive, into = made(tmp_path, "zip", FILES), tmp_path / "out"
    into.mkdir()
    descriptor = os.open(into, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        second = child(archive, into)
        assert second.stderr.readline() == f"{into}: waiting for another process that unpacks there\n"
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1)
        assert tree(into) == {}
    finally:
        os.close(descriptor)
    _, said = second.communicate(timeout=60)
    assert second.returncode == 0 and said.endswith("data.zip: 5 files unpacked\n")
    assert tree(into) == FILES


@pytest.mark.parametrize("kind", ["zip", "tgz"])
def test_a_member_of_300_megabytes_is_never_in_memory(tmp_path, kind):
    block, blocks = NOISE.randbytes(4096) * 256, 300
    small, big = made(tmp_path, kind, {"a.bin": b"1"}), tmp_path / f"big.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(big, "w") as archive, archive.open("a.bin", "w") as member:
            for _ in range(blocks):
                member.write(block)
    else:
        info = tar_entry("a.bin", size=blocks * len(block))
        with gzip.open(big, "wb", 1) as file:
            file.write(info.tobuf())
            for _ in range(blocks):
                file.write(block)
            file.write(bytes(10240))
    peaks = []
    for archive in (small, big):
        process = child(archive, tmp_path / "out" / archive.stem)
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        peaks.append(int(out))
    assert (tmp_path / "out" / "big" / "a.bin").stat().st_size == blocks * len(block)
    assert peaks[1] - peaks[0] < 20_000
    shutil.rmtree(tmp_path)


@pytest.fixture
def read_only():
    """A folder that nobody may write to, where root tests as well; a user other than root cannot enter pytest's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    os.chmod(folder, 0o755)
    user = os.geteuid()
    yield folder, lambda: (os.chmod(folder, 0o555), os.seteuid(65534) if user == 0 else None)
    os.seteuid(user)
    os.chmod(folder, 0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_named_with_the_way_out(read_only):
    folder, lock = read_only
    made(folder, "zip", FILES)
    lock()
    with pytest.raises(CommandError) as caught:
        unpack_archives(folder, Path("/data/raw/chartqa"))
    text = str(caught.value)
    assert text.startswith(
        f"{folder}: data.zip must be unpacked there, and it cannot be written to (Permission denied: "
    )
    assert text.endswith("; make it writable, or give a copy of it, as /data/raw/chartqa")
    assert sorted(tree(folder)) == ["data.zip"]


def test_a_read_only_folder_where_all_is_unpacked_is_good_as_it_is(read_only):
    folder, lock = read_only
    made(folder, "zip", FILES)
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    lock()
    said = []
    assert unpack_archives(folder, Path("/data/raw/chartqa"), say=said.append) == folder
    assert said[-1] == "data.zip: 0 files unpacked, 5 already there"


def test_a_full_disk_leaves_no_half_written_file_and_a_rerun_goes_on(tmp_path, command):
    words = ["preprocess", "--dataset", "chartqa", "--max-refused", 1]
    raw = tmp_path / "data/raw/chartqa"
    chartqa(raw, "tgz", NOISE.randbytes(300_000))
    done = command(*words, max_file_bytes=200_000)
    assert done.returncode == Exit.NO_SPACE, done.stderr
    assert "llava-prep: no space left: " in done.stderr
    assert not any("png" in name or archives.TEMPORARY in name for name in tree(raw, hidden=True))
    done = command(*words)
    assert done.returncode == 0, done.stderr
    assert "ChartQA.tgz: 1 files unpacked, 2 already there, 1 passed over\n" in done.stderr


def test_a_folder_begun_by_an_archive_goes_on_from_it(tmp_path):
    whole, out = made(tmp_path, "tgz", FILES).read_bytes(), tmp_path / "out"
    archive = tmp_path / "data.tgz"
    archive.write_bytes(whole[: len(whole) // 2])
    refusal(archive, out)
    archive.write_bytes(whole)
    expect_own(archive, out)
    assert tree(unpack_archives(archive, out)) == FILES
    assert not list(out.glob(".*.unpacking"))
