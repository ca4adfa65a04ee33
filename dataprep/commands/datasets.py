"""`llava-prep datasets`: what can be preprocessed."""

from __future__ import annotations

import click

from dataprep.commands.door import door, result, table


@click.command("datasets")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(as_json: bool) -> None:
    """List the datasets that `preprocess` knows, with their phases and splits."""
    from dataprep.datasets import DATASETS

    values = {d.name: {"title": d.title, "phases": list(d.phases), "splits": list(d.splits)} for d in DATASETS.values()}
    lines = [(d.name, f"{d.title} (phase {' or '.join(map(str, d.phases))})") for d in DATASETS.values()]
    result(values, as_json, table(lines))
