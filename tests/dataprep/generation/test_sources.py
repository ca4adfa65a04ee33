"""Captions and boxes as COCO publishes them, and as jsonl."""

import json

import pytest

from dataprep.datasets.base import Refused
from dataprep.errors import CommandError
from dataprep.generation.answers import REASONS
from dataprep.generation.prompts import CONVERSATION, shown
from dataprep.generation.sources import Box, Record, read_coco, read_lines


def write(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@pytest.fixture
def captions(tmp_path, shared):
    """A file of captions for the real sample of boxes; one picture has none."""
    real = json.loads((shared / "raw-coco/person_keypoints_excerpt.json").read_text())
    said = [
        {"image_id": image["id"], "id": 10 * number, "caption": f" A person,\nnumber {number}. "}
        for number, image in enumerate(real["images"][:-1])
    ]
    return write(tmp_path / "captions.json", {"images": real["images"], "annotations": said})


def test_cocos_captions_and_boxes_come_together(captions, shared):
    found = list(read_coco(captions, shared / "raw-coco/person_keypoints_excerpt.json", "coco/val2017"))
    assert [type(each) for each in found] == [Record, Record, Record, Refused]
    first, last = found[0], found[-1]
    assert (first.id, first.image, first.captions) == ("785", "coco/val2017/000000000785.jpg", ["A person, number 0."])
    # 280.79, 44.73, 218.7, 346.68 of 640 by 425: left, top, width, height.
    (box,) = first.boxes
    assert box.category == "person"
    assert box.edges == pytest.approx((0.43873, 0.10525, 0.78045, 0.92096), abs=1e-5)
    assert sum(len(each.boxes) for each in found[:-1]) > 3
    assert (last.reason, last.line) == ("no_captions", 4)
    assert shown(first) == "A person, number 0.\n\nperson: [0.439, 0.105, 0.780, 0.921]"


def test_captions_alone_will_do(captions):
    first = next(iter(read_coco(captions, None, "")))
    assert isinstance(first, Record) and (first.image, first.boxes) == ("000000000785.jpg", [])
    assert shown(first) == "A person, number 0."
    assert [message["role"] for message in CONVERSATION.messages(first)] == ["system", "user", "assistant", "user"]


BAD_FILES = {
    "no json": ("{", "expected COCO's json"),
    "instances in place of captions": ([], "expected COCO's json"),
    "no images": ({"annotations": []}, "expected COCO's json .* missing required field `images`"),
}


@pytest.mark.parametrize(("content", "sentence"), BAD_FILES.values(), ids=BAD_FILES.keys())
def test_a_file_of_another_kind_is_named(tmp_path, content, sentence):
    with pytest.raises(CommandError, match=sentence):
        list(read_coco(write(tmp_path / "a.json", content), None, ""))


def test_a_box_of_no_category_is_named(tmp_path, captions):
    box = {"image_id": 785, "category_id": 9, "bbox": [1, 2, 3, 4]}
    boxes = write(tmp_path / "b.json", {"images": [], "annotations": [box], "categories": [{"id": 1, "name": "cat"}]})
    with pytest.raises(CommandError, match="a box of category 9, which `categories` does not have"):
        list(read_coco(captions, boxes, ""))


GOOD = {"id": 1, "image": "a/1.jpg", "captions": ["A cat."], "boxes": [{"category": "cat", "bbox": [0, 0.1, 0.5, 1]}]}
BAD_LINES = {
    "no json": ("{bad", "bad_record"),
    "no captions": ({"id": 1, "image": "a.jpg"}, "bad_record"),
    "captions of another type": ({**GOOD, "captions": [1]}, "bad_record"),
    "empty captions": ({**GOOD, "captions": [" "]}, "no_captions"),
    "pixels": ({**GOOD, "boxes": [{"category": "cat", "bbox": [5, 5, 90, 80]}]}, "bad_box"),
    "left and right swapped": ({**GOOD, "boxes": [{"category": "cat", "bbox": [0.5, 0, 0.1, 1]}]}, "bad_box"),
    "three edges": ({**GOOD, "boxes": [{"category": "cat", "bbox": [0, 0, 1]}]}, "bad_record"),
    "outside": ({**GOOD, "image": "../a.jpg"}, "unsafe_image_path"),
}


@pytest.mark.parametrize(("line", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_refused_and_the_next_is_read(tmp_path, line, reason):
    bad = line if isinstance(line, str) else json.dumps(line)
    path = write(tmp_path / "a.jsonl", f"{bad}\n{json.dumps(GOOD)}\n")
    first, second = read_lines(path)
    assert isinstance(first, Refused) and (first.reason, first.line) == (reason, 1) and reason in REASONS
    assert second == Record("1", "a/1.jpg", ["A cat."], [Box("cat", (0.0, 0.1, 0.5, 1.0))], str(path), 2)


def test_llavas_own_file_of_captions_and_boxes_is_read(tmp_path):
    line = {**GOOD, "instances": GOOD["boxes"]}
    del line["boxes"]
    (record,) = read_lines(write(tmp_path / "a.jsonl", json.dumps(line)))
    assert isinstance(record, Record) and len(record.boxes) == 1
