"""Shards against their manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataprep.shards.layout import RowLayout, ShardError
from dataprep.shards.reader import ShardFile, file_sha256, open_shard, read_manifest


def verify(folder: Path) -> tuple[int, int, list[str]]:
    """Check a folder of shards.

    Returns:
        Number of shards, number of rows, and a sentence for each fault.

    Raises:
        ShardError: there is no manifest to compare with.
    """
    manifest, _ = read_manifest(folder)
    layout = RowLayout.from_attributes(manifest["layout"], str(folder))
    faults = [fault for shard in manifest["shards"] if (fault := _fault(folder, shard, layout))]
    known = {shard["file"] for shard in manifest["shards"]}
    faults += [f"{path}: not in the manifest" for path in sorted(folder.glob("*.h5")) if path.name not in known]
    rows = sum(shard["rows"] for shard in manifest["shards"])
    records, written, refused, deduplicated, counted = (
        manifest["accounting"].get(name) for name in ("records", "written", "num_refused", "deduplicated", "rows")
    )
    if counted != rows:
        faults.append(f"{folder}: the accounting says {counted} rows, the shards hold {rows}")
    if None in (records, written, refused, deduplicated) or records != written + refused + deduplicated:
        faults.append(f"{folder}: records, written, refused and deduplicated do not add up")
    return len(manifest["shards"]), rows, faults


def _fault(folder: Path, shard: dict[str, Any], layout: RowLayout) -> str | None:
    path = folder / shard["file"]
    try:
        found = file_sha256(path)
        if found != shard["sha256"]:
            return f"{path}: damaged: sha256 {found[:12]}…, the manifest says {shard['sha256'][:12]}…"
        with open_shard(ShardFile(path, shard["rows"], shard["sha256"]), layout).handle as handle:
            num_examples = handle.attrs["n_examples"]
        if int(num_examples) != shard["rows"]:
            return f"{path}: n_examples {num_examples}, the manifest says {shard['rows']}"
    except ShardError as error:
        return str(error)
    return None
