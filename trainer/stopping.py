"""SIGTERM and SIGINT: finish the step, save, and say by the exit code that the run can be resumed."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.distributed import sum_over_ranks

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopSignal:
    """Which signal, if any, has asked the run to stop."""

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._agreed: signal.Signals | None = None

    @property
    def exit_code(self) -> int:
        """0, or 128 + the signal's number, as shells have it."""
        return 0 if self._agreed is None else 128 + self._agreed

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Take note of a signal; a second Ctrl-C does not wait any longer."""
        if self._received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._received = signal.Signals(number)

    def agreed(self) -> bool:
        """Return whether any rank was asked to stop: all of them ask this after the same step, and stop together."""
        votes = sum_over_ranks([float(self._received == number) for number in SIGNALS])
        self._agreed = next((number for number, count in zip(SIGNALS, votes, strict=True) if count), None)
        return self._agreed is not None


@contextmanager
def catching(stop: StopSignal) -> Iterator[None]:
    """Send the signals to `stop` for a while."""
    before = {number: signal.signal(number, stop.receive) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
