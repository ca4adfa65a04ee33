"""Many runs into one folder: exactly one works, the others say who does, and a dead one is in nobody's way.

Each holds on file systems with `flock` and on those without. 10 rounds of eight runs each in `make test-long`, 1 in
`make test`.
"""

import os
import pwd
import re
import signal
import socket
import sys
import time

import msgspec
import pytest

from dataprep import locking
from dataprep.errors import CommandError, Exit
from dataprep.locking import Owner, only_run, only_share
from tests.dataprep.survival.kills import (
    FULL,
    begun,
    compiled,
    contents,
    finish,
    mixture,
    shards,
    start,
    wait_until,
    words,
)

LOCKS = pytest.mark.parametrize("locks", ["flock", "none"])


@pytest.fixture
def lock(tmp_path, monkeypatch, request):
    """The lock of a folder, with `flock` or without."""
    if getattr(request, "param", "flock") == "none":
        monkeypatch.setattr(locking.fcntl, "flock", _no_flock)
    return tmp_path / "h5" / ".lock"


def _no_flock(descriptor, kind):
    raise OSError(38, "Function not implemented")


def running(processes):
    return [process for process in processes if process.poll() is None]


@pytest.mark.parametrize("number", range(10 if FULL else 1))
@LOCKS
def test_of_eight_runs_at_once_one_works_and_the_others_say_which(workspace, tmp_path, locks, number):
    mixture(workspace, 600)
    log, gate = tmp_path / "begun.log", tmp_path / "gate"
    runs = [start(workspace, words(workspace), locks=locks, log=log, gate=gate) for _ in range(8)]
    deadline = time.monotonic() + 300
    while len(running(runs)) > 1:  # the one that works waits at the gate
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (works,) = running(runs)
    user, host = pwd.getpwuid(os.getuid()).pw_name, socket.gethostname()
    for run in runs:
        if run is not works:
            code, _, error = finish(run)
            assert code == Exit.CONFLICT, error
            who = f"llava-prep: h5: another run is writing it: process {works.pid} of {user} on {host}, since "
            assert re.fullmatch(re.escape(who) + r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC\n", error), error
    gate.touch()
    code, _, error = finish(works)
    assert code == 0, error
    assert sorted(task for _, task in begun(log)) == [0, 1]
    assert len(shards(workspace.root / "h5")) == 2


@LOCKS
def test_the_lock_of_a_dead_run_is_taken_over(workspace, tmp_path, locks):
    mixture(workspace, 600)
    gate, log = tmp_path / "gate", tmp_path / "begun.log"
    killed = start(workspace, words(workspace), locks=locks, log=log, gate=gate)
    assert wait_until(lambda: begun(log), killed)
    killed.kill()
    killed.wait()
    gate.touch()
    left = [path.name for path in (workspace.root / "h5").glob(".lock*") if path.stat().st_size]
    assert left == [".lock" if locks == "flock" else ".lock.owner"]
    code, _, error = compiled(workspace, words(workspace), locks=locks)
    assert code == 0, error
    assert not [path for path in (workspace.root / "h5").glob(".lock*") if path.stat().st_size]
    finish(killed)


def test_eight_runs_take_over_a_stale_lock_and_one_of_them_works(workspace, tmp_path):
    mixture(workspace, 600)
    gate = tmp_path / "gate"
    dead = msgspec.structs.replace(Owner.current(), begun="1")
    (workspace.root / "h5").mkdir()
    (workspace.root / "h5/.lock.owner").write_bytes(msgspec.json.encode(dead))
    runs = [start(workspace, words(workspace), locks="none", gate=gate) for _ in range(8)]
    deadline = time.monotonic() + 300
    while len(running(runs)) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    gate.touch()
    assert sorted(finish(run)[0] for run in runs) == [0] + [Exit.CONFLICT] * 7


@pytest.mark.parametrize("lock", ["flock", "none"], indirect=True)
def test_a_lock_is_free_when_the_run_has_ended(lock):
    for _ in range(3):
        with only_run(lock, lock.parent):
            (lock.parent / "result").touch()
            with pytest.raises(CommandError, match=f"process {os.getpid()} of"), only_run(lock, lock.parent):
                pass
    assert sorted(path.name for path in lock.parent.iterdir()) == [".lock", "result"]
    assert lock.read_bytes() == b""


@pytest.mark.parametrize("lock", ["flock", "none"], indirect=True)
def test_shares_work_side_by_side_and_never_with_a_whole_run(lock):
    with only_share(lock, lock.parent, 0, 4), only_share(lock, lock.parent, 3, 4):
        for again in (lambda: only_share(lock, lock.parent, 3, 4), lambda: only_run(lock, lock.parent)):
            with pytest.raises(CommandError, match=f"process {os.getpid()} of") as caught, again():
                pass
            assert caught.value.code == Exit.CONFLICT
        with only_share(lock, lock.parent, 1, 4):
            pass
    refused = pytest.raises(CommandError, match="another run is writing it: process")
    with only_run(lock, lock.parent), refused, only_share(lock, lock.parent, 0, 4):
        pass
    with only_share(lock, lock.parent, 3, 4):
        pass


@pytest.mark.parametrize("lock", ["none"], indirect=True)
def test_of_a_process_on_another_machine_the_message_says_what_to_delete(lock):
    lock.parent.mkdir()
    other = msgspec.structs.replace(Owner.current(), machine="another", host="node7", pid=4711, user="anna")
    claim = lock.with_name(".lock.owner")
    claim.write_bytes(msgspec.json.encode(other))
    with pytest.raises(CommandError) as caught, only_run(lock, lock.parent):
        pass
    assert str(caught.value) == (
        f"{lock.parent}: another run is writing it: process 4711 of anna on node7, since {other.since};"
        f" this file system has no locks, so if that process is dead, delete {claim}"
    )
    claim.unlink()
    with only_run(lock, lock.parent):
        pass


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x"}', b"\xff" * 99])
@pytest.mark.parametrize("lock", ["flock", "none"], indirect=True)
def test_a_lock_file_with_anything_in_it_is_no_hindrance_or_named(lock, content, monkeypatch):
    monkeypatch.setattr(locking, "PATIENCE", 0.1)
    lock.parent.mkdir()
    lock.write_bytes(content)
    with only_run(lock, lock.parent):
        pass
    claim = lock.with_name(".lock.owner")
    claim.write_bytes(content)
    if locking.fcntl.flock is _no_flock:
        with pytest.raises(CommandError, match=r"h5: another run is writing it; .*\.lock"), only_run(lock, lock.parent):
            pass
        assert claim.read_bytes() == content


def test_the_number_of_a_dead_process_given_to_another_does_not_look_alive():
    me = Owner.current()
    assert not me.ended()
    assert msgspec.structs.replace(me, begun="1").ended()
    assert msgspec.structs.replace(me, pid=2**22 + 1).ended()
    assert not msgspec.structs.replace(me, begun="").ended()
    assert not msgspec.structs.replace(me, machine="another", pid=2**22 + 1).ended()


def test_a_process_that_nobody_has_waited_for_is_dead():
    child = os.fork()
    if child == 0:
        os._exit(0)
    deadline = time.monotonic() + 10
    while locking._begun(child) is not None:
        assert time.monotonic() < deadline
    os.waitpid(child, 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--input", "none.jsonl"],
        ["--set", "shard_rows=x"],
        ["--tokenizer", "./none"],
        ["--input", "jsonl/phase2/a.jsonl"],
    ],
)
def test_a_run_that_fails_before_anything_is_made_leaves_nothing(workspace, arguments):
    mixture(workspace, 20)
    before = contents(workspace.root)
    code, _, error = compiled(workspace, [*words(workspace, "deep/er/h5"), *arguments])
    assert code == Exit.USAGE, error
    assert contents(workspace.root) == before and not (workspace.root / "deep").exists()


def test_a_run_without_records_leaves_nothing(workspace):
    workspace.write("a.jsonl", [])
    code, _, error = compiled(workspace, words(workspace, "deep/er/h5"))
    assert (code, error) == (Exit.USAGE, "llava-prep: no records in jsonl/phase2/a.jsonl\n")
    assert not (workspace.root / "deep").exists()
    (workspace.root / "mine").mkdir()
    assert compiled(workspace, words(workspace, "mine"))[0] == Exit.USAGE
    assert not list((workspace.root / "mine").iterdir())


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    output = tmp_path / "h5"
    (output / ".tasks").mkdir(parents=True)
    left = [".shard-00001.h5.4711.tmp", ".tasks/.00001.json.12.tmp", "tokenizer/.tokenizer.json.3.tmp"]
    others = ["shard.4711.tmp", ".mine.tmp", ".tasks/00001.json", "a/b/c/.x.1.tmp"]
    for name in left + others:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).touch()
    with only_run(output / ".lock", output):
        assert sorted(contents(output)) == sorted(others)
    jsonl = tmp_path / "a.jsonl"
    for name in (".a.jsonl.99.tmp", ".b.jsonl.99.tmp"):
        (tmp_path / name).touch()
    with only_run(tmp_path / "reports/.a.lock", jsonl):
        assert [path.name for path in tmp_path.glob(".*.tmp")] == [".b.jsonl.99.tmp"]


def test_a_killed_run_leaves_no_half_written_file_for_ever(workspace, tmp_path):
    mixture(workspace, 600)
    (workspace.root / "h5").mkdir()
    half = workspace.root / "h5/.shard-00000.h5.4711.tmp"
    half.write_bytes(b"half a shard")
    assert compiled(workspace, words(workspace))[0] == 0
    assert not half.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="tells processes apart by /proc")
def test_a_stopped_run_still_holds_its_lock(workspace, tmp_path):
    mixture(workspace, 600)
    gate, log = tmp_path / "gate", tmp_path / "begun.log"
    stopped = start(workspace, words(workspace), log=log, gate=gate)
    assert wait_until(lambda: begun(log), stopped)
    os.killpg(stopped.pid, signal.SIGSTOP)
    code, _, error = compiled(workspace, words(workspace))
    assert code == Exit.CONFLICT and f"process {stopped.pid} of" in error
    os.killpg(stopped.pid, signal.SIGCONT)
    gate.touch()
    assert finish(stopped)[0] == 0
