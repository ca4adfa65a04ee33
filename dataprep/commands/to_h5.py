"""`llava-prep to-h5`: jsonl to shards."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataprep.commands.cluster_options import Cluster, cluster_options
from dataprep.commands.compile_config import read_config, source_named
from dataprep.commands.door import door, existing, result, say, table
from dataprep.errors import CommandError, Exit
from dataprep.provenance import check_source

if TYPE_CHECKING:
    from dataprep.compiler import Tally
    from dataprep.pipeline import Job


@click.command("to-h5")
@click.option("--phase", type=click.Choice(["1", "2"]), required=True, help="1: captions; 2: conversations.")
@click.option(
    "--input",
    "inputs",
    multiple=True,
    type=click.Path(path_type=Path),
    help="jsonl files or folders; default: ROOT/jsonl/phaseN.",
)
@click.option("--image-dir", type=click.Path(path_type=Path), help="What image keys are relative to; default: ROOT.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: ROOT/h5/phaseN.")
@click.option("--tokenizer", help="Folder with a tokenizer.json, or a hub id; default: llava-prep.yaml's.")
@click.option("--config", "config_name", help="Shipped name or YAML file; default: phaseN.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config value.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes.")
@click.option("--check-images", type=click.Choice(["decode", "header", "exists", "none"]), help="Default: decode.")
@click.option("--image-fit", type=click.Choice(["pad", "crop"]), help="Default: crop in phase 1, pad in phase 2.")
@click.option("--overlong", type=click.Choice(["truncate", "drop", "split"]), help="Default: truncate.")
@click.option("--template", help="The wording around the turns; default: plain in phase 1, vicuna_v1 in phase 2.")
@click.option(
    "--images", type=click.Choice(["path", "embed"]), help="embed: pictures inside the shards. Default: path."
)
@click.option(
    "--image-pixels", type=click.Choice(["fast", "exact"]), help="Embedded ones: exact is Pillow's. Default: fast."
)
@click.option("--shuffle", type=int, metavar="SEED", help="Put the rows in a seeded order; default: that of the input.")
@click.option("--dedup", type=click.Choice(["none", "exact"]), help="exact: of equal records, compile the first.")
@click.option("--holdout", type=click.FloatRange(0, 1, max_open=True), help="Share of records for OUTPUT/holdout.")
@click.option(
    "--row-width", type=click.Choice(["fixed", "fit"]), help="fit: room for text-only samples of full length."
)
@click.option(
    "--max-refused", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share; more: exit 3."
)
@click.option("--dry-run", is_flag=True, help="Compile a sample, write nothing, say what the run would make.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@door
@cluster_options
def command(
    context: click.Context,
    workers: int,
    max_refused: float,
    dry_run: bool,
    as_json: bool,
    cluster: Cluster | None,
    **options: Any,
) -> int:
    """Compile jsonl files into HDF5 shards: tokens, labels, masks, verified pictures.

    The same command again does what is missing.

    \b
    Examples:
      llava-prep to-h5 --phase 2
      llava-prep to-h5 --phase 2 --input mix.jsonl --image-dir /data --set max_seq_length=4096
      llava-prep to-h5 --phase 2 --images embed --shuffle 0 --dedup exact --holdout 0.01
    """
    from configs.workspace import load_workspace

    workspace = load_workspace()
    job = _job(context.obj or workspace.root, workspace.tokenizer, **options)
    with source_named(options):
        if dry_run:
            return _dry_run(job, workers, as_json)
        made: dict[str, int] = {}
        tally = cluster.run(job, workers, as_json, _bar) if cluster else _run(job, workers, as_json, made)
    if tally is None:  # other shares are at work; the last one says what became of all records
        return Exit.OK
    _show(job, tally, made, as_json)
    if tally.num_refused:
        say(f"which were refused, and why: {job.output / 'refused.jsonl'}")
    return _verdict(job, tally, max_refused)


def _verdict(job: Job, tally: Tally, max_refused: float) -> int:
    """Return the exit code; where too many records were refused, say what can be done about it."""
    from dataprep.remedies import remedy

    if tally.num_refused > max_refused * tally.records:
        told = remedy(tally, job.config, job.image_root)
        say(f"llava-prep: {tally.num_refused} of {tally.records} records refused: more than {max_refused:.2%}; {told}")
        return Exit.REFUSED
    if tally.refused["missing_image"] > tally.records / 2:
        say(f"most pictures were not found under {job.image_root}; --image-dir is what image keys are relative to")
    return Exit.OK


def _job(
    root: Path,
    workspace_tokenizer: str | None,
    phase: str,
    inputs: tuple[Path, ...],
    image_dir: Path | None,
    output: Path | None,
    tokenizer: str | None,
    config_name: str | None,
    overrides: tuple[str, ...],
    **choices: Any,
) -> Job:
    from dataprep.hub import tokenizer_folder
    from dataprep.pipeline import Job

    config = read_config(phase, config_name, overrides, choices)
    name = tokenizer or workspace_tokenizer
    if name is None:
        raise CommandError(
            "no tokenizer: give --tokenizer FOLDER_OR_HUB_ID, or write `tokenizer: ...` into llava-prep.yaml"
        )
    folder = tokenizer_folder(name)
    files = tuple(_inputs(root, phase, inputs))
    for file in files if image_dir is None else ():
        if warning := check_source(root, file):
            say(warning)
    return Job(
        config=config,
        tokenizer=folder,
        inputs=files,
        image_root=existing(image_dir or root, "--image-dir").resolve(),
        output=output or root / "h5" / f"phase{phase}",
    )


def _inputs(root: Path, phase: str, given: tuple[Path, ...]) -> Iterator[Path]:
    default = root / "jsonl" / f"phase{phase}"
    for path in given or (default,):
        if path.is_dir():
            files = sorted(path.glob("*.jsonl"))
            if not files:
                raise CommandError(f"{path}: no .jsonl file there; `llava-prep preprocess` makes them")
            yield from files
            continue
        if not path.exists() and not given:
            raise CommandError(
                f"{path}: no such folder; `llava-prep preprocess --dataset NAME` fills it, or give --input"
            )
        existing(path, "--input")
        if path.suffix != ".jsonl":
            raise CommandError(
                f"--input {path}: expected a .jsonl file; `llava-prep preprocess --dataset json --phase {phase}"
                f" --input {path}` makes one"
            )
        yield path


def _run(job: Job, workers: int, quiet: bool, made: dict[str, int]) -> Tally:
    """Compile what is missing; put into `made` how many tasks that were."""
    from dataprep.pipeline import run_job

    def ended(compiled: int, tasks: int) -> None:
        made.update(tasks=tasks, tasks_compiled=compiled)

    with _bar(quiet) as (started, progress):
        return run_job(job, workers, progress, started, ended)


@contextmanager
def _bar(quiet: bool) -> Iterator[Any]:
    from tqdm import tqdm

    bar = tqdm(unit=" records", disable=True if quiet else None)

    def started(records: int) -> None:
        bar.reset(total=records)

    def progress(done: int, refused: int) -> None:
        bar.set_postfix(refused=refused, refresh=False)
        bar.update(done)

    try:
        yield started, progress
    finally:
        bar.close()


def _show(job: Job, tally: Tally, made: dict[str, int], as_json: bool) -> None:
    """Print the accounting, make the report, and print that in a few lines too."""
    from dataprep.output import made_anew
    from dataprep.report import try_report

    report = try_report(job.output, say)
    values = {"output": str(job.output), **made, **_values(tally), "report": str(report.page) if report else None}
    shown = f"\n\n{table(report.summary)}\n{report.page}" if report else ""
    anew = made_anew(made["tasks_compiled"], made["tasks"]) if made else None
    result(values, as_json, f"{job.output}{f': {anew}' if anew else ''}\n{_table(tally)}{shown}")


def _dry_run(job: Job, workers: int, as_json: bool) -> int:
    from dataprep.dry_run import describe, forecast

    values = forecast(job, workers)
    result(values, as_json, describe(values))
    return Exit.OK


def _values(tally: Tally) -> dict[str, Any]:
    return {**tally.as_dict(), "num_refused": tally.num_refused}


def _table(tally: Tally) -> str:
    rows = [("records", tally.records), ("  written", tally.written)]
    rows += [("    records held out", tally.held_out)] * bool(tally.held_out)
    rows += [(f"  refused: {reason}", count) for reason, count in sorted(tally.refused.items())]
    rows += [("  deduplicated", tally.deduplicated), ("rows", tally.rows), ("  text-only", tally.text_only)]
    rows += [("  truncated", tally.truncated), ("  split records", tally.split)]
    rows += [(f"normalised: {rule}", count) for rule, count in sorted(tally.normalised.items())]
    rows += [("attended tokens", tally.attended_tokens), ("trained tokens", tally.loss_tokens)]
    return table(rows)
