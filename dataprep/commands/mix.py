"""`llava-prep mix`: several jsonl files to one."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import click

from dataprep.commands.door import door, records_bar, result, say
from dataprep.errors import CommandError, Exit
from dataprep.locking import only_run
from dataprep.provenance import check_source, refuse_replacing

if TYPE_CHECKING:
    from dataprep.config import MixConfig
    from dataprep.datasets.base import Refused
    from dataprep.mixture import FileAccount, Mixture, Offer, Picks


@click.command("mix")
@click.argument("config_name", metavar="CONFIG")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a config value.")
@click.option(
    "--max-refused", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="Share; more: exit 3."
)
@click.option("--overwrite", is_flag=True, help="Replace a mixture of this name that was made from something else.")
@click.option("--dry-run", is_flag=True, help="Read everything, write nothing, say what the mixture would be.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@door
def command(context: click.Context, max_refused: float, dry_run: bool, as_json: bool, **given: Any) -> int:
    """Join jsonl files into one mixture, ROOT/mix/NAME.jsonl.

    CONFIG is a YAML file, or the name of a shipped one (consensus_50_30_20, llava15_665k):

    \b
      name, seed, shuffle   the mixture's name; what draws and orders (0); true
      total                 so many records in all
      shares                {academic: 50, conversation: 30, reasoning: 20, caption: 0, text-only: 0}
      sources               a list, each with:
        file                jsonl, relative to the root
        images              only records with such an image key ("*coco/*"), or "none"
        max, count, weight  at most, exactly, or a share of the total; nothing: all of it
        repeat              true: records may come more than once
        kind                of all its records; otherwise what each one's text shows

    \b
    Examples:
      llava-prep mix consensus_50_30_20 --dry-run
      llava-prep mix llava15_665k --set seed=1
      llava-prep mix my-mixture.yaml
    """
    from configs.workspace import load_workspace

    typed_root = ["--root", str(context.obj)] if context.obj else []
    job = _job(context.obj or load_workspace().root, typed_root, **given)
    with nullcontext() if dry_run else only_run(job.report.with_name(f".{job.name}.lock"), job.output):
        values = _run(job, dry_run, as_json)
    result(values, as_json, _summary(job, values, dry_run))
    refused, records = _refused(values).total(), sum(file["records"] for file in values["files"].values())
    if refused <= max_refused * records:
        return Exit.OK
    say(f"llava-prep: {refused} of {records} records refused: more than {max_refused:.2%}")
    return Exit.REFUSED


@dataclass(frozen=True)
class _Job:
    config: MixConfig
    name: str
    root: Path
    typed_root: list[str]
    overwrite: bool

    @property
    def output(self) -> Path:
        return self.root / "mix" / f"{self.name}.jsonl"

    @property
    def report(self) -> Path:
        return self.root / "reports" / "mix" / f"{self.name}.json"

    @property
    def refused(self) -> Path:
        return self.report.with_suffix(".refused.jsonl")

    def refuse_replacing(self, made_from: dict[str, Any]) -> None:
        """Refuse to replace a mixture that was made from something else, unless the user said so."""
        if not self.overwrite:
            refuse_replacing(self.output, self.report, made_from, "Give another name (--set name=...), or --overwrite")

    def preprocess(self, dataset: str) -> str:
        """Return the command that makes a dataset's jsonl."""
        return shlex.join(["llava-prep", *self.typed_root, "preprocess", "--dataset", dataset])


def _job(root: Path, typed_root: list[str], config_name: str, overrides: tuple[str, ...], overwrite: bool) -> _Job:
    from configs import load
    from dataprep.config import MixConfig

    config = load(MixConfig, config_name, overrides)
    job = _Job(config, config.name or Path(config_name).stem, root, typed_root, overwrite)
    _refuse_missing(job)
    for file in _files(config):
        if warning := check_source(root, root / file):
            say(warning)
    return job


def _files(config: MixConfig) -> list[str]:
    return list(dict.fromkeys(source.file for source in config.sources))


def _refuse_missing(job: _Job) -> None:
    from dataprep.datasets import DATASETS

    missing = [job.root / file for file in _files(job.config) if not (job.root / file).is_file()]
    if not missing:
        return
    for file in _files(job.config):
        if Path(file).is_file() and not (job.root / file).is_file():
            raise CommandError(
                f"{job.root / file}: no such file; paths of a mixture are relative to the root {job.root}"
            )
    known = [path.stem for path in missing if path.stem in DATASETS]
    hints = "".join(f"\n  {job.preprocess(name)}" for name in known)
    say_how = f"; these commands make {'them' if len(known) == len(missing) else 'what is a known dataset'}:{hints}"
    raise CommandError(f"no such file: {', '.join(map(str, missing))}{say_how if known else ''}")


def _run(job: _Job, dry_run: bool, quiet: bool) -> dict[str, Any]:
    """Make the mixture, or find what it would be."""
    from dataprep.mixture import choose, in_order, survey

    with ExitStack() as stack:
        refuse = _ignore
        if not dry_run:
            job.refuse_replacing(_made_from(job))
            refuse = stack.enter_context(_refusals(job))
        with records_bar(quiet, "reading") as progress:
            offers, accounts = survey(job.config, job.root, refuse, progress)
        made_from = {**_made_from(job), "inputs": {file: account.sha256 for file, account in accounts.items()}}
        if not dry_run:
            job.refuse_replacing(made_from)
        chosen = choose(job.config, offers)
        values = {**made_from, **_tally(accounts, offers, chosen)}
        if not dry_run:
            values |= _write(job, in_order(job.config, offers, chosen), quiet)
    if not dry_run:
        job.report.write_text(json.dumps(values, indent=1, ensure_ascii=False), "utf-8")
    return values


def _ignore(item: Refused) -> None:
    """Refused records are counted, and that is all, where nothing is written."""


@contextmanager
def _refusals(job: _Job) -> Iterator[Callable[[Refused], None]]:
    """Write what is refused beside the report."""
    from dataprep.shards.writer import whole_file

    job.refused.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(job.refused) as file:

        def refuse(item: Refused) -> None:
            file.write(json.dumps(item._asdict(), ensure_ascii=False).encode("utf-8") + b"\n")

        yield refuse


def _write(job: _Job, mixture: Mixture, quiet: bool) -> dict[str, Any]:
    from dataprep.shards.writer import whole_file

    job.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(job.output) as file, records_bar(quiet, "writing") as progress:
        content = mixture.write(file, progress)
    return {"output": str(job.output), "sha256": content}


def _made_from(job: _Job) -> dict[str, Any]:
    """Return what decides the content of a mixture, beside its inputs."""
    from dataprep.kinds import RULES_VERSION

    return {"name": job.name, "config": job.config.model_dump(mode="json"), "kind_rules": RULES_VERSION}


def _tally(accounts: dict[str, FileAccount], offers: list[Offer], chosen: list[Picks]) -> dict[str, Any]:
    """Return the figures of the report."""
    from dataprep.kinds import KINDS
    from dataprep.mixture import counts_by_kind

    available, taken = Counter[str](), Counter[str]()
    sources = {}
    for offer, picks in zip(offers, chosen, strict=True):
        kinds = counts_by_kind(offer, picks)
        available.update(counts_by_kind(offer))
        taken.update(kinds)
        sources[offer.source.label] = {"available": len(offer), "chosen": len(picks), "kinds": kinds}
    files = {
        file: {"records": account.records, "unwanted": account.unwanted, "refused": dict(account.refused)}
        for file, account in accounts.items()
    }
    return {
        "files": files,
        "sources": sources,
        "kinds": {kind: {"available": available[kind], "chosen": taken[kind]} for kind in KINDS if available[kind]},
        "records": taken.total(),
    }


def _refused(values: dict[str, Any]) -> Counter[str]:
    total = Counter[str]()
    for file in values["files"].values():
        total.update(file["refused"])
    return total


def _summary(job: _Job, values: dict[str, Any], dry_run: bool) -> str:
    lines = [f"{job.output}: {'would be ' if dry_run else ''}{values['records']:,} records"]
    for what in ("sources", "kinds"):
        lines += _rows(what.removesuffix("s"), values[what], values["records"])
    dropped = [kind for kind in values["kinds"] if job.config.shares and kind not in job.config.shares]
    if dropped:
        lines.append(f"not among the shares, so none of them: {', '.join(dropped)}")
    unwanted = sum(file["unwanted"] for file in values["files"].values())
    if unwanted:
        lines.append(f"fit no source's images: {unwanted:,}")
    lines += [f"refused: {reason}: {count:,}" for reason, count in sorted(_refused(values).items())]
    if not dry_run:
        if _refused(values):
            lines.append(f"which ones: {job.refused}")
        lines += [f"sha256: {values['sha256']}", f"next: {_next(job)}"]
    return "\n".join(lines)


def _rows(title: str, counts: dict[str, dict[str, Any]], records: int) -> list[str]:
    """Return aligned lines of name, what is there, what was chosen and its share of the mixture."""
    rows = [(title, "available", "chosen", "share")]
    rows += [
        (name, f"{count['available']:,}", f"{count['chosen']:,}", f"{count['chosen'] / records:.1%}")
        for name, count in counts.items()
    ]
    width = max(len(row[0]) for row in rows)
    return [f"{name:<{width}}  {available:>11}  {chosen:>11}  {share:>6}" for name, available, chosen, share in rows]


def _next(job: _Job) -> str:
    phase = "1" if all(PurePath(file).parent.name == "phase1" for file in _files(job.config)) else "2"
    words = ["to-h5", "--phase", phase, "--input", str(job.output), "--output", str(job.root / "h5" / job.name)]
    return shlex.join(["llava-prep", *job.typed_root, *words])
