"""The `llava-prep` command: a list of its commands."""

from __future__ import annotations

from pathlib import Path

import click

from dataprep.commands import datasets, generate, inspect, mix, preprocess, report, to_h5, verify


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--root", type=click.Path(path_type=Path), help="Workspace folder; default: llava-prep.yaml's, or data.")
@click.version_option(package_name="llava-prep")
@click.pass_context
def main(context: click.Context, root: Path | None) -> None:
    """Compile raw datasets into LLaVA jsonl and then into HDF5 shards.

    \b
    Example, with ChartQA unpacked under data/raw/chartqa and the tokenizer named in llava-prep.yaml:
      llava-prep preprocess --dataset chartqa
      llava-prep to-h5 --phase 2
      llava-prep inspect data/h5/phase2 --row 0
    """
    context.obj = root


main.add_command(preprocess.command)
main.add_command(generate.command)
main.add_command(mix.command)
main.add_command(to_h5.command)
main.add_command(verify.command)
main.add_command(inspect.command)
main.add_command(report.command)
main.add_command(datasets.command)
