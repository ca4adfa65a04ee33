"""What was compiled, to look at: `report.html` and the dataset card, made from the folder of shards alone.

gather.py      the folder -> Facts: manifest, small columns, a sample of rows
refusals.py    examples of what was refused          efficiency.py   useful over computed tokens
rows.py        a handful of rows and their pictures  charts.py       histograms as SVG
markup.py      HTML by one function, which escapes   sections.py, page.py, style.css   the page
card.py        README.md                             terminal.py     the report in a few lines
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dataprep.errors import CommandError, Exit

#: File of the page, in the folder of the shards.
PAGE_NAME = "report.html"

#: File of the dataset card, there too.
CARD_NAME = "README.md"

#: Where this is set, `try_report` hides no error. The tests set it.
STRICT = "LLAVA_PREP_STRICT_REPORT"


class Report(NamedTuple):
    """What was written, and what a terminal is shown."""

    page: Path
    summary: list[tuple[str, str]]
    """Names and texts, for a table on a terminal."""
    values: dict[str, Any]
    """The same as plain values, for JSON."""


def write_report(folder: Path, output: Path | None = None) -> Report:
    """Write the page and the dataset card of a folder of shards.

    Args:
        output: of the page. Then the folder itself is left as it is, the card too.

    Raises:
        ShardError: no shards, or damaged ones.
        OSError: nothing can be written there.
    """
    from dataprep.report.card import card
    from dataprep.report.gather import gather
    from dataprep.report.page import page
    from dataprep.report.terminal import summary, values
    from dataprep.shards.writer import publish

    facts = gather(folder)
    path = output or folder / PAGE_NAME
    publish(path, page(facts).encode("utf-8"))
    if output is None:
        publish(folder / CARD_NAME, card(facts.manifest).encode("utf-8"))
    return Report(path, summary(facts), values(facts))


def try_report(folder: Path, say: Callable[[str], None]) -> Report | None:
    """Write the report of a compile that has ended well, and of what it held out.

    A fault here is told and changes nothing of that.

    An interruption still ends the run. With `LLAVA_PREP_STRICT_REPORT` in the environment every fault is raised.
    """
    try:
        for held_out in folder.glob("holdout/manifest.json"):
            write_report(held_out.parent)
        return write_report(folder)
    except Exception as error:
        ended = isinstance(error, CommandError) and error.code in (Exit.INTERRUPTED, Exit.TERMINATED)
        if ended or os.environ.get(STRICT):
            raise
        say(
            f"{folder}: the shards are whole, but their report could not be made"
            f" ({type(error).__name__}: {str(error).partition(chr(10))[0][:300]});"
            f" `llava-prep report {folder}` tries again"
        )
        return None
