"""The processes that share a run's questions: those that torchrun has started, or this one alone.

They talk over gloo, on the CPU and seldom: the first says at the start what is left to be done (each reading that for
itself would find what another has just written), and waits at the end until all have written their parts. Ranks never
wait for each other in between, so there is no time limit but a year.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from dataprep.errors import CommandError, Exit

PATIENCE = timedelta(days=365)

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Who this process is among those of the run."""

    rank: int
    size: int

    @property
    def is_first(self) -> bool:
        """Whether this is the process that speaks for all."""
        return self.rank == 0

    def share(self, value: Value | None) -> Value:
        """Return the first rank's value on all of them."""
        return self._talk(lambda dist, values: dist.broadcast_object_list(values, src=0), [value])[0]

    def gather(self, value: Value) -> list[Value]:
        """Return the value of every rank, when all have come here."""
        values: list[Any] = [None] * self.size
        return (
            self._talk(lambda dist, values: dist.all_gather_object(values, value), values) if self.size > 1 else [value]
        )

    def _talk(self, say: Any, values: list[Any]) -> list[Any]:
        if self.size == 1:
            return values
        import torch.distributed as dist

        try:
            say(dist, values)
        except RuntimeError as error:  # gloo: the other end has closed the connection
            said = str(error).partition("\n")[0]
            message = f"another process of the run has ended; run the same command again to go on ({said:.100})"
            raise CommandError(message, Exit.TERMINATED) from None
        return values


@contextmanager
def joined() -> Iterator[Ranks]:
    """Join the processes that torchrun started (its environment says how many), or stand alone."""
    size = int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1
    if size == 1:
        yield Ranks(0, 1)
        return
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield Ranks(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
