"""Which records were refused, with a few examples of each reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

#: Examples kept of each reason, and bytes of `refused.jsonl` read to find them.
EXAMPLES = 3
MAX_BYTES = 64 << 20

#: A line longer than this is no example.
MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Example:
    """One refused record, as `refused.jsonl` has it."""

    file: str
    line: int
    id: str
    detail: str


def refusal_examples(folder: Path, refused: dict[str, int], image_root: str) -> dict[str, list[Example]]:
    """Return up to `EXAMPLES` of each reason, the first of `refused.jsonl`.

    Args:
        refused: counts by reason; reading ends when there is nothing more to find.
        image_root: taken off the paths in the details, since a report is shown to others.
    """
    wanted = {reason: min(count, EXAMPLES) for reason, count in refused.items()}
    found: dict[str, list[Example]] = {reason: [] for reason in refused}
    for entry in _entries(folder / "refused.jsonl"):
        if all(len(found[reason]) >= number for reason, number in wanted.items()):
            break
        reason = entry.get("reason")
        if isinstance(reason, str) and len(found.get(reason, ())) < wanted.get(reason, 0):
            found[reason].append(_example(entry, image_root))
    return found


def _entries(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the entries of the first `MAX_BYTES`; what is no entry is passed over."""
    if not path.is_file():
        return
    with open(path, "rb") as lines:
        while lines.tell() < MAX_BYTES and (line := lines.readline(MAX_LINE)):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(entry, dict):
                yield entry


def _example(entry: dict[str, Any], image_root: str) -> Example:
    line = entry.get("line")
    detail = str(entry.get("detail", ""))
    if len(image_root) > 1:
        detail = detail.replace(image_root.rstrip("/") + "/", "")
    return Example(str(entry.get("file", "")), line if isinstance(line, int) else 0, str(entry.get("id", "")), detail)
