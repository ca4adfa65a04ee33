"""`python -m trainer.evaluation.score`: a file of answers to a table of scores."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataprep.errors import CommandError
from trainer.evaluation.benchmarks import BENCHMARKS
from trainer.evaluation.door import door, shown

if TYPE_CHECKING:
    from trainer.evaluation.scoring import Difference, Row

#: Files whose questions may be of any benchmark.
QUESTIONS = "questions"

HEADINGS = ("kind", "measure", "n", "score", "95 % interval", "unparsed", "not answered", "without truth")


@click.command()
@click.argument("answers", type=click.Path(path_type=Path))
@click.option(
    "--benchmark",
    metavar="NAME",
    help="How to score a file of `questions`, and of others what they must be; default: what the file says.",
)
@click.option("--baseline", type=click.Path(path_type=Path), help="Another file of answers to the same questions.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(answers: Path, benchmark: str | None, baseline: Path | None, as_json: bool) -> None:
    """Score the ANSWERS that `python -m trainer.evaluation.run` wrote.

    Intervals are bootstrapped over pictures, since questions about one picture are missed together; what is unparsed or
    not answered counts as wrong.

    \b
    Examples:
      python -m trainer.evaluation.score answers.jsonl
      python -m trainer.evaluation.score new.jsonl --baseline old.jsonl
    """
    from trainer.evaluation import scoring
    from trainer.evaluation.answers import read_answers

    records = read_answers(answers)
    known = _benchmark(records, benchmark, answers)
    rows = scoring.score(records, known.metric)
    values: dict[str, Any] = {
        "answers": str(answers),
        "benchmark": known.name,
        "metric": known.metric,
        "model_id": records[0]["model_id"],
        "rows": [_values(row) for row in rows],
        "not_answered": scoring.reasons(records),
        "caveat": known.caveat or None,
    }
    difference = None
    if baseline is not None:
        before = read_answers(baseline)
        _benchmark(before, known.name, baseline)
        difference = scoring.compare(*(_units(each, known.metric) for each in (records, before)))
        values["difference"] = {"baseline": str(baseline), **_values(difference)}
    click.echo(json.dumps(values, ensure_ascii=False) if as_json else shown(_text(values, rows, difference)))


def _benchmark(records: Sequence[dict[str, Any]], asked: str | None, path: Path) -> Any:
    """Return the benchmark of a file, which must be the one asked for; of a file of questions, which may be of any
    benchmark, it says how they are scored.
    """
    said = records[0]["metadata"]["benchmark"]
    if asked is not None and asked not in BENCHMARKS:
        raise CommandError(f"--benchmark {asked}: not known; choose from {', '.join(BENCHMARKS)}")
    if said not in BENCHMARKS:
        raise CommandError(
            f"{path}: is of the benchmark {said!r}, which is not known; known are {', '.join(BENCHMARKS)}"
        )
    if asked is not None and said == QUESTIONS:
        return BENCHMARKS[asked]
    if asked is not None and asked != said:
        raise CommandError(f"--benchmark {asked}: {path} holds answers of {said}")
    return BENCHMARKS[said]


def _units(records: Sequence[dict[str, Any]], metric: str) -> Any:
    """Return what is compared: questions, or groups of rotations."""
    from trainer.evaluation import scoring

    marked = scoring.mark(records, metric)
    return scoring.circular(records, marked) if metric == "circular" else marked


def _values(row: Row | Difference) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _text(values: dict[str, Any], rows: Sequence[Row], difference: Difference | None) -> str:
    lines = [f"{values['benchmark']}: {BENCHMARKS[values['benchmark']].title}, answered by {values['model_id']}"]
    lines += _aligned([HEADINGS, *map(_cells, rows)])
    lines.append("scores in %; intervals: bootstrap over pictures; unparsed and not answered count as wrong")
    if values["not_answered"]:
        said = ", ".join(f"{reason} {number}" for reason, number in values["not_answered"].items())
        lines.append(f"not answered: {said}")
    if values["caveat"]:
        lines.append(f"note: {values['caveat']}")
    if difference is not None:
        lines.append(_compared(values["difference"]["baseline"], difference))
    return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    counts = (str(row.unparsed), str(row.not_answered), str(row.without_truth))
    return (row.kind, row.measure, str(row.n), _percent(row.score), _range(row.low, row.high), *counts)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Return lines of cells under each other: the first two columns to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for row in cells:
        padded = [
            cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _compared(baseline: str, found: Difference) -> str:
    sign = "+" if found.difference > 0 else ""
    left = f"; left out: {found.only_here} only here, {found.only_there} only there"
    limits = _range(found.low, found.high)
    return (
        f"against {baseline}: {sign}{100 * found.difference:.2f} points ({limits}) on {found.n} questions of both"
        f"{left if found.only_here or found.only_there else ''}"
    )


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def _range(low: float | None, high: float | None) -> str:
    return "-" if low is None or high is None else f"{100 * low:.2f} to {100 * high:.2f}"


if __name__ == "__main__":
    sys.exit(command())
