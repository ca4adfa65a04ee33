"""Charts as inline SVG. The bars stretch with the page; the words stand beside them as HTML, so they never shrink."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dataprep.report.markup import Markup, join, tag

#: Bars of a histogram, about.
BARS = 64

WIDTH, HEIGHT = 1000, 200


@dataclass(frozen=True)
class Binned:
    """Counts by value, gathered into bars of one breadth on the page. K series, B bars."""

    edges: list[int]
    """Where the bars begin, and the last value of the last bar (B + 1,)."""
    counts: np.ndarray
    """int64 (K, B)."""

    def part(self, value: int) -> float:
        """Return where a value stands across the page, 0 to 1."""
        return float(np.interp(value, self.edges, np.linspace(0, 1, len(self.edges))))

    def label(self, number: int) -> str:
        """Return the values of a bar: `512 to 543`."""
        low, high = self.edges[number], self.edges[number + 1] - (number < len(self.edges) - 2)
        return f"{low:,}" if low >= high else f"{low:,} to {high:,}"


def evenly(by_value: np.ndarray, last: int) -> Binned:
    """Gather counts by value into at most `BARS` bars of one width.

    The axis runs from 0 to `last`, unless all values lie so close together that nothing would be seen.

    Args:
        by_value: int64 (K, V), V > last.
    """
    found = np.flatnonzero(by_value.sum(axis=0))
    low, high = (int(found[0]), int(found[-1])) if len(found) else (0, last)
    if (high - low) * 6 > last:
        low, high = 0, last
    width = 1
    while width * BARS < high - low:
        width *= 2
    low -= low % width
    return _binned(by_value, [*range(low, max(high, low + 1), width), max(high, low + 1)])


def from_nothing(by_value: np.ndarray) -> Binned:
    """Gather counts by value into at most `BARS` bars that hold equally many values each, from 0 to the largest found.

    Args:
        by_value: int64 (K, V).
    """
    found = np.flatnonzero(by_value.sum(axis=0))
    high, width = int(found[-1]) if len(found) else 0, 1
    while width * BARS <= high:
        width *= 2
    end = (high // width + 1) * width
    part = np.zeros((len(by_value), end), np.int64)
    part[:, : high + 1] = by_value[:, : high + 1]
    return _binned(part, [*range(0, end, width), end - 1])


def _binned(by_value: np.ndarray, edges: list[int]) -> Binned:
    # The last value belongs to the last bar, not to one of its own.
    part = by_value[:, : edges[-1] + 1]
    return Binned(edges, np.add.reduceat(part, edges[:-1], axis=1))


def histogram(bars: Binned, names: Sequence[str], unit: str, title: str, marks: dict[str, int]) -> Markup:
    """Return a histogram of stacked bars with its axes, its legend and the same numbers as a table.

    Args:
        names: of the series, as the legend has them.
        unit: of the values, as the axis has it.
        marks: values that get a dashed line, by what they are called.
    """
    # Some room above the bars, for the names of the marks.
    top = _round_up(int(bars.counts.sum(axis=0).max(initial=0) * (1.25 if marks else 1)))
    shown = {name: bars.part(value) for name, value in marks.items() if bars.edges[0] <= value <= bars.edges[-1]}
    lines = [_line(part) for part in shown.values()]
    drawing = tag(
        "svg",
        *_grid(),
        *_stacked(bars, top),
        *lines,
        role="img",
        aria_label=_alternative(bars, title, unit),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
    )
    plot = tag("div", drawing, *_mark_labels(shown, marks), class_="plot")
    ticks = tag("div", *_ticks(bars), class_="ticks", aria_hidden="true")
    heights = [tag("span", f"{value:,}") for value in dict.fromkeys((top, top // 2, 0))]
    axis = tag("div", *heights, class_="heights", aria_hidden="true")
    caption = tag("figcaption", _legend(names), tag("span", f"across: {unit}; up: rows", class_="axes"))
    return tag("figure", tag("div", axis, plot, ticks, class_="chart"), caption, _numbers(bars, names, unit))


def _round_up(value: int) -> int:
    """Return the next number of one or two digits and zeros, at least 1."""
    unit = 10 ** max(0, len(str(value)) - 2)
    return max(1, -(-value // unit) * unit)


def _grid() -> list[Markup]:
    return [tag("line", x1=0, x2=WIDTH, y1=y, y2=y, class_="grid") for y in (0, HEIGHT // 2, HEIGHT)]


def _stacked(bars: Binned, top: int) -> list[Markup]:
    num_series, num_bars = bars.counts.shape
    step = WIDTH / num_bars
    drawn = []
    for number in range(num_bars):
        below = 0.0
        for series in range(num_series):
            count = int(bars.counts[series, number])
            if not count:
                continue
            height = max(HEIGHT * count / top, 1.0)  # what is there is seen
            below += height
            place = {"x": f"{number * step + step * 0.06:.2f}", "width": f"{step * 0.88:.2f}"}
            drawn.append(
                tag("rect", y=f"{HEIGHT - below:.2f}", height=f"{height:.2f}", class_=f"series{series}", **place)
            )
    return drawn


def _line(part: float) -> Markup:
    return tag("line", x1=f"{part * WIDTH:.2f}", x2=f"{part * WIDTH:.2f}", y1=0, y2=HEIGHT, class_="mark")


def _mark_labels(parts: dict[str, float], marks: dict[str, int]) -> list[Markup]:
    labels = []
    for level, (name, part) in enumerate(parts.items()):
        side = f"right:{100 - part * 100:.2f}%" if part > 0.5 else f"left:{part * 100:.2f}%"
        style = f"{side};top:{level * 1.35:.2f}em"
        labels.append(tag("span", f"{name} {marks[name]:,}", class_="label", style=style, aria_hidden="true"))
    return labels


def _ticks(bars: Binned) -> list[Markup]:
    last = len(bars.edges) - 1
    chosen = dict.fromkeys(round(last * part / 4) for part in range(5))
    places = (f"left:{100 * number / last:.2f}%" for number in chosen)
    return [tag("span", f"{bars.edges[n]:,}", style=place) for n, place in zip(chosen, places, strict=True)]


def _legend(names: Sequence[str]) -> Markup:
    swatches = [tag("span", tag("i", class_=f"swatch series{n}"), name) for n, name in enumerate(names)]
    return tag("span", *swatches, class_="legend")


def _alternative(bars: Binned, title: str, unit: str) -> str:
    counts = bars.counts.sum(axis=0)
    if not counts.sum():
        return f"{title}: no rows"
    highest = int(counts.argmax())
    return (
        f"{title}. {len(counts)} bars from {bars.edges[0]} to {bars.edges[-1]} {unit}; the highest,"
        f" {int(counts[highest]):,} rows, is {bars.label(highest)}. The numbers are in the table below."
    )


def _numbers(bars: Binned, names: Sequence[str], unit: str) -> Markup:
    head = tag("tr", tag("th", unit, scope="col"), *(tag("th", name, scope="col", class_="number") for name in names))
    rows = []
    for number, counts in enumerate(bars.counts.T.tolist()):
        if any(counts):
            cells = (tag("td", f"{count:,}", class_="number") for count in counts)
            rows.append(tag("tr", tag("th", bars.label(number), scope="row"), *cells))
    body = join(tag("caption", f"Rows by {unit}", class_="unseen"), tag("thead", head), tag("tbody", *rows))
    return tag("details", tag("summary", "the numbers"), tag("div", tag("table", body), class_="scroll", tabindex="0"))


def share_bar(share: float, series: int = 0) -> Markup:
    """Return a bar across a table's cell; the number stands beside it as text."""
    width = f"width:{min(max(share, 0.0), 1.0) * 100:.2f}%"
    return tag("span", tag("span", style=width, class_=f"series{series}"), class_="share", aria_hidden="true")
