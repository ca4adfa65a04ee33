"""A folder of shards against its manifest: every byte, and every row as it reads."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dataprep.compiler import Tally
from dataprep.output import HOLDOUT_NAME, data_params
from dataprep.provenance import differences
from dataprep.shards.audit import Held
from dataprep.shards.fingerprint import tokenizer_fingerprint
from dataprep.shards.guarded import Guards
from dataprep.shards.layout import RowLayout, ShardError
from dataprep.shards.manifest import MANIFEST_NAME, read_manifest, require_sha256
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
    manifest: dict[str, Any]

    @property
    def shards(self) -> list[dict[str, Any]]:
        return self.manifest["shards"]

    @property
    def accounting(self) -> dict[str, Any]:
        return self.manifest["accounting"]

    @property
    def holdout(self) -> bool:
        """Whether the compile kept records from training."""
        config = self.manifest.get("config")
        return isinstance(config, dict) and bool(config.get("holdout"))


def verify(
    folder: Path,
    progress: Callable[[int], object] = lambda _: None,
    started: Callable[[int], object] = lambda _: None,
    decode: bool = True,
) -> Verdict:
    """Check a folder of shards, on all cores: sha256, the decoded rows' content hash, and what they add up to.

    Args:
        progress: called with the bytes of shards checked since the last call.
        started: called once, with the bytes of all shards.
        decode: false compares sha256, and the counts with each other, but not with the rows.

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
    found: list[Held | None] = []
    with Guards() as guards:
        pool = ThreadPoolExecutor(num_cores(len(work)))
        try:
            for result, size in zip(pool.map(partial(_audit, guards if decode else None), work), sizes, strict=True):
                verdict.faults += [result] if isinstance(result, str) else []
                found.append(result if isinstance(result, Held) else None)
                progress(size)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for part in parts:
        held, found = _sum(found[: len(part.shards)]), found[len(part.shards) :]
        verdict.faults += [*_strays(part), *_contradictions(part, held)]
        verdict.leftovers += map(str, sorted(part.folder.glob(".*.tmp")))
    if len(parts) == 2:
        verdict.faults += _holdout_faults(*parts)
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
                result = _audit(guards, (part, shard))
            if isinstance(result, str):
                raise ShardError(result)
        first += shard["rows"]


def _read(folder: Path) -> _Part:
    manifest, _ = read_manifest(folder)
    layout = RowLayout.from_attributes(manifest["layout"], str(folder))
    return _Part(folder, layout, manifest)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _audit(guards: Guards | None, work: tuple[_Part, dict[str, Any]]) -> Held | str | None:
    """Return what the rows of a shard add up to (None: they are not read), or a sentence on what is wrong with it.

    HDF5 opens it only where its bytes are the manifest's, and not in here.
    """
    part, shard = work
    path = part.folder / shard["file"]
    try:
        require_sha256(path, shard["sha256"])
        if guards is not None:
            with guards.one() as child:
                return child.audit_own(path, shard["rows"], str(shard.get("content_sha256")), part.layout)
    except ShardError as error:
        return str(error)
    except OSError as error:
        return f"{path}: cannot be read: {error.strerror}"
    return None


def _sum(found: list[Held | None]) -> Held | None:
    """Return what the shards of a folder hold together; None where one was not read, or is not what it should be."""
    total = Held()
    for held in found:
        if held is None:
            return None
        total = total.followed_by(held)
    return total


def _strays(part: _Part) -> list[str]:
    known = {shard["file"] for shard in part.shards}
    return [
        f"{path}: not in the manifest: delete it, no run will"
        for path in sorted(part.folder.glob("*.h5"))
        if path.name not in known
    ]


def _contradictions(part: _Part, held: Held | None) -> list[str]:
    """Compare the manifest with itself, with what the rows add up to, and with the small files that lie beside it."""
    faults: list[str] = []
    for check in (partial(_count_faults, held=held), _refusals_faults, _params_faults, _tokenizer_faults):
        try:
            faults += check(part)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            faults.append(f"{part.folder}: a file beside the shards is damaged: {type(error).__name__}: {error}")
    return faults


#: Counts of the accounting that the rows themselves add up to.
HELD = ("rows", "written", "text_only", "attended_tokens", "loss_tokens")


def _count_faults(part: _Part, held: Held | None) -> Iterator[str]:
    """Compare the accounting with the shards and with itself: each record ended in one place."""
    place, counts = part.folder / MANIFEST_NAME, part.accounting
    names = ("records", "written", "num_refused", "deduplicated")
    refused = _refused(part)
    wrong = [name for name in dict.fromkeys((*names, *HELD)) if not _is_count(counts.get(name))]
    wrong += ["refused"] if refused is None else []
    for name in wrong:
        kind = "counts by reason" if name == "refused" else "a count"
        yield f"{place}: accounting.{name}: expected {kind}, found {counts.get(name)!r}"
    if held is not None:
        # What a shard's entry says of its rows has been compared with the shard.
        expected = [(name, getattr(held, name), "what the shards hold") for name in HELD]
    else:
        expected = [("rows", sum(shard["rows"] for shard in part.shards), "the rows of all shards")]
    if refused is not None and not {*names}.intersection(wrong):
        written, num_refused, deduplicated = (counts[name] for name in names[1:])
        ends = f"{written} written + {num_refused} refused + {deduplicated} deduplicated"
        expected.append(("records", written + num_refused + deduplicated, ends))
        expected.append(("num_refused", sum(refused.values()), "the sum of accounting.refused"))
    for name, value, why in expected:
        if name not in wrong and counts[name] != value:
            yield f"{place}: accounting.{name}: expected {value} ({why}), found {counts[name]}"


def _refused(part: _Part) -> dict[str, int] | None:
    """Return the refusals of the accounting by reason; None where they are no counts."""
    refused = part.accounting.get("refused")
    return refused if isinstance(refused, dict) and all(map(_is_count, refused.values())) else None


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _holdout_faults(part: _Part, held_out: _Part) -> Iterator[str]:
    """Compare the two folders of one run: nothing else may have taken the place of what it held out."""
    place = held_out.folder / MANIFEST_NAME
    for key in ("config", "tokenizer", "image_root", "inputs", "layout"):
        for change in differences(part.manifest.get(key), held_out.manifest.get(key), key):
            name, _, values = change.partition(" was ")
            value, _, found = values.rpartition(", is ")
            yield f"{place}: {name}: expected {value} (the folder above, of the same run), found {found}"
    expected = part.manifest.get("holdout")
    if expected is None:  # a folder that was compiled before the manifest said it
        return
    for name, value in expected.items() if isinstance(expected, dict) else ():
        if (found := held_out.accounting.get(name)) != value:
            yield f"{place}: accounting.{name}: expected {value} (holdout.{name} of {part.folder}), found {found}"


def _refusals_faults(part: _Part) -> Iterator[str]:
    path, expected = part.folder / "refused.jsonl", _refused(part)
    if not path.is_file() or expected is None:
        return
    with open(path, "rb") as file:
        found = Counter(json.loads(line)["reason"] for line in file if line.endswith(b"\n"))
    for reason in sorted({*found, *expected}):
        if found[reason] != expected.get(reason, 0):
            yield f"{path}: {reason}: expected {expected.get(reason, 0)} refusals, found {found[reason]}"


def _params_faults(part: _Part) -> Iterator[str]:
    """Compare the Model Zoo's summary with what it was made of; what others wrote into it does not matter."""
    path = part.folder / "data_params.json"
    counts: dict[str, Any] = {name: part.accounting.get(name) for name in ("records", *HELD)}
    refused = _refused(part)
    if not path.is_file() or refused is None or not all(map(_is_count, counts.values())):
        return  # nothing to compare, which has been told
    tally = Tally(**counts, refused=Counter(refused))
    found = json.loads(path.read_bytes())
    for section, values in data_params(part.layout, tally, part.manifest).items():
        for name, expected in values.items():
            value = found.get(section, {}).get(name)
            if value != expected:
                yield f"{path}: {section}.{name}: expected {expected} (the manifest and the shards), found {value}"


def _tokenizer_faults(part: _Part) -> Iterator[str]:
    path = part.folder / "tokenizer"
    if not path.is_dir():
        return
    found, expected = tokenizer_fingerprint(path), part.layout.tokenizer_fingerprint
    if found != expected:
        yield f"{path}: fingerprint: expected {expected[:12]}… (the shards'), found {found[:12]}…"
