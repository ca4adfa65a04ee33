"""`images: embed`: every picture that a row names lies in the row's shard, with the pixels that were asked for."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from dataprep import embedding
from dataprep.config import ImageConfig
from dataprep.embedding import EmbeddedPictures
from dataprep.images import ImageFault, load_image
from dataprep.pipeline import run_job
from dataprep.shards import ShardReader, ShardWriter
from dataprep.verification import verify
from tests.dataprep.shards.made import a_layout
from tests.dataprep.test_images_fit import photo

COLOUR = (122, 116, 104)


def quiet(*_: int) -> None:
    pass


@pytest.fixture
def records(workspace):
    """Forty records over five good pictures, a copy of one of them, a cut one and none."""
    for index in range(5):
        photo(60 + 9 * index, 50, seed=index).save(workspace.root / f"pictures/{index}.jpg")
    shutil.copy(workspace.root / "pictures/0.jpg", workspace.root / "pictures/copy.jpg")
    content = (workspace.root / "pictures/1.jpg").read_bytes()
    (workspace.root / "pictures/cut.jpg").write_bytes(content[:-50])
    names = ["0", "1", "copy", "2", None, "3", "cut", "4"]
    return [workspace.record(n, name and f"pictures/{name}.jpg") for n, name in enumerate(names * 5)]


def compiled(workspace, records, output, workers=1, **config) -> Path:
    source = workspace.write("a.jsonl", records)
    job = workspace.job(source, output=output, images="embed", **config)
    tally = run_job(job, workers, quiet)
    assert (tally.records, tally.written, tally.refused["unreadable_image"]) == (40, 35, 5)
    return job.output


@pytest.mark.parametrize("pixels", ["exact", "fast"])
@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_every_row_has_the_pixels_that_loading_its_file_gives(workspace, records, pixels, fit):
    config = {"image_pixels": pixels, "image": ImageConfig(size=28, fit=fit)}
    folder = compiled(workspace, records, "h5", **config)
    with ShardReader(folder) as reader:
        for index, row in enumerate(reader):
            stored = reader.picture(index)
            assert (stored is None) == (row.img_path is None)
            if row.img_path is not None:
                expected = load_image(workspace.root / row.img_path, 28, fit, COLOUR, pixels)
                assert np.array_equal(stored, expected)
        assert reader.has_embedded.tolist() == reader.has_image.tolist()
    with h5py.File(folder / "shard-00000.h5") as file:
        assert len(file["pictures/offset"]) == 1 + 5
    assert verify(folder).faults == []


def test_the_same_bytes_come_from_any_number_of_workers_and_every_shard_has_its_pictures(workspace, records):
    folders = [compiled(workspace, records, f"h5-{n}", n, shard_rows=8, image_pixels="exact") for n in (1, 2)]
    shards = [sorted(path.read_bytes() for path in folder.glob("*.h5")) for folder in folders]
    assert shards[0] == shards[1] and len(shards[0]) == 5
    shutil.rmtree(workspace.root / "pictures")
    with ShardReader(folders[0]) as reader:
        assert reader.has_embedded.tolist() == reader.has_image.tolist()


def test_pictures_count_against_the_size_of_a_shard(workspace):
    for index in range(12):
        photo(40, 30, seed=index).save(workspace.root / f"pictures/{index}.png")
    source = workspace.write("a.jsonl", [workspace.record(n, f"pictures/{n}.png") for n in range(12)])
    job = workspace.job(source, images="embed", shard_megabytes=1, image=ImageConfig(size=336), max_seq_length=800)
    run_job(job, 1, quiet)
    sizes = [path.stat().st_size for path in job.output.glob("*.h5")]
    assert len(sizes) > 1 and max(sizes) < 1.5 * 2**20


@pytest.fixture
def loaded(monkeypatch):
    """Return the names of the files that were decoded, in order."""
    names = []
    monkeypatch.setattr(embedding, "load_image", lambda path, *rest: names.append(path.name) or load_image(path, *rest))
    return names


def test_a_picture_is_decoded_once_for_its_verdict_and_its_pixels(tmp_path, loaded):
    photo(40, 30).save(tmp_path / "a.png")
    shutil.copy(tmp_path / "a.png", tmp_path / "b.png")
    pictures = EmbeddedPictures(tmp_path, ImageConfig(size=28), "exact", tmp_path / "known.sqlite")
    for _ in range(3):
        writer = ShardWriter(a_layout())
        for key in ("a.png", "b.png", None, "a.png"):
            if key is not None:
                pictures.require(key)
            pictures.embed(key, writer)
        assert writer.has_picture("a.png") and writer.has_picture("b.png")
    assert loaded == ["a.png"]


def test_a_picture_that_is_no_longer_kept_is_decoded_again(tmp_path, loaded, monkeypatch):
    monkeypatch.setattr(embedding, "KEPT_BYTES", 5_000)
    for index in range(9):
        photo(40, 30, seed=index).save(tmp_path / f"{index}.png")
    pictures = EmbeddedPictures(tmp_path, ImageConfig(size=28), "exact")
    writer = ShardWriter(a_layout())
    for index in range(9):
        pictures.require(f"{index}.png")
    for index in range(9):
        pictures.embed(f"{index}.png", writer)
    assert 9 < len(loaded) <= 18
    assert all(writer.has_picture(f"{index}.png") for index in range(9))
    assert sum(len(picture.code) for picture in pictures._kept.values()) == pictures._num_bytes <= 5_000


def test_what_an_earlier_run_refused_is_not_decoded_again(tmp_path, loaded):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.jpg")
    (tmp_path / "a.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:-9])
    for _ in range(2):
        pictures = EmbeddedPictures(tmp_path, ImageConfig(size=28), "exact", tmp_path / "known.sqlite")
        with pytest.raises(ImageFault, match="a.jpg: OSError"):
            pictures.require("a.jpg")
        pictures.flush()
    assert loaded == ["a.jpg"]
