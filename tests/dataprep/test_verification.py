"""`verify`: every shard's bytes and rows, its holdout, the small files beside it, and what a killed run left."""

import json

import h5py
import numpy as np
import pytest

from dataprep.shards import ShardError, ShardWriter, publish
from dataprep.shards.fingerprint import tokenizer_fingerprint
from dataprep.shards.manifest import file_sha256
from dataprep.verification import Verdict, require_shard, verify
from tests.dataprep.shards import made


@pytest.fixture
def folder(tmp_path):
    rows = made.rows(7)
    return made.write_folder(tmp_path / "shards", rows[:4], rows[4:])


def forge(folder, name="shard-0.h5", **entry) -> None:
    """Make the manifest agree with a changed file."""
    shards = json.loads((folder / "manifest.json").read_text())["shards"]
    for shard in shards:
        if shard["file"] == name:
            shard |= {"sha256": file_sha256(folder / name), **entry}
    made.edit(folder, shards=shards)


def test_a_whole_folder_has_no_fault(folder):
    assert verify(folder) == Verdict(2, 7)
    assert verify(folder, decode=False) == Verdict(2, 7)


def test_progress_is_told_in_bytes(folder):
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.h5"))]
    told, totals = [], []
    verify(folder, told.append, totals.append)
    assert (told, totals) == (sizes, [sum(sizes)])


@pytest.mark.parametrize("dtype", ["int32", "uint16"])
def test_the_content_hash_is_made_again_from_the_rows(tmp_path, dtype):
    folder = made.write_folder(tmp_path / "shards", made.rows(3), dtype=dtype)
    assert verify(folder).faults == []
    forge(folder, content_sha256="0" * 64)
    (fault,) = verify(folder).faults
    assert f"{folder}/shard-0.h5: content_sha256 is" in fault and f"expected {'0' * 64}" in fault
    assert verify(folder, decode=False).faults == []


def changed(name, index, value):
    def change(file):
        data = file[name][:]
        data[index] = value
        file[name][...] = data

    return change


def without(name):
    def change(file):
        del file[name]

    return change


def attribute(name, value):
    def change(file):
        file.attrs[name] = value

    return change


LIES = [
    (changed("data", (1, 0, 0), made.VOCAB_SIZE), "content_sha256 is"),
    (changed("data", (1, 1, 0), 2), "row 1: loss_mask is not 0 or 1"),
    (changed("data", (1, 3, 0), 1), "row 1: length is"),
    (changed("data", (1, 0, -1), 7), "row 1: something stands behind slot"),
    (changed("img_path", 1, b"other.jpg"), "content_sha256 is"),
    (changed("img_path", 1, b"None"), "row 1: has_image is True, expected False"),
    (changed("length", 2, 1), "row 2: length is 1, expected"),
    (changed("num_loss_tokens", 2, 77), "row 2: num_loss_tokens is 77, expected"),
    (changed("has_image", 0, True), "row 0: has_image is True, expected False"),
    (changed("source/file", 0, 9), "source/file points outside the 2 source_files"),
    (without("data"), "no dataset data"),
    (without("length"), "no dataset length"),
    (without("source"), "no dataset source/file"),
    (attribute("image_start_idx", 3), "not of this folder's layout: image_start_idx is 3, expected 2"),
    (attribute("image_start_idx", "two"), "attribute image_start_idx is 'two', expected int"),
    (attribute("n_examples", 9), "n_examples is 9, expected 4"),
    (attribute("features", ["a", "b", "c", "d"]), "features"),
]


def test_shards_that_contradict_themselves_or_the_manifest_are_named(tmp_path):
    folder = made.write_folder(tmp_path / "shards", *[made.rows(4)] * (len(LIES) + 1))
    for number, (change, _) in enumerate(LIES):
        with h5py.File(folder / f"shard-{number}.h5", "r+") as file:
            change(file)
        forge(folder, f"shard-{number}.h5")
    faults = verify(folder).faults
    assert len(faults) == len(LIES)
    for number, (fault, (_, sentence)) in enumerate(zip(faults, LIES, strict=True)):
        assert fault.startswith(f"{folder}/shard-{number}.h5: ") and sentence in fault
    with pytest.raises(ShardError, match="shard-0.h5: content_sha256 is"):
        require_shard(folder, 3)
    require_shard(folder, 4 * len(LIES))


def test_a_shard_in_anothers_place_is_named(folder):
    (folder / "shard-0.h5").rename(folder / "x")
    (folder / "shard-1.h5").rename(folder / "shard-0.h5")
    (folder / "x").rename(folder / "shard-1.h5")
    assert len(verify(folder).faults) == 2


def test_embedded_pictures_are_decoded_and_hashed(tmp_path):
    from dataprep.shards.embedded import code_picture

    layout, writer = made.a_layout(), ShardWriter(made.a_layout())
    pixels = np.random.default_rng(0).integers(0, 256, (layout.image_size, layout.image_size, 3), np.uint8)
    rows = made.rows(3)
    for row in rows:
        writer.write(row)
    for row in rows[1:]:
        assert row.img_path is not None
        writer.add_picture(row.img_path, code_picture(pixels))
    image = writer.finish()
    folder = made.write_folder(tmp_path / "shards", rows)
    publish(folder / "shard-0.h5", image.content)
    forge(folder, content_sha256=image.content_sha256)
    assert verify(folder).faults == []
    with h5py.File(folder / "shard-0.h5", "r+") as file:
        file["pictures/code"][20] ^= 1
    forge(folder)
    (fault,) = verify(folder).faults
    assert f"{folder}/shard-0.h5" in fault


def test_a_holdout_is_checked_too(folder):
    made.write_folder(folder / "holdout", made.rows(2))
    assert verify(folder) == Verdict(3, 9)
    assert verify(folder / "holdout") == Verdict(1, 2)
    path = folder / "holdout/shard-0.h5"
    path.write_bytes(path.read_bytes()[:-1])
    (fault,) = verify(folder).faults
    assert fault.startswith(f"{path}: damaged: sha256")


def test_a_holdout_that_is_missing_or_unfinished_is_named(folder):
    made.edit(folder, config={"holdout": 0.1})
    assert verify(folder, decode=False).faults == [f"{folder}/holdout: no such folder; `llava-prep to-h5` makes one"]
    (folder / "holdout/.tasks").mkdir(parents=True)
    assert "holdout: the compile is unfinished" in verify(folder, decode=False).faults[0]
    made.write_folder(folder / "holdout", made.rows(1))
    made.edit(folder / "holdout", config={"holdout": 0.1})
    assert verify(folder, decode=False).faults == verify(folder / "holdout", decode=False).faults == []


def test_what_a_killed_run_left_is_told_and_is_no_fault(folder):
    (folder / ".shard-00001.h5.4711.tmp").write_bytes(b"half")
    assert verify(folder) == Verdict(2, 7, [], [str(folder / ".shard-00001.h5.4711.tmp")])


def test_an_accounting_that_does_not_add_up_is_named(folder):
    whole = {"rows": 7, "records": 9, "written": 7, "num_refused": 1, "deduplicated": 1}
    made.edit(folder, accounting=whole)
    assert verify(folder).faults == []
    for broken in ({**whole, "records": 8}, {**whole, "written": "7"}, {**whole, "num_refused": None}):
        made.edit(folder, accounting=broken)
        assert verify(folder, decode=False).faults == [
            f"{folder}: records, written, refused and deduplicated do not add up"
        ]
    made.edit(folder, accounting={**whole, "rows": 6})
    assert verify(folder, decode=False).faults == [f"{folder}: the accounting says 6 rows, the shards hold 7"]


def test_the_small_files_beside_the_shards_are_compared(folder):
    (folder / "refused.jsonl").write_text("")
    (folder / "data_params.json").write_text('{"image_patch_info": {"image_patch_start_idx": 2}}')
    assert verify(folder, decode=False).faults == []
    (folder / "refused.jsonl").write_text("{}\n{}\n")
    assert verify(folder, decode=False).faults == [f"{folder}/refused.jsonl: 2 refusals, the manifest says 0"]
    (folder / "refused.jsonl").unlink()
    (folder / "data_params.json").write_text('{"image_patch_info": {"image_patch_start_idx": 35}}')
    assert "data_params.json: image_patch_start_idx is 35, the shards have 2" in verify(folder, decode=False).faults[0]
    (folder / "data_params.json").write_text("{")
    assert "a file beside the shards is damaged" in verify(folder, decode=False).faults[0]


def test_a_changed_tokenizer_beside_the_shards_is_named(folder, tiny_tokenizer_dir):
    (folder / "tokenizer").symlink_to(tiny_tokenizer_dir)
    found = tokenizer_fingerprint(tiny_tokenizer_dir)
    assert verify(folder, decode=False).faults == [
        f"{folder}/tokenizer: fingerprint {found[:12]}…, the shards have {'f' * 12}…"
    ]
