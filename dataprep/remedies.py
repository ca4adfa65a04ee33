"""What a user can do where too many records were refused, told from the reason that took most of them."""

from __future__ import annotations

import math
from pathlib import Path

from dataprep.compiler import Tally
from dataprep.config import CompileConfig
from dataprep.conversation import REASONS

#: What an option changes is another run, and a folder keeps the one that it has.
_ANEW = "into another --output"

_AGAIN = "and run the same command again: it takes up the records whose pictures can be used then"

#: What helps whatever the config is.
_REMEDIES = {
    "missing_image": "give another --image-dir (image keys are read below {root}), or put the pictures there " + _AGAIN,
    "unreadable_image": f"replace the pictures {_AGAIN}",
    "image_too_large": f"put smaller pictures in their place {_AGAIN}",
    "image_too_thin": f"put other pictures in their place {_AGAIN}",
    "unsafe_image_path": "write image keys that stay below --image-dir ({root}), without `..`, `\\` or a leading `/`",
    "plain_needs_a_pair": f"these are no captions: compile them with --phase 2, {_ANEW}",
    "plain_needs_an_image": f"these are no captions: compile them with --phase 2, {_ANEW}",
    "chat_template": f"give another --template, {_ANEW}",
}


def remedy(tally: Tally, config: CompileConfig, image_root: Path) -> str:
    """Return which reason refused most of the records, and what can be done about it: the end of a sentence."""
    reason, count = tally.refused.most_common(1)[0]
    told = _REMEDIES.get(reason, f"mend these records in the input and compile it {_ANEW}").format(root=image_root)
    if reason in ("too_long", "no_room_for_an_answer"):
        told = _more_room(reason, config)
    share = math.ceil(1000 * tally.num_refused / tally.records) / 1000
    return (
        f"{'all' if count == tally.num_refused else 'most'} of them {reason} ({count}: {REASONS[reason]}): {told};"
        f" or accept the loss with --max-refused {share:g}"
    )


def _more_room(reason: str, config: CompileConfig) -> str:
    """Return the options that make a record fit."""
    ways = [f"a larger --set max_seq_length=N (it is {config.max_seq_length})"]
    if reason == "too_long":
        others = [policy for policy in ("truncate", "split") if policy != config.overlong]
        ways.insert(0, f"--overlong {' or '.join(others)}")
    if config.phase == 2 and config.row_width == "fixed":
        ways.append("--row-width fit for text-only ones")
    return f"{', '.join(ways[:-1])}{' or ' if len(ways) > 1 else ''}{ways[-1]}, {_ANEW}"
