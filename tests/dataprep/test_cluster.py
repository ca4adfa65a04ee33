"""A run in shares makes what one run makes, whoever starts the shares and whatever becomes of them."""

import json
import os
import random
import shutil
import signal
import time

import pytest

from dataprep.cluster import plans, shares
from dataprep.cluster.plans import read_plan
from dataprep.cluster.shares import Share, run_share, total_of
from dataprep.errors import CommandError, Exit
from dataprep.locking import only_run, only_share
from dataprep.pipeline import run_job
from dataprep.plan import same_time

FULL = os.environ.get("LLAVA_PREP_PROOFS") == "full"
SECOND = 10**9


def quiet(*_):
    pass


def tree(folder):
    """Every file that a run leaves for others, by its place; the report is the command's."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "report.html")
    places = (path.relative_to(folder) for path in files)
    return {str(p): (folder / p).read_bytes() for p in places if not any(part.startswith(".") for part in p.parts)}


def records(workspace, count):
    made = [workspace.record(n, f"pictures/{n % 6}.jpg" if n % 3 else None, 1 + n % 4) for n in range(count)]
    made[7] = b"{broken"
    return [*made, *made[20:40]]


@pytest.fixture
def inputs(workspace):
    """Two files, of which nine tasks of 40 records are made."""
    return [workspace.write("a.jsonl", records(workspace, 220)), workspace.write("b.jsonl", records(workspace, 100))]


@pytest.fixture
def make_job(workspace, inputs):
    return lambda *files, **config: workspace.job(*(files or inputs), **{"shard_rows": 40, **config})


CHOOSING = {"shuffle": 3, "dedup": "exact", "holdout": 0.1}


@pytest.mark.parametrize("config", [{}, CHOOSING], ids=["as they come", "chosen"])
@pytest.mark.parametrize("count", [1, 3, 12])
def test_shares_make_what_one_run_makes(make_job, config, count):
    one = make_job(output="one", **config)
    total = run_job(one, 1, quiet)
    assert total.num_refused > 30 and bool(total.deduplicated) == bool(total.held_out) == bool(config)
    job = make_job(output="many", **config)
    order = random.Random(count).sample(range(count), count)
    results = [run_share(job, Share(index, count), 1) for index in order]
    done = [bool(result.total) for result in results]
    assert done == sorted(done) and done[-1]
    assert done.count(True) == 1 or count == 12  # shares without a task may come after the last one that has some
    assert results[-1].total == total_of(job) == total
    assert sum(result.own.written for result in results) == total.written
    assert tree(job.output) == tree(one.output)
    assert ("holdout/manifest.json" in tree(job.output)) == bool(config)


def test_a_share_says_whose_tasks_are_left(make_job):
    job = make_job()
    assert run_share(job, Share(1, 4), 1).waiting_for == (0, 2, 3)
    assert run_share(job, Share(3, 4), 1).waiting_for == (0, 2)


@pytest.mark.parametrize("config", [{}, CHOOSING], ids=["as they come", "chosen"])
def test_the_first_share_plans_and_the_others_read_the_plan(make_job, config, monkeypatch):
    job = make_job(**config)
    run_share(job, Share(2, 3), 1)
    monkeypatch.setattr("dataprep.pipeline.survey", None)
    monkeypatch.setattr("dataprep.pipeline.select", None)
    monkeypatch.setattr(plans, "make_plan", None)
    run_share(job, Share(0, 3), 1)
    assert run_share(job, Share(1, 3), 1).total is not None


def test_a_share_run_again_does_what_is_missing_and_no_more(make_job):
    job = make_job()
    for index in range(2):
        run_share(job, Share(index, 2), 1)
    before, times = tree(job.output), {p: p.stat().st_mtime_ns for p in job.output.glob("*.h5")}
    damaged = job.output / "shard-00002.h5"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    shutil.rmtree(job.output / "tokenizer")
    assert run_share(job, Share(1, 2), 1).total is not None
    assert damaged.read_bytes() != before["shard-00002.h5"]
    run_share(job, Share(0, 2), 1)
    assert damaged.read_bytes() == before["shard-00002.h5"]
    assert [path for path, mtime in times.items() if path.stat().st_mtime_ns != mtime] == [damaged]


def test_a_share_without_the_shards_of_another_does_not_finish(make_job):
    job = make_job()
    run_share(job, Share(0, 2), 1)
    (job.output / "shard-00002.h5").unlink()
    assert run_share(job, Share(1, 2), 1)[1:] == (None, (0,))
    assert not (job.output / "manifest.json").exists()


def test_what_a_killed_share_was_writing_is_removed_by_the_same_share_alone(make_job):
    job = make_job(holdout=0.3)
    run_share(job, Share(0, 2), 1)
    own, others = (
        [".shard-00001.h5.7.tmp", ".tasks/.00003.json.7.tmp", ".shard-00001-2.h5.7.tmp"],
        [".shard-00002.h5.7.tmp"],
    )
    for name in (*own, *others):
        (job.output / name).write_bytes(b"half")
    run_share(job, Share(1, 2), 1)
    assert [(job.output / name).exists() for name in (*own, *others)] == [False] * 3 + [True]


def test_the_end_of_a_run_that_died_there_is_done_by_the_same_share(make_job, monkeypatch):
    job = make_job()
    run_share(job, Share(0, 2), 1)
    with monkeypatch.context() as context:
        context.setattr(shares, "finish", lambda prepared: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run_share(job, Share(1, 2), 1)
    assert total_of(job) is None
    assert run_share(job, Share(1, 2), 1).total == total_of(job)


def test_pictures_that_came_later_are_taken_in(make_job, workspace):
    job = make_job()
    for index in range(2):
        run_share(job, Share(index, 2), 1)
    shutil.copy(workspace.root / "pictures/0.jpg", workspace.root / "pictures/5.jpg")
    for index in range(2):
        result = run_share(job, Share(index, 2), 1)
    one = make_job(output="one")
    assert result.total == run_job(one, 1, quiet)
    assert tree(job.output) == tree(one.output)


def test_a_run_without_shares_finishes_what_shares_left_and_the_other_way_round(make_job):
    one = make_job(output="one", **CHOOSING)
    total = run_job(one, 1, quiet)
    job = make_job(**CHOOSING)
    run_share(job, Share(1, 3), 1)
    assert run_job(job, 1, quiet) == total and tree(job.output) == tree(one.output)
    (job.output / "shard-00000.h5").unlink()
    (job.output / ".tasks/plan.json").unlink()
    for index in range(2):
        run_share(job, Share(index, 2), 1)
    assert tree(job.output) == tree(one.output)


@pytest.mark.parametrize("config", [{}, CHOOSING], ids=["as they come", "chosen"])
@pytest.mark.parametrize("finding", ["bytes", "sha256"])
def test_an_input_that_changed_since_the_plan_is_refused(make_job, inputs, config, finding):
    job = make_job(**config)
    run_share(job, Share(0, 2), 1)
    content = inputs[0].read_bytes()
    inputs[0].write_bytes(content + b"\n" if finding == "bytes" else content.replace(b"bar 0", b"bar 1", 1))
    with pytest.raises(CommandError, match=rf"a\.jsonl: changed since the run was planned: .*{finding}") as caught:
        run_share(job, Share(1, 2), 1)
    assert caught.value.code == Exit.CONFLICT
    assert total_of(job) is None


def test_a_copy_with_another_time_of_change_is_the_same_input(make_job, inputs):
    job = make_job()
    run_share(job, Share(0, 2), 1)
    os.utime(inputs[0], ns=(1, 1))
    assert run_share(job, Share(1, 2), 1).total is not None


def test_an_input_that_changes_while_a_share_works_does_not_get_into_the_manifest(make_job, inputs):
    job = make_job()
    run_share(job, Share(0, 2), 1)
    content = inputs[0].read_bytes()
    with pytest.raises(CommandError, match="changed since the run was planned"):
        run_share(job, Share(1, 2), 1, progress=lambda *_: inputs[0].write_bytes(b""))
    assert total_of(job) is None
    inputs[0].write_bytes(content)  # what was compiled meanwhile does not count as done
    run_share(job, Share(1, 2), 1)
    one = make_job(output="one")
    run_job(one, 1, quiet)
    assert tree(job.output) == tree(one.output)


@pytest.mark.parametrize(
    ("planned", "found", "same"),
    [
        (5 * SECOND + 123_456_789, 5 * SECOND + 123_456_789, True),
        (5 * SECOND + 123_456_789, 5 * SECOND, True),  # a mount that keeps seconds
        (5 * SECOND, 5 * SECOND + 999_999_999, True),
        (5 * SECOND + 123_456_789, 5 * SECOND + 123_456_000, True),  # microseconds
        (5 * SECOND + 123_456_789, 5 * SECOND + 123_456_700, True),  # Windows' 100 ns
        (5 * SECOND + 123_456_789, 5 * SECOND + 123_456_788, False),
        (5 * SECOND + 123_456_789, 6 * SECOND, False),
        (5 * SECOND + 123_456_789, 5 * SECOND + 123_457_000, False),
    ],
)
def test_times_of_change_are_compared_as_far_as_both_places_keep_them(planned, found, same):
    assert same_time(planned, found) is same


def test_a_share_of_another_run_is_refused(make_job, inputs):
    job = make_job()
    run_share(job, Share(0, 2), 1)
    for other, message in (
        (make_job(max_seq_length=180), "config.max_seq_length was 200, is 180"),
        (make_job(shuffle=1), "order.npy: not as planned"),
        (make_job(inputs[0]), r"planned for 2 inputs, this share was given 1.* b\.jsonl"),
        (make_job(*reversed(inputs)), "in another order"),
    ):
        with pytest.raises(CommandError, match=message) as caught:
            run_share(other, Share(1, 2), 1)
        assert caught.value.code == Exit.CONFLICT
    plan = job.output / ".tasks/plan.json"
    plan.write_text(plan.read_text().replace('"version":"', '"version":"0.'))
    with pytest.raises(CommandError, match="a run in shares needs one version"):
        run_share(job, Share(1, 2), 1)


def test_a_damaged_plan_is_made_anew_and_a_damaged_order_is_refused(make_job):
    job = make_job(**CHOOSING)
    run_share(job, Share(0, 2), 1)
    order = job.output / "holdout/.tasks/order.npy"
    content = bytearray(order.read_bytes())
    content[-1] ^= 1
    order.write_bytes(content)
    with pytest.raises(CommandError, match="order.npy: not as planned"):
        run_share(job, Share(1, 2), 1)
    (job.output / ".tasks/plan.json").write_text('{"version')
    assert read_plan(job) is None
    assert run_share(job, Share(1, 2), 1).total is not None


def test_whoever_would_do_the_same_work_at_the_same_time_is_refused(make_job):
    job = make_job()
    lock = job.output / ".lock"
    with only_share(lock, job.output, 1, 2):
        for start, message in (
            (lambda: run_share(job, Share(1, 2), 1), f"another run is writing it: process {os.getpid()} "),
            (lambda: run_share(job, Share(1, 3), 1), rf"1-of-2 is being compiled, so .* of 3: process {os.getpid()} "),
            (lambda: run_job(job, 1, quiet), f"another run is writing it: process {os.getpid()} "),
        ):
            with pytest.raises(CommandError, match=message) as caught:
                start()
            assert caught.value.code == Exit.CONFLICT
        assert run_share(job, Share(0, 2), 1).own.records
    with only_run(lock, job.output), pytest.raises(CommandError, match="another run is writing it"):
        run_share(job, Share(1, 2), 1)
    assert run_share(job, Share(1, 2), 1).total is not None
    assert not list(job.output.glob(".lock-*"))


def words(workspace, *more):
    paths = ["--input", "jsonl/phase2", "--image-dir", workspace.root, "--tokenizer", workspace.tokenizer]
    return ["to-h5", "--phase", 2, *paths, "--set", "max_seq_length=200", "--set", "image.size=28", *more]


def test_shares_side_by_side_of_which_some_are_killed(workspace, command):
    """As a Slurm array, a Kubernetes job or GNU parallel would run them: all at once, and the killed ones again."""
    path, chosen = workspace.write("a.jsonl", records(workspace, 6000)), ["--set", "shuffle=3", "--set", "holdout=0.1"]
    one = workspace.job(path, output="one", shuffle=3, holdout=0.1)
    run_job(one, 2, quiet)
    folder, count = workspace.root / "data/h5/phase2", 3
    arguments = words(workspace, *chosen, "--max-refused", 1, "--workers", 1, "--num-tasks", count, "--task")
    moments = random.Random(0)
    for _ in range(20 if FULL else 1):
        shutil.rmtree(folder, ignore_errors=True)
        processes, victim = [command(*arguments, index, start=True) for index in range(count)], moments.randrange(count)
        # Now and then it is killed while it plans.
        wanted = moments.randrange(3) if FULL else 2
        while len(list(folder.glob(".tasks/0*.json"))) < wanted and processes[victim].poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.1))
        processes[victim].kill()
        ends = [(process.communicate(timeout=120), process.returncode) for process in processes]
        killed = [code for _, code in ends] == [-signal.SIGKILL if n == victim else 0 for n in range(count)]
        assert killed or FULL, ends
        assert f"of share {victim} are not done yet" in "".join(out for (out, _), _ in ends) or not killed
        assert (folder / "manifest.json").exists() != killed
        done = command(*arguments, victim, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["held_out"] > 0
        assert tree(folder) == tree(one.output)
        assert not list(folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--task", 1], "--task needs --num-tasks"),
        (["--num-tasks", 2], "--num-tasks 2 needs --task"),
        (["--task", 2, "--num-tasks", 2], "the shares of --num-tasks 2 are 0 to 1"),
        (["--task", 0, "--num-tasks", 2, "--executor", "local"], "give one of the two"),
        (["--executor-option", "time=1"], "of which --executor?"),
    ],
)
def test_shares_that_make_no_sense_are_a_usage_error(workspace, inputs, command, more, message):
    done = command(*words(workspace, *more))
    assert (done.returncode, done.stdout) == (2, "") and message in done.stderr
    assert not (workspace.root / "data").exists()
