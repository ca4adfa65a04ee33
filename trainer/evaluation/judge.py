"""`python -m trainer.evaluation.judge`: answers scored from 1 to 10 by a language model.

The lines of the output, alone or against a baseline:

    {"question_id": "1", "kind": "conv", "status": "judged", "score": 7.0, "review": "7\\nRight, but ...",
     "judge": "gpt-x", "prompt": "single/1"}
    {"question_id": "1", "kind": "conv", "status": "judged", "score": 6.5, "baseline_score": 8.0,
     "baseline_first": [8.0, 6.0], "baseline_second": [7.0, 8.0], "review": ["8 6\\n...", "7 8\\n..."],
     "judge": "gpt-x", "prompt": "pair/1"}

(`baseline_first` are the scores of answers 1 and 2 as they stood.) `status` is `judged`, `unparsed`, `not_judged` (no
reply, or no budget), `not_answered` (the model could not be asked: the lowest score, as in `score`) or
`without_reference`. OUTPUT.journal.jsonl beside it holds every reply, so that the same command goes on.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataprep.errors import CommandError, Exit
from dataprep.llm_client import Asking, asking_options
from trainer.evaluation.door import door, shown

if TYPE_CHECKING:
    from trainer.evaluation.judging import Case, Judged

ALL = "all"


@click.command()
@click.argument("answers", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="The jsonl file to write.")
@click.option(
    "--reference", type=click.Path(path_type=Path), help="jsonl with the right answers; default: ANSWERS' own."
)
@click.option(
    "--baseline", type=click.Path(path_type=Path), help="Answers of another model: judge both, in both orders."
)
@click.option("--context", type=click.Path(path_type=Path), help="jsonl with what is known of each picture.")
@click.option("--pictures", is_flag=True, help="Send the pictures too, for a judge that sees.")
@asking_options
@click.option("--limit", type=click.IntRange(1), help="Judge only the first answers, for a trial.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@door
def command(as_json: bool, **given: Any) -> int:
    """Let a language model score the ANSWERS that `python -m trainer.evaluation.run` wrote, from 1 to 10.

    \b
    Examples:
      python -m trainer.evaluation.judge answers.jsonl --output judged.jsonl --endpoint http://127.0.0.1:8000/v1 \\
        --model NAME --reference answers_gpt4.jsonl --context context.jsonl
      python -m trainer.evaluation.judge answers.jsonl --output against.jsonl --baseline other.jsonl \\
        --endpoint https://api.openai.com/v1 --model NAME --price-in 2.5 --price-out 10 --max-cost 3
    """
    from trainer.evaluation.judge_files import read_cases

    seed, output = given.pop("seed"), given.pop("output")
    asking = Asking.of(given)
    journal = _expect_output(output, given["answers"])
    cases = read_cases(**given)
    pairwise = given["baseline"] is not None
    lines, stopped, spent = (_pairs if pairwise else _singles)(cases, asking, journal)
    _write(output, lines)
    values = {
        "output": str(output),
        "judge": asking.endpoint.model,
        "endpoint": asking.endpoint.shown,
        "prompt": _prompt(pairwise),
        "questions": len(cases),
        "status": dict(Counter(line["status"] for line in lines)),
        "rows": _rows(cases, lines, pairwise, seed),
        "spent": spent,
        "stopped": stopped,
    }
    click.echo(json.dumps(values, ensure_ascii=False) if as_json else shown(_text(values, pairwise)))
    if stopped:
        click.echo(f"error: {stopped} leaves no room for more; with more, the same command goes on", err=True)
    return Exit.REFUSED if stopped else Exit.OK


def _expect_output(output: Path, answers: Path) -> Path:
    """Return the journal of an output that may be written."""
    journal = output.with_name(f"{output.stem}.journal.jsonl")
    if output.suffix != ".jsonl" or output.is_dir():
        raise CommandError(f"--output {output}: expected the name of a file that ends in .jsonl")
    if output.exists() and (not journal.exists() or output.samefile(answers)):
        raise CommandError(f"--output {output}: there already, and not from a judge; name another", Exit.CONFLICT)
    return journal


def _prompt(pairwise: bool) -> str:
    from trainer.evaluation.judging import VERSION

    return f"{'pair' if pairwise else 'single'}/{VERSION}"


def _singles(cases: Sequence[Case], asking: Asking, journal: Path) -> tuple[list[dict[str, Any]], str | None, Any]:
    """Judge each answer alone, against its reference."""
    from trainer.evaluation.judging import LOWEST

    without = {index: _status_before(case) for index, case in enumerate(cases) if _status_before(case)}
    asked = [index for index in range(len(cases)) if index not in without]
    judged, stopped, spent = _ask(asking, [cases[index].single() for index in asked], 1, journal)
    by_case = dict(zip(asked, judged, strict=True))
    lines = []
    for index, case in enumerate(cases):
        line = {"question_id": case.question_id, "kind": case.kind}
        if index in without:
            # What could not be asked is as wrong here as in every other score; nobody needs a judge for it.
            score = LOWEST if without[index] == "not_answered" else None
            line |= {"status": without[index], "score": score, "review": case.error or ""}
        else:
            found = by_case[index]
            line |= {"status": found.status, "score": found.scores and found.scores[0], "review": found.review}
        lines.append({**line, "judge": asking.endpoint.model, "prompt": _prompt(False)})
    return lines, stopped, spent


def _status_before(case: Case) -> str | None:
    """Return what is known of an answer without a judge."""
    if case.error is not None or not case.answer.strip():
        return "not_answered"
    return None if case.references or case.context or case.seen else "without_reference"


def _pairs(cases: Sequence[Case], asking: Asking, journal: Path) -> tuple[list[dict[str, Any]], str | None, Any]:
    """Judge each answer with the baseline's, in both orders."""
    requests = [case.pair(baseline_first) for case in cases for baseline_first in (True, False)]
    judged, stopped, spent = _ask(asking, requests, 2, journal)
    lines = []
    for index, case in enumerate(cases):
        orders = judged[2 * index : 2 * index + 2]
        line = {"question_id": case.question_id, "kind": case.kind, "status": _worst(orders), "score": None}
        if orders[0].scores and orders[1].scores:
            (baseline, model), (model_first, baseline_second) = orders[0].scores, orders[1].scores
            line |= {"score": (model + model_first) / 2, "baseline_score": (baseline + baseline_second) / 2}
            line |= {"baseline_first": [baseline, model], "baseline_second": [model_first, baseline_second]}
        line |= {"review": [each.review for each in orders]}
        lines.append({**line, "judge": asking.endpoint.model, "prompt": _prompt(True)})
    return lines, stopped, spent


def _worst(orders: Sequence[Judged]) -> str:
    """Return the status of a pair, which is judged only if both orders are."""
    found = {each.status for each in orders}
    return next(status for status in ("not_judged", "unparsed", "judged") if status in found)


def _ask(asking: Asking, requests: list[Any], num_scores: int, journal: Path) -> tuple[list[Judged], str | None, Any]:
    from tqdm import tqdm

    from trainer.evaluation.judging import ask

    _say_estimate(asking, requests, journal)
    with tqdm(total=len(requests), desc="judged", unit=" replies", disable=None) as bar:

        def progress(replies: int) -> None:
            bar.update(replies)

        return ask(asking, requests, num_scores, journal, progress)


def _say_estimate(asking: Asking, requests: list[Any], journal: Path) -> None:
    from dataprep.llm_client import Usage, expected, unanswered
    from trainer.evaluation.judging import ABOUT_TOKENS

    missing, _ = unanswered(journal, asking.endpoint, requests, asking.settings)
    usage = sum((expected(messages, ABOUT_TOKENS) for messages in missing), Usage())
    cost = asking.cost(usage)
    price = "" if cost is None else f", about {cost:.4f} in all"
    there = f" ({len(requests) - len(missing)} are answered already)" if len(missing) < len(requests) else ""
    tokens = f"about {usage.prompt_tokens:,} tokens of prompts and {usage.completion_tokens:,} of replies"
    click.echo(f"{usage.requests} requests{there}: {tokens}{price}", err=True)


def _write(output: Path, lines: Sequence[dict[str, Any]]) -> None:
    from dataprep.shards.writer import publish

    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    publish(output, content.encode("utf-8", "backslashreplace"))


def _rows(cases: Sequence[Case], lines: Sequence[dict[str, Any]], pairwise: bool, seed: int) -> list[dict[str, Any]]:
    """Return the table: a line a kind, and one for all."""
    kinds = sorted({case.kind for case in cases} - {""})
    groups = {kind: [index for index, case in enumerate(cases) if case.kind == kind] for kind in kinds}
    rows = []
    for kind, chosen in {**groups, ALL: range(len(cases))}.items():
        scored = [index for index in chosen if lines[index]["score"] is not None]
        counts = Counter(lines[index]["status"] for index in chosen)
        row = {"kind": kind, "n": len(scored), **{f"num_{status}": number for status, number in sorted(counts.items())}}
        pictures = [cases[index].picture for index in scored]
        found = [lines[index] for index in scored]
        rows.append({**row, **(_pair_values if pairwise else _single_values)(found, pictures, seed)})
    return rows


def _single_values(lines: Sequence[dict[str, Any]], pictures: Sequence[str], seed: int) -> dict[str, Any]:
    from trainer.evaluation.judging import mean_interval

    return {"score": mean_interval([line["score"] for line in lines], pictures, seed)}


def _pair_values(lines: Sequence[dict[str, Any]], pictures: Sequence[str], seed: int) -> dict[str, Any]:
    """Return both means, their ratio (what LLaVA-Bench reports), and what the order did."""
    from trainer.evaluation.judging import mean_interval, ratio_interval

    ours, theirs = [line["score"] for line in lines], [line["baseline_score"] for line in lines]
    # Per pair: how much more the first place got than the second, whoever stood there, over both orders.
    orders = [(line["baseline_first"], line["baseline_second"]) for line in lines]
    bias = [(one[0] - one[1] + other[0] - other[1]) / 2 for one, other in orders]
    flips = [(one[1] - one[0]) * (other[0] - other[1]) < 0 for one, other in orders]
    better = [our - their for our, their in zip(ours, theirs, strict=True)]
    return {
        "score": mean_interval(ours, pictures, seed),
        "baseline_score": mean_interval(theirs, pictures, seed),
        "relative": ratio_interval(ours, theirs, pictures, seed),
        "wins": sum(value > 0 for value in better),
        "ties": sum(value == 0 for value in better),
        "losses": sum(value < 0 for value in better),
        "first_place_favoured_by": mean_interval(bias, pictures, seed),
        "order_decided": sum(flips),
    }


def _text(values: dict[str, Any], pairwise: bool) -> str:
    """Return the table for people."""
    status = ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in sorted(values["status"].items()))
    lines = [f"{values['output']}: {values['questions']} answers, by {values['judge']} ({values['prompt']}): {status}"]
    for row in values["rows"]:
        line = f"{row['kind']:<16} n {row['n']:>5}  score {_shown(row['score'])}"
        if pairwise:
            relative = {name: value and 100 * value for name, value in row["relative"].items()}
            line += f"  baseline {_shown(row['baseline_score'])}  relative {_shown(relative)} %"
            line += f"  won {row['wins']}, tied {row['ties']}, lost {row['losses']}"
        for status in ("unparsed", "not_judged", "not_answered", "without_reference"):
            line += f"  {status.replace('_', ' ')} {row[f'num_{status}']}" if f"num_{status}" in row else ""
        lines.append(line)
    lines.append("scores from 1 to 10, with 95 % intervals (bootstrap over pictures); what is unparsed is in no mean")
    if pairwise:
        row = values["rows"][-1]
        bias = _shown(row["first_place_favoured_by"])
        lines.append(f"order: the first place is favoured by {bias} points; it decided {row['order_decided']} pairs")
    spent = values["spent"]
    cost = "" if spent["cost"] is None else f", cost {spent['cost']:.4f}"
    tokens = f"{spent['prompt_tokens']:,} tokens of prompts and {spent['completion_tokens']:,} of replies"
    return "\n".join([*lines, f"spent: {spent['requests']} requests, {tokens}{cost}"])


def _shown(value: dict[str, float | None]) -> str:
    limits = "" if value["low"] is None else f" ({value['low']:.2f} to {value['high']:.2f})"
    return "-" if value["value"] is None else f"{value['value']:.2f}{limits}"


if __name__ == "__main__":
    sys.exit(command())
