"""Answers to a table: what each question is worth, then shares of it by kind of question, with intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataprep.errors import CommandError, Exit
from trainer.evaluation.answers import Record, truth_of
from trainer.evaluation.bootstrap import interval
from trainer.evaluation.metrics import METRICS, Verdict

ALL = "all"


@dataclass(frozen=True, slots=True)
class Marked:
    """One question with what its answer is worth."""

    name: tuple[str | int, str]
    """By which it is known in another file."""
    picture: str
    """What it shares with others; its own name where there is none."""
    kinds: tuple[str, ...]
    verdict: Verdict | None
    """None: there is no reference answer."""
    error: str | None
    """Why it could not be answered: `REASON: detail`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. Shares are from 0 to 1; None where they are not defined."""

    kind: str
    measure: str
    n: int
    """Questions with a reference answer."""
    score: float | None
    low: float | None
    high: float | None
    """The limits of the 95 % interval."""
    unparsed: int
    """Answers that are none of those that can be given; they count as wrong."""
    not_answered: int
    """Questions that could not be asked, most for their picture; they count as wrong."""
    without_truth: int
    """Questions without a reference answer, in no score."""


#: Of one question, in this order: counted, score, said yes, true yes, said and true yes.
_COLUMNS = 5


def _ratio(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(above, below, out=np.full(np.shape(below), np.nan), where=below > 0)


#: From totals (n, columns) to values (n,).
MEAN = {"": lambda t: _ratio(t[:, 1], t[:, 0])}
YES_NO = {
    "accuracy": MEAN[""],
    "precision": lambda t: _ratio(t[:, 4], t[:, 2]),
    "recall": lambda t: _ratio(t[:, 4], t[:, 3]),
    "F1": lambda t: _ratio(2 * t[:, 4], t[:, 2] + t[:, 3]),
    "yes ratio": lambda t: _ratio(t[:, 2], t[:, 0]),
}


def mark(records: Sequence[Record], metric: str) -> list[Marked]:
    """Return what each answer is worth.

    Raises:
        CommandError: a reference answer that the metric cannot take.
    """
    marked = []
    for number, record in enumerate(records, 1):
        try:
            marked.append(_marked(record, metric))
        except ValueError as error:
            raise CommandError(f"line {number}, question {record['question_id']!r}: {error}", Exit.INTEGRITY) from None
    return marked


def _marked(record: Record, metric: str) -> Marked:
    metadata, truth, verdict = record["metadata"], truth_of(record), None
    name = (record["question_id"], record["prompt"])
    if truth is not None:
        # What was not answered is judged too: that says what would have been true.
        verdict = METRICS[metric].judge(record["text"], truth)
        if metadata.get("error"):
            verdict = replace(verdict, score=0.0, parsed=True)
    kinds = tuple(kind for kind in dict.fromkeys(metadata.get("kind", "").split("+")) if kind)
    picture = metadata.get("image") or f"question {name}"
    return Marked(name, picture, kinds, verdict, metadata.get("error"))


def circular(records: Sequence[Record], marked: Sequence[Marked]) -> list[Marked]:
    """Return one for each group of rotations: right if all are, not parsed or not answered if one is."""
    groups: dict[Any, list[Marked]] = {}
    for record, one in zip(records, marked, strict=True):
        groups.setdefault(record["metadata"].get("group", one.name), []).append(one)
    return [_all_of(group) for group in groups.values()]


def _all_of(group: Sequence[Marked]) -> Marked:
    verdicts = [one.verdict for one in group if one.verdict is not None]
    error = next((one.error for one in group if one.error), None)
    if not verdicts:
        return replace(group[0], error=error)
    verdict = Verdict(min(verdict.score for verdict in verdicts), all(verdict.parsed for verdict in verdicts))
    return replace(group[0], verdict=verdict, error=error)


def score(records: Sequence[Record], metric: str) -> list[Row]:
    """Return the table: all questions, then each kind; a question of several kinds counts in each.

    Raises:
        CommandError: no question has a reference answer, or one that the metric cannot take.
    """
    marked = mark(records, metric)
    if metric == "circular":
        every, single = circular(records, marked), _first_rotations(records, marked)
        return [*_table(every, {"all rotations": MEAN[""]}), *_table(single, {"one rotation": MEAN[""]}, kinds=False)]
    return _table(marked, YES_NO if metric == "yes_no" else {METRICS[metric].title: MEAN[""]})


def _first_rotations(records: Sequence[Record], marked: Sequence[Marked]) -> list[Marked]:
    first: dict[Any, Marked] = {}
    for record, one in zip(records, marked, strict=True):
        first.setdefault(record["metadata"].get("group", one.name), one)
    return list(first.values())


def _table(marked: Sequence[Marked], measures: dict[str, Callable], kinds: bool = True) -> list[Row]:
    if all(one.verdict is None for one in marked):
        raise CommandError(
            f"none of the {len(marked)} questions has a reference answer, so nothing can be scored; `python -m"
            " trainer.evaluation.judge` lets a language model compare answers"
        )
    names = list(dict.fromkeys(kind for one in marked for kind in one.kinds)) if kinds else []
    chosen = {ALL: marked} | {name: [one for one in marked if name in one.kinds] for name in names}
    return [row for name, some in chosen.items() for row in _rows(name, some, measures)]


def _rows(kind: str, marked: Sequence[Marked], measures: dict[str, Callable]) -> Iterable[Row]:
    counted = [one for one in marked if one.verdict is not None]
    sums = picture_sums(counted)
    for measure, statistic in measures.items():
        value = statistic(sums.sum(axis=0, keepdims=True))[0] if counted else np.nan
        low, high = interval(sums, statistic) or (None, None)
        yield Row(
            kind,
            measure,
            len(counted),
            None if np.isnan(value) else float(value),
            low,
            high,
            sum(not one.verdict.parsed for one in counted if one.verdict is not None),
            sum(one.error is not None for one in counted),
            len(marked) - len(counted),
        )


def picture_sums(marked: Sequence[Marked], scores: Sequence[float] | None = None) -> NDArray[np.float64]:
    """Return what each picture adds to the totals: float64 (pictures, 5).

    Args:
        marked: questions with a verdict.
        scores: in place of the verdicts' own.
    """
    places: dict[str, int] = {}
    numbers = [places.setdefault(one.picture, len(places)) for one in marked]
    sums = np.zeros((len(places), _COLUMNS))
    for index, (number, one) in enumerate(zip(numbers, marked, strict=True)):
        verdict = one.verdict
        assert verdict is not None
        said, true = verdict.said == "yes", verdict.truth == "yes"
        value = verdict.score if scores is None else scores[index]
        sums[number] += (1, value, said, true, said and true)
    return sums


@dataclass(frozen=True, slots=True)
class Difference:
    """How much better one file is than another, on the questions that both have."""

    n: int
    difference: float
    low: float | None
    high: float | None
    only_here: int
    only_there: int


def compare(marked: Sequence[Marked], baseline: Sequence[Marked]) -> Difference:
    """Return the mean paired difference of two files' scores, with its interval.

    Raises:
        CommandError: they have no scored question in common.
    """
    before = {one.name: one.verdict.score for one in baseline if one.verdict is not None}
    counted = [one for one in marked if one.verdict is not None]
    both = [one for one in counted if one.name in before]
    if not both:
        raise CommandError("--baseline: the two files have no scored question in common")
    gains = [one.verdict.score - before[one.name] for one in both if one.verdict is not None]
    sums = picture_sums(both, gains)
    low, high = interval(sums, MEAN[""]) or (None, None)
    return Difference(len(both), float(np.mean(gains)), low, high, len(counted) - len(both), len(before) - len(both))


def reasons(records: Sequence[Record]) -> dict[str, int]:
    """Return how many questions could not be answered, by reason."""
    found = Counter(
        record["metadata"]["error"].partition(":")[0] for record in records if record["metadata"].get("error")
    )
    return dict(sorted(found.items()))
