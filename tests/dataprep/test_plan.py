"""Tasks hold every line of the input once, in order, whatever the files look like."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep import plan as planning
from dataprep.conversation import read_lines
from dataprep.plan import plan, survey


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 1700), min_size=1, max_size=5),
    shard_rows=st.sampled_from([1, 7, 500, 1000, 10_000]),
    newline_at_end=st.booleans(),
    block=st.sampled_from([64, 1000, 8 << 20]),
)
def test_tasks_hold_every_line_once_and_in_order(tmp_path_factory, sizes, shard_rows, newline_at_end, block):
    folder = tmp_path_factory.mktemp("plan")
    planning.BLOCK_BYTES, before = block, planning.BLOCK_BYTES
    try:
        files = []
        for index, size in enumerate(sizes):
            lines = b"".join(b"%d-%d%s\n" % (index, n, b"x" * (n % 13)) for n in range(size))
            (folder / f"{index}.jsonl").write_bytes(lines if newline_at_end else lines.removesuffix(b"\n"))
            files.append(survey(folder / f"{index}.jsonl", f"{index}.jsonl"))
    finally:
        planning.BLOCK_BYTES = before
    assert [file.num_lines for file in files] == sizes
    tasks = plan(files, shard_rows)
    seen = []
    for task in tasks:
        here = []
        for segment in task.segments:
            lines = list(read_lines(segment.path, segment.start, segment.stop))
            file = int(segment.name.split(".")[0])
            here += [(file, segment.first_line - 1 + offset) for offset in range(len(lines))]
            assert all(
                line.startswith(b"%d-%d" % place) for line, place in zip(lines, here[-len(lines) :], strict=True)
            )
        assert 0 < len(here) <= shard_rows
        seen += here
    assert seen == [(file, line) for file, size in enumerate(sizes) for line in range(size)]
    assert [task.index for task in tasks] == list(range(len(tasks)))


def test_one_file_is_cut_for_several_workers(tmp_path):
    (tmp_path / "x.jsonl").write_bytes(b"{}\n" * 20_000)
    tasks = plan([survey(tmp_path / "x.jsonl", "x")], 10_000)
    assert [len(list(read_lines(s.path, s.start, s.stop))) for t in tasks for s in t.segments] == [2500] * 8


def test_many_small_files_share_a_shard(tmp_path):
    files = []
    for index in range(30):
        path = tmp_path / f"{index}.jsonl"
        path.write_bytes(b"{}\n" * 20)
        files.append(survey(path, path.name))
    assert [len(task.segments) for task in plan(files, 10_000)] == [25, 5]
