"""Bars: no row is lost between them, and their edges are where they say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dataprep.report.charts import BARS, evenly, from_nothing, histogram
from dataprep.report.wording import percent, quantiles, size

values = st.lists(st.integers(0, 500), min_size=1, max_size=200)


def counts(found, slots=500):
    return np.bincount(found, minlength=slots + 1)[None]


def bar_of(bars, value):
    """The bar that a value belongs to, by the labels."""
    for number in range(bars.counts.shape[1]):
        low, _, high = bars.label(number).replace(",", "").partition(" to ")
        if int(low) <= value <= int(high or low):
            return number
    raise AssertionError(f"{value} belongs to no bar")


@given(values)
def test_each_value_is_counted_in_the_bar_that_names_it(found):
    for bars in (evenly(counts(found), 500), from_nothing(counts(found))):
        expected = np.zeros_like(bars.counts)
        for value in found:
            expected[0, bar_of(bars, value)] += 1
        assert (bars.counts == expected).all()
        assert bars.edges == sorted(bars.edges) and bars.counts.shape[1] <= BARS + 1


@given(values)
def test_bars_of_trained_tokens_hold_equally_many_values_each(found):
    bars = from_nothing(counts(found))
    ends = [bars.label(number).replace(",", "").split(" to ") for number in range(bars.counts.shape[1])]
    assert len({int(end[-1]) - int(end[0]) for end in ends}) == 1
    assert int(ends[0][0]) == 0 and int(ends[-1][0]) <= max(found) <= int(ends[-1][-1])
    assert bars.counts.sum() == len(found)


@given(values)
def test_the_axis_runs_to_the_row_s_end_or_close_around_the_values(found):
    bars = evenly(counts(found), 500)
    if (max(found) - min(found)) * 6 > 500:
        assert (bars.edges[0], bars.edges[-1]) == (0, 500)
    else:
        assert min(found) - bars.edges[0] < 10 and bars.edges[-1] - max(found) <= 1


def test_a_value_stands_at_its_part_of_the_axis():
    bars = evenly(counts([0, 512], 512), 512)
    assert [bars.part(value) for value in (0, 256, 512)] == [0, 0.5, 1]


def test_a_chart_says_in_words_what_it_shows():
    drawn = histogram(evenly(counts([3, 3, 400]), 500), ["all rows"], "tokens", "Lengths", {"a full row": 500})
    assert 'aria-label="Lengths. 63 bars from 0 to 500 tokens; the highest, 2 rows, is 0 to 7.' in drawn
    assert '<th scope="row">400 to 407</th><td class="number">1</td>' in drawn
    assert "a full row 500" in drawn


@given(values)
def test_quantiles_are_those_of_the_values(found):
    ordered = sorted(found)
    least, half, most = quantiles(counts(found)[0], (0.0, 0.5, 1.0))
    assert (least, most) == (ordered[0], ordered[-1])
    assert half == ordered[-(-len(ordered) // 2) - 1]


def test_shares_never_round_to_nothing_or_to_everything():
    assert [percent(part, 10_000) for part in (0, 1, 5000, 9999, 10_000)] == [
        *("0.0 %", "< 0.1 %", "50.0 %", "> 99.9 %", "100.0 %")
    ]
    assert percent(0, 0) == "–"
    assert [size(count) for count in (0, 999, 1000, 1.25e9, 5e15)] == [
        *("0 bytes", "999 bytes", "1.0 kB", "1.2 GB", "5,000.0 TB")
    ]
