"""`python -m trainer.evaluation.run`: ask a model a benchmark's questions, alone or under torchrun."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from dataprep.errors import CommandError, Exit
from trainer.evaluation.benchmarks import BENCHMARKS, Source
from trainer.evaluation.door import door


def _known() -> str:
    """Return the table of benchmarks for `--help`."""
    width = max(map(len, BENCHMARKS))
    rows = (f"  {one.name:<{width}}  {one.title} ({', '.join(one.splits) or 'a file'})" for one in BENCHMARKS.values())
    return "\b\nBenchmarks, with their splits, the default one first:\n" + "\n".join(rows)


@click.command(epilog=_known())
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--benchmark", required=True, metavar="NAME", help="Which one; listed below.")
@click.option("--data", required=True, type=click.Path(path_type=Path), help="The raw benchmark's folder, or its file.")
@click.option("--output", required=True, type=click.Path(path_type=Path), help="The .jsonl file of answers to write.")
@click.option("--split", help="Default: the first that is listed below.")
@click.option("--limit", type=click.IntRange(1), help="Ask only so many questions, for a trial.")
@click.option(
    "--image-dir", type=click.Path(path_type=Path), help="Where the names of pictures begin, if not in --data."
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Questions at a time, a rank.")
@click.option("--max-new-tokens", type=click.IntRange(1), help="Longest answer; default: 128, for `questions` 1024.")
@click.option("--template", help="Prompt template, where the model does not say which it was trained with.")
@click.option("--force-template", is_flag=True, help="Ask in --template although the model was trained with another.")
@click.option("--base", type=click.Path(path_type=Path), help="What an adapter or a run began with.")
@click.option("--device", default="auto", show_default=True, help="auto, cpu or cuda.")
@click.option("--dtype", default="auto", show_default=True, help="auto, float32, bfloat16 or float16.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(as_json: bool, **given: Any) -> int:
    """Ask MODEL (a checkpoint of the trainer, or any export) the questions of a benchmark.

    The answers are written in the original LLaVA repository's jsonl format, when all are there. The same command goes
    on where a stopped run left off. Under torchrun the processes share the questions.

    \b
    Examples:
      python -m trainer.evaluation.run runs/phase2/final --benchmark chartqa --data raw/chartqa --output answers.jsonl
      torchrun --nproc-per-node 8 -m trainer.evaluation.run MODEL --benchmark vqav2 --data vqav2 --output vqav2.jsonl
    """
    from trainer.evaluation.session import run

    values = run(_job(**given))
    if not values:  # Not the first rank: that one speaks.
        return Exit.OK
    click.echo(json.dumps(values, ensure_ascii=False) if as_json else _summary(values))
    if values["answered"]:
        return Exit.OK
    click.echo("error: no question could be answered", err=True)
    return Exit.REFUSED


def _job(benchmark: str, data: Path, output: Path, split: str | None, image_dir: Path | None, **given: Any) -> Any:
    from trainer.evaluation.session import Job

    if benchmark not in BENCHMARKS:
        raise CommandError(f"--benchmark {benchmark}: not known; choose from {', '.join(BENCHMARKS)}")
    known = BENCHMARKS[benchmark]
    if split is not None and split not in known.splits:
        choices = f"choose from {', '.join(known.splits)}" if known.splits else "it has none"
        raise CommandError(f"--split {split}: {benchmark} has no such split; {choices}")
    if output.suffix != ".jsonl" or output.is_dir():
        raise CommandError(f"--output {output}: expected the name of a .jsonl file")
    for name, path in (("--data", data), ("--image-dir", image_dir)):
        if path is not None and not path.exists():
            raise CommandError(f"{name} {path}: no such file or folder")
    output = _absolute(output)
    given["max_new_tokens"] = given["max_new_tokens"] or known.max_new_tokens
    source = Source(
        data=_absolute(data),
        split=split or (known.splits or ("",))[0],
        image_dir=_absolute(image_dir) if image_dir else None,
        pictures=output.with_name(f"{output.name.removesuffix('.jsonl')}.pictures"),
    )
    return Job(benchmark=known, source=source, output=output, **given)


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))


def _summary(values: dict[str, Any]) -> str:
    rows = [("questions", values["questions"]), ("  answered", values["answered"])]
    rows += [("    cut at --max-new-tokens", values["cut"])] if values["cut"] else []
    rows += [(f"  not answered: {reason}", number) for reason, number in values["bad"].items()]
    rows += [(f"left out: {reason}", number) for reason, number in values["left_out"].items()]
    width = max(len(name) for name, _ in rows)
    done = " (finished before; nothing was asked)" if values["finished_before"] else ""
    score = shlex.join(["python", "-m", "trainer.evaluation.score", values["output"]])
    table = "\n".join(f"{name:<{width}}  {number}" for name, number in rows)
    return f"{values['output']}{done}\n{table}\nscore: {score}"


if __name__ == "__main__":
    sys.exit(command())
