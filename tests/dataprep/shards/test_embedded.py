"""Pictures inside shards: back to the bit, stored once, and never a wrong one."""

import hashlib
import json
import zlib
from dataclasses import replace

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dataprep.shards import ShardError, ShardReader, ShardWriter
from dataprep.shards.embedded import CODEC, code_picture, decode_picture
from dataprep.verification import verify
from tests.dataprep.shards.made import accounting_of, rows

SIZE = 28


def picture(seed: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 20).flatmap(lambda size: arrays.arrays(np.uint8, (size, size, 3))))
def test_every_picture_comes_back_to_the_bit(pixels):
    coded = code_picture(pixels)
    assert np.array_equal(decode_picture(coded.code, len(pixels)), pixels)
    assert coded.sha256 == hashlib.sha256(pixels.tobytes()).digest()


def test_the_code_is_what_the_readme_says():
    pixels = picture(3).astype(int)
    red, green, blue = (pixels[..., channel] for channel in range(3))
    lines = np.stack([red - green, green, blue - green], axis=1).reshape(SIZE, 3 * SIZE)
    lines[1:] -= lines[:-1].copy()
    assert zlib.decompress(code_picture(picture(3)).code) == (lines % 256).astype(np.uint8).tobytes()


@pytest.mark.parametrize("damage", [lambda code: code[:-1], lambda code: code[:20], lambda code: code[:-4] + b"abcd"])
def test_a_damaged_code_is_an_error(damage):
    code = code_picture(picture(0)).code
    with pytest.raises(ValueError):
        decode_picture(damage(code), SIZE)
    with pytest.raises(ValueError, match="not 27 x 27 pixels"):
        decode_picture(code, SIZE - 1)


@pytest.fixture
def embedded_layout(layout):
    return replace(layout, image_size=SIZE)


@pytest.fixture
def shard(embedded_layout):
    """A shard of seven rows, of which 1, 2, 4 and 5 have pictures: two of them the same pixels, one no picture here."""
    writer = ShardWriter(embedded_layout)
    made = rows(7)
    keys = [row.img_path for row in made]
    assert [key is not None for key in keys] == [False, True, True, False, True, True, False]
    for row, pixels in ((made[1], picture(1)), (made[2], picture(2)), (made[5], picture(1))):
        writer.add_picture(row.img_path, code_picture(pixels))
        writer.add_picture(row.img_path, code_picture(pixels))
    for row in made:
        writer.write(row)
    return writer.finish()


def put(folder, layout, image):
    (folder / "shard-0.h5").write_bytes(image.content)
    entry = {"file": "shard-0.h5", "rows": image.num_rows, "sha256": image.sha256}
    manifest = {"layout": layout.attributes(), "shards": [{**entry, "content_sha256": image.content_sha256}]}
    (folder / "manifest.json").write_text(json.dumps({**manifest, "accounting": accounting_of(rows(7))}))
    return folder


def test_a_row_gets_its_own_picture(shard, tmp_path, embedded_layout):
    with ShardReader(put(tmp_path, embedded_layout, shard)) as reader:
        found = [reader.picture(index) for index in range(7)]
        assert [pixels is not None for pixels in found] == [False, True, True, False, False, True, False]
        assert reader.has_embedded.tolist() == [pixels is not None for pixels in found]
        for index, seed in ((1, 1), (2, 2), (5, 1)):
            assert found[index].dtype == np.uint8 and np.array_equal(found[index], picture(seed))
        with pytest.raises(IndexError):
            reader.picture(7)


def test_equal_pixels_are_stored_once_and_count_as_bytes_once(shard, tmp_path, embedded_layout):
    with h5py.File(put(tmp_path, embedded_layout, shard) / "shard-0.h5") as file:
        assert file["picture"][:].tolist() == [-1, 0, 1, -1, -1, 0, -1]
        assert file["pictures"].attrs["codec"] == CODEC
        assert len(file["pictures/offset"]) == 3
    writer = ShardWriter(embedded_layout)
    sizes = []
    for key, seed in (("a", 1), ("a", 1), ("b", 1), ("c", 2)):
        writer.add_picture(key, code_picture(picture(seed)))
        sizes.append(writer.num_bytes)
    code_size = len(code_picture(picture(1)).code)
    assert sizes[:3] == [code_size] * 3 and sizes[3] == code_size + len(code_picture(picture(2)).code)
    assert writer.has_picture("b") and not writer.has_picture("d")


def test_a_shard_without_pictures_is_what_it_was(layout):
    images = []
    for add in (False, True):
        writer = ShardWriter(layout)
        writer.write(rows(1)[0])
        if add:
            writer.add_picture("of no row", code_picture(picture(0, layout.image_size)))
        images.append(writer.finish())
    assert b"pictures" not in images[0].content
    assert images[0].content_sha256 != images[1].content_sha256


def test_the_content_hash_sees_pixels_and_whose_they_are(embedded_layout):
    hashes = set()
    made = rows(3)[1:]
    for seeds in ((1, 2), (2, 1), (1, 1), (1, 3)):
        writer = ShardWriter(embedded_layout)
        for row, seed in zip(made, seeds, strict=True):
            writer.add_picture(row.img_path, code_picture(picture(seed)))
            writer.write(row)
        hashes.add(writer.finish().content_sha256)
    assert len(hashes) == 4


def edited(path, change):
    """Change a shard and its sha256 in the manifest, as damage before the shard was hashed would."""
    with h5py.File(path, "r+") as file:
        change(file)
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def flip(file):
    file["pictures/code"][200] ^= 1


def swap(file):
    file["picture"][1], file["picture"][2] = 1, 0


def point_outside(file):
    file["picture"][1] = 2


def rename_codec(file):
    file["pictures"].attrs["codec"] = "qoi"


def resize(file):
    file["pictures"].attrs["size"] = 14


def shift(file):
    file["pictures/offset"][2] -= 1


FAULTS = {
    flip: "picture 0: damaged",
    point_outside: "do not fit together",
    rename_codec: "pictures coded as qoi, this program reads rgb-up-zlib",
    resize: "pictures of 14 pixels, image_size is 28",
    shift: "do not fit together",
}


@pytest.mark.parametrize("change", FAULTS)
def test_a_damaged_picture_is_named_by_the_reader(shard, tmp_path, embedded_layout, change):
    edited(put(tmp_path, embedded_layout, shard) / "shard-0.h5", change)
    with ShardReader(tmp_path) as reader, pytest.raises(ShardError, match=FAULTS[change]):
        reader.picture(1)


@pytest.mark.parametrize("change", [None, *FAULTS, swap])
def test_verify_decodes_every_picture(shard, tmp_path, embedded_layout, change):
    put(tmp_path, embedded_layout, shard)
    if change is not None:
        edited(tmp_path / "shard-0.h5", change)
    faults = verify(tmp_path).faults
    assert len(faults) == (change is not None), faults
