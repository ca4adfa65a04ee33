"""Questions to answers: batches of similar length, bad pictures put aside, one after the other."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from dataprep.conversation import Refusal
from dataprep.images import ImageFault
from trainer.evaluation.answers import Given
from trainer.evaluation.benchmarks.base import Asked

if TYPE_CHECKING:
    from trainer.inference import Assistant, Sampling

#: Where there is no terminal, a line of progress comes at most so often.
SECONDS_BETWEEN_LINES = 30


def batches(questions: Sequence[Asked], left: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return the numbers of the questions that are left, in batches of similar length, the longest first.

    The longest first: what does not fit the memory shows at once. Where all that was done was whole batches of the same
    size, what is left falls into the batches that it would have been in.
    """
    order = sorted(left, key=lambda index: (-len(questions[index].prompt), questions[index].image is None, index))
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_batch(assistant: Assistant, batch: Sequence[Asked], sampling: Sampling) -> list[Given]:
    """Return what became of a batch; where a picture or the words of one cannot be used, the others are asked apart."""
    from trainer.inference import Request

    requests = [Request([asked.prompt], asked.image) for asked in batch]
    try:
        return [Given(one.text, len(one.ids), one.ended) for one in assistant.answer(requests, sampling)]
    except ImageFault as fault:
        error = f"{fault.reason}: {fault}"
    except Refusal as refusal:
        error = str(refusal)
    if len(batch) == 1:
        return [Given("", error=error)]
    half = len(batch) // 2
    return [*answer_batch(assistant, batch[:half], sampling), *answer_batch(assistant, batch[half:], sampling)]


@contextmanager
def progress(total: int, done: int, what: str, shown: bool) -> Iterator[Callable[[int], None]]:
    """Show how far a run is: a bar on a terminal, a line now and then elsewhere, nothing where it is not to be shown.

    Gives what is to be called with the number of questions answered since the last call.
    """
    if shown and sys.stderr.isatty():
        from tqdm import tqdm

        with tqdm(total=total, initial=done, desc=what, unit=" questions") as bar:
            yield lambda number: None if bar.update(number) else None
        return
    said, count = time.monotonic(), done

    def update(number: int) -> None:
        nonlocal said, count
        count += number
        if shown and (time.monotonic() - said > SECONDS_BETWEEN_LINES or count == total):
            said = time.monotonic()
            print(f"{what}: {count} of {total} questions", file=sys.stderr, flush=True)

    yield update
