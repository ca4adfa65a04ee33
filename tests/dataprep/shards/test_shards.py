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

from dataprep.shards import Row, ShardError, ShardReader, ShardWriter, publish
from dataprep.verification import verify
from tests.dataprep.shards.made import SLOTS, edit, rows, same

ROOT = Path(__file__).parent.parent.parent.parent


def test_rows_come_back_in_order_and_at_random(folder, layout):
    made = rows(7)
    with ShardReader(folder) as reader:
        assert reader.layout == layout
        assert len(reader) == 7
        for stored, row in zip(reader, made, strict=True):
            assert same(stored, row) and stored.source == row.source
        assert same(reader[5], made[5])
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
    assert same(stored, made[1])


def test_a_flipped_bit_is_found_before_a_row_is_returned(folder):
    path = folder / "shard-1.h5"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    reader = ShardReader(folder)
    reader[0]
    with pytest.raises(ShardError, match=r"shard-1\.h5: damaged: sha256"):
        reader[5]
    assert [fault.split(": ")[1] for fault in verify(folder).faults] == ["damaged"]


def test_a_missing_and_a_stray_shard_are_named(folder):
    (folder / "shard-1.h5").rename(folder / "other.h5")
    faults = verify(folder).faults
    assert "shard-1.h5: the manifest names this shard, but there is no such file" in faults[0]
    assert "other.h5: not in the manifest" in faults[1]
    with pytest.raises(ShardError, match="there is no such file"):
        ShardReader(folder)[6]


@pytest.mark.parametrize("content", [b"", b"\xff", b"[" * 100_000, b"[]", b"{}", b"9" * 5000, b"null"])
def test_a_manifest_that_is_no_manifest_is_one_sentence(folder, content):
    (folder / "manifest.json").write_bytes(content)
    for use in (ShardReader, verify):
        with pytest.raises(ShardError, match="not a manifest"):
            use(folder)


@pytest.mark.parametrize("change", [{"phase": "2"}, {"image_mean": [0.5, 0.5]}, {"template": None}, {"pad_id": True}])
def test_a_layout_of_other_kinds_is_one_sentence(folder, layout, change):
    edit(folder, layout={**layout.attributes(), **change})
    with pytest.raises(ShardError, match=f"attribute {next(iter(change))} is .*, expected"):
        ShardReader(folder)


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


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (None, "no such folder; `llava-prep to-h5` makes one"),
        (".tasks/", "the compile is unfinished; run the same `llava-prep to-h5` again"),
        ("phase2/manifest.json", "no manifest.json there, but in {folder}/phase2: give that folder"),
        ("examples_0_0.h5", "they were not compiled by `llava-prep to-h5` (ShardReader.open_cerebras reads"),
        ("a.txt", "no manifest.json and no shards there; give a folder that `llava-prep to-h5` has written"),
    ],
)
@pytest.mark.parametrize("use", [ShardReader, verify])
def test_a_folder_without_a_manifest_gets_a_sentence_that_says_what_to_do(tmp_path, make, sentence, use):
    folder = tmp_path / "h5"
    if make is not None:
        (folder / make).parent.mkdir(parents=True, exist_ok=True)
        (folder / make).mkdir() if make.endswith("/") else (folder / make).touch()
    with pytest.raises(ShardError) as error:
        use(folder)
    assert sentence.format(folder=folder) in str(error.value)


def test_later_releases_of_the_model_zoo_are_named(tmp_path, tiny_tokenizer_dir):
    with h5py.File(tmp_path / "output_chunk_0_0.h5", "w") as file:
        file["data"] = np.zeros((2, 5, SLOTS), np.int32)
    with pytest.raises(ShardError, match="written by a release after 2.3"):
        ShardReader.open_cerebras(tmp_path, tiny_tokenizer_dir, 35)


def test_a_manifest_of_another_layout_is_refused(folder, layout):
    edit(folder, layout={**layout.attributes(), "image_start_idx": 9})
    with pytest.raises(ShardError, match="not of this folder's layout: image_start_idx is 2, expected 9"):
        ShardReader(folder)[0]
    assert len(verify(folder).faults) == 2


ENTRY = {"file": "shard-0.h5", "rows": 4, "sha256": "0" * 64}


@pytest.mark.parametrize(
    "change",
    [
        {"shards": 3},
        {"accounting": None},
        {"shards": [{"file": "a"}]},
        {"layout": []},
        {"shards": [ENTRY, ENTRY]},
        *({"shards": [{**ENTRY, "file": name}]} for name in ("../shard-0.h5", "/shard-0.h5", "", ".", "a\0b")),
        *({"shards": [{**ENTRY, "rows": count}]} for count in (-1, 0, True, 4.0, "4")),
        *({"shards": [{**ENTRY, "sha256": value}]} for value in ("", "F" * 64, None)),
    ],
)
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
