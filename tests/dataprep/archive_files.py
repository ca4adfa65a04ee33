"""Archives for tests, and what lies in a folder after one was unpacked."""

import gzip
import io
import os
import random
import tarfile
import zipfile
from pathlib import Path

import pytest

from dataprep import archives
from dataprep.archives import unpack_archives
from dataprep.errors import CommandError, Exit
from tests.dataprep.datasets.test_cases import CASES

KINDS = ("zip", "tar", "tgz", "tar.gz")
FULL = os.environ.get("LLAVA_PREP_PROOFS") == "full"
NOISE = random.Random(7)

FILES = {
    "train/train_human.json": b"[]",
    "train/png/0.png": NOISE.randbytes(3000),
    "train/png/1.PNG": NOISE.randbytes(700),
    "train/png/empty.png": b"",
    "val/png/2.png": NOISE.randbytes(512),
}
OTHERS = {
    "train/tables/0.csv": b"a,b",
    "__MACOSX/train/png/._0.png": b"x",
    "train/png/._1.png": b"x",
    ".DS_Store": b"x",
}
PATTERNS = ("png/*.png", "*_human.json")


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, **fields) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for key, value in fields.items():
        setattr(info, key, value)
    return info


def tar_bytes(files: dict[str, bytes], *entries: tarfile.TarInfo, **options) -> bytes:
    """A tar of entries, then files; a name that ends in a slash is a folder."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as tar:
        for info in entries:
            tar.addfile(info, io.BytesIO(bytes(info.size)))
        for name, content in files.items():
            folder = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            tar.addfile(tar_entry(name, folder, size=len(content)), io.BytesIO(content))
    return file.getvalue()


def zip_entry(name: str, mode: int = 0) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("x")
    info.filename = name
    info.external_attr = mode << 16
    return info


def zip_bytes(files: dict[str, bytes], *entries: zipfile.ZipInfo, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for info in entries:
            archive.writestr(info, b"content")
        for name, content in files.items():
            archive.writestr(name, content)
    return file.getvalue()


def made(folder: Path, kind: str, files: dict[str, bytes], name: str = "data") -> Path:
    path = folder / f"{name}.{kind}"
    content = zip_bytes(files) if kind == "zip" else tar_bytes(files)
    path.write_bytes(gzip.compress(content, mtime=0) if kind.endswith("gz") else content)
    return path


def tree(folder: Path, hidden: bool = False) -> dict[str, bytes]:
    """What lies in a folder, less the markers."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and (hidden or not path.name.endswith(".unpacked.json"))
        if not path.name.endswith(".unpacking") or path.name == archives.TEMPORARY
    }


def refusal(archive: Path, into: Path, members=("*",), code: Exit = Exit.INTEGRITY) -> str:
    """The sentence with which an archive is refused; nothing half-written is left, and it is not marked as done."""
    with pytest.raises(CommandError) as caught:
        unpack_archives(archive, into, members)
    assert caught.value.code == code
    assert str(archive) in str(caught.value)
    assert "\n" not in str(caught.value)
    if into.exists():
        assert [path.name for path in into.rglob(".*")] in ([], [f".{archive.name}.unpacking"])
    return str(caught.value)


def chartqa(folder: Path, kind: str, more: bytes = b"") -> Path:
    raw = CASES / "chartqa" / "raw"
    files = {path.relative_to(raw).as_posix(): path.read_bytes() for path in sorted(raw.rglob("*")) if path.is_file()}
    files |= {"ChartQA Dataset/train/png/1.png": more, "ChartQA Dataset/train/tables/1.csv": b"a", "__MACOSX/._x": b"x"}
    folder.mkdir(parents=True, exist_ok=True)
    return made(folder, kind, files, "ChartQA")
