"""The requests of one run, several under way at once: pauses, further tries, the budget, and the end in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dataprep.errors import CommandError
from dataprep.llm.budget import Budget, Message, Usage, assumed, most
from dataprep.llm.endpoint import Endpoint, Patience, Settings
from dataprep.llm.exchange import Outcome, exchange
from dataprep.llm.journal import Journal, Reply

if TYPE_CHECKING:
    import httpx2

#: How often a response of this kind is asked for anew.
REASKED = {"not_json": 2, "no_choices": 2, "empty": 2, "too_big": 1, "cut": 1, "filtered": 1}

#: Where nothing has ever answered, the address is more likely wrong than the endpoint down.
_TRIES_UNHEARD = 3


class Asker:
    """One run.

    `fault` is what ended it, `stopped` the limit that left no room for more.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        settings: Settings,
        journal: Journal,
        budget: Budget,
        patience: Patience,
        progress: Callable[[int], None],
        notice: Callable[[str], None],
    ) -> None:
        self.endpoint, self.settings, self.journal = endpoint, settings, journal
        self.budget, self.patience = budget, patience
        self.progress, self.notice = progress, notice
        self.fault: CommandError | None = None
        self.stopped: str | None = None
        self._asked: set[str] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._told = 0
        self._in_vain = 0
        self._heard = False
        self._quiet_until = 0.0

    def reply(self, key: str) -> Reply | None:
        """Return what became of a request; None: it was not asked."""
        reply = self.journal.replies.get(key)
        return reply if reply is not None and (reply.final or key in self._asked) else None

    def end(self) -> None:
        """Send nothing more; called a second time, wait for nothing either. A signal's handler may call it."""
        self._told += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe((self._over if self._told == 1 else self._at_once).set)

    async def run(self, requests: Sequence[tuple[str, Sequence[Message]]], concurrency: int) -> None:
        """Ask."""
        self._over, self._at_once, self._settled = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._told:
            return
        pending = iter(requests)
        async with _connection(self.endpoint, self.patience, concurrency) as client:
            workers = [asyncio.create_task(self._work(client, pending)) for _ in range(min(concurrency, len(requests)))]
            watch = asyncio.create_task(self._cut_off(workers))
            try:
                await asyncio.gather(*workers, return_exceptions=True)
            finally:
                watch.cancel()
        for worker in workers:
            if not worker.cancelled() and (error := worker.exception()) is not None:
                raise error

    async def _cut_off(self, workers: Sequence[asyncio.Task[None]]) -> None:
        """When the run is to end, give what is under way its time, then cancel it."""
        await self._over.wait()
        if self._told:
            seconds = f"{self.patience.grace:g} s"
            self.notice(f"ending; what is under way and paid for has {seconds} to come (again to end at once)")
        with suppress(TimeoutError):
            await asyncio.wait_for(self._at_once.wait(), self.patience.grace)
        for worker in workers:
            worker.cancel()

    async def _work(self, client: httpx2.AsyncClient, pending: Iterator[tuple[str, Sequence[Message]]]) -> None:
        """Ask one thing after the other, until there is nothing left or the run is to end."""
        for key, messages in pending:
            try:
                reply = await self._ask(client, key, messages)
            except BaseException as error:
                self._over.set()
                if not isinstance(error, CommandError):
                    raise
                self.fault = self.fault or error
                return
            if reply is None:
                return
            self._asked.add(key)
            self.progress(1)
            self._count_in_vain(reply)

    def _count_in_vain(self, reply: Reply) -> None:
        self._in_vain = self._in_vain + 1 if reply.kind == "gave_up" else 0
        if self._in_vain >= self.patience.give_up_after:
            said = f"no response to {self._in_vain} requests in a row, the last: {reply.detail}"
            self.fault = self.fault or CommandError(f"endpoint {self.endpoint.shown}: {said}")
            self._over.set()

    async def _ask(self, client: httpx2.AsyncClient, key: str, messages: Sequence[Message]) -> Reply | None:
        """Ask until there is a reply, and keep it; None: the run is to end before.

        Raises:
            CommandError: what no further try would mend.
        """
        spent, troubles, others = Usage(), 0, 0
        reply: Reply | None = None
        under_way = False
        try:
            while reply is None and (ticket := await self._leave(messages)) is not None:
                under_way = True
                outcome = await self._try(client, messages, ticket)
                under_way = False
                spent += outcome.usage
                if outcome.kind == "trouble":
                    troubles += 1
                    self._heed(outcome)
                    if troubles >= self.patience.tries:
                        reply = _reply(key, "gave_up", outcome, spent)
                    else:
                        await self._pause(outcome, troubles)
                else:
                    others += 1
                    if others > REASKED.get(outcome.kind, 0):
                        reply = _reply(key, outcome.kind, outcome, spent)
        except asyncio.CancelledError:
            # What only waited for its turn has cost nothing.
            spent += assumed(most(messages, self.settings.longest)) if under_way else Usage()
            raise
        finally:
            if reply is not None or spent != Usage():
                self.journal.write(reply or Reply(key, "interrupted", usage=spent))
        return reply

    async def _leave(self, messages: Sequence[Message]) -> int | None:
        """Wait until a request may be sent; return its reservation, None where the run is to end instead."""
        while (left := self._quiet_until - time.monotonic()) > 0 and not self._over.is_set():
            await self._sleep(left)
        while not self._over.is_set():
            ticket = self.budget.reserve(most(messages, self.settings.longest))
            if isinstance(ticket, int):
                return ticket
            if not self.budget.under_way:
                self.stopped = ticket
                self._over.set()
                return None
            # What is under way costs less than its most, so there may be room when it is done.
            self._settled.clear()
            await self._settled.wait()
        return None

    async def _try(self, client: httpx2.AsyncClient, messages: Sequence[Message], ticket: int) -> Outcome:
        body = {"model": self.endpoint.model, "messages": list(messages), **self.settings.body()}
        needed, patience = most(messages, self.settings.longest), self.patience
        cost = assumed(needed)
        try:
            outcome = await exchange(
                client, self.endpoint.url, body, needed, patience.whole, patience.max_bytes, self.endpoint.key
            )
            cost = outcome.usage
            self._heard = self._heard or outcome.reached
            return outcome
        except CommandError:
            cost = Usage(1)
            raise
        finally:
            self.budget.settle(ticket, cost)
            self._settled.set()

    def _heed(self, outcome: Outcome) -> None:
        """Take note of what the endpoint asks for, which is meant for all requests.

        Raises:
            CommandError: a wait that is too long.
        """
        if outcome.wait is None:
            return
        if outcome.wait > self.patience.longest_wait:
            asked = f"asks to wait {outcome.wait:.0f} s, longer than {self.patience.longest_wait:g} s"
            raise CommandError(f"endpoint {self.endpoint.shown}: {asked} ({outcome.detail}); go on later")
        self._quiet_until = max(self._quiet_until, time.monotonic() + outcome.wait)

    async def _pause(self, outcome: Outcome, troubles: int) -> None:
        """Wait before the next try.

        Raises:
            CommandError: it is not worth it.
        """
        if not outcome.reached and not self._heard and troubles >= _TRIES_UNHEARD:
            where = f"endpoint {self.endpoint.shown}"
            raise CommandError(f"{where}: nothing answers there ({outcome.detail}); see --endpoint")
        if outcome.wait is None:
            pause = min(self.patience.longest_pause, self.patience.first_pause * 2 ** (troubles - 1))
            await self._sleep(pause * random.uniform(0.5, 1))

    async def _sleep(self, seconds: float) -> None:
        """Wait, but not longer than the run goes on."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)


def _reply(key: str, kind: str, outcome: Outcome, spent: Usage) -> Reply:
    return Reply(key, kind, outcome.text, outcome.detail, outcome.model, spent)


@asynccontextmanager
async def _connection(endpoint: Endpoint, patience: Patience, concurrency: int) -> AsyncIterator[httpx2.AsyncClient]:
    """Open the connections of a run."""
    import httpx2

    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    if endpoint.key:
        headers["Authorization"] = f"Bearer {endpoint.key}"
    async with httpx2.AsyncClient(
        headers=headers,
        follow_redirects=False,
        timeout=httpx2.Timeout(patience.read, connect=patience.connect, pool=None),
        limits=httpx2.Limits(max_connections=concurrency),
        # A proxy of the environment cannot reach this machine's own address.
        trust_env=urlsplit(endpoint.url).hostname not in ("localhost", "127.0.0.1", "::1"),
    ) as client:
        yield client
