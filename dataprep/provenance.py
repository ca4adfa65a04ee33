"""How files were made: the reports of `preprocess` and `mix` under ROOT/reports, what they forbid, and what changed."""

from __future__ import annotations

import glob
import json
import os
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

from dataprep.errors import CommandError, Exit

#: So many changes are named in a sentence.
_NAMED = 3


def read_report(path: Path) -> dict[str, Any]:
    """Return a report; nothing where there is none or it cannot be read."""
    try:
        values = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def refuse_replacing(output: Path, report: Path, made_from: Mapping[str, Any], way_out: str) -> None:
    """Refuse to replace a file that was made from something else: a trial must not take the whole's place.

    Args:
        made_from: what decides the content of the file, as it will stand in the report.
        way_out: what the user can do, the end of the sentence.

    Raises:
        CommandError: the file is there, and its report says otherwise or is missing; exit 4.
    """
    if not output.exists():
        return
    before = read_report(report)
    # The report's own name is the file's; how its path was typed, and from where, says nothing.
    if PurePath(before.get("output", "")).name != output.name:
        raise CommandError(f"{output}: there already, and no report says how it was made. {way_out}", Exit.CONFLICT)
    changes = list(differences({key: before.get(key) for key in made_from}, dict(made_from)))
    if changes:
        more = [f"{len(changes) - _NAMED} more"] if len(changes) > _NAMED else []
        raise CommandError(
            f"{output}: made by another command: {'; '.join(changes[:_NAMED] + more)}. {way_out}", Exit.CONFLICT
        )


def made_by(root: Path, path: Path) -> dict[str, Any] | None:
    """Return the report of the `preprocess` run that made a file, if it is at hand."""
    for report in sorted(root.glob(f"reports/*/{glob.escape(path.stem)}*.json")):
        values = read_report(report)
        if not {"output", "image_root", "source", "dataset"} <= values.keys():
            continue
        # Its path is as it was typed, maybe in another working directory.
        typed = [part for part in PurePath(values["output"]).parts if part not in (".", "..")]
        if list(Path(os.path.abspath(path)).parts[-len(typed) :]) == typed:
            return {"splits": [], "evaluation": False, **values}
    return None


def check_source(root: Path, path: Path) -> str | None:
    """Refuse a file whose pictures do not lie under the root, as those of the other files do.

    Returns:
        A warning, where the file is for evaluation.

    Raises:
        CommandError: its image keys begin elsewhere.
    """
    made = made_by(root, path)
    if made is None:
        return None
    images = Path(made["image_root"])
    # A root that is no more was moved as a whole, with the jsonl in it.
    if images.is_dir() and root.is_dir() and not images.samefile(root):
        source = Path(made["source"])
        folder = source.parent if source.is_file() else source
        link = shlex.join(["ln", "-s", str(folder), str(root / "raw" / made["dataset"])])
        raise CommandError(
            f"{path}: its image keys begin at {images}, not at the root {root}; link the raw data there"
            f" ({shlex.join(['mkdir', '-p', str(root / 'raw')])} && {link}), and preprocess it again from there, with"
            " the same options and --overwrite"
        )
    if made["evaluation"]:
        return f"{path}: made from {', '.join(made['splits'])}: do not train on what you evaluate on"
    return None


def differences(before: Any, now: Any, place: str = "") -> Iterator[str]:
    """Name what differs between two plain values, with both: `config.seed was 0, is 1`."""
    old_files, new_files = _by_file(before), _by_file(now)
    if old_files and new_files:
        if old_files == new_files and list(old_files) != list(new_files):
            yield f"the order of {place} was {', '.join(old_files)}, is {', '.join(new_files)}"
        yield from differences(old_files, new_files, place)
    elif isinstance(before, dict) and isinstance(now, dict):
        for key in {**now, **before}:
            yield from differences(before.get(key), now.get(key), f"{place}.{key}" if place else key)
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for index, (old, new) in enumerate(zip(before, now, strict=True)):
            yield from differences(old, new, f"{place}.{index}")
    elif before != now:
        yield f"{place} was {_short(before)}, is {_short(now)}"


def _by_file(value: Any) -> dict[str, Any]:
    """Return a list of inputs by their files, so that what is said of one names it; nothing for any other value."""
    if isinstance(value, list) and all(isinstance(item, dict) and "file" in item for item in value):
        by_file = {item["file"]: item for item in value}
        return by_file if len(by_file) == len(value) else {}
    return {}


def _short(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    if isinstance(value, dict):
        return "there"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
