"""`llava-prep verify`: are these shards what was written?"""

from __future__ import annotations

from pathlib import Path

import click

from dataprep.commands.door import door, result, say
from dataprep.errors import Exit


@click.command("verify")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(folder: Path, as_json: bool) -> int:
    """Compare every shard of FOLDER with the manifest: sha256, rows, accounting. Exit 5 on any difference."""
    from dataprep.verification import verify

    num_shards, num_rows, faults = verify(folder)
    for fault in faults:
        say(f"llava-prep: {fault}")
    values = {"folder": str(folder), "shards": num_shards, "rows": num_rows, "faults": faults}
    verdict = f"{len(faults)} faults; the same `to-h5` again makes damaged shards anew" if faults else "all as written"
    result(values, as_json, f"{folder}: {num_shards} shards, {num_rows} rows: {verdict}")
    return Exit.INTEGRITY if faults else Exit.OK
