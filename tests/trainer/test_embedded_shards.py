"""Training from shards that hold their pictures: no image folder, and the same run."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dataprep.images import load_image, pad_colour
from dataprep.shards import Row, ShardReader, ShardWriter
from dataprep.shards.embedded import code_picture
from tests.trainer.tiny_run import assert_same_steps
from trainer.errors import TrainError


def embed(workplace, root, with_picture=lambda number: True):
    """Copy a workplace's shards, with the pictures in them for the rows that `with_picture` names."""
    (root / "shards").mkdir()
    manifest = json.loads((workplace.root / "shards" / "manifest.json").read_text())
    reader, number = workplace.reader, 0
    for shard in manifest["shards"]:
        writer = ShardWriter(workplace.layout)
        for _ in range(shard["rows"]):
            stored = reader[number]
            features = (stored.text_input_ids, stored.loss_mask, stored.labels, stored.key_padding_mask)
            data = np.stack([np.asarray(feature, dtype=np.int32) for feature in features])
            trained = int(stored.loss_mask.sum())
            if stored.img_path is not None and with_picture(number):
                colour = pad_colour(workplace.layout.image_mean)
                pixels = load_image(workplace.root / "images" / stored.img_path, 28, "pad", colour, "fast")
                writer.add_picture(stored.img_path, code_picture(pixels))
            writer.write(Row(data, stored.img_path, stored.length, trained, stored.source))
            number += 1
        image = writer.finish()
        (root / "shards" / shard["file"]).write_bytes(image.content)
        shard["sha256"] = image.sha256
    (root / "shards" / "manifest.json").write_text(json.dumps(manifest))
    return replace(workplace, root=root)


@pytest.fixture
def embedded(workplace, tmp_path):
    made = embed(workplace, tmp_path)
    (tmp_path / "start").symlink_to(workplace.root / "start")
    return made


@pytest.mark.parametrize(("packing", "max_tokens"), [("packed", 64), ("none", 96)])
def test_a_run_without_image_folder_equals_the_run_with_one(workplace, embedded, tmp_path, packing, max_tokens):
    settings = {"max_tokens": max_tokens}
    assert workplace.train(tmp_path / "files", data={"packing": packing}, **settings) == 0
    assert not (tmp_path / "images").exists()
    assert embedded.train(tmp_path / "out", data={"packing": packing, "image_dir": None}, **settings) == 0
    assert_same_steps(tmp_path / "out", tmp_path / "files", loss_tolerance=0)


def test_loader_workers_read_them_too(workplace, embedded, tmp_path):
    assert workplace.train(tmp_path / "files") == 0
    assert embedded.train(tmp_path / "out", data={"image_dir": None}, num_workers=2) == 0
    assert_same_steps(tmp_path / "out", tmp_path / "files", loss_tolerance=0)


def test_rows_whose_picture_is_not_in_the_shard_need_the_folder(workplace, tmp_path):
    half = embed(workplace, tmp_path, with_picture=lambda number: number < 12)
    (tmp_path / "start").symlink_to(workplace.root / "start")
    assert ShardReader(tmp_path / "shards").has_embedded.any()
    with pytest.raises(TrainError, match="data.image_dir: none is given, and no shard holds"):
        half.train(tmp_path / "out", data={"image_dir": None})
    folder = workplace.root / "images"
    assert half.train(tmp_path / "out", data={"image_dir": folder}) == 0
    assert workplace.train(tmp_path / "files") == 0
    assert_same_steps(tmp_path / "out", tmp_path / "files", loss_tolerance=0)
