"""Columns read page by page: the same rows as pyarrow's, from every page it can write; damage; the memory it takes."""

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataprep import parquet_columns, parquet_pages
from dataprep.errors import CommandError, Exit
from dataprep.parquet_columns import big_columns
from dataprep.parquet_pages import DamagedPage
from dataprep.tables import ParquetTable

NUM_MUTANTS = 120 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 60

ROOT = Path(__file__).parent.parent.parent
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
PANEL = pa.struct([("image", IMAGE), ("words", pa.list_(pa.string())), ("note", pa.string())])
FIGURE = pa.struct([("caption", pa.string()), ("panels", pa.list_(PANEL))])
SURE = pa.struct([pa.field("bytes", pa.binary(), nullable=False), pa.field("path", pa.string())])

COLUMNS = {
    "image": pa.field("image", IMAGE),
    "sure": pa.field("sure", SURE, nullable=False),
    "bare": pa.field("bare", pa.struct([("bytes", pa.large_binary())])),
    "deep": pa.field("deep", pa.struct([("inner", IMAGE), ("number", pa.int32())])),
    "blob": pa.field("blob", pa.binary(), nullable=False),
    "text": pa.field("text", pa.string()),
    "figures": pa.field("figures", pa.list_(FIGURE)),
    "solid": pa.field("solid", pa.list_(pa.field("element", SURE, nullable=False)), nullable=False),
    "number": pa.field("number", pa.int64()),
}


@pytest.fixture(autouse=True)
def everything_is_big(monkeypatch):
    """Let every page be read here, in small steps."""
    monkeypatch.setattr(parquet_columns, "BIG_CHUNK_BYTES", -1)
    monkeypatch.setattr(parquet_columns, "BIG_PAGE_BYTES", -1)
    monkeypatch.setattr(parquet_columns, "SPOOL_BYTES", 512)
    monkeypatch.setattr(parquet_pages, "BLOCK_BYTES", 100)
    monkeypatch.setattr(parquet_pages, "WINDOW_BYTES", 64)


def values(rng: random.Random, kind: pa.DataType, nullable: bool = True):
    """A random value of an arrow type, often none, empty, or one that came before."""
    if nullable and rng.random() < 0.2:
        return None
    if pa.types.is_struct(kind):
        return {field.name: values(rng, field.type, field.nullable) for field in kind}
    if pa.types.is_list(kind):
        return [values(rng, kind.value_type, kind.value_field.nullable) for _ in range(rng.choice([0, 1, 1, 2, 3]))]
    if pa.types.is_integer(kind):
        return rng.randrange(100)
    content = rng.choice([b"", b"a", b"again", rng.randbytes(rng.randrange(300)), b"ab" * rng.randrange(500)])
    return content.hex() if pa.types.is_string(kind) else content


def write(path: Path, seed: int, rows: int, **options) -> pa.Table:
    rng = random.Random(seed)
    names = rng.sample(sorted(COLUMNS), rng.randint(1, 4))
    schema = pa.schema([COLUMNS[name] for name in names])
    table = pa.Table.from_pylist(
        [{field.name: values(rng, field.type, field.nullable) for field in schema} for _ in range(rows)], schema
    )
    pq.write_table(table, path, **options)
    return table


def read(path: Path, columns: list[str]) -> list[dict]:
    numbered = list(ParquetTable(path).rows(columns))
    assert [line for line, _ in numbered] == list(range(1, len(numbered) + 1))
    return [row for _, row in numbered]


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 10**6),
    rows=st.sampled_from([0, 1, 7, 40, 90]),
    codec=st.sampled_from(["none", "snappy", "gzip", "zstd"]),
    version=st.sampled_from(["1.0", "2.0"]),
    dictionary=st.booleans(),
    group=st.sampled_from([5, 64, 1000]),
    page=st.sampled_from([50, 2000, 1 << 20]),
    batch=st.sampled_from([1, 13, 1024]),
    limit=st.sampled_from([100, 1 << 20]),
)
def test_the_rows_are_those_of_pyarrow(
    tmp_path_factory, seed, rows, codec, version, dictionary, group, page, batch, limit
):
    path = tmp_path_factory.mktemp("table") / "a.parquet"
    table = write(
        path, seed, rows, compression=codec, data_page_version=version, use_dictionary=dictionary,
        row_group_size=group, data_page_size=page, write_batch_size=batch, dictionary_pagesize_limit=limit,
    )  # fmt: skip
    assert read(path, table.schema.names) == table.to_pylist()


def big_and_rest(path: Path, names: list[str]) -> tuple[int, list[str]]:
    with pq.ParquetFile(path) as file:
        columns, rest = big_columns(file, path, 0, names)
        return len(columns), rest


def write_column(path: Path, field: pa.Field, rows: int = 50, **options) -> Path:
    rng = random.Random(1)
    made = [{field.name: values(rng, field.type, field.nullable)} for _ in range(rows)]
    pq.write_table(pa.Table.from_pylist(made, pa.schema([field])), path, **options)
    return path


#: How many of a column's leaves are read here, and how many by pyarrow: numbers, and one leaf a list for its length.
SHARES = {"image": (2, 0), "sure": (2, 0), "bare": (1, 0), "deep": (2, 1), "blob": (1, 0), "text": (1, 0),
          "figures": (3, 2), "solid": (1, 1), "number": (0, 1)}  # fmt: skip


@pytest.mark.parametrize("name", sorted(COLUMNS))
def test_what_is_read_here_and_what_is_left_to_pyarrow(tmp_path, name):
    big, rest = big_and_rest(write_column(tmp_path / "a.parquet", COLUMNS[name]), [name])
    assert (big, len(rest)) == SHARES[name]


def test_pictures_in_lists_of_lists_go_back_to_their_places(tmp_path, monkeypatch):
    rng = random.Random(3)

    def panels() -> list | None:
        images = [rng.choice([None, {"bytes": rng.randbytes(2000), "path": None}]) for _ in range(rng.randrange(4))]
        found = [rng.choice([None, {"image": image, "words": ["a"], "note": ""}]) for image in images]
        return rng.choice([found, found, None])

    rows = [
        {"figures": rng.choice([None, [{"caption": str(n), "panels": panels()}] * rng.randrange(3)])}
        for n in range(400)
    ]
    pq.write_table(pa.Table.from_pylist(rows, pa.schema([COLUMNS["figures"]])), tmp_path / "a.parquet")
    monkeypatch.setattr(parquet_columns, "BIG_CHUNK_BYTES", 20_000)
    big, rest = big_and_rest(tmp_path / "a.parquet", ["figures"])
    assert big == 1 and len(rest) == 4 and not any("bytes" in path for path in rest)
    assert read(tmp_path / "a.parquet", ["figures"]) == rows


def test_only_large_columns_with_large_pages_are_read_here(tmp_path, monkeypatch):
    path = write_column(tmp_path / "a.parquet", COLUMNS["blob"], data_page_size=2000, write_batch_size=1)
    with pq.ParquetFile(path) as file:
        size = file.metadata.row_group(0).column(0).total_uncompressed_size
    for chunk, page, big in [(size - 1, 100, 1), (size, 100, 0), (1000, size, 0)]:
        monkeypatch.setattr(parquet_columns, "BIG_CHUNK_BYTES", chunk)
        monkeypatch.setattr(parquet_columns, "BIG_PAGE_BYTES", page)
        assert big_and_rest(path, ["blob"])[0] == big


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "brotli"},
        {"compression": "lz4"},
        {"use_dictionary": False, "column_encoding": {"blob": "DELTA_BYTE_ARRAY"}},
        {"use_dictionary": False, "column_encoding": {"blob": "DELTA_LENGTH_BYTE_ARRAY"}},
    ],
)
def test_what_is_not_known_here_is_left_to_pyarrow(tmp_path, options):
    path = write_column(tmp_path / "a.parquet", COLUMNS["blob"], **options)
    assert big_and_rest(path, ["blob"]) == (0, ["blob"])
    assert read(path, ["blob"]) == pq.read_table(path).to_pylist()


@pytest.mark.parametrize(
    "kind",
    [
        pa.list_(pa.binary()),
        pa.map_(pa.string(), pa.binary()),
        pa.list_(pa.binary(), 2),
        pa.dictionary(pa.int32(), pa.string()),
        pa.binary(3),
        pa.decimal128(5, 2),
    ],
)
def test_ways_that_are_not_known_here_are_left_to_pyarrow(tmp_path, kind):
    pieces = {"dictionary": "abc", "fixed_size_binary[3]": b"abc", "decimal128(5, 2)": None, "map": [("a", b"b")]}
    value = next((piece for name, piece in pieces.items() if str(kind).startswith(name)), [b"a", b"b"])
    table = pa.table({"odd": pa.array([value, None] * 9, kind), "text": ["a"] * 18, "blob": [b"b"] * 18})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", ["odd", "text", "blob"]) == table.to_pylist()
    big, rest = big_and_rest(tmp_path / "a.parquet", ["odd", "text", "blob"])
    assert big == 2 and all(path.startswith("odd") for path in rest)


def test_levels_that_are_not_there_may_have_any_encoding(tmp_path):
    """Other writers name that of repetition levels BIT_PACKED where a column has none."""
    path = write_column(tmp_path / "a.parquet", COLUMNS["image"], write_page_index=False)
    wanted = pq.read_table(path).to_pylist()
    content = path.read_bytes()
    assert content.count(b"\x15\x06\x15\x06") == 2
    path.write_bytes(content.replace(b"\x15\x06\x15\x06", b"\x15\x06\x15\x08"))
    assert big_and_rest(path, ["image"]) == (2, [])
    assert read(path, ["image"]) == wanted
    path.write_bytes(content.replace(b"\x15\x06\x15\x06", b"\x15\x08\x15\x08"))
    assert big_and_rest(path, ["image"])[0] == 0


def test_names_with_dots_are_left_to_pyarrow(tmp_path):
    table = pa.table({"a.b": [b"x", b"y"], "a": [b"1", None]})
    pq.write_table(table, tmp_path / "a.parquet")
    assert read(tmp_path / "a.parquet", ["a.b", "a"]) == table.to_pylist()


def test_a_text_that_is_not_utf8_arrives_as_bytes(tmp_path):
    raw = pa.array([b"good", b"bad\xff", None], pa.binary())
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 3, raw.buffers())}), tmp_path / "a.parquet")
    assert big_and_rest(tmp_path / "a.parquet", ["text"])[0] == 1
    assert [row["text"] for row in read(tmp_path / "a.parquet", ["text"])] == ["good", b"bad\xff", None]


def test_files_are_closed_where_reading_ends_early(tmp_path):
    path = write_column(tmp_path / "a.parquet", COLUMNS["image"])
    rows = ParquetTable(path).rows(["image"])
    next(rows)
    rows.close()  # an open file would be a ResourceWarning, which is an error here


@pytest.mark.parametrize("codec", ["none", "snappy", "gzip", "zstd"])
def test_damage_ends_in_a_sentence(tmp_path, codec):
    """No mutant crashes or hangs; most are noticed, and the others have other rows, as with pyarrow."""
    path, ends = tmp_path / "a.parquet", set()
    for seed in range(NUM_MUTANTS):
        rng = random.Random(seed)
        if seed % 20 == 0:
            options = {"data_page_version": rng.choice(["1.0", "2.0"]), "use_dictionary": rng.random() < 0.5}
            table = write(path, seed, 25, compression=codec, row_group_size=20, **options)
            whole = path.read_bytes()
            footer = int.from_bytes(whole[-8:-4], "little")
        content = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            content[rng.randrange(4, len(content) - footer - 8)] = rng.choice([0, 255, rng.randrange(256)])
        path.write_bytes(content)
        try:
            ends.add(read(path, table.schema.names) == table.to_pylist())
        except CommandError as error:
            assert error.code == Exit.INTEGRITY and "\n" not in str(error)
            ends.add(str(error).partition("damaged one: ")[2])
        path.write_bytes(whole)
    assert len(ends) > 3


def test_a_full_disk_is_not_taken_for_damage(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    path = write_column(tmp_path / "a.parquet", COLUMNS["image"])
    monkeypatch.setattr(parquet_columns, "SpooledTemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        read(path, ["image"])


def test_columns_that_contradict_each_other_are_told(tmp_path):
    short, long = pa.table({"blob": [b"a"] * 3}), pa.table({"blob": [b"a"] * 4})
    for name, table in (("short", short), ("long", long)):
        pq.write_table(table, tmp_path / name)
    with pq.ParquetFile(tmp_path / "short") as file:
        columns, _ = big_columns(file, tmp_path / "short", 0, ["blob"])
    assert list(parquet_columns.rows_of(iter([{}, {}, {}]), columns)) == short.to_pylist()
    for count, told in ((2, "more values than there are rows"), (4, "fewer values than there are rows")):
        with pq.ParquetFile(tmp_path / "short") as file:
            columns, _ = big_columns(file, tmp_path / "short", 0, ["blob"])
        with pytest.raises(DamagedPage, match=told):
            list(parquet_columns.rows_of(iter([{} for _ in range(count)]), columns))


#: Reads a file, and prints how many bytes it found and how much memory that took at its peak.
MEMORY = """
import sys
from pathlib import Path
from dataprep.tables import ParquetTable
import pyarrow.parquet, dataprep.parquet_columns
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before = peak()
rows = ParquetTable(Path(sys.argv[1])).rows(["image", "text"])
count = sum(len(row["image"]["bytes"]) + len(row["text"]) for _, row in rows)
print(count, peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from /proc")
@pytest.mark.parametrize("dictionary", [True, False])
def test_a_page_of_200_megabytes_takes_a_tenth_of_that(tmp_path, dictionary):
    rng = np.random.default_rng(0)
    images = pa.array([{"bytes": rng.bytes(500_000), "path": None} for _ in range(400)], IMAGE)
    table = pa.table({"image": images, "text": ["a text"] * 400})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=dictionary, data_page_size=1 << 30)
    del images, table
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "a.parquet")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    count, peak = map(int, done.stdout.split())
    assert count == 400 * 500_006
    assert peak < 20e6
