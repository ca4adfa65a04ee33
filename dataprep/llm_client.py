"""Ask a language model many things, through any OpenAI-compatible endpoint (`POST URL/chat/completions`).

    endpoint = open_endpoint("http://127.0.0.1:8000/v1", "my-model", key_variable="MY_KEY")
    asked = ask_all(endpoint, [[{"role": "user", "content": "Hello?"}]], Settings(), journal=Path("replies.jsonl"))
    asked.replies[0].text

Several requests are under way at once; replies come back in the order of the requests. What passes is asked again with
growing pauses (429, 5xx, timeouts, cut connections), what does not ends the run with one sentence (a wrong key, an
unknown model, an exhausted quota, a redirection). A response without an answer is a kind of reply (`KINDS`).
Every reply lies in a journal before the next is asked for, so that the same call goes on where an ended one stopped.

Ctrl-C and SIGTERM: nothing more is sent, what is under way and paid for gets `Patience.grace` seconds, and the signal
then goes to whoever had it before; a second one ends the waiting.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataprep.errors import CommandError
from dataprep.llm.asking import Asker
from dataprep.llm.budget import Budget, Limits, Message, Prices, Usage, expected
from dataprep.llm.endpoint import Endpoint, Patience, Settings, open_endpoint, picture_part
from dataprep.llm.journal import KINDS, Journal, Reply, read_journal, request_key
from dataprep.llm.options import Asking, asking_options
from dataprep.locking import only_run

__all__ = [
    "Asked",
    "Asking",
    "CommandError",
    "Endpoint",
    "KINDS",
    "Limits",
    "Message",
    "Patience",
    "Prices",
    "Reply",
    "Settings",
    "Usage",
    "ask_all",
    "asking_options",
    "expected",
    "open_endpoint",
    "picture_part",
    "unanswered",
]


@dataclass(frozen=True)
class Asked:
    """What became of all requests."""

    replies: list[Reply | None]
    """In their order; None: not asked, since the budget was at its end."""
    spent: Usage
    """In all, the runs before included."""
    stopped: str | None
    """The limit that left no room for what was not asked."""


def unanswered(
    journal: Path, endpoint: Endpoint, requests: Sequence[Sequence[Message]], settings: Settings
) -> tuple[list[Sequence[Message]], Usage]:
    """Return the requests that `ask_all` would send, each once, and what the runs before have spent."""
    replies, _ = read_journal(journal)
    spent = sum((reply.usage for reply in replies), Usage())
    there = {reply.key for reply in replies if reply.final}
    missing = {_key(endpoint, messages, settings): messages for messages in requests}
    return [messages for key, messages in missing.items() if key not in there], spent


def ask_all(
    endpoint: Endpoint,
    requests: Sequence[Sequence[Message]],
    settings: Settings,
    journal: Path,
    limits: Limits | None = None,
    patience: Patience | None = None,
    concurrency: int = 8,
    progress: Callable[[int], None] = lambda _: None,
    notice: Callable[[str], None] = lambda _: None,
) -> Asked:
    """Ask what the journal does not know yet, and return all replies.

    Args:
        requests: the messages of each.
        journal: jsonl of replies; made where it is missing.
        limits: held against what the journal says was spent, too.
        concurrency: so many are under way at once.
        progress: called with the number of requests since the last call that have a reply.
        notice: called with a sentence, once the run is told to end and has to wait.

    Raises:
        CommandError: what no further try would mend; what came before it is in the journal.
    """
    limits = limits or Limits()
    keys = [_key(endpoint, messages, settings) for messages in requests]
    with only_run(journal.with_name(f".{journal.name}.lock"), journal), Journal(journal) as kept:
        missing = {key: messages for key, messages in zip(keys, requests, strict=True) if kept.answered(key) is None}
        progress(len(set(keys)) - len(missing))
        asker = Asker(endpoint, settings, kept, Budget(limits, kept.spent), patience or Patience(), progress, notice)
        if missing:
            with _told_to_end(asker.end):
                asyncio.run(asker.run(list(missing.items()), concurrency))
        if asker.fault is not None:
            raise asker.fault
        return Asked([asker.reply(key) for key in keys], kept.spent, asker.stopped)


def _key(endpoint: Endpoint, messages: Sequence[Message], settings: Settings) -> str:
    return request_key(endpoint.model, messages, settings.body())


@contextmanager
def _told_to_end(end: Callable[[], None]) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a run in order; afterwards they go to whoever had them before."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no other thread gets signals
        return
    came: list[int] = []

    def take(number: int, _: object) -> None:
        came.append(number)
        end()

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    taken = {number: handler for number, handler in before.items() if handler not in (None, signal.SIG_IGN)}
    for number in taken:
        signal.signal(number, take)
    try:
        yield
    finally:
        for number, handler in taken.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])
