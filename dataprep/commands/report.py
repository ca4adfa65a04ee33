"""`llava-prep report`: the page about a folder of shards, once more."""

from __future__ import annotations

from pathlib import Path

import click

from dataprep.commands.door import door, existing_folder, result, table


@click.command("report")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Write the page there and nothing into FOLDER.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(folder: Path, output: Path | None, as_json: bool) -> None:
    """Write report.html and README.md of FOLDER again, and print the report in a few lines.

    The page is one file that needs no server and asks for nothing: lengths, packing, sources, refusals, a few rows.

    \b
    Example:
      llava-prep report data/h5/phase2
    """
    from dataprep.report import write_report

    written = write_report(existing_folder(folder, "report"), output)
    values = {"report": str(written.page), **written.values}
    result(values, as_json, f"{table(list(written.summary))}\n{written.page}")
