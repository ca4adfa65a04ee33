"""A folder of shards against its manifest: every byte, and every row as it reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dataprep.output import HOLDOUT_NAME
from dataprep.shards.fingerprint import tokenizer_fingerprint
from dataprep.shards.guarded import Guards
from dataprep.shards.layout import RowLayout, ShardError
from dataprep.shards.manifest import read_manifest, require_sha256
from dataprep.shards.once import num_cores


@dataclass(slots=True)
class Verdict:
    """What was found in a folder, `holdout/` below it included."""

    num_shards: int = 0
    num_rows: int = 0
    faults: list[str] = field(default_factory=list)
    """A sentence for each."""
    leftovers: list[str] = field(default_factory=list)
    """Files of a run that was killed in the middle of a write: harmless, and in nobody's way."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A folder and its manifest."""

    folder: Path
    layout: RowLayout
    shards: list[dict[str, Any]]
    accounting: dict[str, Any]
    holdout: bool
    """Whether the compile kept records from training."""


def verify(
    folder: Path,
    progress: Callable[[int], object] = lambda _: None,
    started: Callable[[int], object] = lambda _: None,
    decode: bool = True,
) -> Verdict:
    """Check a folder of shards, on all cores: sha256, and the decoded rows' content hash.

    Args:
        progress: called with the bytes of shards checked since the last call.
        started: called once, with the bytes of all shards.
        decode: false compares sha256 and counts only.

    Raises:
        ShardError: there is no manifest to compare with.
    """
    verdict = Verdict()
    parts = [_read(folder)]
    held_out_itself = folder.resolve().name == HOLDOUT_NAME
    if (parts[0].holdout and not held_out_itself) or (folder / HOLDOUT_NAME).is_dir():
        try:
            parts.append(_read(folder / HOLDOUT_NAME))
        except ShardError as error:
            verdict.faults.append(str(error))
    work = [(part, shard) for part in parts for shard in part.shards]
    sizes = [_size(part.folder / shard["file"]) for part, shard in work]
    started(sum(sizes))
    verdict.num_shards = len(work)
    verdict.num_rows = sum(shard["rows"] for _, shard in work)
    with Guards() as guards:
        pool = ThreadPoolExecutor(num_cores(len(work)))
        try:
            for fault, size in zip(pool.map(partial(_fault, guards if decode else None), work), sizes, strict=True):
                verdict.faults += [fault] if fault else []
                progress(size)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for part in parts:
        verdict.faults += [*_strays(part), *_contradictions(part)]
        verdict.leftovers += map(str, sorted(part.folder.glob(".*.tmp")))
    return verdict


def require_shard(folder: Path, row: int) -> None:
    """Check the shard that holds a row of the folder as `verify` does.

    Raises:
        ShardError: it is not what was written.
    """
    part, first = _read(folder), 0
    for shard in part.shards:
        if first <= row < first + shard["rows"]:
            with Guards() as guards:
                if fault := _fault(guards, (part, shard)):
                    raise ShardError(fault)
        first += shard["rows"]


def _read(folder: Path) -> _Part:
    manifest, _ = read_manifest(folder)
    layout = RowLayout.from_attributes(manifest["layout"], str(folder))
    config = manifest.get("config")
    holdout = isinstance(config, dict) and bool(config.get("holdout"))
    return _Part(folder, layout, manifest["shards"], manifest["accounting"], holdout)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _fault(guards: Guards | None, work: tuple[_Part, dict[str, Any]]) -> str | None:
    """Return what is wrong with a shard; HDF5 opens it only where its bytes are the manifest's, and not in here."""
    part, shard = work
    path = part.folder / shard["file"]
    try:
        require_sha256(path, shard["sha256"])
        if guards is not None:
            with guards.one() as child:
                child.audit_own(path, shard["rows"], str(shard.get("content_sha256")), part.layout)
    except ShardError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None


def _strays(part: _Part) -> list[str]:
    known = {shard["file"] for shard in part.shards}
    return [
        f"{path}: not in the manifest: delete it, no run will"
        for path in sorted(part.folder.glob("*.h5"))
        if path.name not in known
    ]


def _contradictions(part: _Part) -> list[str]:
    """Compare the manifest with itself and with the small files that lie beside it."""
    folder, faults = part.folder, []
    rows = sum(shard["rows"] for shard in part.shards)
    if part.accounting.get("rows") != rows:
        faults.append(f"{folder}: the accounting says {part.accounting.get('rows')} rows, the shards hold {rows}")
    ends = [part.accounting.get(name, -1) for name in ("written", "num_refused", "deduplicated")]
    if not all(type(number) is int and number >= 0 for number in ends) or part.accounting.get("records") != sum(ends):
        faults.append(f"{folder}: records, written, refused and deduplicated do not add up")
    for check in (_refusals_fault, _params_fault, _tokenizer_fault):
        try:
            fault = check(part)
        except (OSError, ValueError, KeyError, TypeError) as error:
            fault = f"{folder}: a file beside the shards is damaged: {error}"
        faults += [fault] if fault else []
    return faults


def _refusals_fault(part: _Part) -> str | None:
    path = part.folder / "refused.jsonl"
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        found = sum(1 for line in file if line.endswith(b"\n"))
    expected = part.accounting.get("num_refused")
    return None if found == expected else f"{path}: {found} refusals, the manifest says {expected}"


def _params_fault(part: _Part) -> str | None:
    path = part.folder / "data_params.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_bytes())["image_patch_info"]["image_patch_start_idx"]
    expected = part.layout.image_start_idx
    return None if found == expected else f"{path}: image_patch_start_idx is {found}, the shards have {expected}"


def _tokenizer_fault(part: _Part) -> str | None:
    path = part.folder / "tokenizer"
    if not path.is_dir():
        return None
    found, expected = tokenizer_fingerprint(path), part.layout.tokenizer_fingerprint
    return None if found == expected else f"{path}: fingerprint {found[:12]}…, the shards have {expected[:12]}…"
