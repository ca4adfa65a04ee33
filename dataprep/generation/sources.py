"""What is known of pictures: captions and boxes.

COCO's json, as published (https://cocodataset.org/#format-data), captions and objects in a file each:

    captions_val2017.json   {"images": [{"id": 785, "file_name": "000000000785.jpg", "width": 640, "height": 425}, ...],
                             "annotations": [{"image_id": 785, "caption": "A woman on skis ..."}, ...]}
    instances_val2017.json  {"images": [...], "categories": [{"id": 1, "name": "person"}, ...],
                             "annotations": [{"image_id": 785, "category_id": 1, "bbox": [280.8, 44.7, 218.7, 346.7]}]}

(a box is left, top, width, height in pixels), or one jsonl with shares of width and height, as in LLaVA's
caps_boxes_coco2014_val_80.jsonl (where `boxes` is called `instances`):

    {"id": "785", "image": "val2017/000000000785.jpg", "captions": ["A woman on skis ..."],
     "boxes": [{"category": "person", "bbox": [0.439, 0.105, 0.780, 0.921]}]}

A COCO file is read whole, but for the outlines in it: instances_train2017.json takes about 1 GB of memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dataprep.conversation import MAX_LINE_BYTES
from dataprep.datasets.base import Refused
from dataprep.errors import CommandError
from dataprep.images import ImageFault, check_key
from dataprep.json_stream import bounded_lines

Edges = tuple[float, float, float, float]

#: How far an edge may lie outside, from rounding.
_SLACK = 0.01


@dataclass(frozen=True, slots=True)
class Box:
    """An object and where it is."""

    category: str
    edges: Edges
    """Left, top, right, bottom, as shares of width and height."""


@dataclass(frozen=True, slots=True)
class Record:
    """A picture."""

    id: str
    image: str
    """Its key, relative to the image root."""
    captions: list[str]
    boxes: list[Box] = field(default_factory=list)
    file: str = ""
    line: int = 0


class _Image(msgspec.Struct):
    id: int
    file_name: str
    width: int = 0
    height: int = 0


class _Category(msgspec.Struct):
    id: int
    name: str


class _Annotation(msgspec.Struct):
    image_id: int
    caption: str = ""
    category_id: int | None = None
    bbox: Edges | None = None


class _Coco(msgspec.Struct):
    images: list[_Image]
    annotations: list[_Annotation]
    categories: list[_Category] = []


class _LineBox(msgspec.Struct):
    category: str
    bbox: Edges


class _Line(msgspec.Struct):
    id: str | int
    image: str
    captions: list[str]
    boxes: list[_LineBox] | None = None
    instances: list[_LineBox] = []


def read_coco(captions: Path, boxes: Path | None, prefix: str) -> Iterator[Record | Refused]:
    """Yield COCO's pictures in the order of the file of captions.

    Args:
        boxes: the file of objects.
        prefix: the folder of the pictures, put before `file_name`: `coco/train2017`.

    Raises:
        CommandError: a file is not of this kind, or boxes name an unknown category.
    """
    said = _coco(captions)
    words: dict[int, list[str]] = {}
    for annotation in said.annotations:
        words.setdefault(annotation.image_id, []).append(annotation.caption)
    objects = _objects(boxes) if boxes else {}
    for line, image in enumerate(said.images, 1):
        record_id, key = str(image.id), f"{prefix.strip('/')}/{image.file_name}" if prefix else image.file_name
        found = objects.get(image.id, [])
        placed = [Box(name, _shares(edges, image)) for name, edges in found] if image.width and image.height else []
        refused = _fault(key, words.get(image.id, []), placed, len(found))
        if refused:
            yield Refused(*refused, str(captions), line, record_id)
        else:
            yield Record(record_id, key, _cleaned(words[image.id]), placed, str(captions), line)


def read_lines(path: Path) -> Iterator[Record | Refused]:
    """Yield the pictures of a jsonl file."""
    decoder = msgspec.json.Decoder(_Line)
    for number, line in enumerate(bounded_lines(path), 1):
        try:
            if len(line) > MAX_LINE_BYTES:
                raise msgspec.ValidationError(f"more than {MAX_LINE_BYTES} bytes")
            found = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            yield Refused("bad_record", str(error), str(path), number, "")
            continue
        boxes = [Box(box.category, box.bbox) for box in (found.instances if found.boxes is None else found.boxes)]
        refused = _fault(found.image, found.captions, boxes, len(boxes))
        if refused:
            yield Refused(*refused, str(path), number, str(found.id))
        else:
            yield Record(str(found.id), found.image, _cleaned(found.captions), boxes, str(path), number)


def _coco(path: Path) -> _Coco:
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Coco)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CommandError(f"{path}: expected COCO's json with `images` and `annotations`: {error}") from None


def _objects(path: Path) -> dict[int, list[tuple[str, Edges]]]:
    """Return the names and boxes of each picture."""
    coco = _coco(path)
    names = {category.id: category.name for category in coco.categories}
    objects: dict[int, list[tuple[str, Edges]]] = {}
    for annotation in coco.annotations:
        if annotation.bbox is None:
            continue
        if annotation.category_id not in names:
            raise CommandError(f"{path}: a box of category {annotation.category_id}, which `categories` does not have")
        objects.setdefault(annotation.image_id, []).append((names[annotation.category_id], annotation.bbox))
    return objects


def _shares(edges: Edges, image: _Image) -> Edges:
    left, top, width, height = edges
    right, bottom = left + width, top + height
    return left / image.width, top / image.height, right / image.width, bottom / image.height


def _fault(image: str, captions: list[str], boxes: list[Box], num_boxes: int) -> tuple[str, str] | None:
    """Return why a picture cannot be asked about: reason and detail."""
    try:
        check_key(image)
    except ImageFault as fault:
        return fault.reason, str(fault)
    if not _cleaned(captions):
        return "no_captions", f"{num_boxes} boxes, no caption"
    if len(boxes) < num_boxes:
        return "bad_box", "a picture without width and height"
    for box in boxes:
        left, top, right, bottom = box.edges
        if not (-_SLACK <= left < right <= 1 + _SLACK and -_SLACK <= top < bottom <= 1 + _SLACK):
            return "bad_box", f"{box.category} at {box.edges}; expected left, top, right, bottom between 0 and 1"
    return None


def _cleaned(captions: list[Any]) -> list[str]:
    """Return captions of one line each, without those that say nothing."""
    return [words for caption in captions if (words := " ".join(caption.split()))]
