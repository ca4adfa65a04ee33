"""A picture of how the loss fell: `loss.svg` in the run's folder, drawn from its own files and with nothing else."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from dataprep.shards import publish
from trainer.report import EVALUATIONS, METRICS

PICTURE = "loss.svg"

#: Points of a curve at most; more steps are drawn as the means of as many in a row.
MAX_POINTS = 800

#: The whole picture and the frame inside it, in pixels.
WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 840, 44, 368

#: Colours that stay apart for the colour-blind, in print and on dark ground (Okabe and Ito).
TRAINING, EVALUATION = "#0072B2", "#D55E00"

Points = list[tuple[float, float]]


def draw_curve(folder: Path) -> None:
    """Draw the losses in a run's folder; without a single step, nothing.

    Raises:
        OSError: the picture cannot be written.
    """
    training, evaluation = _losses(folder / METRICS), _losses(folder / EVALUATIONS)
    if training:
        publish(folder / PICTURE, picture(training, evaluation).encode("utf-8"))


def _losses(path: Path) -> Points:
    if not path.is_file():
        return []
    lines = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines]


def thinned(points: Points, most: int = MAX_POINTS) -> Points:
    """Return at most so many points: means of equally many in a row."""
    width = -(-len(points) // most)
    groups = [points[start : start + width] for start in range(0, len(points), width)]
    return [(_mean([x for x, _ in group]), _mean([y for _, y in group])) for group in groups]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def picture(training: Points, evaluation: Points) -> str:
    """Return an SVG of the loss against the step; there is at least one training loss."""
    drawn = thinned(training)
    steps, losses = [x for x, _ in training + evaluation], [y for _, y in drawn + evaluation]
    across, up = ticks(0, max(steps)), ticks(min(losses), max(losses))

    def place(point: tuple[float, float]) -> str:
        x = LEFT + (RIGHT - LEFT) * (point[0] - across[0]) / (across[-1] - across[0])
        y = BOTTOM - (BOTTOM - TOP) * (point[1] - up[0]) / (up[-1] - up[0])
        return f"{x:.1f},{y:.1f}"

    parts = [_grid_line(place((across[0], value)), place((across[-1], value)), f"{value:.6g}") for value in up]
    parts += [_step_label(place((value, up[0])), f"{value:,.6g}") for value in across]
    parts.append(_curve([place(point) for point in drawn], TRAINING, "1.5"))
    if evaluation:
        places = [place(point) for point in evaluation]
        parts.append(_curve(places, EVALUATION, "2.5"))
        parts += [_dot(each, EVALUATION) for each in places]
    each = "" if len(drawn) == len(training) else f", mean of {-(-len(training) // MAX_POINTS)} steps each"
    names = [(TRAINING, f"training{each}: {training[-1][1]:.4f} in step {training[-1][0]:,}")]
    if evaluation:
        best = min(evaluation, key=lambda point: point[1])
        names.append((EVALUATION, f"evaluation: best {best[1]:.4f} after step {best[0]:,}"))
    return _document([*parts, *_legend(names)], "; ".join(text for _, text in names))


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers, four to nine of them, from `low` or below to `high` or above."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    unit = 10.0 ** math.floor(math.log10(span / 4))
    unit *= max(factor for factor in (1, 2, 5) if factor * unit <= span / 4)
    first, last = math.floor(low / unit), math.ceil(high / unit)
    return [number * unit for number in range(first, max(last, first + 1) + 1)]


def _grid_line(left: str, right: str, label: str) -> str:
    (x1, y), (x2, _) = left.split(","), right.split(",")
    line = f'<line x1="{x1}" y1="{y}" x2="{x2}" y2="{y}" stroke="#999" stroke-opacity="0.35"/>'
    return f'{line}<text x="{LEFT - 8}" y="{y}" text-anchor="end" dominant-baseline="middle">{escape(label)}</text>'


def _step_label(place: str, label: str) -> str:
    return f'<text x="{place.split(",")[0]}" y="{BOTTOM + 20}" text-anchor="middle">{escape(label)}</text>'


def _curve(places: Sequence[str], colour: str, width: str) -> str:
    if len(places) == 1:
        return _dot(places[0], colour)
    points = " ".join(places)
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{width}"/>'


def _dot(place: str, colour: str) -> str:
    x, y = place.split(",")
    return f'<circle cx="{x}" cy="{y}" r="3.5" fill="{colour}"/>'


def _legend(names: Sequence[tuple[str, str]]) -> list[str]:
    entries = []
    for number, (colour, text) in enumerate(names):
        x = LEFT + number * (RIGHT - LEFT) // 2
        entries.append(f'<rect x="{x}" y="16" width="18" height="5" fill="{colour}"/>')
        entries.append(f'<text x="{x + 26}" y="23">{escape(text)}</text>')
    entries.append(f'<text x="{(LEFT + RIGHT) // 2}" y="{HEIGHT - 8}" text-anchor="middle">optimizer step</text>')
    return entries


def _document(parts: Sequence[str], description: str) -> str:
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
        f' role="img" font-family="sans-serif" font-size="13">\n<title>Loss by step</title>'
        f"<desc>{escape(description)}</desc>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n<g fill="#333">\n{body}\n</g>\n</svg>\n'
    )
