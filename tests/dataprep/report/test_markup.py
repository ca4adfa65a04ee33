"""What is foreign stays text, and what cannot be seen is written out."""

import unicodedata
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataprep.report.markup import IN_TEXT, Markup, cut, escape, foreign, join, tag, visible
from tests.dataprep.report.hostile import HOSTILE

#: All that Python can hold in a string, lone surrogates too.
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


class Read(HTMLParser):
    """What a parser makes of a piece of HTML."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[tuple] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, name, attributes):
        self.tags.append((name, dict(attributes)))

    def handle_data(self, data):
        self.text += data


@given(anything)
def test_text_comes_out_as_it_went_in_and_makes_no_element(text):
    read = Read(tag("p", text))
    assert read.tags == [("p", {})]
    assert read.text == visible(text)


@given(anything)
def test_an_attribute_stays_one(text):
    (made,) = Read(tag("img", alt=text, src="x")).tags
    assert made == ("img", {"alt": visible(text), "src": "x"})


@given(anything)
def test_nothing_invisible_is_left(text):
    shown = escape(text)
    assert not any(unicodedata.category(c)[0] == "C" or c in "\u2028\u2029\u3164\u2800" for c in shown)
    shown.encode("utf-8")
    kept = escape(text, IN_TEXT)
    assert not any(unicodedata.category(c)[0] == "C" and c not in IN_TEXT for c in kept)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("\0", "⟨U+0000⟩"),
        ("\ud800", "⟨U+D800⟩"),
        ("a\nb", "a⟨U+000A⟩b"),
        ("日本 é ✓", "日本 é ✓"),
        ("\U000e0041", "⟨U+E0041⟩"),
    ],
)
def test_what_is_written_out(text, shown):
    assert visible(text) == shown


def test_the_text_of_a_conversation_keeps_its_lines_and_joiners():
    assert visible("a\n\tb 👩\u200d💻 می\u200cخواهم\r", IN_TEXT) == "a\n\tb 👩\u200d💻 می\u200cخواهم⟨U+000D⟩"


def test_markup_is_not_escaped_twice_and_strings_always():
    assert tag("p", tag("b", "<"), "<") == "<p><b>&lt;</b>&lt;</p>"
    assert join(Markup("<br>"), None, "&") == "<br>&amp;"
    assert tag("td", 0, hidden=True, class_=None, colspan=0) == '<td hidden colspan="0">0</td>'


def test_a_cut_says_how_much_is_missing():
    assert cut("abc", 3) == "abc"
    assert cut("a" * 1203, 3) == "aaa… [1,200 more characters]"
    assert len(foreign("\0" * 100_000)) < 2_000


def test_the_hostile_strings_are_a_hundred():
    assert len(HOSTILE) == len(set(HOSTILE)) == 100
