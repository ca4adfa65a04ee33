"""Draw the demo's chart dataset: `python examples/charts.py ROOT`.

    ROOT/raw/chartqa/ChartQA Dataset/         ChartQA's original layout, the blank in the folder's name included
        train/png/00000.png ...               84 x 84 pixels, 2 to 5 bars
        train/train_human.json                [{"imgname": "00000.png", "query": "How many ...", "label": "3"}, ...]
        train/train_augmented.json            the same; each chart's questions are spread over the two files
        test/...                              charts held out: no picture of `test` is also one of `train`
    ROOT/raw/captions/captions.json           what phase 1 learns from: a LLaVA array, a caption for each training chart
    ROOT/questions.jsonl                      every question again with its kind, for the marking

Captions name what is drawn, in the words of the questions. That is what makes phase 2 learn: from questions alone a
tiny model stays at chance for minutes, because an answer of one word says so little about the picture.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 90, 200),
    "yellow": (240, 200, 20),
    "purple": (148, 60, 190),
    "black": (20, 20, 20),
}
IMAGE_SIZE = 84
#: Heights are multiples of 8 pixels, so that two bars never differ by less than the eye of a 14-pixel patch can tell.
HEIGHT_STEP = 8
NUM_HEIGHTS = 9
NUM_BARS = (2, 3, 4, 5)
DATASET = Path("raw") / "chartqa" / "ChartQA Dataset"
CAPTION_PROMPT = "<image>\nDescribe the chart."


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars from left to right; colours are distinct, and so are heights (in steps of `HEIGHT_STEP` pixels)."""

    colours: tuple[str, ...]
    heights: tuple[int, ...]

    @property
    def by_height(self) -> list[str]:
        """The colours from the tallest bar to the shortest."""
        return [colour for _, colour in sorted(zip(self.heights, self.colours, strict=True), reverse=True)]


@dataclass(frozen=True, slots=True)
class Question:
    """One question about one picture; `image` is relative to the data root."""

    split: str
    image: str
    kind: str
    question: str
    answer: str


def _neighbour(chart: Chart, rng: random.Random) -> tuple[str, str]:
    left = rng.randrange(len(chart.colours) - 1)
    return f"Which colour is right of the {chart.colours[left]} bar?", chart.colours[left + 1]


#: What is asked of every chart: chart and generator -> question and answer.
KINDS: dict[str, Callable[[Chart, random.Random], tuple[str, str]]] = {
    "tallest": lambda chart, rng: ("Which colour is the tallest bar?", chart.by_height[0]),
    "shortest": lambda chart, rng: ("Which colour is the shortest bar?", chart.by_height[-1]),
    "how many": lambda chart, rng: ("How many bars are there?", str(len(chart.colours))),
    "leftmost": lambda chart, rng: ("Which colour is the leftmost bar?", chart.colours[0]),
    "right of": _neighbour,
}


def sample_chart(rng: random.Random) -> Chart:
    """Choose a chart: the number of bars first, so that each number is as likely as any other."""
    num_bars = rng.choice(NUM_BARS)
    return Chart(
        colours=tuple(rng.sample(sorted(COLOURS), num_bars)),
        heights=tuple(rng.sample(range(1, NUM_HEIGHTS + 1), num_bars)),
    )


def distinct_charts(num_charts: int, rng: random.Random) -> list[Chart]:
    """Choose charts of which no two are equal; two charts that differ are also two different pictures."""
    charts: dict[Chart, None] = {}
    while len(charts) < num_charts:
        charts[sample_chart(rng)] = None
    return list(charts)


def draw(chart: Chart) -> Image.Image:
    """Draw a chart: RGB, 84 x 84 pixels, bars of equal width above a grey axis."""
    picture = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), "white")
    pen = ImageDraw.Draw(picture)
    floor = IMAGE_SIZE - 4
    slot = (IMAGE_SIZE - 4) / len(chart.colours)
    for index, (colour, height) in enumerate(zip(chart.colours, chart.heights, strict=True)):
        left = round(2 + (index + 0.15) * slot)
        right = round(2 + (index + 0.85) * slot) - 1
        pen.rectangle((left, floor - HEIGHT_STEP * height, right, floor - 1), fill=COLOURS[colour])
    pen.line((2, floor, IMAGE_SIZE - 3, floor), fill=(128, 128, 128))
    return picture


def caption(chart: Chart, rng: random.Random) -> str:
    """Name what is drawn, in the words that questions will use; the sentences come in any order.

    No sentence can be told from its place, so that each has to be learned from its own words and the picture. Heights
    are told as numbers: from the order alone a tiny model takes much longer to see how tall a bar is.
    """
    bars = ", ".join(f"{colour} {height}" for colour, height in zip(chart.colours, chart.heights, strict=True))
    taller, shorter = sorted(rng.sample(range(len(chart.colours)), 2), key=lambda bar: -chart.heights[bar])
    sentences = [
        f"From left to right the bars are {bars}.",
        f"The tallest bar is {chart.by_height[0]}.",
        f"The shortest bar is {chart.by_height[-1]}.",
        f"There are {len(chart.colours)} bars.",
        f"The {chart.colours[taller]} bar is taller than the {chart.colours[shorter]} bar.",
    ]
    return " ".join(rng.sample(sentences, len(sentences)))


def ask_all(chart: Chart, split: str, image: str, rng: random.Random) -> list[Question]:
    """Ask one question of every kind, in an order of the chart's own."""
    kinds = rng.sample(sorted(KINDS), len(KINDS))
    return [Question(split, image, kind, *KINDS[kind](chart, rng)) for kind in kinds]


def write_split(root: Path, split: str, charts: Sequence[Chart], rng: random.Random) -> list[Question]:
    """Write one split's pictures and its two question files; return the questions."""
    folder = DATASET / split
    (root / folder / "png").mkdir(parents=True)
    files: dict[str, list[dict[str, str]]] = {"human": [], "augmented": []}
    questions = []
    for index, chart in enumerate(charts):
        name = f"{index:05d}.png"
        draw(chart).save(root / folder / "png" / name)
        for question in ask_all(chart, split, (folder / "png" / name).as_posix(), rng):
            row = {"imgname": name, "query": question.question, "label": question.answer}
            files[rng.choice(sorted(files))].append(row)
            questions.append(question)
    for source, rows in files.items():
        (root / folder / f"{split}_{source}.json").write_text(json.dumps(rows, indent=1))
    return questions


def caption_records(charts: Sequence[Chart], rng: random.Random) -> Iterator[dict]:
    """Describe each training chart in one LLaVA record; the image key is relative to the data root."""
    for index, chart in enumerate(charts):
        yield {
            "id": f"caption-{index:05d}",
            "image": (DATASET / "train" / "png" / f"{index:05d}.png").as_posix(),
            "conversations": [
                {"from": "human", "value": CAPTION_PROMPT},
                {"from": "gpt", "value": caption(chart, rng)},
            ],
        }


def write_dataset(root: Path, num_train: int, num_test: int, seed: int) -> None:
    """Write the whole dataset under `root`; the same numbers and seed write the same bytes."""
    rng = random.Random(seed)
    charts = distinct_charts(num_train + num_test, rng)
    train, test = charts[:num_train], charts[num_train:]
    questions = write_split(root, "train", train, rng) + write_split(root, "test", test, rng)
    captions = root / "raw" / "captions" / "captions.json"
    captions.parent.mkdir(parents=True)
    captions.write_text(json.dumps(list(caption_records(train, rng)), indent=1))
    with (root / "questions.jsonl").open("w") as lines:
        lines.writelines(json.dumps(asdict(question)) + "\n" for question in questions)


def main() -> None:
    """Read the command line and write the dataset."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--train", type=int, default=3000, help="charts to train on")
    parser.add_argument("--test", type=int, default=300, help="charts held out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    write_dataset(options.root, options.train, options.test, options.seed)
    print(
        f"{options.train} charts to train on and {options.test} held out, {len(KINDS)} questions each: {options.root}"
    )


if __name__ == "__main__":
    main()
