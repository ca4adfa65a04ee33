"""The page of answers in a real browser: what it shows, and that nothing foreign comes alive."""

import json
import os

import pytest
from click.testing import CliRunner
from PIL import Image

from dataprep.report.markup import cut, visible
from tests.dataprep.report.hostile import HOSTILE
from trainer.evaluation.page import _dealt, command, page

FULL = os.environ.get("LLAVA_PREP_PROOFS") == "full"

#: Every element with its attributes' names and its class.
SKELETON = """[...document.querySelectorAll('*')].map(
    e => [e.localName, e.className, ...[...e.attributes].map(a => a.name)].join(' '))"""


def line(number, text, answers=("14",), benchmark="chartqa", **metadata):
    known = {"benchmark": benchmark, "answers": list(answers), "kind": "human", "options": [], "image": None}
    return {
        "question_id": f"q{number}",
        "prompt": f"How many bars are in chart {number}?",
        "text": text,
        "answer_id": "x",
        "model_id": "run_final",
        "metadata": known | {"num_tokens": 2, "ended": True} | metadata,
    }


@pytest.fixture
def write(tmp_path):
    def call(lines, name="answers.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(one) + "\n" for one in lines))
        return path

    return call


@pytest.fixture
def answers(write, tmp_path):
    """Thirty right, twenty wrong, one without a truth, one without its picture, one that was cut."""
    Image.new("RGB", (60, 40), (200, 30, 30)).save(tmp_path / "red.png")
    picture = str(tmp_path / "red.png")
    lines = [
        line(n, "14" if n < 30 else "99", image=picture, kind="human" if n % 2 else "augmented") for n in range(50)
    ]
    lines += [line(50, "so", answers=()), line(51, "", image="/gone/away.png", error="missing_image: /gone/away.png")]
    return write([*lines, line(52, "many many", ended=False, image=picture)])


@pytest.mark.parametrize("width", [360, 1280])
def test_it_shows_pictures_questions_answers_and_truths(browser, answers, width, tmp_path):
    done = CliRunner().invoke(command, [str(answers), "--limit", "44"], catch_exceptions=False)
    assert (done.exit_code, done.stdout.strip()) == (0, str(tmp_path / "answers.html"))
    browser.open((tmp_path / "answers.html").as_uri(), width)
    text = browser.run("document.body.innerText")
    for part in (
        *(
            "53 answers to ",
            "57.7 %",
            "Wrong answers",
            "Right answers",
            "Without a reference answer",
            "human",
            "augmented",
        ),
        *("How many bars are in chart", "the picture cannot be shown here", "cut at the largest number of tokens"),
        *("not answered: missing image", "run_final", "red.png", "truth: 14", "(not known)"),
    ):
        assert part in text, part
    assert "/gone" not in text
    assert str(tmp_path) not in text
    sizes = browser.run("[...document.querySelectorAll('img')].map(i => i.complete && i.naturalWidth)")
    assert len(sizes) > 30 and set(sizes) == {448}
    assert browser.run("document.querySelectorAll('article').length") == 44
    assert browser.run("document.querySelectorAll('#wrong article').length") == 22
    assert browser.run("document.querySelectorAll('mark.trained').length") == 21
    assert browser.run("[...document.querySelectorAll('img')].every(i => i.alt)")
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")
    assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    assert (browser.requests, browser.said, browser.dialogs) == ([(tmp_path / "answers.html").as_uri()], [], [])


def hostile_lines(text):
    own = line(0, text, (text,), kind="+".join([text.replace("+", "")]), options=[text, text], error=f"{text}: {text}")
    own |= {"question_id": text, "prompt": text, "model_id": text}
    own["metadata"]["image"] = f"/gone/{text}"
    return [own, line(1, "14")]


def opened(browser, path, tmp_path):
    (tmp_path / "page.html").write_text(page(path), errors="backslashreplace")
    address = (tmp_path / "page.html").as_uri()
    browser.open(address, 360)
    seen = [url for url in browser.requests if url != address]
    return browser.run(SKELETON), seen + browser.said + browser.dialogs


def test_hostile_strings_in_every_field_stay_text(browser, write, tmp_path):
    harmless, nothing = opened(browser, write(hostile_lines("harmless")), tmp_path)
    assert nothing == [] and len(harmless) > 60
    for text in HOSTILE if FULL else HOSTILE[::9]:
        built, happened = opened(browser, write(hostile_lines(text)), tmp_path)
        assert happened == [], text
        assert built == harmless, text
        assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [360, 360], text
        shown = browser.run("[...document.querySelectorAll('.foreign')].map(e => e.textContent)")
        assert sum(visible(cut(text, 120), "\n\t") in one for one in shown) >= 4, text


def test_the_same_answers_make_the_same_page(answers):
    assert page(answers) == page(answers)


def test_a_large_file_makes_no_large_page(write):
    few, many = (page(write([line(n, str(n % 20)) for n in range(count)])) for count in (100, 3000))
    assert abs(len(many) - len(few)) < 2000


@pytest.mark.parametrize(
    ("sizes", "shares"),
    [([100, 100], [20, 20]), ([5, 100], [5, 35]), ([100, 5], [35, 5]), ([100, 100, 100], [20, 10, 10]), ([3], [3])],
)
def test_half_of_what_is_shown_is_wrong_where_there_is_enough(sizes, shares):
    assert _dealt(sizes, 40) == shares


def test_what_is_no_file_of_answers_is_one_sentence(write, tmp_path):
    for path, code, said in (
        (tmp_path / "none.jsonl", 2, "no such file"),
        (write([line(0, "1", benchmark="unheard")]), 2, "is not known"),
    ):
        done = CliRunner().invoke(command, [str(path)], catch_exceptions=False)
        assert (done.exit_code, said in done.stderr, done.stderr.count("\n")) == (code, True, 1)
        assert not list(tmp_path.glob("*.html*"))
