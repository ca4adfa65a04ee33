"""The colours can be read: contrast as WCAG 2.2 defines it, in light and in dark."""

import re

import pytest

from dataprep.report.document import style

#: Text and what it stands on.
PAIRS = [
    *(("ink", "ground"), ("ink", "sheet"), ("soft", "ground"), ("soft", "sheet"), ("soft", "faint"), ("one", "ground")),
    *(("trained-ink", "trained"), ("image-ink", "image"), ("hole-ink", "hole"), ("masked-ink", "sheet")),
]


def schemes():
    light, dark = re.findall(r":root \{(.*?)\}", style(), re.DOTALL)
    first = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", light))
    return {"light": first, "dark": first | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})\b", dark))}


def luminance(colour):
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_has_a_contrast_of_4_5(scheme, text, ground):
    colours = schemes()[scheme]
    assert contrast(colours[text], colours[ground]) >= 4.5


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("series", ["one", "two", "three", "four"])
def test_bars_have_a_contrast_of_3(scheme, series):
    colours = schemes()[scheme]
    assert contrast(colours[series], colours["ground"]) >= 3
