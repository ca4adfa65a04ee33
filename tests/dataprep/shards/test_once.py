"""A shard is hashed once a node, whoever asks; and what a node remembers is believed only where it cannot be wrong."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from dataprep.shards import ShardError, ShardReader, once, reader
from tests.dataprep.shards import made

ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def hashed(monkeypatch):
    """The paths that this process has hashed; files of the test's own age count as settled."""
    paths: list[Path] = []
    real = reader.require_sha256

    def counted(path, expected):
        paths.append(path)
        real(path, expected)

    monkeypatch.setattr(reader, "require_sha256", counted)
    monkeypatch.setattr(once, "SETTLED_NS", -(1 << 62))
    return paths


def read_all(folder) -> int:
    with ShardReader(folder) as rows:
        return sum(row.length for row in rows) + int(rows.lengths.sum())


def notes(node) -> list[Path]:
    return sorted(next(node.glob("llava-prep-checked-*")).iterdir())


def test_a_second_reader_on_the_node_hashes_nothing(folder, node, hashed):
    first = read_all(folder)
    assert len(hashed) == 2
    assert read_all(folder) == first
    assert len(hashed) == 2
    assert len(notes(node)) == 2
    place = notes(node)[0].parent
    assert place.stat().st_mode & 0o777 == 0o700 and notes(node)[0].stat().st_mode & 0o777 == 0o600


def test_a_file_that_may_still_change_unseen_is_not_remembered(folder, node, hashed, monkeypatch):
    monkeypatch.setattr(once, "SETTLED_NS", 3600 * 10**9)
    read_all(folder)
    read_all(folder)
    assert len(hashed) == 4


def damage_notes(node, change) -> None:
    for note in notes(node):
        note.write_bytes(change(note.read_bytes()))


def keep_times(folder, change) -> None:
    """Change a shard's content and set its time of modification back, as a forger would; ctime tells."""
    path = folder / "shard-1.h5"
    before = path.stat()
    time.sleep(0.02)
    path.write_bytes(change(path.read_bytes()))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace_notes(node) -> None:
    """Another user's folder, as far as its mode tells."""
    notes(node)[0].parent.chmod(0o770)


def link_notes(node) -> None:
    place = notes(node)[0].parent
    place.rename(place.with_name("elsewhere"))
    place.symlink_to(place.with_name("elsewhere"))


def link_each_note(node) -> None:
    for note in notes(node):
        note.rename(note.with_suffix(".old"))
        note.symlink_to(note.with_suffix(".old"))


DISTRUSTED = {
    "a flipped bit": lambda node: damage_notes(node, lambda proof: bytes([proof[0] ^ 1]) + proof[1:]),
    "cut": lambda node: damage_notes(node, lambda proof: proof[:-1]),
    "longer": lambda node: damage_notes(node, lambda proof: proof + b"\n"),
    "empty": lambda node: damage_notes(node, lambda proof: b""),
    "of another file": lambda node: damage_notes(node, lambda proof: notes(node)[0].read_bytes()[::-1]),
    "a folder open to others": replace_notes,
    "a folder by a link": link_notes,
    "notes by links": link_each_note,
    "gone": lambda node: [note.unlink() for note in notes(node)],
}


@pytest.mark.parametrize("spoil", DISTRUSTED.values(), ids=DISTRUSTED)
def test_a_note_that_may_not_be_ours_is_not_believed(folder, node, hashed, spoil):
    read_all(folder)
    spoil(node)
    read_all(folder)
    assert len(hashed) == 4


def test_a_note_of_another_user_is_not_believed(folder, node, hashed, monkeypatch):
    read_all(folder)
    place = notes(node)[0].parent
    real = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: real + 1)
    place.rename(place.with_name(f"llava-prep-checked-{real + 1}"))
    read_all(folder)
    assert len(hashed) == 4


def test_a_changed_file_is_hashed_again_whatever_its_time_of_modification_says(folder, hashed):
    read_all(folder)
    keep_times(folder, lambda content: content)
    read_all(folder)
    assert len(hashed) == 3
    keep_times(folder, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ShardError, match=r"shard-1\.h5: damaged"):
        read_all(folder)


def test_another_manifest_is_another_promise(folder, hashed):
    read_all(folder)
    shards = [{"file": f"shard-{n}.h5", "rows": 4 - n, "sha256": "0" * 64} for n in range(2)]
    made.edit(folder, shards=shards)
    with pytest.raises(ShardError, match="damaged: sha256"):
        read_all(folder)


def test_another_start_of_the_machine_is_another_node(folder, hashed, monkeypatch):
    read_all(folder)
    monkeypatch.setattr(once, "_node", lambda: "another")
    read_all(folder)
    assert len(hashed) == 4


@pytest.mark.parametrize("obstacle", ["a file", "no such folder"])
def test_where_nothing_can_be_noted_the_reader_only_hashes_again(folder, node, hashed, monkeypatch, obstacle):
    if obstacle == "a file":
        (node / f"llava-prep-checked-{os.geteuid()}").touch()
    else:
        monkeypatch.setattr("tempfile.tempdir", str(node / "no"))
    assert read_all(folder) == read_all(folder)
    assert len(hashed) == 4


def test_a_full_disk_costs_the_note_only(folder, hashed, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    assert read_all(folder) == read_all(folder)
    assert len(hashed) == 4


def test_a_file_that_changes_while_it_is_checked_is_not_believed(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"1")
    with pytest.raises(ShardError, match="changed while it was being checked"):
        once.check_once(path, "promise", lambda: os.utime(path, (1, 1)))


#: Checks the files `f0` to `f5` with all the machinery; each real check is a line of `log`.
CHECKER = """
import os, sys, time
from pathlib import Path
from dataprep.shards import once
once.SETTLED_NS = -(1 << 62)
here = Path(sys.argv[1])
def check(path):
    def look():
        with open(here / "log", "a") as log:
            log.write(path.name + "\\n")
        time.sleep(float(sys.argv[2]))
    once.check_once(path, "promise", look)
once.check_all([here / f"f{n}" for n in range(6)], check)
"""


def start_checker(folder: Path, seconds: float) -> subprocess.Popen:
    words = [sys.executable, "-c", CHECKER, str(folder), str(seconds)]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": str(ROOT)})


@pytest.fixture
def files(tmp_path):
    for number in range(6):
        (tmp_path / f"f{number}").write_text("content")
    return tmp_path


def test_processes_side_by_side_share_the_work(files):
    running = [start_checker(files, 0.3) for _ in range(4)]
    assert [process.wait(60) for process in running] == [0] * 4
    assert sorted((files / "log").read_text().split()) == [f"f{n}" for n in range(6)]


def test_a_process_that_is_killed_while_it_checks_leaves_the_file_to_the_next(files):
    first = start_checker(files, 600)
    while not (files / "log").exists():
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    begun = len((files / "log").read_text().split())
    assert start_checker(files, 0).wait(60) == 0
    assert len((files / "log").read_text().split()) == begun + 6


def test_a_lock_that_nobody_gives_back_is_not_waited_for_without_end(files, monkeypatch):
    monkeypatch.setattr(once, "PATIENCE", 0.2)
    checked = []
    with once._note(files / "f0") as note:
        assert note is not None and not once._done(note, b"none")  # the lock is held from here on
        once.check_once(files / "f0", "promise", lambda: checked.append(1))
    assert checked == [1]


def _rows_in_worker(rows: ShardReader) -> tuple[int, list[bytes]]:
    counted: list[bytes] = []
    reader.require_sha256 = lambda path, expected: counted.append(bytes(path))
    return sum(row.length for row in rows), counted


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.parametrize("used", [True, False])
def test_loader_workers_read_what_their_parent_or_their_node_has_checked(folder, hashed, method, used):
    rows = ShardReader(folder)
    expected = sum(row.length for row in ShardReader(folder))
    if used:
        assert rows[0].length and rows.lengths.sum() == expected
    with ProcessPoolExecutor(2, multiprocessing.get_context(method)) as pool:
        for found, counted in pool.map(_rows_in_worker, [rows] * 4):
            assert (found, counted) == (expected, [])


def test_a_worker_of_another_start_finds_the_damage_itself(folder, hashed):
    rows = ShardReader(folder)
    keep_times(folder, lambda content: content[:-9] + b"x" + content[-8:])
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        fault = pool.submit(_length_of_last, rows).exception()
    assert isinstance(fault, ShardError) and "damaged: sha256" in str(fault)


def _length_of_last(rows: ShardReader) -> int:
    return rows[len(rows) - 1].length


def test_a_shard_replaced_between_its_check_and_its_opening_is_seen(folder, hashed, monkeypatch):
    real = reader.open_shard

    def replaced_first(file, layout):
        content = file.path.read_bytes()
        file.path.unlink()
        file.path.write_bytes(content)
        return real(file, layout)

    monkeypatch.setattr(reader, "open_shard", replaced_first)
    with pytest.raises(ShardError, match="changed while it was being opened"):
        ShardReader(folder)[0]
