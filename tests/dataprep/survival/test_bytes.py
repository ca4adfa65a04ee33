"""The same bytes whoever does the work, how often, and after what; the same content on any machine."""

import json
import os
import zlib

from dataprep.pipeline import run_job
from dataprep.verification import verify
from tests.dataprep.survival.kills import FULL, compiled, contents, mixture, recorded, shards, words


def quiet(*_):
    pass


def test_the_bytes_do_not_depend_on_the_number_of_workers(workspace):
    path = mixture(workspace, 6000 if FULL else 4100)
    found = []
    for workers in (1, 2, 8):
        job = workspace.job(path, output=f"h5-{workers}")
        tally = run_job(job, workers, quiet)
        assert tally.balanced() and tally.num_refused == 2
        found.append(contents(job.output))
        assert verify(job.output).faults == []
    assert len(shards(job.output)) >= 8
    assert found[0] == found[1] == found[2]


def test_a_rerun_writes_the_same_and_no_shard_again(workspace):
    job = workspace.job(mixture(workspace, 1200))
    run_job(job, 1, quiet)
    before, files = contents(job.output), recorded(job.output)
    for workers in (1, 2):
        run_job(job, workers, quiet)
        assert contents(job.output) == before and recorded(job.output) == files
    lost = sorted(files)[1]
    (job.output / lost).unlink()
    run_job(job, 1, quiet)
    assert contents(job.output) == before
    assert [name for name, mark in recorded(job.output).items() if mark != files[name]] == [lost]


def test_the_bytes_do_not_depend_on_the_process_the_time_or_the_folder(workspace, monkeypatch):
    mixture(workspace, 600)
    found = []
    for folder, variables in (
        ("one", {"PYTHONHASHSEED": "1", "TZ": "UTC", "LC_ALL": "C", "OMP_NUM_THREADS": "1"}),
        ("some/where/else", {"PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", "LC_ALL": "C.UTF-8", "OMP_NUM_THREADS": "4"}),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        mask = os.umask(0o077 if folder == "one" else 0o022)
        code, _, error = compiled(workspace, words(workspace, folder))
        os.umask(mask)
        assert code == 0, error
        found.append(contents(workspace.root / folder))
    assert found[0] == found[1]


def test_the_content_hash_is_of_the_rows_and_not_of_how_a_machine_packs_them(workspace, monkeypatch):
    path = mixture(workspace, 600)
    found = []
    for name in ("isal", "zlib"):
        job = workspace.job(path, output=name)
        run_job(job, 1, quiet)
        found.append(json.loads((job.output / "manifest.json").read_text())["shards"])
        monkeypatch.setattr("dataprep.shards.writer.isal_zlib", zlib)  # as on a machine with another deflate
    hashes = [[[entry[key] for entry in shards] for shards in found] for key in ("content_sha256", "sha256")]
    assert hashes[0][0] == hashes[0][1]
    assert not set(hashes[1][0]) & set(hashes[1][1])
    assert verify(job.output).faults == []
