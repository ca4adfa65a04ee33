"""The options of every command that asks a language model, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dataprep.errors import CommandError

if TYPE_CHECKING:
    from dataprep.llm_client import Asked, Endpoint, Limits, Message, Patience, Settings, Usage

_OPTIONS = (
    click.option(
        "--endpoint", required=True, metavar="URL", help="OpenAI-compatible, such as http://127.0.0.1:8000/v1."
    ),
    click.option("--model", required=True, help="The model's name at the endpoint."),
    click.option(
        "--key-variable", metavar="NAME", help="The environment variable that holds the key; default: no key."
    ),
    click.option("--max-cost", type=click.FloatRange(0), help="Stop before this is spent in all; needs the prices."),
    click.option("--price-in", type=click.FloatRange(0), help="What a million prompt tokens cost."),
    click.option("--price-out", type=click.FloatRange(0), help="What a million tokens of answers cost."),
    click.option("--max-requests", type=click.IntRange(0), help="Stop before more requests are sent in all."),
    click.option("--max-total-tokens", type=click.IntRange(0), help="Stop before more tokens are spent in all."),
    click.option("--max-answer-tokens", type=click.IntRange(1), default=1024, help="The longest answer."),
    click.option("--temperature", type=click.FloatRange(0), default=0.0, help="0: always the likeliest word."),
    click.option(
        "--body", multiple=True, metavar="KEY=JSON", help="One more key of the requests; null takes one away."
    ),
    click.option("--concurrency", type=click.IntRange(1, 256), default=8, help="Requests under way at once."),
    click.option("--tries", type=click.IntRange(1), default=6, help="Of a request that gets no response."),
    click.option("--timeout", type=click.FloatRange(0, min_open=True), default=300.0, help="Seconds for a response."),
)


def asking_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options; `Asking.of` takes what they bring."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Asking:
    """Whom to ask, how, and for how much."""

    endpoint: Endpoint
    settings: Settings
    limits: Limits
    patience: Patience
    concurrency: int

    @classmethod
    def of(cls, given: dict[str, Any]) -> Asking:
        """Take the options out of what a command was given.

        Raises:
            CommandError: they make no sense.
        """
        from dataprep.llm_client import Limits, Patience, Prices, Settings, open_endpoint

        prices = (given.pop("price_in"), given.pop("price_out"))
        if (prices[0] is None) != (prices[1] is None):
            raise CommandError("--price-in and --price-out: give both, or neither")
        limits = Limits(
            given.pop("max_requests"),
            given.pop("max_total_tokens"),
            given.pop("max_cost"),
            None if prices[0] is None else Prices(*prices),
        )
        settings = Settings(given.pop("max_answer_tokens"), given.pop("temperature"), _body(given.pop("body")))
        seconds = given.pop("timeout")
        patience = Patience(tries=given.pop("tries"), read=seconds, whole=seconds)
        concurrency = given.pop("concurrency")
        needs_key = not given.get("dry_run")
        endpoint = open_endpoint(given.pop("endpoint"), given.pop("model"), given.pop("key_variable"), needs_key)
        return cls(endpoint, settings, limits, patience, concurrency)

    def ask(
        self, requests: Sequence[Sequence[Message]], journal: Path, progress: Callable[[int], None] = lambda _: None
    ) -> Asked:
        """Ask, as `ask_all` does."""
        from dataprep.llm_client import ask_all

        how = (self.limits, self.patience, self.concurrency)
        return ask_all(self.endpoint, requests, self.settings, journal, *how, progress, partial(click.echo, err=True))

    def cost(self, usage: Usage) -> float | None:
        """Return what a usage costs; None where no prices are given."""
        return None if self.limits.prices is None else self.limits.prices.cost(usage)

    def spent(self, usage: Usage) -> dict[str, Any]:
        """Return a usage as it stands in reports."""
        counts = {name: getattr(usage, name) for name in usage.__struct_fields__}
        return {**counts, "cost": self.cost(usage)}


def _body(given: Sequence[str]) -> dict[str, Any]:
    """Read `KEY=JSON` words."""
    body = {}
    for word in given:
        key, equals, value = word.partition("=")
        try:
            body[key] = json.loads(value)
        except ValueError:
            equals = ""
        if not equals or key in ("", "model", "messages", "stream", "n"):
            raise CommandError(f"--body {word}: expected KEY=JSON, such as seed=1, and a key that is not ours")
    return body
