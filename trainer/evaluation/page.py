"""`python -m trainer.evaluation.page`: a file of answers as a page of pictures, questions, answers and truths.

One HTML file that requests nothing, under the rules of the compile report (`dataprep.report.document`). It does not
grow with the file of answers: the table is of all questions, the pictures of a few.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from dataprep.errors import CommandError
from dataprep.report.document import document, header
from dataprep.report.markup import IN_TEXT, Markup, foreign, join, tag
from dataprep.report.parts import name, table
from dataprep.report.wording import big, number, percent
from trainer.evaluation.benchmarks import BENCHMARKS
from trainer.evaluation.door import door

#: Questions shown if nothing else is asked for; half of them wrong ones.
DEFAULT_LIMIT = 40

#: Characters shown of a question, an answer or a truth; and truths of a question.
MAX_TEXT, MAX_TRUTHS = 1200, 12

#: Pixels of a picture's longer side.
PICTURE_SIZE = 448


class Shown(NamedTuple):
    """One question of the page."""

    record: dict[str, Any]
    score: float | None
    """None: there is no reference answer."""
    note: str | None
    """Why it is wrong, where more can be said."""


class Group(NamedTuple):
    """Questions of one outcome."""

    anchor: str
    heading: str
    all: list[Shown]


@click.command()
@click.argument("answers", type=click.Path(path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), help="Default: ANSWERS with the ending .html.")
@click.option("--limit", type=click.IntRange(min=1), default=DEFAULT_LIMIT, show_default=True, help="Questions shown.")
@door
def command(answers: Path, output: Path | None, limit: int) -> None:
    """Show the ANSWERS that `python -m trainer.evaluation.run` wrote: one HTML file, wrong answers first."""
    output = output or answers.with_suffix(".html")
    if output.suffix != ".html":
        raise CommandError(f"--output {output}: expected the name of an .html file")
    text = page(answers, limit)
    partial = output.with_name(f"{output.name}.{os.getpid()}.partial")
    partial.write_text(text, encoding="utf-8", errors="backslashreplace")
    partial.replace(output)
    click.echo(output)


def page(answers: Path, limit: int = DEFAULT_LIMIT) -> str:
    """Return the page of a file of answers; the same file and pictures give the same text.

    Raises:
        CommandError: it is no file of answers, or of an unknown benchmark.
    """
    from trainer.evaluation import scoring
    from trainer.evaluation.answers import read_answers

    records = read_answers(answers)
    benchmark = BENCHMARKS.get(records[0]["metadata"]["benchmark"])
    if benchmark is None:
        found = records[0]["metadata"]["benchmark"]
        raise CommandError(
            f"{answers}: is of the benchmark {found!r}, which is not known; known are {', '.join(BENCHMARKS)}"
        )
    marked = scoring.mark(records, benchmark.metric)
    groups = _groups([_shown(record, one) for record, one in zip(records, marked, strict=True)])
    rows = scoring.score(records, benchmark.metric) if any(one.verdict for one in marked) else []
    sections = [("scores", "Scores", _scores(rows, benchmark))] if rows else []
    shares = _dealt([len(group.all) for group in groups], limit)
    sections += [
        (group.anchor, group.heading, _articles(group, share)) for group, share in zip(groups, shares, strict=True)
    ]
    title = f"{number(len(records), 'answer')} to {benchmark.title}"
    foot = join("Made by ", tag("code", "trainer.evaluation.page"), " from the answers; nothing was sent anywhere.")
    return document(title, _opening(title, records, groups, rows), sections, foot)


def _shown(record: dict[str, Any], marked: Any) -> Shown:
    note = None
    if marked.error:
        note = f"not answered: {marked.error.partition(':')[0].replace('_', ' ')}"
    elif marked.verdict is not None and not marked.verdict.parsed:
        note = "none of the answers that can be given"
    elif not record["metadata"].get("ended", True):
        note = "cut at the largest number of tokens"
    return Shown(record, None if marked.verdict is None else marked.verdict.score, note)


def _groups(shown: Sequence[Shown]) -> list[Group]:
    """Deal the questions out by outcome; a benchmark of half points has questions in between."""
    found = [
        Group("wrong", "Wrong answers", [one for one in shown if one.score is not None and one.score <= 0]),
        Group("partly", "Partly right answers", [one for one in shown if one.score is not None and 0 < one.score < 1]),
        Group("right", "Right answers", [one for one in shown if one.score is not None and one.score >= 1]),
        Group("open", "Without a reference answer", [one for one in shown if one.score is None]),
    ]
    return [group for group in found if group.all]


def _dealt(sizes: Sequence[int], limit: int) -> list[int]:
    """Return how many of each group are shown: half of them of the first, which is mostly of wrong answers."""
    shares = []
    for place, size in enumerate(sizes):
        left = limit - sum(shares)
        is_last = place == len(sizes) - 1
        shares.append(min(size, left if is_last else max(left // 2, left - sum(sizes[place + 1 :]))))
    return shares


def _evenly(items: Sequence[Shown], count: int) -> list[Shown]:
    """Return so many that lie evenly over all, first and last among them: files hold one kind after the other."""
    return [items[place * (len(items) - 1) // max(count - 1, 1)] for place in range(count)]


def _opening(title: str, records: Sequence[dict[str, Any]], groups: Sequence[Group], rows: Sequence[Any]) -> Markup:
    counted = {group.anchor: len(group.all) for group in groups}
    scored = len(records) - counted.get("open", 0)
    main = next((row for row in rows if row.score is not None), None)
    tiles = []
    if main is not None:
        limits = "" if main.low is None else f"95 %: {percent(main.low)} to {percent(main.high)}"
        tiles.append((main.measure, percent(main.score), limits))
    tiles.append(("wrong", big(counted.get("wrong", 0)), f"of {number(scored, 'question')}"))
    failed = sum(bool(record["metadata"].get("error")) for record in records)
    tiles.append(("not answered", big(failed), "count as wrong"))
    return header(title, join("Answered by ", name(records[0]["model_id"]), "."), tiles)


def _scores(rows: Iterable[Any], benchmark: Any) -> Markup:
    head = ("kind", "measure", "questions", "score", "95 % interval", "unparsed", "not answered")
    lines = [
        [
            name(row.kind),
            row.measure,
            big(row.n),
            "–" if row.score is None else percent(row.score),
            "–" if row.low is None else f"{percent(row.low)} to {percent(row.high)}",
            big(row.unparsed),
            big(row.not_answered),
        ]
        for row in rows
    ]
    note = "Intervals: bootstrap over pictures. What is unparsed or not answered counts as wrong."
    return table("By kind of question", head, lines, f"{note} {benchmark.caveat or ''}".strip())


def _articles(group: Group, count: int) -> Markup:
    said = f"{big(count)} of {big(len(group.all))}, evenly over the file." if count < len(group.all) else None
    chosen = _evenly(group.all, count)
    return join(tag("p", said, class_="note") if said else None, *(_article(one) for one in chosen))


def _article(one: Shown) -> Markup:
    record, metadata = one.record, one.record["metadata"]
    kind = tag("span", name(metadata["kind"]), class_="count") if metadata.get("kind") else None
    heading = tag("h3", foreign(record["question_id"]), kind)
    options = [f"{chr(65 + place)}. {text}" for place, text in enumerate(metadata["options"])]
    words = tag(
        "div",
        _line("question", record["prompt"]),
        _line("options", "\n".join(options)) if options and options[0] not in record["prompt"] else None,
        _line("answer", record["text"] or "(nothing)", _colour(one.score)),
        _line(_truth_word(metadata["answers"]), "\n".join(metadata["answers"][:MAX_TRUTHS]) or "(not known)"),
        tag("p", one.note, class_="note") if one.note else None,
    )
    if metadata.get("image") is None:
        return tag("article", heading, words)
    return tag("article", heading, tag("div", _figure(metadata["image"], record), words, class_="pair"))


def _truth_word(answers: Sequence[str]) -> str:
    return "truth" if len(answers) < 2 else f"truths ({len(answers)})"


def _colour(score: float | None) -> str | None:
    """Return the class of an answer: right, wrong, or neither."""
    if score is None or 0 < score < 1:
        return None
    return "trained" if score >= 1 else "hole"


def _line(what: str, text: str, colour: str | None = None) -> Markup:
    words = foreign(text, MAX_TEXT, IN_TEXT)
    shown = tag("mark", words, class_=f"run {colour} wrapped") if colour else words
    return tag("p", tag("span", f"{what}: ", class_="count"), shown)


def _figure(path: str, record: dict[str, Any]) -> Markup:
    from dataprep.images import ImageFault, load_image
    from dataprep.report.rows import data_uri

    try:
        picture = data_uri(load_image(Path(path), PICTURE_SIZE, "pad", (255, 255, 255)))
        box = tag("img", src=picture, alt=f"The picture of question {record['question_id']}")
    except ImageFault as fault:
        # Its message names a path of this machine.
        box = tag("div", f"the picture cannot be shown here: {fault.reason.replace('_', ' ')}", class_="nothing")
    return tag("figure", box, tag("figcaption", name(Path(path).name)), class_="picture")


if __name__ == "__main__":
    sys.exit(command())
