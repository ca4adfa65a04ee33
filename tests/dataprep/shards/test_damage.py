"""Damaged files given to `verify`, `inspect` and the reader: a clear sentence each, no wrong row, and nobody dies.

`make test` damages a sample of files, `make test-long` (LLAVA_PREP_PROOFS=full) 2,000 of each of three sorts: shards
whose manifest knows better; shards whose manifest was made to fit, so that HDF5 really reads them; the Model Zoo's.
"""

import json
import os
import shutil
import zlib

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

from dataprep.commands.inspect import command as inspect
from dataprep.shards import ShardError, ShardReader
from dataprep.shards.audit import ForeignPromise
from dataprep.shards.guarded import Guarded
from dataprep.shards.manifest import file_sha256
from dataprep.verification import verify
from tests.dataprep.shards import made
from tests.dataprep.shards.damage import damaged

NUM_FILES = 2000 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 66

#: So many lie in one folder.
BATCH = 100

ROWS = made.rows(5)
PROMISE = ForeignPromise(made.IMAGE_START, made.NUM_PATCHES, made.VOCAB_SIZE)


@pytest.fixture(params=range(0, NUM_FILES, BATCH))
def damaged_shards(request, tmp_path):
    """A folder of many shards, each damaged in another way, and the kinds of damage."""
    folder = made.write_folder(tmp_path / "shards", ROWS)
    whole = folder / "shard-0.h5"
    content, (entry,) = whole.read_bytes(), json.loads((folder / "manifest.json").read_text())["shards"]
    whole.unlink()
    kinds, shards = [], []
    count = min(BATCH, NUM_FILES - request.param)
    for number in range(count):
        kind, broken = damaged(content, request.param + number)
        (folder / f"shard-{number}.h5").write_bytes(broken)
        kinds.append(kind)
        shards.append({**entry, "file": f"shard-{number}.h5"})
    made.edit(folder, shards=shards, accounting=made.accounting_of(ROWS * count))
    return folder, kinds


def is_clear(sentence: str, path) -> bool:
    """Whether a message is one line that begins with the file."""
    return sentence.startswith(f"{path}: ") and len(sentence.splitlines()) == 1 and len(sentence) < 600


def test_what_a_manifest_knows_better_is_never_opened(damaged_shards):
    folder, kinds = damaged_shards
    faults = verify(folder).faults
    assert len(faults) == len(kinds)
    with ShardReader(folder) as reader:
        for number, (kind, fault) in enumerate(zip(kinds, faults, strict=True)):
            path = folder / f"shard-{number}.h5"
            assert is_clear(fault, path) and "damaged: sha256" in fault, kind
            with pytest.raises(ShardError, match="damaged: sha256") as error:
                reader[number * len(ROWS)]
            assert is_clear(str(error.value), path), kind
            shown = CliRunner().invoke(inspect, [str(path)])
            assert (shown.exit_code, shown.stdout) == (5, ""), kind
            assert is_clear(shown.stderr.removeprefix("llava-prep: ").strip(), path), kind


def test_what_a_forged_manifest_agrees_with_is_read_in_a_child_and_compared_row_by_row(damaged_shards):
    folder, kinds = damaged_shards
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    for shard in shards:
        shard["sha256"] = file_sha256(folder / shard["file"])
    made.edit(folder, shards=shards)
    faults = verify(folder).faults
    named = {fault.split(": ")[0]: fault for fault in faults}
    assert len(named) == len(faults) > len(kinds) // 2
    with ShardReader(folder) as reader:
        for number, kind in enumerate(kinds):
            path = folder / f"shard-{number}.h5"
            if str(path) in named:
                assert is_clear(named[str(path)], path), kind
                continue
            for index, row in enumerate(ROWS):  # the damage hit bytes that mean nothing
                assert made.same(reader[number * len(ROWS) + index], row), kind
    for path in list(named)[:2]:
        shown = CliRunner().invoke(inspect, [path])
        assert (shown.exit_code, shown.stdout) == (5, "")
        assert is_clear(shown.stderr.removeprefix("llava-prep: ").strip(), path)


def test_the_model_zoos_files_are_read_through_in_a_child_first(tmp_path):
    path = made.write_foreign(tmp_path / "examples_0_0.h5", ROWS)
    content, num_faults = path.read_bytes(), 0
    with Guarded() as child:
        child.audit_foreign(path, PROMISE)
        for number in range(NUM_FILES):
            kind, broken = damaged(content, number)
            path.write_bytes(broken)
            try:
                child.audit_foreign(path, PROMISE)
            except ShardError as error:
                num_faults += 1
                assert is_clear(str(error), path), kind
                continue
            with h5py.File(path, "r", locking=False) as file:
                assert (file["data"][:] == np.stack([row.data for row in ROWS])).all(), kind
                found = [value.decode() for value in file["img_path"][:, 0]]
                assert found == [row.img_path or "None" for row in ROWS], kind
    assert num_faults > NUM_FILES // 2


@pytest.mark.parametrize("number", range(0, NUM_FILES, 20))
def test_the_reader_of_foreign_shards_gives_a_sentence_or_the_rows(tmp_path, tiny_tokenizer_dir, number):
    path = made.write_foreign(tmp_path / "examples_0_0.h5", ROWS)
    path.write_bytes(damaged(path.read_bytes(), number)[1])
    try:
        reader = open_foreign(tmp_path, tiny_tokenizer_dir)
    except ShardError as error:
        assert is_clear(str(error), path)
    else:
        assert all(made.same(stored, row) for stored, row in zip(reader, ROWS, strict=True))


def open_foreign(folder, tokenizer) -> ShardReader:
    return ShardReader.open_cerebras(folder, tokenizer, made.IMAGE_START, made.NUM_PATCHES, 28)


def test_a_whole_foreign_shard_reads_as_written(tmp_path, tiny_tokenizer_dir):
    made.write_foreign(tmp_path / "examples_0_0.h5", ROWS[:2])
    made.write_foreign(tmp_path / "examples_1_0.h5", ROWS[2:])
    reader = open_foreign(tmp_path, tiny_tokenizer_dir)
    assert all(made.same(stored, row) for stored, row in zip(reader, ROWS, strict=True))
    assert reader.lengths.tolist() == [row.length for row in ROWS]
    assert reader.num_loss_tokens.tolist() == [row.num_loss_tokens for row in ROWS]
    assert reader.has_image.tolist() == [row.img_path is not None for row in ROWS]


def change_data(path, change) -> None:
    with h5py.File(path, "r+") as file:
        data = file["data"][:]
        change(data)
        file["data"][...] = data


def replace(path, name, **options) -> None:
    with h5py.File(path, "r+") as file:
        values = file[name][:]
        del file[name]
        usual = {"data": values, "compression": "gzip", "chunks": (1, *values.shape[1:])}
        file.create_dataset(name, **usual | options)


def put(row, name, value, slot=0):
    def change(data):
        data[row, ("text_input_ids", "loss_mask", "labels", "key_padding_mask").index(name), slot] = value

    return lambda path: change_data(path, change)


def absent(path, name) -> None:
    with h5py.File(path, "r+") as file:
        del file[name]


def add(path, name, values) -> None:
    with h5py.File(path, "r+") as file:
        file[name] = values


def elsewhere(path) -> None:
    shutil.copy(path, path.with_suffix(".other"))
    with h5py.File(path, "r+") as file:
        del file["data"]
        file["data"] = h5py.ExternalLink(path.with_suffix(".other").name, "data")


def virtual(path) -> None:
    with h5py.File(path, "r+") as file:
        source = h5py.VirtualSource("other.h5", "data", shape=(5, 4, made.SLOTS))
        del file["data"]
        layout = h5py.VirtualLayout((5, 4, made.SLOTS), "i4")
        layout[...] = source
        file.create_virtual_dataset("data", layout)


def endless(path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data"]
        file.create_dataset("data", (1 << 40, 4, 40), "i4", chunks=(1, 4, 40), compression="gzip")


def wide(path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data"]
        file.create_dataset("data", (5, 4, 1 << 27), "i4", chunks=(1, 4, 1 << 27), compression="gzip")


def a_missing_row(path) -> None:
    with h5py.File(path, "r+") as file:
        del file["data"]
        data = file.create_dataset("data", (5, 4, made.SLOTS), "i4", chunks=(1, 4, made.SLOTS), compression="gzip")
        data[:4] = 0


def a_bare_row(path) -> None:
    """A chunk that was stored without deflate, so without a checksum."""
    with h5py.File(path, "r+") as file:
        file["data"].id.write_direct_chunk((1, 0, 0), ROWS[1].data.tobytes(), filter_mask=1)


def a_row_twice(path) -> None:
    """The address of a row's chunk becomes another's."""
    with h5py.File(path) as file:
        first, second = (file["data"].id.get_chunk_info(index) for index in (0, 1))
    content = path.read_bytes()
    address = second.byte_offset.to_bytes(8, "little")
    assert content.count(address) == 1
    path.write_bytes(content.replace(address, first.byte_offset.to_bytes(8, "little")))


def a_row_of_another_size(path) -> None:
    with h5py.File(path, "r+") as file:
        file["data"].id.write_direct_chunk((1, 0, 0), zlib.compress(ROWS[1].data[:3].tobytes()))


@pytest.fixture(scope="module")
def child():
    with Guarded() as child:
        yield child


NONSENSE = [
    (put(1, "text_input_ids", made.VOCAB_SIZE), "row 1: ids outside 0 to 98"),
    (put(2, "text_input_ids", -1), "row 2: ids outside 0 to 98"),
    (put(3, "labels", 1 << 20), "row 3: labels: ids outside"),
    (put(1, "loss_mask", 2), "row 1: loss_mask is not 0 or 1"),
    (put(1, "key_padding_mask", -1), "row 1: key_padding_mask is not 0 or 1"),
    (put(1, "key_padding_mask", 1, slice(None)), "row 1: nothing is attended"),
    (put(4, "loss_mask", 1, slice(-3, None)), "row 4: a masked position has a loss"),
    (put(1, "key_padding_mask", 1, 3), "row 1: (a masked position has a loss|the image slots are)"),
    (put(0, "key_padding_mask", 0, 3), "row 0: the image slots are not where image_start_idx 2 says"),
    (lambda path: absent(path, "img_path"), "expected \\(rows, 4, slots\\) and img_path"),
    (lambda path: absent(path, "data"), "no dataset data"),
    (lambda path: replace(path, "img_path", data=np.array([[b"\xff"]] * 5)), "row 0: img_path is not UTF-8"),
    (lambda path: replace(path, "img_path", data=np.array([[b""]] * 5, "S3")), "row 0: img_path is empty"),
    (lambda path: replace(path, "img_path", data=np.array([[b"a.jpg"]] * 4)), "4 img_path for 5 rows"),
    (lambda path: replace(path, "img_path", data=np.zeros((5, 1))), "img_path of dtype float64"),
    (lambda path: replace(path, "data", dtype="f4"), "data of dtype float32; expected int32"),
    (lambda path: replace(path, "data", compression="lzf"), "with filters \\[32000\\]; expected rows, gzip"),
    (lambda path: replace(path, "data", compression=None, chunks=None), "in chunks of None with filters"),
    (lambda path: add(path, "length", np.ones(5, np.int32)), "holds length too; the Model Zoo's have"),
    (elsewhere, "no dataset data"),
    (virtual, "data lies in another file"),
    (endless, "0 chunks of data for 1099511627776 rows"),
    (wide, "data of shape \\(5, 4, 134217728\\)"),
    (a_missing_row, "4 chunks of data for 5 rows"),
    (a_bare_row, "the table of /data's chunks does not make the whole dataset"),
    (a_row_twice, "the table of /data's chunks does not make the whole dataset"),
    (a_row_of_another_size, "a chunk of /data at \\(1, 0, 0\\) is not whole"),
]


@pytest.mark.parametrize(("spoil", "sentence"), NONSENSE)
def test_a_file_that_reads_well_and_means_nonsense_is_refused(tmp_path, child, spoil, sentence):
    path = made.write_foreign(tmp_path / "examples_0_0.h5", ROWS)
    spoil(path)
    with pytest.raises(ShardError, match=sentence) as error:
        child.audit_foreign(path, PROMISE)
    assert is_clear(str(error.value), path)


POST_PROCESS = ["{", "3", "[]", '{"eos_id": "2"}', '{"pad_id": -1}', '{"vocab_size": true}']


@pytest.mark.parametrize("post_process", POST_PROCESS)
def test_a_damaged_data_params_is_one_sentence(tmp_path, tiny_tokenizer_dir, post_process):
    made.write_foreign(tmp_path / "examples_0_0.h5", ROWS)
    (tmp_path / "data_params.json").write_text(f'{{"post-process": {post_process}}}')
    with pytest.raises(ShardError) as error:
        open_foreign(tmp_path, tiny_tokenizer_dir)
    assert is_clear(str(error.value), tmp_path / "data_params.json")


@pytest.mark.parametrize("make", [lambda path: os.mkfifo(path), lambda path: path.mkdir()])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path, folder, tiny_tokenizer_dir, make):
    (folder / "shard-0.h5").unlink()
    make(folder / "shard-0.h5")
    (fault,) = verify(folder).faults
    assert "shard-0.h5: is no file; a shard is one" in fault
    with pytest.raises(ShardError, match="is no file"):
        ShardReader(folder)[0]
    for other in set(folder.glob("*.h5")) - {folder / "shard-0.h5"}:
        other.unlink()
    with pytest.raises(ShardError, match="is no file"):
        open_foreign(folder, tiny_tokenizer_dir)
