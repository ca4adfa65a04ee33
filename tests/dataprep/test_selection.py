"""Which records are compiled, in which order, and which are held out: decided by the records, not by who works."""

import json
import random

import numpy as np
import pytest

from dataprep.config import CompileConfig
from dataprep.pipeline import input_files, run_job
from dataprep.selection import select
from dataprep.shards import ShardReader
from dataprep.verification import verify


def quiet(*_):
    pass


def rows(folder):
    with ShardReader(folder) as reader:
        return [(row.source.file, row.source.line, row.source.id) for row in reader]


def records(workspace, count, start=0):
    return [
        workspace.record(n, f"pictures/{n % 5}.jpg" if n % 3 else None, 1 + n % 3) for n in range(start, start + count)
    ]


def test_a_shuffle_is_another_order_of_the_same_rows(workspace):
    path = workspace.write("a.jsonl", records(workspace, 1300))
    found = {}
    for name, seed in (("none", None), ("one", 1), ("again", 1), ("two", 2)):
        job = workspace.job(path, output=name, shuffle=seed)
        assert run_job(job, 2 if name == "again" else 1, quiet).written == 1300
        assert verify(job.output).faults == []
        found[name] = rows(job.output)
    assert found["one"] == found["again"]
    orders = [tuple(found[name]) for name in ("none", "one", "two")]
    assert len(set(orders)) == 3 and len({frozenset(order) for order in orders}) == 1
    lines = np.array([line for _, line, _ in found["one"]])
    assert abs(np.corrcoef(lines, np.arange(1300))[0, 1]) < 0.1


def test_the_order_of_a_seed_is_pinned(workspace):
    path = workspace.write("a.jsonl", records(workspace, 12))
    job = workspace.job(path, shuffle=7)
    run_job(job, 1, quiet)
    assert [line for _, line, _ in rows(job.output)] == PINNED


PINNED = [1, 7, 2, 9, 5, 10, 4, 12, 8, 6, 3, 11]


def test_of_equal_records_the_first_is_compiled(workspace):
    first = records(workspace, 40)
    again = [dict(record, id=f"again {n}") for n, record in enumerate(first[:15])]
    other = [dict(record, image="pictures/4.jpg") for record in first if record.get("image") == "pictures/1.jpg"]
    noisy = [json.dumps(record, indent=None, separators=(" , ", " : ")).encode() for record in first[20:25]]
    one = workspace.write("a.jsonl", [*first, *again, *other])
    two = workspace.write("b.jsonl", noisy)
    job = workspace.job(one, two, dedup="exact")
    tally = run_job(job, 1, quiet)
    assert (tally.deduplicated, tally.records) == (20, 40 + 15 + len(other) + 5)
    assert tally.balanced() and verify(job.output).faults == []
    assert [row_id for _, _, row_id in rows(job.output)] == [f"r{n}" for n in range(40)] + [r["id"] for r in other]


def test_the_same_picture_by_another_spelling_is_the_same(workspace):
    same = [
        dict(workspace.record(0, image), id=image)
        for image in ("pictures/1.jpg", "./pictures/1.jpg", "pictures//1.jpg")
    ]
    path = workspace.write("a.jsonl", same)
    assert run_job(workspace.job(path, dedup="exact"), 1, quiet).deduplicated == 2
    for fraction in (0.1, 0.5, 0.9):
        job = workspace.job(path, output=f"h5-{fraction}", holdout=fraction, holdout_by="picture")
        assert run_job(job, 1, quiet).held_out in (0, 3)


def test_records_of_thousands_of_files_can_be_shuffled(workspace, monkeypatch):
    monkeypatch.setattr("dataprep.compiler.MAX_FILES", 7)
    paths = [workspace.write(f"{n}.jsonl", records(workspace, 3, start=3 * n)) for n in range(20)]
    job = workspace.job(*paths, shuffle=1)
    assert run_job(job, 1, quiet).written == 60
    assert verify(job.output).faults == [] and len(list(job.output.glob("*.h5"))) > 3


def test_a_line_that_is_no_record_is_refused_among_the_training_rows(workspace):
    path = workspace.write("a.jsonl", [b"{broken", *records(workspace, 40)])
    job = workspace.job(path, holdout=0.9)
    run_job(job, 1, quiet)
    assert "not_json" in (job.output / "refused.jsonl").read_text()
    assert (job.output / "holdout/refused.jsonl").read_text() == ""


def test_what_cannot_be_used_is_refused_each_time_and_is_no_duplicate(workspace):
    path = workspace.write("a.jsonl", [b"{broken", b"{broken", *records(workspace, 3), b"  ", b"{broken"])
    tally = run_job(workspace.job(path, dedup="exact", holdout=0.5), 1, quiet)
    assert (tally.refused["not_json"], tally.deduplicated, tally.records) == (3, 0, 6)


def test_the_held_out_share_depends_on_each_record_alone(workspace):
    everything = records(workspace, 2000)
    path = workspace.write("a.jsonl", everything)
    job = workspace.job(path, output="all", holdout=0.1)
    tally = run_job(job, 2, quiet)
    held, kept = rows(job.output / "holdout"), rows(job.output)
    assert tally.held_out == len(held) and tally.written == 2000 == len(held) + len(kept)
    assert 150 < len(held) < 250 and not set(held) & set(kept)
    assert verify(job.output).faults == [] == verify(job.output / "holdout").faults
    # Fewer records, another order, another file: those that are left stay on their sides.
    random.Random(3).shuffle(everything)
    path = workspace.write("b.jsonl", everything[:900])
    job = workspace.job(path, output="some", holdout=0.1, shuffle=4)
    run_job(job, 1, quiet)
    ids = {row_id for _, _, row_id in held}
    assert {row_id for _, _, row_id in rows(job.output / "holdout")} == ids & {r["id"] for r in everything[:900]}


def test_held_out_by_picture_no_picture_is_on_both_sides(workspace):
    several = [workspace.record(n, f"pictures/{n % 40}.jpg") for n in range(400)]
    path = workspace.write("a.jsonl", several + [workspace.record(n) for n in range(400, 500)])
    job = workspace.job(path, holdout=0.3, holdout_by="picture", check_images="none")
    run_job(job, 1, quiet)
    sides = []
    for folder in (job.output, job.output / "holdout"):
        with ShardReader(folder) as reader:
            sides.append({row.img_path for row in reader if row.has_image})
    assert not sides[0] & sides[1] and all(sides) and len(sides[0] | sides[1]) == 40


def test_everything_at_once_gives_the_same_bytes_with_any_number_of_workers(workspace):
    path = workspace.write("a.jsonl", records(workspace, 1500) + records(workspace, 300))
    other = workspace.write("b.jsonl", records(workspace, 800, start=5000))
    found = []
    for workers in (1, 3):
        job = workspace.job(path, other, output=f"h5-{workers}", shuffle=3, dedup="exact", holdout=0.2)
        tally = run_job(job, workers, quiet)
        assert (tally.deduplicated, tally.written, tally.records) == (300, 2300, 2600)
        files = sorted(p for p in job.output.rglob("*") if p.suffix in (".h5", ".jsonl") or p.name == "manifest.json")
        found.append([(p.relative_to(job.output), p.read_bytes()) for p in files])
        assert len(found[-1]) > 8
    assert found[0] == found[1]


@pytest.mark.parametrize("text", [b"", b"\n\n", b"\xef\xbb\xbf"])
def test_files_without_records_have_no_picks(workspace, text):
    path = workspace.write("a.jsonl", records(workspace, 2))
    empty = path.with_name("empty.jsonl")
    empty.write_bytes(text)
    config = CompileConfig(phase=2, template="vicuna_v1", shuffle=1, dedup="exact", holdout=0.5)
    found = select(input_files((empty, path)), config)
    assert len(found.train) + len(found.holdout) == 2
    only = select(input_files((empty,)), config)
    assert (len(only.train), len(only.holdout), only.num_duplicates) == (0, 0, 0)


def test_a_byte_order_mark_and_the_last_line_without_a_newline_are_read(workspace):
    path = workspace.write("a.jsonl", records(workspace, 3))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().removesuffix(b"\n"))
    job = workspace.job(path, shuffle=1)
    assert run_job(job, 1, quiet).written == 3
    assert {line for _, line, _ in rows(job.output)} == {1, 2, 3}


def test_what_is_held_out_is_whole_before_the_folder_above_says_that_all_is_there(workspace):
    job = workspace.job(workspace.write("a.jsonl", records(workspace, 30)), holdout=0.3)
    tally = run_job(job, 1, quiet)
    manifests = [job.output / "manifest.json", job.output / "holdout/manifest.json"]
    for manifest in manifests:
        manifest.unlink()
    manifests[1].mkdir()  # so that this one cannot be written
    with pytest.raises(OSError):
        run_job(job, 1, quiet)
    assert not manifests[0].exists()
    manifests[1].rmdir()
    assert run_job(job, 1, quiet) == tally
    written = json.loads(manifests[0].read_text())
    counts = json.loads(manifests[1].read_text())["accounting"]
    assert written["holdout"] == {name: counts[name] for name in ("records", "written", "rows")}
    assert written["accounting"]["written"] + written["holdout"]["written"] == tally.written == 30
