"""The manifest of a folder of shards: which they are, and what each must be."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from dataprep.shards.layout import ShardError
from dataprep.shards.once import stamp_of

MANIFEST_NAME = "manifest.json"


def read_manifest(folder: Path) -> tuple[dict[str, Any], bytes]:
    """Return the manifest of a folder and its bytes.

    Raises:
        ShardError: there is none, or it is not one.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise ShardError(_without_manifest(folder))
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        whole = all(isinstance(manifest[key], dict) for key in ("layout", "accounting")) and all(
            map(_is_entry, manifest["shards"])
        )
        names = [shard["file"] for shard in manifest["shards"]] if whole else []
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ShardError(f"{path}: not a manifest: {error!r}") from None
    if not whole:
        raise ShardError(f"{path}: not a manifest: layout, accounting or an entry of shards is of another kind")
    if len(set(names)) != len(names):
        raise ShardError(f"{path}: not a manifest: it names a shard twice")
    return manifest, raw


def _is_entry(shard: dict[str, Any]) -> bool:
    """Return whether this is a shard's entry: its name leads nowhere else, its hash is one."""
    name, rows, sha256 = shard["file"], shard["rows"], shard["sha256"]
    plain = isinstance(name, str) and name != "" and name == Path(name).name and "\0" not in name
    return plain and type(rows) is int and rows > 0 and isinstance(sha256, str) and bool(_SHA256.fullmatch(sha256))


_SHA256 = re.compile("[0-9a-f]{64}")


def _without_manifest(folder: Path) -> str:
    """Say why a folder has no manifest, and what to do."""
    if not folder.is_dir():
        return f"{folder}: no such folder; `llava-prep to-h5` makes one"
    if (folder / ".tasks").is_dir():
        return f"{folder}: the compile is unfinished; run the same `llava-prep to-h5` again"
    below = [path.parent for depth in ("*", "*/*") for path in sorted(folder.glob(f"{depth}/{MANIFEST_NAME}"))]
    below = [str(place) for place in below if place.parent not in below]  # a holdout belongs to the folder above it
    if below:
        return f"{folder}: no {MANIFEST_NAME} there, but in {', '.join(below)}: give that folder"
    if any(folder.glob("*.h5")):
        return (
            f"{folder}: *.h5 files without a {MANIFEST_NAME}: they were not compiled by `llava-prep to-h5`"
            " (ShardReader.open_cerebras reads the Model Zoo's Release 2.3 files)"
        )
    return f"{folder}: no {MANIFEST_NAME} and no shards there; give a folder that `llava-prep to-h5` has written"


def file_sha256(path: Path) -> str:
    """Return the sha256 (hex) of a file.

    Raises:
        ShardError: there is no such file, or it cannot be read.
    """
    stamp_of(path)
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}") from None


def require_sha256(path: Path, expected: str) -> None:
    """Compare a file with its sha256 (hex).

    Raises:
        ShardError: it has another, or there is no such file.
    """
    found = file_sha256(path)
    if found != expected:
        raise ShardError(f"{path}: damaged: sha256 {found[:12]}…, the manifest says {expected[:12]}…")
