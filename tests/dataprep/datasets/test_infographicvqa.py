"""InfographicVQA: the names of its releases, tables of the other task, and pictures as high as its own."""

import json

import numpy as np
import pytest
from PIL import Image

from dataprep.datasets import DATASETS
from dataprep.errors import CommandError
from dataprep.images import ImageFault, load_image
from tests.dataprep.datasets.harness import IMAGE, bitmap, converted, options_for, write_table

INFOGRAPHICVQA = DATASETS["infographicvqa"]


def write_raw(folder, name, pictures):
    (folder / pictures).mkdir(parents=True, exist_ok=True)
    asked = {
        "questionId": 65718,
        "question": f"Asked in {name}?",
        "image_local_name": "20471.jpeg",
        "answers": ["serif fonts, bold"],
        "data_split": "train",
    }
    (folder / name).write_text(json.dumps({"data": [asked]}), "utf-8")


def run(tmp_path, splits=()):
    options = options_for("infographicvqa", tmp_path, splits)
    return converted("infographicvqa", tmp_path / "raw", options, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("infographicsVQA_train_v1.0.json", "infographicsvqa_images"),
        ("infographicsVQA_train_v1.0_withQT.json", "images"),
        ("infographicVQA_train_v1.0.json", "infographicVQA_train_v1.0_images"),
    ],
)
def test_every_releases_names_are_known(tmp_path, name, pictures):
    write_raw(tmp_path / "raw", name, pictures)
    (record,) = run(tmp_path).records
    assert record["id"] == "infographicvqa-train-20471"
    assert record["image"] == f"raw/{pictures}/20471.jpeg"
    assert record["conversations"][1]["value"] == "serif fonts, bold"


def test_the_file_with_types_is_read_where_both_are_there(tmp_path):
    for name in ("infographicsVQA_train_v1.0.json", "infographicsVQA_train_v1.0_withQT.json"):
        write_raw(tmp_path / "raw", name, "images")
    assert [record["conversations"][0]["value"].split("\n")[1] for record in run(tmp_path).records] == [
        "Asked in infographicsVQA_train_v1.0_withQT.json?"
    ]


def test_the_files_of_docvqa_are_not_its_own(tmp_path):
    write_raw(tmp_path, "train_v1.0.json", "images")
    with pytest.raises(CommandError, match=r"no infographicsVQA_train_v1\.0_withQT\.json there, and no parquet file"):
        INFOGRAPHICVQA.parts(tmp_path, options_for("infographicvqa", tmp_path))


def test_a_table_of_pages_is_not_read_as_infographics(tmp_path):
    row = {"questionId": "1", "question": "q", "image": {"bytes": bitmap(2, 2)}, "ucsf_document_id": "x"}
    write_table(tmp_path / "raw" / "validation-0.parquet", [row], {"image": IMAGE})
    with pytest.raises(CommandError, match="has a column 'ucsf_document_id', so it is not of infographicvqa"):
        run(tmp_path, ("val",))


def test_every_kind_of_question_is_kept_for_scoring(tmp_path):
    rows = [
        {
            "questionId": str(number),
            "question": f"q {number}",
            "answers": ["a"],
            "answer_type": kinds,
            "image": {"bytes": bitmap(2, 2)},
            "operation/reasoning": ["counting"],
            "data_split": "val",
        }
        for number, kinds in enumerate([["single span"], ["multi-span", "question span"], None])
    ]
    write_table(tmp_path / "raw" / "data" / "validation-0.parquet", rows, {"image": IMAGE})
    result = run(tmp_path, ("val",))
    assert [record.get("kind", "") for record in result.records] == ["single span", "multi-span+question span", ""]


@pytest.mark.parametrize("fit", ["pad", "crop"])
def test_a_picture_12000_pixels_high_can_be_trained_on(tmp_path, fit):
    Image.new("RGB", (1000, 12_000), (200, 30, 30)).save(tmp_path / "high.jpeg", "PNG")
    pixels = load_image(tmp_path / "high.jpeg", 28, fit, (1, 2, 3))
    assert pixels.shape == (28, 28, 3)
    assert np.abs(pixels[14, 14].astype(int) - (200, 30, 30)).max() <= 1
    assert pixels[14, 0].tolist() == ([1, 2, 3] if fit == "pad" else [200, 30, 30])


def test_a_picture_of_120_million_pixels_is_refused(tmp_path):
    Image.new("1", (3000, 40_000)).save(tmp_path / "huge.png")
    with pytest.raises(ImageFault, match="120000000 pixels") as caught:
        load_image(tmp_path / "huge.png", 28, "crop", (1, 2, 3))
    assert caught.value.reason == "image_too_large"
