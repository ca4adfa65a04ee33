"""Pictures taken out of tables and archives' json: the stored bytes, under a name of their own, written once."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from dataprep.conversation import Refusal
from dataprep.datasets.base import Options
from dataprep.datasets.raw import Picture
from dataprep.shards.writer import whole_file

#: First bytes of a file, and the extension that goes with them. Published names lie too often to be kept.
_MAGIC = (
    (b"\xff\xd8\xff", "jpg"),
    (b"\x89PNG\r\n", "png"),
    (b"GIF8", "gif"),
    (b"BM", "bmp"),
    (b"II*\0", "tif"),
    (b"MM\0*", "tif"),
)


def extension(content: bytes) -> str:
    """Return the file name extension of a picture's format, `img` where it is not known."""
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return "webp"
    return next((name for magic, name in _MAGIC if content.startswith(magic)), "img")


def content_name(content: bytes) -> str:
    """Return a name that two pictures share exactly if they are the same bytes."""
    return hashlib.sha256(content).hexdigest()[:20]


def stored_bytes(picture: Picture | None) -> bytes:
    """Return the bytes of a table's picture.

    Raises:
        Refusal: `missing_image`, the table holds none (a name alone is of a file that only its author has).
    """
    if picture is None or picture.bytes is None:
        named = f", only the name {picture.path!r}" if picture is not None and picture.path else ""
        raise Refusal("missing_image", f"the table holds no picture{named}")
    return picture.bytes


def keep_picture(content: bytes, stem: str, options: Options) -> str:
    """Write a picture's bytes, untouched, under the folder for this dataset's pictures, unless they are there already.

    Two pictures never share a file, whatever they are called and wherever they come from: a hash of the content is part
    of the name, so that a jsonl made earlier keeps its pictures.

    Args:
        content: the encoded picture.
        stem: its path there without extension, made by us: `train-00016/000123`.

    Returns:
        The image key.

    Raises:
        Refusal: `unreadable_image`, there are no bytes.
    """
    if not content:
        raise Refusal("unreadable_image", "the picture has no bytes")
    name = content_name(content)
    stem = stem if stem.endswith(name) else f"{stem}-{name[:10]}"
    path = options.images / PurePosixPath(f"{stem}.{extension(content)}")
    if not _holds(path, content):
        write_whole(path, content)
    return path.relative_to(options.image_root).as_posix()


def _holds(path: Path, content: bytes) -> bool:
    return path.is_file() and path.stat().st_size == len(content) and path.read_bytes() == content


def write_whole(path: Path, content: bytes) -> None:
    """Write a picture that is there with all its bytes or not at all, also where two workers write it at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, durable=False) as file:  # a hundred thousand small files: what is lost is written again
        file.write(content)
