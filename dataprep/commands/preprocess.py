"""`llava-prep preprocess`: raw dataset to jsonl."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataprep.commands.door import door, existing, result, say, table
from dataprep.errors import CommandError, Exit

if TYPE_CHECKING:
    from dataprep.datasets.base import Dataset, Options
    from dataprep.preprocess import Accounting


@click.command("preprocess")
@click.option("--dataset", "name", required=True, help="Which dataset; `llava-prep datasets` lists them.")
@click.option("--phase", type=click.Choice(["1", "2"]), help="Which phase's folder; by default the dataset's own.")
@click.option("--input", "source", type=click.Path(path_type=Path), help="Raw data; default: ROOT/raw/NAME.")
@click.option(
    "--output", type=click.Path(path_type=Path), help="Default: ROOT/jsonl/phaseN/NAME.jsonl, or ROOT/jsonl/eval."
)
@click.option("--split", "splits", multiple=True, help="Which split, may be repeated; default: the training split.")
@click.option("--prompts", default="llava15", show_default=True, help="Named set of response-format prompts.")
@click.option("--workers", type=click.IntRange(1), default=os.cpu_count() or 1, help="Processes; one a file or split.")
@click.option("--limit", type=click.IntRange(1), help="Write only so many conversations, for a trial.")
@click.option(
    "--max-refused", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share; more: exit 3."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@door
def command(
    context: click.Context,
    name: str,
    phase: str | None,
    source: Path | None,
    output: Path | None,
    splits: tuple[str, ...],
    prompts: str,
    workers: int,
    limit: int | None,
    max_refused: float,
    as_json: bool,
) -> int:
    """Turn a raw dataset into LLaVA jsonl.

    \b
    Examples:
      llava-prep preprocess --dataset chartqa
      llava-prep preprocess --dataset json --phase 1 --input blip_laion_cc_sbu_558k.json
    """
    from configs.workspace import load_workspace
    from dataprep.preprocess import convert

    root = context.obj or load_workspace().root
    dataset = _dataset(name)
    number = _phase(dataset, phase)
    source = _source(root, name, source)
    if len(set(splits)) < len(splits):
        raise CommandError(f"--split names a split twice: {' '.join(splits)}")
    options = _options(dataset, root, source, splits, prompts)
    label = name if dataset.splits else source.stem
    folder = f"phase{number}"
    if dataset.splits and options.splits != dataset.splits[:1]:
        # Not among the phase's files, all of which `to-h5` takes by default.
        folder = "eval"
        label = "-".join([name, *options.splits])
        say(f"{name}: {', '.join(options.splits)} instead of {dataset.splits[0]}: do not train on what you evaluate on")
    path = output or root / "jsonl" / folder / f"{label}.jsonl"
    made_from = _made_from(dataset, source, options, limit)
    reports = root / "reports" / f"phase{number}"
    _refuse_another(path, reports, made_from)
    with _bar(as_json) as progress:
        accounting = convert(dataset, source, options, path, workers, limit, progress)
    values = _report(reports, path, made_from, accounting)
    typed_root = ["--root", str(root)] if context.obj else []
    result(values, as_json, _summary(values, options, root, path, typed_root, number))
    if len(accounting.refused) > max_refused * accounting.records:
        share = f"{len(accounting.refused)} of {accounting.records}"
        say(f"llava-prep: {share} records refused: more than {max_refused:.2%}")
        return Exit.REFUSED
    return Exit.OK


def _dataset(name: str) -> Dataset:
    from dataprep.datasets import DATASETS

    if name not in DATASETS:
        raise CommandError(f"--dataset {name}: not known; choose from {', '.join(DATASETS)}")
    return DATASETS[name]


def _source(root: Path, name: str, given: Path | None) -> Path:
    default = root / "raw" / name
    if given is None and not default.exists():
        raise CommandError(f"{default}: no such folder; put the raw dataset there, or give --input")
    return Path(os.path.abspath(existing(given or default, "--input")))


def _phase(dataset: Dataset, phase: str | None) -> int:
    if phase is not None:
        return int(phase)
    first, *others = dataset.phases
    if others:
        known = " or ".join(map(str, dataset.phases))
        raise CommandError(f"--dataset {dataset.name} can be of phase {known}: give --phase")
    return first


def _options(dataset: Dataset, root: Path, source: Path, splits: tuple[str, ...], prompts: str) -> Options:
    from dataprep.datasets.base import Options
    from dataprep.prompts import PROMPTS

    if prompts not in PROMPTS:
        raise CommandError(f"--prompts {prompts}: not known; choose from {', '.join(PROMPTS)}")
    for split in splits:
        if split not in dataset.splits:
            known = f"choose from {', '.join(dataset.splits)}" if dataset.splits else "it has no splits"
            raise CommandError(f"--split {split}: {dataset.name} has no such split; {known}")
    # Image keys are relative to the root; what lies elsewhere gets its own parent as its image root.
    image_root = Path(os.path.abspath(root)) if source.is_relative_to(os.path.abspath(root)) else source.parent
    return Options(image_root, splits or dataset.splits[:1], PROMPTS[prompts])


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar of records on a terminal, nothing elsewhere."""
    from tqdm import tqdm

    with tqdm(unit=" records", disable=True if quiet else None) as bar:

        def progress(records: int) -> None:
            bar.update(records)

        yield progress


def _made_from(dataset: Dataset, source: Path, options: Options, limit: int | None) -> dict[str, Any]:
    """Return what decides the content of a jsonl file."""
    prompts = {"name": options.prompts.name, "version": options.prompts.version}
    place = {"source": str(source), "image_root": str(options.image_root)}
    return {"dataset": dataset.name, **place, "splits": list(options.splits), "prompts": prompts, "limit": limit}


def _refuse_another(output: Path, reports: Path, made_from: dict[str, Any]) -> None:
    """Refuse to replace a file that was made from something else: a trial must not take the whole's place."""
    report = reports / f"{output.stem}.json"
    if not (output.exists() and report.is_file()):
        return
    before = json.loads(report.read_text("utf-8"))
    changed = [
        f"{key} was {before.get(key)}, is {value}" for key, value in made_from.items() if before.get(key) != value
    ]
    if before.get("output") == str(output) and changed:
        raise CommandError(
            f"{output}: made by another command: {'; '.join(changed)}. Name another --output, or delete it",
            Exit.CONFLICT,
        )


def _report(folder: Path, output: Path, made_from: dict[str, Any], accounting: Accounting) -> dict[str, Any]:
    """Write what was refused and how the file was made; return it."""
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        **made_from,
        "output": str(output),
        "records": accounting.records,
        "written": accounting.written,
        "deduplicated": accounting.deduplicated,
        "refused": dict(sorted(accounting.by_reason.items())),
        "normalised": dict(sorted(accounting.normalised.items())),
        "conversations": accounting.conversations,
    }
    refused = "".join(json.dumps(refusal._asdict(), ensure_ascii=False) + "\n" for refusal in accounting.refused)
    (folder / f"{output.stem}.refused.jsonl").write_text(refused, "utf-8")
    (folder / f"{output.stem}.json").write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")
    return values


def _summary(values: dict, options: Options, root: Path, output: Path, typed_root: list[str], phase: int) -> str:
    refused = [(f"  refused: {reason}", count) for reason, count in values["refused"].items()]
    rules = [(f"  normalised: {rule}", count) for rule, count in values["normalised"].items()]
    rows = [("records", values["records"]), ("  written", values["written"]), *refused]
    rows += [("  deduplicated", values["deduplicated"]), *rules, ("conversations", values["conversations"])]
    text = f"{output}\n{table(rows)}"
    if values["refused"]:
        text += f"\nwhich ones: {root / 'reports' / f'phase{phase}' / output.stem}.refused.jsonl"
    command = ["llava-prep", *typed_root, "to-h5", "--phase", str(phase)]
    if str(options.image_root) != os.path.abspath(root):
        command += ["--input", str(output), "--image-dir", str(options.image_root)]
    elif output.parent != root / "jsonl" / f"phase{phase}":
        command += ["--input", str(output)]
    return f"{text}\nnext: {shlex.join(command)}"
