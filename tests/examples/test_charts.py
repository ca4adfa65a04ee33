import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from examples import charts

NUM_TRAIN, NUM_TEST = 60, 20


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("charts")
    charts.write_dataset(folder, NUM_TRAIN, NUM_TEST, seed=0)
    return folder


def pictures(root: Path, split: str) -> list[Path]:
    return sorted((root / charts.DATASET / split / "png").glob("*.png"))


def read_chart(path: Path) -> charts.Chart:
    """Read a chart back from its pixels alone: runs of one colour along the floor, then each run's height."""
    pixels = np.asarray(Image.open(path).convert("RGB"))
    names = {colour: name for name, colour in charts.COLOURS.items()}
    floor = [names.get(tuple(int(value) for value in pixel)) for pixel in pixels[charts.IMAGE_SIZE - 5]]
    columns = [x for x, name in enumerate(floor) if name and (x == 0 or floor[x - 1] != name)]
    heights = [int((pixels[:, x] == charts.COLOURS[floor[x]]).all(axis=1).sum()) for x in columns]
    return charts.Chart(
        colours=tuple(floor[x] for x in columns), heights=tuple(height // charts.HEIGHT_STEP for height in heights)
    )


def expected_answer(chart: charts.Chart, question: str) -> str:
    tops = dict(zip(chart.colours, chart.heights, strict=True))
    beside = re.fullmatch(r"Which colour is right of the (\w+) bar\?", question)
    if beside:
        return chart.colours[chart.colours.index(beside[1]) + 1]
    return {
        "Which colour is the tallest bar?": max(tops, key=tops.get),
        "Which colour is the shortest bar?": min(tops, key=tops.get),
        "How many bars are there?": str(len(tops)),
        "Which colour is the leftmost bar?": chart.colours[0],
    }[question]


def test_the_pictures_alone_give_every_answer(root):
    kinds = set()
    for line in (root / "questions.jsonl").read_text().splitlines():
        question = json.loads(line)
        assert question["answer"] == expected_answer(read_chart(root / question["image"]), question["question"])
        kinds.add(question["kind"])
    assert kinds == set(charts.KINDS)


def true_of(chart: charts.Chart, sentence: str) -> bool:
    """Check one sentence of a caption against the chart that the pixels show."""
    words = sentence.replace(",", "").split()
    if sentence.startswith("From left to right"):
        return tuple(words[7::2]) == chart.colours and tuple(map(int, words[8::2])) == chart.heights
    if sentence.startswith("There are"):
        return int(words[2]) == len(chart.colours)
    tops = dict(zip(chart.colours, chart.heights, strict=True))
    if "taller than" in sentence:
        return tops[words[1]] > tops[words[7]]
    return tops[words[4]] == {"tallest": max, "shortest": min}[words[1]](tops.values())


def test_every_sentence_of_a_caption_is_true_of_its_picture(root):
    records = json.loads((root / "raw/captions/captions.json").read_text())
    orders = set()
    for record in records:
        human, gpt = record["conversations"]
        assert human["value"].count("<image>") == 1
        sentences = gpt["value"].removesuffix(".").split(". ")
        assert len(sentences) == 5
        assert all(true_of(read_chart(root / record["image"]), sentence) for sentence in sentences)
        orders.add(tuple(sentence.split()[1] for sentence in sentences))
    assert len(records) == NUM_TRAIN and len(orders) > NUM_TRAIN / 2


def test_no_two_pictures_are_equal_and_none_is_held_out_and_trained_on(root):
    paths = pictures(root, "train") + pictures(root, "test")
    assert len(paths) == NUM_TRAIN + NUM_TEST
    assert len({Image.open(path).tobytes() for path in paths}) == len(paths)


def test_the_layout_is_chartqas(root):
    for split, num_charts in (("train", NUM_TRAIN), ("test", NUM_TEST)):
        folder = root / "raw" / "chartqa" / "ChartQA Dataset" / split
        rows = {
            source: json.loads((folder / f"{split}_{source}.json").read_text()) for source in ("human", "augmented")
        }
        for row in rows["human"] + rows["augmented"]:
            assert set(row) == {"imgname", "query", "label"}
            assert all(isinstance(value, str) for value in row.values())
            assert (folder / "png" / row["imgname"]).is_file()
        assert rows["human"] and rows["augmented"]
        assert len(rows["human"]) + len(rows["augmented"]) == num_charts * len(charts.KINDS)


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path):
    written = []
    for name, seed in (("first", 5), ("again", 5), ("other", 6)):
        charts.write_dataset(tmp_path / name, 8, 4, seed)
        files = sorted(path for path in (tmp_path / name).rglob("*") if path.is_file())
        written.append({path.relative_to(tmp_path / name): path.read_bytes() for path in files})
    assert written[0] == written[1]
    assert written[0].keys() == written[2].keys() and written[0] != written[2]


def test_bars_of_a_chart_differ_in_colour_and_height():
    rng = random.Random(1)
    counts = set()
    for _ in range(300):
        chart = charts.sample_chart(rng)
        assert len(set(chart.colours)) == len(set(chart.heights)) == len(chart.colours)
        counts.add(len(chart.colours))
    assert counts == set(charts.NUM_BARS)
