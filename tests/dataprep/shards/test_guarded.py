"""A child that is killed, runs out of memory or does not end is one sentence, and the next file is read all the same.

A named pipe stands for a file that HDF5 does not come back from: whoever opens it waits.
"""

import multiprocessing
import os
import shutil
import signal
import threading
import time
import zlib
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest

from dataprep.shards import ShardError
from dataprep.shards.audit import ForeignPromise
from dataprep.shards.guarded import Guarded, Guards, Limits
from dataprep.shards.once import check_all
from tests.dataprep.shards import made

PROMISE = ForeignPromise(made.IMAGE_START, made.NUM_PATCHES, made.VOCAB_SIZE)


@pytest.fixture
def whole(tmp_path):
    return made.write_foreign(tmp_path / "whole.h5", made.rows(3))


@pytest.fixture
def waiting(tmp_path):
    path = tmp_path / "waiting.h5"
    os.mkfifo(path)
    return path


def kill(child: Guarded, number: int, before=lambda: None) -> None:
    """Send the child a signal some time after it began."""
    while child._child is None:
        time.sleep(0.02)
    time.sleep(0.5)
    before()
    os.kill(child._child.pid, number)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL])
def test_a_child_that_crashes_is_a_sentence_and_the_next_file_gets_another(whole, waiting, number):
    with Guarded() as child:
        killer = threading.Thread(target=kill, args=(child, number))
        killer.start()
        with pytest.raises(ShardError) as error:
            child.audit_foreign(waiting, PROMISE)
        killer.join()
        expected = f"{waiting}: damaged: reading it in a child process ended that process ({number.name})"
        assert str(error.value) == expected
        child.audit_foreign(whole, PROMISE)


def test_a_crash_that_an_earlier_file_may_have_caused_is_tried_again_in_a_fresh_child(whole, waiting):
    with Guarded() as child:
        child.audit_foreign(whole, PROMISE)
        copy = shutil.copy(whole, whole.with_suffix(".copy"))
        mend = partial(os.replace, copy, waiting)
        killer = threading.Thread(target=kill, args=(child, signal.SIGSEGV, mend))
        killer.start()
        child.audit_foreign(waiting, PROMISE)
        killer.join()


def test_a_child_that_died_between_two_files_is_no_fault_of_either(whole):
    with Guarded() as child:
        child.audit_foreign(whole, PROMISE)
        assert child._child is not None
        os.kill(child._child.pid, signal.SIGKILL)
        child.audit_foreign(whole, PROMISE)


def test_a_child_that_does_not_end_is_ended(waiting):
    sentence = "waiting.h5: damaged: reading it in a child process did not end in time"
    with Guarded(Limits(seconds=2.0)) as child:
        with pytest.raises(ShardError, match=sentence):
            child.audit_foreign(waiting, PROMISE)
        assert child._child is None


def big(path, num_rows, slots):
    """Rows of zeros, which pack to next to nothing."""
    with h5py.File(path, "w") as file:
        data = file.create_dataset("data", (num_rows, 4, slots), "i4", chunks=(1, 4, slots), compression="gzip")
        row = zlib.compress(bytes(16 * slots))
        for index in range(num_rows):
            data.id.write_direct_chunk((index, 0, 0), row)
        file["img_path"] = np.full((num_rows, 1), b"a.jpg")
    return path


def test_a_file_that_unpacks_to_more_than_the_memory_is_a_sentence(tmp_path, whole):
    bomb = big(tmp_path / "bomb.h5", 2, 1 << 20)
    with Guarded(Limits(memory=30 << 20)) as child:
        with pytest.raises(ShardError, match="took more than 30 MB of memory|[Mm]emory|allocat") as error:
            child.audit_foreign(bomb, PROMISE)
        assert str(error.value).startswith(f"{bomb}: ")
        child.audit_foreign(whole, PROMISE)


def test_a_file_that_takes_too_much_processor_time_is_a_sentence(tmp_path, whole):
    slow = big(tmp_path / "slow.h5", 400, 1 << 18)
    with Guarded(Limits(cpu_seconds=1)) as child:
        with pytest.raises(ShardError, match=r"slow\.h5: damaged: .* took more than [12] s of processor time"):
            child.audit_foreign(slow, PROMISE)
        child.audit_foreign(whole, PROMISE)


def test_what_a_file_may_use_does_not_shrink_with_the_files_before_it(whole):
    with Guarded(Limits(cpu_seconds=1)) as child:
        started = time.process_time()
        while time.process_time() - started < 0.1:
            pass
        for _ in range(100):
            child.audit_foreign(whole, PROMISE)
        assert child._child is not None
        assert Path(f"/proc/{child._child.pid}").exists()


def test_threads_share_children(tmp_path, whole):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(whole.read_bytes()[:500])
    faults = []
    with Guards() as guards:

        def check(path):
            try:
                with guards.one() as child:
                    child.audit_foreign(path, PROMISE)
            except ShardError as error:
                faults.append(str(error))

        check_all([whole, broken] * 20, check)
        assert 1 <= len(guards._idle) <= 8
    assert len(faults) == 20 and all(fault.startswith(f"{broken}: ") for fault in faults)


def _audit_in_worker(path: Path) -> None:
    with Guarded() as child:
        child.audit_foreign(path, PROMISE)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_loader_worker_may_have_a_child(whole, method):
    """torch's loader workers are daemons, which multiprocessing forbids children of its own kind."""
    worker = multiprocessing.get_context(method).Process(target=_audit_in_worker, args=(whole,), daemon=True)
    worker.start()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_child_ends_with_its_parent(whole):
    child = Guarded()
    child.audit_foreign(whole, PROMISE)
    assert child._child is not None and child._child.stdin is not None
    child._child.stdin.close()  # as the system does when the parent dies
    assert child._child.wait(10) == 0
    child._child.stdin = None
    child.close()
