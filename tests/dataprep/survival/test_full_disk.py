"""A disk that is full at some point: exit 6 with a sentence, nothing broken left behind, and the rerun finishes.

50 fill points of a small tmpfs in `make test-long`, 3 in `make test`; a limit on the size of files where no tmpfs may
be mounted.
"""

import random

import pytest

from dataprep.errors import Exit
from dataprep.pipeline import make_verdicts, run_job
from tests.dataprep.survival.disks import disk
from tests.dataprep.survival.kills import (
    FULL,
    check_whole_or_absent,
    compiled,
    contents,
    finish,
    mixture,
    recorded,
    shards,
    start,
    words,
)

RECORDS = 3000


def quiet(*_):
    pass


def told(error: str) -> bool:
    """Whether a run that found a full disk said so in one sentence, as the command's last word."""
    return error.count("\n") == 1 and "no space left" in error and error.startswith("llava-prep: ")


def check_refused(found, folder, clean):
    code, out, error = found
    assert (code, out) == (Exit.NO_SPACE, ""), (code, error)
    assert told(error), error
    check_whole_or_absent(folder, clean)
    assert not [path for path in folder.rglob("*.tmp")]
    # Behind the manifest comes the report alone; where a user gets a sentence for it and 0, tests get the error.
    assert not (folder / "manifest.json").exists() or not (folder / "report.html").exists()


@pytest.mark.parametrize("part", range(5 if FULL else 1))
def test_a_disk_full_at_any_point_ends_with_6_and_the_rerun_finishes(workspace, part):
    mixture(workspace, RECORDS)
    with disk(workspace.root / "large", 1 << 14) as large:
        assert compiled(workspace, words(workspace, "large/h5"))[0] == 0
        clean, needed = contents(workspace.root / "large/h5"), large.pages()
    chance = random.Random(part)
    # The last pages are those of the files that describe the run.
    points = [
        *range(needed - 3 - 5 * part, needed - 8 - 5 * part, -1),
        *(chance.randrange(needed - 1) for _ in range(5)),
    ]
    outcomes = []
    for number, pages in enumerate(points if FULL else [points[0], points[2], *points[-3:]]):
        line = words(workspace, "small/h5", "--workers", 1 + number % 2)
        with disk(workspace.root / "small", max(1, pages)) as small:
            folder = workspace.root / "small/h5"
            check_refused(compiled(workspace, line), folder, clean)
            kept = recorded(folder) if folder.exists() else {}
            outcomes.append((pages, len(kept)))
            small.resize(needed + 64)
            code, _, error = compiled(workspace, line)
            assert code == 0, error
            assert contents(folder) == clean
            assert kept.items() <= recorded(folder).items()
    print(f"needed {needed} pages; pages and whole shards: {sorted(outcomes)}")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_file_that_may_not_grow_ends_with_6_and_the_rerun_finishes(workspace, workers):
    mixture(workspace, RECORDS)
    assert compiled(workspace, words(workspace, "clean"))[0] == 0
    clean, folder = contents(workspace.root / "clean"), workspace.root / "h5"
    sizes = sorted(path.stat().st_size for path in (workspace.root / "clean").glob("*.h5"))
    line = words(workspace, "h5", "--workers", workers)
    for limit in (sizes[0] - 1, sizes[-1] - 1):
        check_refused(finish(start(workspace, line, max_file_bytes=limit)), folder, clean)
    code, _, error = compiled(workspace, line)
    assert code == 0, error
    assert contents(folder) == clean


def test_a_full_disk_under_the_memory_of_pictures_costs_nothing(workspace):
    path = mixture(workspace, 600)
    clean = workspace.job(path, output="clean")
    run_job(clean, 1, quiet)
    for pages in (1, 2, 3):
        with disk(workspace.root / "small", pages):
            job = workspace.job(path, output=f"h5-{pages}")
            job.output.mkdir()
            (job.output / ".pictures.sqlite").symlink_to(workspace.root / "small/pictures.sqlite")
            run_job(job, 1, quiet)
            assert contents(job.output) == contents(clean.output)


def test_a_memory_of_pictures_that_is_damaged_costs_nothing(workspace):
    job = workspace.job(mixture(workspace, 600))
    run_job(job, 1, quiet)
    clean, store = contents(job.output), job.output / ".pictures.sqlite"
    whole, chance = store.read_bytes(), random.Random(5)
    damages = [whole[:100], whole[: len(whole) // 2], whole[:1024] + b"\xff" * (len(whole) - 1024), b"no database"]
    for damaged in damages:
        store.write_bytes(damaged)
        for shard in shards(job.output):
            (job.output / shard).unlink()
        run_job(job, 1, quiet)
        assert contents(job.output) == clean
    keys = [f"pictures/{index}.jpg" for index in range(5)]
    for _ in range(1000 if FULL else 50):
        damaged = bytearray(whole)
        for place in chance.sample(range(len(whole)), 20):
            damaged[place] = chance.randrange(256)
        store.write_bytes(damaged)
        verdicts = make_verdicts(job)
        assert all(verdicts.good(key) for key in keys)
        verdicts.flush()


def test_what_is_printed_onto_a_full_disk_ends_with_6(workspace):
    mixture(workspace, 600)
    with disk(workspace.root / "small", 1):
        (workspace.root / "small/filler").write_bytes(bytes(4096))
        with open(workspace.root / "small/said", "w") as said:
            code, _, error = finish(start(workspace, words(workspace, "h5", "--json"), stdout=said))
    assert code == Exit.NO_SPACE and told(error), error
    assert (workspace.root / "h5/manifest.json").exists()
