"""The file format: what is written is read, by us and by plain h5py, and what is damaged is named."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from dataprep.shards import FEATURES, Row, RowLayout, ShardError, ShardReader, ShardWriter, publish
from dataprep.shards.layout import Source, feature
from dataprep.verification import verify

SLOTS = 40
ROOT = Path(__file__).parent.parent.parent.parent


@pytest.fixture
def layout():
    triple = (0.25, 0.5, 0.75)
    return RowLayout(SLOTS, 4, 2, 1, 5, 2, "vicuna_v1", 1, 2, 0, 99, "f" * 64, 28, triple, triple, "pad", "c" * 64)


def rows(count: int) -> list[Row]:
    random = np.random.default_rng(0)
    made = []
    for index in range(count):
        length = int(random.integers(1, SLOTS))
        data = np.zeros((4, SLOTS), np.int32)
        data[0, :length], data[2, :length] = random.integers(0, 99, (2, length))
        data[1, :length] = random.integers(0, 2, length)
        data[3, length:] = 1
        path = None if index % 3 == 0 else f"pictures/ü {index}.jpg"
        made.append(Row(data, path, length, int(data[1].sum()), Source(f"{index % 2}.jsonl", index, f"é{index}")))
    return made


@pytest.fixture
def folder(tmp_path, layout):
    """Two shards with their manifest, as `to-h5` leaves them."""
    made = rows(7)
    shards = []
    for number, part in enumerate((made[:4], made[4:])):
        writer = ShardWriter(layout)
        for row in part:
            writer.write(row)
        image = writer.finish()
        publish(tmp_path / f"shard-{number}.h5", image.content)
        shards.append({"file": f"shard-{number}.h5", "rows": len(part), "sha256": image.sha256})
    accounting = {"rows": 7, "records": 7, "written": 7, "num_refused": 0, "deduplicated": 0}
    manifest = {"layout": layout.attributes(), "shards": shards, "accounting": accounting}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    return tmp_path


def same(stored, row):
    for name in FEATURES:
        assert (getattr(stored, name) == feature(row.data, name)).all()
    assert (stored.img_path, stored.has_image) == (row.img_path, row.img_path is not None)
    assert (stored.length, stored.source) == (row.length, row.source)


def test_rows_come_back_in_order_and_at_random(folder, layout):
    made = rows(7)
    with ShardReader(folder) as reader:
        assert reader.layout == layout
        assert len(reader) == 7
        for stored, row in zip(reader, made, strict=True):
            same(stored, row)
        same(reader[5], made[5])
        assert reader.lengths.tolist() == [row.length for row in made]
        assert reader.num_loss_tokens.tolist() == [row.num_loss_tokens for row in made]
        assert reader.has_image.tolist() == [row.img_path is not None for row in made]
        with pytest.raises(IndexError, match="row 7; there are 7"):
            reader[7]


def test_plain_h5py_reads_what_was_coded_outside_it(folder):
    with h5py.File(folder / "shard-0.h5") as file:
        assert (file["data"][:] == np.stack([row.data for row in rows(4)])).all()
        assert file["img_path"][:, 0].tolist() == [b"None", *(f"pictures/ü {i}.jpg".encode() for i in (1, 2)), b"None"]
        assert file.attrs["n_examples"] == 4


def test_a_reader_can_be_sent_to_a_worker(folder):
    reader = ShardReader(folder)
    before = reader[6].text_input_ids
    copy = pickle.loads(pickle.dumps(reader))
    assert (copy[6].text_input_ids == before).all()


def test_the_same_rows_give_the_same_bytes_and_the_content_hash_ignores_the_dtype(layout):
    images = []
    for dtype in ("int32", "int32", "uint16"):
        writer = ShardWriter(layout, dtype)
        for row in rows(5):
            writer.write(row)
        images.append(writer.finish())
    assert images[0] == images[1]
    assert images[2].content_sha256 == images[0].content_sha256
    assert images[2].sha256 != images[0].sha256


def test_the_content_hash_sees_every_column(layout):
    hashes = set()
    base = rows(1)[0]
    for row in (base, rows(2)[1], Row(base.data, "a", base.length, base.num_loss_tokens, base.source)):
        writer = ShardWriter(layout)
        writer.write(row)
        hashes.add(writer.finish().content_sha256)
    assert len(hashes) == 3


def test_uint16_rows_read_as_int32(folder, layout):
    writer = ShardWriter(layout, "uint16")
    made = rows(4)
    for row in made:
        writer.write(row)
    image = writer.finish()
    publish(folder / "shard-0.h5", image.content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = image.sha256
    (folder / "manifest.json").write_text(json.dumps(manifest))
    stored = ShardReader(folder)[1]
    assert stored.labels.dtype == np.int32
    same(stored, made[1])


def test_a_flipped_bit_is_found_before_a_row_is_returned(folder):
    path = folder / "shard-1.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    reader = ShardReader(folder)
    reader[0]
    with pytest.raises(ShardError, match=r"shard-1\.h5: damaged: sha256"):
        reader[5]
    assert [fault.split(": ")[1] for fault in verify(folder)[2]] == ["damaged"]


def test_a_missing_and_a_stray_shard_are_named(folder):
    (folder / "shard-1.h5").rename(folder / "other.h5")
    faults = verify(folder)[2]
    assert "shard-1.h5: the manifest names this shard, but there is no such file" in faults[0]
    assert "other.h5: not in the manifest" in faults[1]
    with pytest.raises(ShardError, match="there is no such file"):
        ShardReader(folder)[6]


def edit(folder, **changes):
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_an_unknown_version_says_what_to_do(folder, layout):
    edit(folder, layout={**layout.attributes(), "format_version": 9})
    with pytest.raises(ShardError, match="format version 9, this program reads 1; compile again with"):
        ShardReader(folder)


def test_a_layout_that_lacks_something_is_named(folder, layout):
    attributes = layout.attributes()
    del attributes["image_fit"]
    edit(folder, layout=attributes)
    with pytest.raises(ShardError, match="attributes missing: image_fit"):
        ShardReader(folder)


def test_an_unfinished_folder_is_refused(tmp_path):
    with pytest.raises(ShardError, match="the compile is unfinished"):
        ShardReader(tmp_path)
    with pytest.raises(ShardError, match="no such folder"):
        ShardReader(tmp_path / "no")
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ShardError, match="not a manifest"):
        ShardReader(tmp_path)


def test_later_releases_of_the_model_zoo_are_named(tmp_path, tiny_tokenizer_dir):
    with h5py.File(tmp_path / "output_chunk_0_0.h5", "w") as file:
        file["data"] = np.zeros((2, 5, SLOTS), np.int32)
    with pytest.raises(ShardError, match="written by a release after 2.3"):
        ShardReader.open_cerebras(tmp_path, tiny_tokenizer_dir, 35)


def test_a_manifest_of_another_layout_is_refused(folder, layout):
    edit(folder, layout={**layout.attributes(), "image_start_idx": 9})
    with pytest.raises(ShardError, match="not of this folder's layout: image_start_idx is 2, expected 9"):
        ShardReader(folder)[0]
    assert len(verify(folder)[2]) == 2


@pytest.mark.parametrize("change", [{"shards": 3}, {"accounting": None}, {"shards": [{"file": "a"}]}, {"layout": []}])
def test_a_damaged_manifest_is_one_sentence(folder, change):
    edit(folder, **change)
    for use in (ShardReader, verify):
        with pytest.raises(ShardError, match="not a manifest"):
            use(folder)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_kill_inside_a_write_leaves_no_file_of_that_name(tmp_path, call):
    program = (
        f"import os, pathlib; os.{call} = lambda *_: os.kill(os.getpid(), 9)\n"
        "from dataprep.shards import publish; publish(pathlib.Path('a.h5'), b'x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == -9
    assert not (tmp_path / "a.h5").exists()


def test_a_failed_write_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        publish(tmp_path / "a.h5", b"x")
    assert list(tmp_path.iterdir()) == []
