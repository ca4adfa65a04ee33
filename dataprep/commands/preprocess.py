"""`llava-prep preprocess`: raw dataset to jsonl."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from dataprep.commands.door import door, records_bar, result, say, table
from dataprep.commands.preprocess_options import dataset_named, options_of, parts_of, phase_of
from dataprep.errors import CommandError, Exit
from dataprep.locking import only_run
from dataprep.provenance import check_source, refuse_replacing

if TYPE_CHECKING:
    from dataprep.datasets.base import Dataset, Options, Part
    from dataprep.preprocess import Accounting
    from dataprep.tables import Hub


@click.command("preprocess")
@click.option("--dataset", "name", required=True, help="Which dataset; `llava-prep datasets` lists them.")
@click.option("--phase", type=click.Choice(["1", "2"]), help="Which phase's folder; by default the dataset's own.")
@click.option(
    "--input",
    "source",
    type=click.Path(path_type=Path),
    help="Raw data: a folder, a file, or a .zip, .tar or .tgz; default: ROOT/raw/NAME.",
)
@click.option("--hf", help="Read a dataset of the Hugging Face hub instead: ID or ID:CONFIG.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Default: ROOT/jsonl/phaseN/NAME.jsonl, or ROOT/jsonl/eval."
)
@click.option("--split", "splits", multiple=True, help="Which split, may be repeated; default: the training split.")
@click.option(
    "--as",
    "purpose",
    type=click.Choice(["training", "evaluation"]),
    help="What the records are for; default: training for the training split alone, evaluation for any other.",
)
@click.option("--prompts", default="llava15", show_default=True, help="Named set of response-format prompts.")
@click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="One of the dataset's own settings, may be repeated."
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, file_okay=False),
    help="For LLaVA json: the folder where its image paths begin; default: the file's own.",
)
@click.option(
    "--max-questions",
    type=click.IntRange(1),
    help="Questions a record; the rest go into further records of the picture.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Draws among several wordings of a prompt.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes; one a file or split.")
@click.option("--limit", type=click.IntRange(1), help="Write only so many conversations, for a trial.")
@click.option(
    "--max-refused", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share; more: exit 3."
)
@click.option("--overwrite", is_flag=True, help="Replace a file of this name that was made from something else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@door
def command(context: click.Context, **given: Any) -> int:
    """Turn a raw dataset into LLaVA jsonl.

    \b
    Examples:
      llava-prep preprocess --dataset chartqa
      llava-prep preprocess --dataset ai2d --input ai2d-all.zip --set labels=both
      llava-prep preprocess --dataset docvqa --hf lmms-lab/DocVQA:DocVQA --split val
      llava-prep preprocess --dataset json --phase 1 --input captions.json
    """
    from configs.workspace import load_workspace

    root = context.obj or load_workspace().root
    if context.get_parameter_source("prompts") == ParameterSource.DEFAULT:
        given["prompts"] = None
    job = _job(root, **given)
    with only_run(job.reports / f".{job.label}.lock", job.output):
        if not given["overwrite"]:
            way_out = "Name another --output, or replace it with --overwrite"
            refuse_replacing(job.output, job.report, _made_from(job), way_out)
        accounting = _convert(job, given["workers"], given["as_json"])
        values = _report(job, accounting)
    typed_root = ["--root", str(root)] if context.obj else []
    values["next"] = _next(job, root, typed_root) if accounting.conversations else None
    result(values, given["as_json"], _summary(job, values))
    return _verdict(job, accounting, given["max_refused"])


@dataclass(frozen=True)
class _Job:
    dataset: Dataset
    phase: int
    source: Path | Hub
    options: Options
    parts: Sequence[Part]
    output: Path
    reports: Path
    limit: int | None

    @property
    def label(self) -> str:
        """What its reports are called: two files of one name in two folders have two reports."""
        usual = self.options.root / "jsonl" / self.reports.name
        path = os.path.abspath(self.output)
        if Path(path).parent == usual:
            return self.output.stem
        return f"{self.output.stem}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"

    @property
    def refused(self) -> Path:
        return self.reports / f"{self.label}.refused.jsonl"

    @property
    def report(self) -> Path:
        return self.reports / f"{self.label}.json"


def _job(root: Path, name: str, phase: str | None, output: Path | None, limit: int | None, **given: Any) -> _Job:
    from dataprep.datasets.llava_json import pictures_missing
    from dataprep.tables import missing_shards

    dataset = dataset_named(name)
    number = phase_of(dataset, phase)
    options, source = options_of(dataset, root, **given)
    options, parts = parts_of(dataset, source, options)
    for sentence in missing_shards([shard.name for part in parts for shard in part.tables]):
        say(f"{name}: {sentence}")
    _say_splits(dataset, options)
    for warning in filter(None, map(pictures_missing, parts if dataset.llava_json else ())):
        say(warning)
    label = name if dataset.splits or name != "json" else source.stem
    if options.splits and (options.evaluation or options.splits != dataset.splits[:1]):
        label = "-".join([name, *options.splits])
    # Evaluation is not among the phase's files, all of which `to-h5` takes by default.
    folder = "eval" if options.evaluation else f"phase{number}"
    path = output or root / "jsonl" / folder / f"{label}.jsonl"
    _expect_output(path, parts, source if name == "json" else None)
    if dataset.llava_json and (warning := check_source(root, source)):
        say(warning)
    return _Job(dataset, number, options.hub or source, options, parts, path, root / "reports" / folder, limit)


def _expect_output(path: Path, parts: Sequence[Part], source: Path | None) -> None:
    """Refuse an output that cannot be one.

    Args:
        source: what is read, where every json file in it counts as data.
    """
    if path.is_dir():
        raise CommandError(f"--output {path}: is a folder; name the .jsonl file to write")
    if path.suffix != ".jsonl":
        raise CommandError(f"--output {path}: expected a name that ends in .jsonl, as `to-h5` reads")
    if any(part.path.is_file() and path.exists() and part.path.samefile(path) for part in parts):
        raise CommandError(f"{path}: is the input itself; name another --output")
    if source is not None and Path(os.path.abspath(path)).parent == source:
        raise CommandError(f"{path}: lies in the folder that is read, so the next run would read it too; name another")


def _say_splits(dataset: Dataset, options: Options) -> None:
    """Say what is kept out of training, or that something for evaluation is made."""
    chosen, others = " and ".join(options.splits), [split for split in dataset.splits if split not in options.splits]
    if options.evaluation:
        what = f"{chosen}, a question a record" if chosen else "a question a record"
        say(f"{dataset.name}: {what}, for evaluation: do not train on what you evaluate on")
    elif others:
        say(f"{dataset.name}: {chosen} for training; {' and '.join(others)} kept out (--split asks for them)")


def _convert(job: _Job, workers: int, quiet: bool) -> Accounting:
    from dataprep.preprocess import convert

    with records_bar(quiet) as progress:
        return convert(job.dataset, job.parts, job.options, job.output, job.refused, workers, job.limit, progress)


def _made_from(job: _Job) -> dict[str, Any]:
    """Return what decides the content of a jsonl file."""
    options = job.options
    values = {
        "dataset": job.dataset.name,
        "source": str(job.source),
        "image_root": str(options.image_root),
        "splits": list(options.splits),
        "evaluation": options.evaluation,
        "prompts": {"name": options.prompts.name, "version": options.prompts.version},
        "settings": options.settings.model_dump(mode="json"),
        "max_questions": options.max_questions,
        "seed": options.seed,
        "picture_folder": str(options.picture_folder) if options.picture_folder else None,
        "limit": job.limit,
    }
    return values


def _report(job: _Job, accounting: Accounting) -> dict[str, Any]:
    """Write how the file was made; return it."""
    from dataprep.shards.writer import publish

    values = {
        **_made_from(job),
        "output": str(job.output),
        "records": accounting.records,
        "written": accounting.written,
        "deduplicated": accounting.deduplicated,
        "refused": dict(sorted(accounting.refused.items())),
        "refused_file": str(job.refused),
        "normalised": dict(sorted(accounting.normalised.items())),
        "conversations": accounting.conversations,
    }
    if accounting.conversations:  # Otherwise the report of an earlier run goes on being that of the file.
        publish(job.report, json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8"))
    return values


def _summary(job: _Job, values: dict) -> str:
    refused = [(f"  refused: {reason}", count) for reason, count in values["refused"].items()]
    rules = [(f"  normalised: {rule}", count) for rule, count in values["normalised"].items()]
    rows = [("records", values["records"]), ("  written", values["written"]), *refused]
    rows += [("  deduplicated", values["deduplicated"]), *rules, ("conversations", values["conversations"])]
    lines = [f"{job.output}{'' if values['conversations'] else ': not written'}", table(rows)]
    if values["refused"]:
        lines.append(f"which ones: {job.refused}")
    if values["next"]:
        lines.append(f"{'to look at them' if job.options.evaluation else 'next'}: {values['next']}")
    return "\n".join(lines)


def _next(job: _Job, root: Path, typed_root: list[str]) -> str:
    """Return the command that compiles the file; what is for evaluation gets a folder of its own."""
    command = ["llava-prep", *typed_root, "to-h5", "--phase", str(job.phase)]
    outside = job.options.image_root != job.options.root
    if outside or job.output.parent != root / "jsonl" / f"phase{job.phase}":
        command += ["--input", str(job.output)]
    if outside:
        command += ["--image-dir", str(job.options.image_root)]
    if job.options.evaluation:
        command += ["--output", str(root / "h5" / "eval" / job.output.stem)]
    return shlex.join(command)


def _verdict(job: _Job, accounting: Accounting, max_refused: float) -> int:
    """Return the exit code: too many refusals are a fault of the input, unless it is known for them."""
    if not accounting.conversations:
        with open(job.refused, "rb") as file:
            first = json.loads(file.readline())
        say(f"llava-prep: no record could be used; the first: {first['reason']}: {first['detail']}")
        return Exit.REFUSED
    refused = sum(count for reason, count in accounting.refused.items() if reason not in job.dataset.tolerated)
    # A trial sees the refusals of a whole split before the first few records.
    if job.limit is not None or refused <= max_refused * accounting.records:
        return Exit.OK
    say(f"llava-prep: {refused} of {accounting.records} records refused: more than {max_refused:.2%}")
    return Exit.REFUSED
