"""A whole compile: the same bytes whoever does the work and whatever happens, and every record accounted for."""

import hashlib
import json
import multiprocessing
import pickle
import shutil
import threading
import time
from contextlib import nullcontext
from dataclasses import replace

import pytest

from dataprep import pipeline
from dataprep.compiler import Tally
from dataprep.crew import Errand
from dataprep.errors import CommandError, Exit
from dataprep.pipeline import input_files, make_compiler, prepare, run_job
from dataprep.plan import plan
from dataprep.preprocess import Accounting
from dataprep.shards import ShardReader
from dataprep.verification import verify
from tests.dataprep.conftest import mixture


def quiet(*_):
    pass


def hashes(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.h5"))}


def test_rows_stand_in_the_order_of_the_input(workspace):
    path = mixture(workspace, 1200)
    job = workspace.job(path)
    run_job(job, 1, quiet)
    with ShardReader(job.output) as reader:
        lines = [row.source.line for row in reader]
        assert lines == [n for n in range(1, 1201) if n not in (8, 601)]
        assert all(row.source.id == f"r{row.source.line - 1}" for row in reader)
        assert all(row.has_image == bool((row.source.line - 1) % 3) for row in reader)


def test_another_config_or_input_in_the_same_folder_is_refused(workspace):
    path = mixture(workspace, 20)
    run_job(workspace.job(path), 1, quiet)
    with pytest.raises(CommandError, match="config.max_seq_length was 200, is 180") as caught:
        run_job(workspace.job(path, max_seq_length=180), 1, quiet)
    assert caught.value.code == Exit.CONFLICT
    mixture(workspace, 21)
    with pytest.raises(CommandError, match=r"inputs\.a\.jsonl\.bytes was \d+, is \d+"):
        run_job(workspace.job(path), 1, quiet)


@pytest.mark.parametrize("shuffle", [None, 1])
def test_an_input_that_changes_under_the_run_is_refused_and_nothing_counts_as_done(workspace, shuffle):
    path = mixture(workspace, 40)
    before = path.read_bytes()
    job = workspace.job(path, shuffle=shuffle)

    def started(_):
        path.write_bytes(before.replace(b"red", b"tan"))

    with pytest.raises(CommandError, match="a.jsonl: changed since the run was planned") as caught:
        run_job(job, 1, quiet, started)
    assert caught.value.code == Exit.CONFLICT and not (job.output / "manifest.json").exists()
    path.write_bytes(before)
    run_job(job, 1, quiet)
    clean = workspace.job(path, output="clean", shuffle=shuffle)
    run_job(clean, 1, quiet)
    assert hashes(job.output) == hashes(clean.output)


def test_files_of_one_name_go_by_as_much_of_their_paths_as_tells_them_apart(workspace):
    paths = []
    for folder in ("one", "two"):
        (workspace.root / folder).mkdir()
        paths.append(workspace.root / folder / "a.jsonl")
        paths[-1].write_bytes(mixture(workspace, 20).read_bytes())
    assert [file.name for file in input_files(paths)] == ["one/a.jsonl", "two/a.jsonl"]


def test_after_a_wrong_image_root_the_right_one_takes_the_same_folder(workspace):
    path = workspace.write("a.jsonl", [workspace.record(n, "pictures/1.jpg") for n in range(20)])
    right = workspace.job(path)
    wrong = replace(right, image_root=workspace.root / "jsonl")
    assert run_job(wrong, 1, quiet).refused == {"missing_image": 20}
    assert run_job(right, 1, quiet).written == 20
    with pytest.raises(CommandError, match="image_root was"):
        run_job(wrong, 1, quiet)


def test_a_folder_with_a_strangers_files_is_refused_and_left_alone(workspace):
    job = workspace.job(mixture(workspace, 20))
    job.output.mkdir()
    (job.output / "README.md").write_text("mine")
    with pytest.raises(CommandError, match="did not write, such as README.md; name another --output") as caught:
        run_job(job, 1, quiet)
    assert caught.value.code == Exit.CONFLICT and (job.output / "README.md").read_text() == "mine"


def test_a_folder_with_other_shards_is_refused(workspace):
    job = workspace.job(mixture(workspace, 20))
    job.output.mkdir()
    (job.output / "mine.h5").write_bytes(b"")
    with pytest.raises(CommandError, match="files that this command did not write"):
        run_job(job, 1, quiet)


def test_large_shards_are_closed_and_another_begun(workspace):
    job = workspace.job(workspace.write("a.jsonl", [workspace.record(n, pairs=60) for n in range(6)]), overlong="split")
    object.__setattr__(job.config, "shard_rows", 4)
    tally = run_job(job, 1, quiet)
    assert tally.written == tally.split == 6 and tally.rows > 12
    with ShardReader(job.output) as reader:
        assert len(reader) == tally.rows
        assert max(file.num_rows for file in reader.files) == 4
    assert verify(job.output).faults == []


def test_a_killed_worker_ends_the_run_with_one_sentence(workspace):
    job = workspace.job(mixture(workspace, 6000))
    killer = threading.Thread(target=_kill_first_child)
    killer.start()
    with pytest.raises(CommandError, match="a worker process died"):
        run_job(job, 2, quiet)
    killer.join()
    assert run_job(job, 2, quiet).balanced()


def _kill_first_child():
    while not (children := multiprocessing.active_children()):
        time.sleep(0.01)
    children[0].kill()


def test_every_bad_record_is_counted_with_file_line_and_id(workspace):
    (workspace.root / "pictures/cut.jpg").write_bytes((workspace.root / "pictures/4.jpg").read_bytes()[:-200])
    good = workspace.record(0, "pictures/0.jpg")
    twice = workspace.record(4)
    twice["conversations"][1]["from"] = "human"
    literal = workspace.record(5, "pictures/1.jpg")
    literal["conversations"][1]["value"] = "ends in </s> and shows <image> as text"
    long = workspace.record(6)
    long["conversations"][0]["value"] = "word " * 500
    records = [
        good,
        workspace.record(2, "pictures/none.jpg"),
        workspace.record(3, "pictures/cut.jpg"),
        twice,
        literal,
        long,
        b'{"id": "u", "conversations": [{"from": "human", "value": "\xff"}]}',
        workspace.record(8, "../../etc/passwd"),
        good,
    ]
    job = workspace.job(workspace.write("bad.jsonl", records))
    tally = run_job(job, 1, quiet)
    refused = sorted(
        map(json.loads, (job.output / "refused.jsonl").read_text().splitlines()), key=lambda entry: entry["line"]
    )
    assert [(r["reason"], r["file"], r["line"], r["id"]) for r in refused] == [
        ("missing_image", "bad.jsonl", 2, "r2"),
        ("unreadable_image", "bad.jsonl", 3, "r3"),
        ("roles_do_not_alternate", "bad.jsonl", 4, "r4"),
        ("no_room_for_an_answer", "bad.jsonl", 6, "r6"),
        ("not_utf8", "bad.jsonl", 7, ""),
        ("unsafe_image_path", "bad.jsonl", 8, "r8"),
    ]
    assert (tally.records, tally.written, tally.num_refused, tally.deduplicated) == (9, 3, 6, 0)
    with ShardReader(job.output) as reader:
        assert [row.source.line for row in reader] == [1, 5, 9]
        assert (reader[1].text_input_ids == 2).sum() + (reader[1].labels[reader[1].loss_mask] == 2).sum() == 1


def test_pictures_that_came_later_are_taken_in_by_the_same_command(workspace):
    path = workspace.write("a.jsonl", [workspace.record(n, f"pictures/{n % 6}.jpg") for n in range(1200)])
    job = workspace.job(path)
    assert run_job(job, 1, quiet).refused == {"missing_image": 200}
    shutil.copy(workspace.root / "pictures/0.jpg", workspace.root / "pictures/5.jpg")
    assert run_job(job, 1, quiet).refused == {}
    clean = workspace.job(path, output="clean")
    run_job(clean, 1, quiet)
    assert hashes(job.output) == hashes(clean.output)


def test_what_is_damaged_is_made_anew(workspace):
    job = workspace.job(mixture(workspace, 1200))
    run_job(job, 1, quiet)
    before = hashes(job.output)
    shard = job.output / "shard-00001.h5"
    content = bytearray(shard.read_bytes())
    content[900] ^= 1
    shard.write_bytes(content)
    (job.output / ".tasks/00000.json").write_text("{")
    assert hashes(job.output) != before
    run_job(job, 1, quiet)
    assert hashes(job.output) == before
    assert verify(job.output).faults == []


def test_accounting_that_does_not_add_up_is_seen():
    assert Tally(records=3, written=2, deduplicated=1).balanced()
    assert not Tally(records=3, written=2).balanced()
    assert not Accounting(records=2, written=1).balanced()


def test_a_picture_at_another_place_than_the_layout_says_stops_the_run(workspace):
    job = workspace.job(workspace.write("a.jsonl", [workspace.record(1, "pictures/1.jpg")]))
    compiler = make_compiler(job, remember=False)
    compiler.layout = replace(compiler.layout, image_start_idx=compiler.layout.image_start_idx + 1)
    (task,) = plan(input_files(job.inputs), 10)
    with pytest.raises(AssertionError, match="the layout says"):
        compiler.run(task)


def test_a_worker_is_begun_with_less_than_a_pipe_holds_however_many_inputs_there_are(workspace, monkeypatch):
    """Python waits without end for one that is killed before it has read what it is begun with."""
    job = workspace.job(*(workspace.write(f"{number:04}.jsonl", [workspace.record(number)]) for number in range(600)))
    prepared = prepare(job, input_files(job.inputs), 2)
    begun: list[tuple] = []
    monkeypatch.setattr(pipeline, "crew", lambda *arguments: begun.append(arguments) or nullcontext())
    pipeline._crew(job, 2)
    errand = Errand(prepared.layout, prepared.parts[0].output.without_identity(), prepared.parts[0].tasks[0])
    assert len(pickle.dumps((job, prepared.parts[0].output))) > 1 << 16 > 8 * len(pickle.dumps(begun))
    assert len(pickle.dumps(errand._replace(task=None))) < 1 << 12


@pytest.fixture
def _early(monkeypatch):
    monkeypatch.setattr(pipeline, "EARLY_BYTES", 0)


@pytest.mark.usefixtures("_early")
def test_workers_that_begin_before_the_survey_make_the_same_and_end_with_the_run(workspace):
    path = workspace.write("a.jsonl", [workspace.record(number) for number in range(1200)])
    one, two = (workspace.job(path, output=name) for name in ("one", "two"))
    run_job(one, 1, quiet)
    for _ in range(2):  # the second time nothing is missing
        run_job(two, 2, quiet)
        assert not multiprocessing.active_children()
    assert hashes(one.output) == hashes(two.output) and len(hashes(one.output)) > 1


@pytest.mark.usefixtures("_early")
def test_what_is_wrong_is_said_once_though_workers_have_begun(workspace, tmp_path, capfd):
    path = workspace.write("a.jsonl", [workspace.record(1)])
    job = replace(workspace.job(path), tokenizer=tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no such file"):
        run_job(job, 2, quiet)
    assert not multiprocessing.active_children() and capfd.readouterr().err == ""
