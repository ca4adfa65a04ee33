"""`llava-prep verify`: are these shards what was written?"""

from __future__ import annotations

from pathlib import Path

import click

from dataprep.commands.door import door, existing_folder, result, say
from dataprep.errors import Exit


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--quick", is_flag=True, help="Compare sha256, and the counts with each other; do not decode the rows.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(folder: Path, quick: bool, as_json: bool) -> int:
    """Compare every shard of FOLDER (and of its holdout/) with the manifest. Exit 5 on any difference.

    Compared are sha256 and, row by row, the content hash; what the rows add up to (records, text-only ones, attended
    and trained tokens) with the accounting; that with itself, with refused.jsonl, data_params.json, tokenizer/ and what
    holdout/ says. Files are opened in child processes with limits, so a damaged one is a sentence and no crash. Uses
    all cores.
    """
    from tqdm import tqdm

    from dataprep.report.wording import number
    from dataprep.verification import verify

    existing_folder(folder, "verify")
    with tqdm(unit="B", unit_scale=True, disable=True if as_json else None) as bar:
        verdict = verify(folder, bar.update, bar.reset, decode=not quick)
    for fault in verdict.faults:
        say(f"llava-prep: {fault}")
    for leftover in verdict.leftovers:
        say(f"llava-prep: {leftover}: left by a run that was killed; it can be deleted when no `to-h5` runs")
    values = {"folder": str(folder), "shards": verdict.num_shards, "rows": verdict.num_rows}
    values |= {"faults": verdict.faults, "leftovers": verdict.leftovers}
    size = f"{number(verdict.num_shards, 'shard')}, {number(verdict.num_rows, 'row')}"
    found = f"{number(len(verdict.faults), 'fault')}; the same `to-h5` again makes damaged shards anew"
    result(values, as_json, f"{folder}: {size}: {found if verdict.faults else 'all as written'}")
    return Exit.INTEGRITY if verdict.faults else Exit.OK
