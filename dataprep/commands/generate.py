"""`llava-prep generate`: captions and boxes to instruction data, written by a language model."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataprep.commands.door import door, existing, records_bar, result, say, table
from dataprep.errors import CommandError, Exit
from dataprep.llm.options import Asking, asking_options
from dataprep.locking import only_run
from dataprep.provenance import refuse_replacing

if TYPE_CHECKING:
    from dataprep.datasets.base import Refused
    from dataprep.generation.making import Job
    from dataprep.generation.sources import Record
    from dataprep.llm_client import Asked, Message, Usage
    from dataprep.preprocess import Accounting

KINDS = ("conversation", "detail", "reasoning")


@click.command("generate")
@click.option("--input", "source", type=click.Path(path_type=Path), help="jsonl of {id, image, captions, boxes}.")
@click.option("--captions", type=click.Path(path_type=Path), help="Instead of --input: COCO's captions json.")
@click.option("--boxes", type=click.Path(path_type=Path), help="With --captions: COCO's instances json.")
@click.option("--image-prefix", default="", help="With --captions: the pictures' folder under the image root.")
@click.option("--kind", "kinds", multiple=True, type=click.Choice(KINDS), help="May be repeated; default: all three.")
@click.option("--output", type=click.Path(path_type=Path), help="Default: ROOT/jsonl/phase2/generated.jsonl.")
@asking_options
@click.option(
    "--objects", type=click.Choice(["flag", "refuse"]), default="flag", help="What neither captions nor boxes have."
)
@click.option("--dry-run", is_flag=True, help="Print the estimate and the first requests; send and write nothing.")
@click.option("--yes", is_flag=True, help="Go on whatever the estimate says.")
@click.option("--limit", type=click.IntRange(1), help="Take only the first pictures, for a trial.")
@click.option("--seed", type=int, default=0, help="Draws among several wordings of a question.")
@click.option("--max-refused", type=click.FloatRange(0, 1), default=0.2, help="Share; more: exit 3.")
@click.option("--overwrite", is_flag=True, help="Replace a file of this name that was made from something else.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
@door
def command(context: click.Context, **given: Any) -> int:
    """Let a language model write instruction data from captions and boxes.

    The model sees no picture, only what is known of it, as in LLaVA (section 3). What it names without having been
    told is flagged; what is not written as asked for, generic or speaks of captions is refused and counted.

    \b
    Examples, with a server on this machine and with one that takes a key:
      llava-prep generate --input known.jsonl --endpoint http://127.0.0.1:8000/v1 --model NAME --yes
      llava-prep generate --captions captions_train2017.json --boxes instances_train2017.json --limit 1000 \\
        --image-prefix coco/train2017 --endpoint https://api.openai.com/v1 --model NAME \\
        --price-in 0.15 --price-out 0.60 --max-cost 5
    """
    from configs.workspace import load_workspace

    root = context.obj or load_workspace().root
    asking = Asking.of(given)
    run = _run(root, **given)
    requests = run.job.requests()
    estimate = _estimate(run, asking, requests)
    if given["dry_run"]:
        values = {**estimate, "requests": requests[: len(run.job.prompts)]}
        result(
            values,
            given["as_json"],
            _told(estimate) + "".join(f"\n\n{_shown(messages)}" for messages in values["requests"]),
        )
        return Exit.OK
    say(_told(estimate))
    _expect_consent(estimate, asking, given["yes"])
    with only_run(run.reports / f".{run.label}.lock", run.output):
        if not given["overwrite"]:
            way_out = "Name another --output, or replace it with --overwrite"
            refuse_replacing(run.output, run.report, run.made_from(asking), way_out)
        with records_bar(given["as_json"]) as progress:
            asked = asking.ask(requests, run.journal, progress)
        values = _finish(run, asking, asked)
    result(values, given["as_json"], _summary(run, values))
    return _verdict(values, given["max_refused"])


@dataclass(frozen=True)
class _Run:
    job: Job
    sources: dict[str, Any]
    output: Path
    reports: Path
    label: str

    @property
    def journal(self) -> Path:
        return self.reports / f"{self.label}.journal.jsonl"

    @property
    def refused(self) -> Path:
        # Not beside the output: `to-h5` takes every jsonl of that folder for data.
        return self.reports / f"{self.label}.refused.jsonl"

    @property
    def report(self) -> Path:
        return self.reports / f"{self.label}.json"

    def made_from(self, asking: Asking) -> dict[str, Any]:
        from dataprep.generation.making import made_from

        settings = {"model": asking.endpoint.model, "settings": asking.settings.body()}
        return {**made_from(self.job, self.sources), **settings}


def _run(root: Path, output: Path | None, limit: int | None, kinds: tuple[str, ...], seed: int, **given: Any) -> _Run:
    from dataprep.generation.making import Job, chosen, prompts_of

    path = output or root / "jsonl" / "phase2" / "generated.jsonl"
    if path.suffix != ".jsonl" or path.is_dir():
        raise CommandError(f"--output {path}: expected the name of a file that ends in .jsonl, as `to-h5` reads")
    sources = {name: str(given[name]) for name in ("source", "captions", "boxes", "image_prefix") if given[name]}
    job = Job(chosen(_records(**given), limit), prompts_of(kinds), seed, given["objects"] == "refuse")
    if not job.sources:
        raise CommandError(f"no pictures in {given['source'] or given['captions']}")
    usual = Path(os.path.abspath(root / "jsonl" / "phase2"))
    place = Path(os.path.abspath(path))
    suffix = "" if place.parent == usual else f"-{hashlib.sha256(os.fsencode(place)).hexdigest()[:8]}"
    return _Run(job, {**sources, "limit": limit}, path, root / "reports" / "phase2", path.stem + suffix)


def _records(
    source: Path | None, captions: Path | None, boxes: Path | None, image_prefix: str, **_: Any
) -> Iterator[Record | Refused]:
    from dataprep.generation.sources import read_coco, read_lines

    if (source is None) == (captions is None):
        raise CommandError("give either --input (jsonl) or --captions (COCO's json)")
    if source is not None:
        if boxes or image_prefix:
            raise CommandError("--boxes and --image-prefix go with --captions; the lines of --input have their own")
        return read_lines(existing(source, "--input"))
    assert captions is not None
    return read_coco(existing(captions, "--captions"), boxes and existing(boxes, "--boxes"), image_prefix)


def _estimate(run: _Run, asking: Asking, requests: list[list[Message]]) -> dict[str, Any]:
    """Return what the run will ask and about what it will spend."""
    from dataprep.llm_client import unanswered

    missing, spent = unanswered(run.journal, asking.endpoint, requests, asking.settings)
    usage: Usage = run.job.estimate(missing)
    return {
        "pictures": len(run.job.sources),
        "to_ask": usage.requests,
        "answered": len(requests) - usage.requests,
        "estimate": asking.spent(usage),
        "spent": asking.spent(spent),
    }


def _told(estimate: dict[str, Any]) -> str:
    """Return the estimate as a sentence or two."""
    cost, spent = estimate["estimate"], estimate["spent"]
    there = f" ({estimate['answered']} are answered already)" if estimate["answered"] else ""
    tokens = f"about {cost['prompt_tokens']:,} tokens of prompts and {cost['completion_tokens']:,} of answers"
    price = "; no prices given" if cost["cost"] is None else f", about {cost['cost']:.4f} in all"
    before = f"; spent before: {spent['cost']:.4f}" if spent["cost"] else ""
    return f"{estimate['to_ask']} requests for {estimate['pictures']} pictures{there}: {tokens}{price}{before}"


def _expect_consent(estimate: dict[str, Any], asking: Asking, yes: bool) -> None:
    """Refuse to spend what nobody has agreed to."""
    if yes or not estimate["to_ask"]:
        return
    limit, cost = asking.limits.max_cost, estimate["estimate"]["cost"]
    if limit is None:
        raise CommandError("nothing was sent: go on with --yes, or with --max-cost, --price-in and --price-out")
    total = cost + (estimate["spent"]["cost"] or 0)
    if total > limit:
        raise CommandError(f"nothing was sent: about {total:.4f} is more than --max-cost {limit:g}; go on with --yes")


def _shown(messages: list[Message]) -> str:
    return "\n".join(f"[{message['role']}]\n{message['content']}" for message in messages)


def _finish(run: _Run, asking: Asking, asked: Asked) -> dict[str, Any]:
    """Write everything; return the report."""
    from dataprep.generation.making import FLAGGED, write
    from dataprep.shards.writer import publish

    accounting: Accounting = write(run.job.items(asked.replies), run.output, run.refused)
    values = {
        **run.made_from(asking),
        "endpoint": asking.endpoint.shown,
        "output": str(run.output),
        "records": accounting.records,
        "written": accounting.written,
        "refused": dict(sorted(accounting.refused.items())),
        "refused_file": str(run.refused),
        "flagged": accounting.normalised[FLAGGED],
        "normalised": {rule: count for rule, count in sorted(accounting.normalised.items()) if rule != FLAGGED},
        "conversations": accounting.conversations,
        "spent": asking.spent(asked.spent),
        "stopped": asked.stopped,
    }
    if accounting.conversations:
        publish(run.report, json.dumps(values, indent=1, ensure_ascii=False).encode("utf-8"))
    return values


def _summary(run: _Run, values: dict[str, Any]) -> str:
    spent = values["spent"]
    rows = [("asked for", values["records"]), ("  written", values["written"])]
    rows += [(f"  refused: {reason}", count) for reason, count in values["refused"].items()]
    rows += [(f"  normalised: {rule}", count) for rule, count in values["normalised"].items()]
    rows += [("flagged: names what is not known", values["flagged"]), ("requests sent", spent["requests"])]
    rows += [("tokens of prompts", spent["prompt_tokens"]), ("tokens of answers", spent["completion_tokens"])]
    rows += [("cost", f"{spent['cost']:.4f}")] if spent["cost"] is not None else []
    lines = [f"{run.output}{'' if values['conversations'] else ': not written'}", table(rows)]
    if values["refused"]:
        lines.append(f"refused, one a line: {run.refused}")
    if values["conversations"]:
        lines.append(f"next: {shlex.join(['llava-prep', 'to-h5', '--phase', '2', '--input', str(run.output)])}")
    return "\n".join(lines)


def _verdict(values: dict[str, Any], max_refused: float) -> int:
    refused = sum(values["refused"].values())
    if values["stopped"]:
        left = values["refused"]["not_asked"]
        say(f"llava-prep: {values['stopped']} leaves no room for {left} requests; with more, the same command goes on")
        return Exit.REFUSED
    if refused <= max_refused * values["records"]:
        return Exit.OK
    say(f"llava-prep: {refused} of {values['records']} refused: more than {max_refused:.2%}")
    return Exit.REFUSED
