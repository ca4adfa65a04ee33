"""Sample to Row: tokens, shifted labels and masks at their fixed places.

Labels are shifted here, over the attended positions of one sample, and not in the loss, so that nothing later can make
a position predict another sample's token.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from dataprep.config import CompileConfig
from dataprep.conversation import IMAGE_TAG, Conversation, Refusal, Turn
from dataprep.encoding import Sample
from dataprep.shards.layout import FEATURES, Row, RowLayout, Source


def lay_out(sample: Sample, layout: RowLayout, img_path: str | None, source: Source) -> Row:
    """Lay one sample out as a row.

    For tokens `t[0..n]`, `text_input_ids` is `t[:-1]`: the last token stands in the labels only, so a row of
    `max_seq_length` slots holds one token more than that.
    """
    data = _blank_row(layout.max_seq_length, layout.pad_id).copy()
    num_inputs = len(sample.ids) - 1
    data[_IDS, :num_inputs] = sample.ids[:-1]
    if np.count_nonzero(sample.attended) == len(sample.ids):
        # The usual case, without lists of positions: it is what most of the time goes into.
        data[_LABELS, :num_inputs] = sample.ids[1:]
        data[_LOSS, :num_inputs] = sample.trained[1:]
        data[_PADDING, :num_inputs] = 0
        length, num_loss_tokens = num_inputs, np.count_nonzero(sample.trained[1:])
    else:
        attended = np.flatnonzero(sample.attended)
        inputs, targets = attended[:-1], attended[1:]
        data[_LABELS, inputs] = sample.ids[targets]
        data[_LOSS, inputs] = sample.trained[targets]
        data[_PADDING, inputs] = 0
        length, num_loss_tokens = len(inputs), np.count_nonzero(sample.trained[targets])
    return Row(data, img_path, length, int(num_loss_tokens), source)


_IDS, _LOSS, _LABELS, _PADDING = (
    FEATURES.index(name) for name in ("text_input_ids", "loss_mask", "labels", "key_padding_mask")
)


@cache
def _blank_row(max_seq_length: int, pad_id: int) -> np.ndarray:
    row = np.zeros((len(FEATURES), max_seq_length), np.int32)
    row[[_IDS, _LABELS]] = pad_id
    row[_PADDING] = 1
    return row


class Limit(NamedTuple):
    """How long a sample may be."""

    max_tokens: int
    """One more than `max_seq_length`: the last token stands in the labels only."""
    counts_hole: bool = True
    """Whether the hole of a text-only sample uses up length; not where the rows were widened by it."""

    def excess(self, sample: Sample) -> int:
        """Return by how many tokens a sample is too long."""
        return self.size(sample) - self.max_tokens

    def size(self, sample: Sample) -> int:
        """Return what a sample uses up."""
        return len(sample.ids) if self.counts_hole else int(np.count_nonzero(sample.attended))


def limit_of(config: CompileConfig) -> Limit:
    """Return how long a sample may be."""
    return Limit(config.max_seq_length + 1, config.row_width == "fixed")


def shorten(
    conversation: Conversation,
    sample: Sample,
    limit: Limit,
    policy: str,
    make: Callable[[Conversation], Sample],
) -> list[Sample]:
    """Make what fits of a sample that does not.

    Args:
        policy: `truncate` (cut the end off), `drop` (refuse) or `split` (cut between turns).
        make: encodes a conversation, for `split`.

    Raises:
        Refusal: `too_long` or `no_room_for_an_answer`.
    """
    if policy == "truncate":
        return [_truncate(sample, limit, conversation.id)]
    if policy == "split":
        return _split(conversation, limit, make)
    raise _too_long(sample, limit, conversation.id)


def _too_long(sample: Sample, limit: Limit, record_id: str) -> Refusal:
    hidden = int(np.count_nonzero(~sample.attended)) if limit.counts_hole else 0
    hole = f", {hidden} of them the hole of its dummy picture" if hidden else ""
    return Refusal("too_long", f"{limit.size(sample)} tokens{hole}; a row holds {limit.max_tokens}", record_id)


def _truncate(sample: Sample, limit: Limit, record_id: str) -> Sample:
    """Cut the end off. The cut is never inside the picture: every row is wide enough for prompt and picture."""
    keep = len(sample.ids) - limit.excess(sample)
    if not sample.trained[:keep].any():
        detail = f"the answer begins at token {int(sample.trained.argmax())}, a row holds {limit.max_tokens}"
        raise Refusal("no_room_for_an_answer", detail, record_id)
    return sample._replace(ids=sample.ids[:keep], trained=sample.trained[:keep], attended=sample.attended[:keep])


def _split(conversation: Conversation, limit: Limit, make: Callable[[Conversation], Sample]) -> list[Sample]:
    """Cut between turns into as few rows as hold everything, each with the picture."""
    parts: list[Sample] = []
    start, count = 0, len(conversation.turns)
    while start < count:
        best = make(_part(conversation, start, start + 2))
        if limit.excess(best) > 0:
            raise _too_long(best, limit, conversation.id)
        # Twice as many pairs until they do not fit, then halves: a conversation of thousands is not made thousands of
        # times. `fitting` pairs fit, `beyond` do not.
        fitting, beyond = 1, (count - start) // 2 + 1
        tried = 2
        while beyond - fitting > 1:
            tried = min(tried, beyond - 1)
            sample = make(_part(conversation, start, start + 2 * tried))
            if limit.excess(sample) > 0:
                beyond = tried
            else:
                fitting, best = tried, sample
            tried = 2 * tried if beyond > (count - start) // 2 else (fitting + beyond) // 2
        parts.append(best)
        start += 2 * fitting
    return parts


def _part(conversation: Conversation, start: int, stop: int) -> Conversation:
    turns = list(conversation.turns[start:stop])
    if start and conversation.image is not None:
        turns[0] = Turn("human", f"{IMAGE_TAG}\n{turns[0].value}")
    return Conversation(conversation.id, conversation.image, turns)
