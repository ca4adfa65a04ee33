"""The report in a real browser: what it shows at phone and desktop width, and that nothing foreign comes alive."""

import os
from types import SimpleNamespace

import pytest

from dataprep.report import document, markup, write_report
from dataprep.report.markup import cut, visible
from tests.dataprep.report.folders import Strings, folder_of_strings
from tests.dataprep.report.hostile import HOSTILE

FULL = os.environ.get("LLAVA_PREP_PROOFS") == "full"

WIDTHS = [360, 1280]

#: Every element with its attributes' names and its class, charts apart: they differ with the lengths of the strings.
SKELETON = """[...document.querySelectorAll('*')].filter(e => !e.closest('.chart') && !e.closest('details')).map(
    e => [e.localName, e.className, ...[...e.attributes].map(a => a.name)].join(' '))"""


@pytest.mark.parametrize("width", WIDTHS)
def test_it_shows_what_was_compiled(browser, compiled, width):
    browser.open((compiled / "report.html").as_uri(), width)
    text = browser.run("document.body.innerText")
    for part in (
        *("90 rows for phase 2", "seen.jsonl", "read.jsonl", "missing_image", "unsafe_image_path", "not_json"),
        *("empty_answer", "64 GPUs", "rows padded to their full width", "text-only", "max_seq_length", "66.7 %"),
        *("pictures/none.jpg: no such file", "What colour is bar 0 of chart"),
    ):
        assert part in text, part
    assert browser.run("[...document.querySelectorAll('img')].map(i => i.complete && i.naturalWidth)") == [28] * (
        browser.run("document.querySelectorAll('img').length")
    )
    assert browser.run("document.querySelectorAll('img').length") >= 3
    assert browser.run("document.querySelectorAll('article').length") >= 5
    assert browser.run("document.querySelectorAll('mark.trained').length") >= 5
    assert (browser.requests, browser.said, browser.dialogs) == ([(compiled / "report.html").as_uri()], [], [])


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_never_scrolls_sideways(browser, compiled, width):
    browser.open((compiled / "report.html").as_uri(), width)
    browser.run("document.querySelectorAll('details').forEach(d => d.open = true)")
    assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [width, width]
    # Wide tables scroll in boxes of their own, which a keyboard reaches.
    boxes = browser.run(
        "[...document.querySelectorAll('.scroll')].map(e => [e.tabIndex, e.scrollWidth > e.clientWidth])"
    )
    assert all(focus == 0 for focus, _ in boxes)
    assert width != 360 or any(wide for _, wide in boxes)


def test_bars_stand_where_the_numbers_are(browser, compiled):
    browser.open((compiled / "report.html").as_uri(), 1280)
    heights = browser.run("[...document.querySelectorAll('#lengths rect')].map(r => r.getBoundingClientRect().height)")
    counted = "[...document.querySelectorAll('#lengths details tbody tr')].map(r => r.cells[1].textContent | 0)"
    browser.run("document.querySelector('#lengths details').open = true")
    assert len(heights) >= 5 and min(heights) > 0.5
    assert sum(browser.run(counted)) == 60


def test_it_is_dark_where_dark_is_wished(browser, compiled):
    ground = "getComputedStyle(document.body).backgroundColor"
    found = []
    for dark in (False, True):
        browser.open((compiled / "report.html").as_uri(), 1280, dark=dark)
        found.append(browser.run(ground))
    assert found == ["rgb(251, 251, 249)", "rgb(20, 22, 26)"]


def test_headings_tables_and_charts_have_their_words(browser, compiled):
    browser.open((compiled / "report.html").as_uri(), 1280)
    assert browser.run("document.querySelectorAll('h1').length") == 1
    levels = browser.run("[...document.querySelectorAll('h1, h2, h3')].map(h => +h.localName[1])")
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert browser.run("[...document.querySelectorAll('table')].every(t => t.caption && t.caption.textContent)")
    assert browser.run("[...document.querySelectorAll('svg')].every(s => s.getAttribute('aria-label').length > 40)")
    assert browser.run("[...document.querySelectorAll('img')].every(i => i.alt)")
    assert browser.run("[...document.querySelectorAll('nav a')].every(a => document.querySelector(a.hash))")


def opened(browser, folder):
    """Open a folder's report; return what it is built of."""
    address = write_report(folder).page.as_uri()
    browser.open(address, 360)
    seen = [url for url in browser.requests if url != address]
    return browser.run(SKELETON), seen + browser.said + browser.dialogs


@pytest.fixture
def of_strings(workspace):
    def make(name, strings):
        return folder_of_strings(workspace.root / name, workspace.tokenizer, workspace.root, strings)

    return make


def test_hostile_strings_in_every_field_stay_text(browser, of_strings):
    harmless, nothing = opened(browser, of_strings("harmless", Strings.all_of("harmless")))
    assert nothing == [] and len(harmless) > 150
    for number, text in enumerate(HOSTILE if FULL else HOSTILE[::9]):
        built, happened = opened(browser, of_strings(f"f{number}", Strings.all_of(text)))
        assert happened == [], text
        assert built == harmless, text
        assert browser.run("[document.documentElement.scrollWidth, innerWidth]") == [360, 360], text
        shown = browser.run("[...document.querySelectorAll('.foreign')].map(e => e.textContent)")
        assert shown.count(visible(cut(text, 120))) >= 6, text


def test_the_test_above_fails_without_escaping(browser, of_strings, monkeypatch):
    harmless, _ = opened(browser, of_strings("harmless", Strings.all_of("harmless")))
    monkeypatch.setattr(markup, "html", SimpleNamespace(escape=lambda text, quote: text))
    built, happened = opened(browser, of_strings("with-policy", Strings.all_of(HOSTILE[0])))
    assert built != harmless
    assert any("Content Security Policy" in said for said in happened)
    # And without the policy, which is the second line of defence, the scripts run and the pictures are asked for.
    monkeypatch.setattr(document, "POLICY", "")
    _, happened = opened(browser, of_strings("without", Strings.all_of(HOSTILE[0])))
    assert "1" in happened
    _, happened = opened(browser, of_strings("calling", Strings.all_of(HOSTILE[2])))
    assert "http://127.0.0.1:9/out" in happened
