"""`llava-prep verify`: are these shards what was written?"""

from __future__ import annotations

from pathlib import Path

import click

from dataprep.commands.door import door, result, say
from dataprep.errors import Exit


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Compare sha256 and counts only; do not decode the rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(folder: Path, quick: bool, as_json: bool) -> int:
    """Compare every shard of FOLDER (and of its holdout/) with the manifest. Exit 5 on any difference.

    Compared are sha256, rows and accounting; the rows are decoded and their content hash is made anew. Files are opened
    in child processes with limits, so a damaged one is a sentence and no crash. Uses all cores.
    """
    from tqdm import tqdm

    from dataprep.verification import verify

    with tqdm(unit="B", unit_scale=True, disable=True if as_json else None) as bar:
        verdict = verify(folder, bar.update, bar.reset, decode=not quick)
    for fault in verdict.faults:
        say(f"llava-prep: {fault}")
    for leftover in verdict.leftovers:
        say(f"llava-prep: {leftover}: left by a run that was killed; it can be deleted when no `to-h5` runs")
    values = {"folder": str(folder), "shards": verdict.num_shards, "rows": verdict.num_rows}
    values |= {"faults": verdict.faults, "leftovers": verdict.leftovers}
    text = f"{folder}: {verdict.num_shards} shards, {verdict.num_rows} rows: {_advice(verdict.faults)}"
    result(values, as_json, text)
    return Exit.INTEGRITY if verdict.faults else Exit.OK


def _advice(faults: list[str]) -> str:
    if not faults:
        return "all as written"
    return f"{len(faults)} faults; the same `to-h5` again makes damaged shards anew"
