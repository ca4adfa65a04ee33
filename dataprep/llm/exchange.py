"""One HTTP request to an OpenAI-compatible endpoint, and what its response means.

The protocol: https://platform.openai.com/docs/api-reference/chat and .../docs/guides/error-codes; an error is
`{"error": {"message", "type", "code"}}`. 429 has two families: too fast, which passes, and nothing left to spend
(`type` insufficient_quota, or one of `QUOTA_CODES`), which does not. 402 is how DeepSeek and OpenRouter say the latter.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dataprep.errors import CommandError
from dataprep.llm.budget import Usage, assumed

if TYPE_CHECKING:
    import httpx2

QUOTA_CODES = {
    *("insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached"),
    *("organization_spend_limit_exceeded", "project_spend_limit_exceeded", "organization_usage_limit_exceeded"),
}

#: Of what a server says, so many characters are repeated.
_QUOTED = 200

#: No response has so many tokens.
_MAX_COUNT = 1 << 40

#: Keys of endpoints that check them have 20 characters and more.
_SECRET_CHARS = 12


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one try.

    `kind` is one of `journal.KINDS`, or `trouble`: there was no response, or one that asks to come again.
    """

    kind: str
    usage: Usage
    text: str = ""
    detail: str = ""
    model: str = ""
    wait: float | None = None
    """Seconds that the endpoint asks to wait."""
    reached: bool = True
    """Whether anything answered at the address."""


async def exchange(
    client: httpx2.AsyncClient,
    url: str,
    body: Mapping[str, Any],
    most: Usage,
    seconds: float,
    max_bytes: int,
    secret: str = "",
) -> Outcome:
    """Send one request and read its response.

    Args:
        secret: taken out of whatever the server says, before anything is made of it.
        most: what it can cost at most, which is taken for granted where nobody says what it has cost.
        seconds: for all of it.
        max_bytes: of a response; of a larger one no more is read.

    Raises:
        CommandError: what no further try would mend: wrong key, unknown model, exhausted quota, redirection.
    """
    import httpx2

    sent = assumed(most)
    try:
        async with asyncio.timeout(seconds), client.stream("POST", url, json=body) as response:
            content = await _read(response, max_bytes)
    except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
        reason = str(error) or "no connection in time"
        return Outcome("trouble", Usage(1), detail=clean(reason), reached=False)
    except TimeoutError:
        return Outcome("trouble", sent, detail=f"no whole response within {seconds:g} s")
    except httpx2.TimeoutException:
        return Outcome("trouble", sent, detail="no byte in time")
    except httpx2.RequestError as error:
        return Outcome("trouble", sent, detail=clean(f"connection cut: {error or type(error).__name__}"))
    if content is None:
        return Outcome("too_big", sent, detail=f"more than {max_bytes} bytes")
    # A short one, such as the `EMPTY` that local servers are given, is no secret and could be a word of an answer.
    if len(secret) >= _SECRET_CHARS:
        for written in (secret, secret.replace("/", "\\/")):  # the second as some servers write JSON
            content = content.replace(written.encode(), b"[key]")
    if response.status_code == 200:
        return read_answer(content, response.headers.get("content-type", ""), sent)
    return _no_answer(response, content, url, str(body["model"]))


async def _read(response: httpx2.Response, max_bytes: int) -> bytes | None:
    """Return the body as it comes (a packed one was not asked for, and could be any size unpacked); None: too big."""
    content = bytearray()
    async for block in response.aiter_raw():
        content += block
        if len(content) > max_bytes:
            return None
    return bytes(content)


def read_answer(content: bytes, content_type: str, sent: Usage) -> Outcome:
    """Read a response of status 200, whatever it holds.

    Args:
        sent: what the request is taken to have cost where the response does not say.
    """
    value = _json(content)
    if value is None:
        return Outcome("not_json", sent, detail=clean(f"{content_type or 'no content type'}: {_text(content)}"))
    usage = _usage(value.get("usage"), sent)
    choices = value.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(choice, dict) or not isinstance(message, dict):
        return Outcome("no_choices", usage, detail=clean(_said(value) or _text(content)))
    model, finish = clean(str(value.get("model", ""))), choice.get("finish_reason")
    text = message.get("content")
    # JSON can hold halves of surrogate pairs, which no file of UTF-8 can.
    text = text.encode("utf-8", "replace").decode("utf-8") if isinstance(text, str) else ""
    if finish == "content_filter" or (not text.strip() and message.get("refusal")):
        return Outcome("filtered", usage, text, clean(str(message.get("refusal") or "content_filter")), model)
    if finish == "length":
        return Outcome("cut", usage, text, f"after {usage.completion_tokens} tokens", model)
    if not text.strip():
        return Outcome("empty", usage, "", clean(f"finish_reason {finish}"), model)
    return Outcome("answer", usage, text, "", model)


def _no_answer(response: httpx2.Response, content: bytes, url: str, model: str) -> Outcome:
    """Read a response of any other status.

    Raises:
        CommandError: nothing is won by asking again.
    """
    status, value = response.status_code, _json(content) or {}
    error = value.get("error")
    fields = error if isinstance(error, dict) else value
    codes = {str(fields.get(name)) for name in ("type", "code")}
    said = clean(_said(value) or _text(content))
    where = f"endpoint {place(url)}"
    if status == 402 or (status == 429 and codes & QUOTA_CODES):
        raise CommandError(f"{where}: the quota is exhausted ({status}: {said}); see to the account, then go on")
    if status in (408, 409, 425, 429) or status >= 500:
        wait = retry_after(response.headers.get("retry-after"))
        return Outcome("trouble", Usage(1), detail=f"status {status}: {said}", wait=wait)
    if "content_filter" in codes:
        return Outcome("filtered", Usage(1), detail=said)
    if "context_length_exceeded" in codes:
        return Outcome("too_long", Usage(1), detail=said)
    if status in (401, 403):
        raise CommandError(f"{where}: does not take the key ({status}: {said}); see --key-variable")
    if status == 404:
        raise CommandError(f"{where}: knows no model {model!r} or no such address ({status}: {said}); see --endpoint")
    if 300 <= status < 400:
        target = urlsplit(response.headers.get("location", ""))
        other = f"{target.scheme}://{target.hostname}" if target.hostname else "another address"
        raise CommandError(f"{where}: redirects to {clean(other)}, where no key is sent; give the final --endpoint")
    raise CommandError(f"{where}: does not take the request ({status}: {said})")


def retry_after(value: str | None) -> float | None:
    """Return the seconds of a `Retry-After` header, which are given as such or as a date (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    try:
        seconds = (
            float(value) if value.strip()[:1].isdigit() else parsedate_to_datetime(value).timestamp() - time.time()
        )
    except (ValueError, OverflowError):
        return None
    return max(0.0, seconds)


def place(url: str) -> str:
    """Return an address as it may be shown: host, port and path, without what else may be in it."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def clean(text: str) -> str:
    """Return the beginning of what a server says on one line, without anything that a terminal would obey."""
    words = " ".join(text.split())
    return "".join(letter for letter in words if letter.isprintable())[:_QUOTED]


def _json(content: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _said(value: Mapping[str, Any]) -> str:
    """Return the message of an error; servers have several ways of writing one."""
    error = value.get("error", value)
    message = error.get("message") if isinstance(error, dict) else error
    return message if isinstance(message, str) else ""


def _text(content: bytes) -> str:
    return content[: 4 * _QUOTED].decode("utf-8", "replace") or "no body"


def _usage(value: Any, sent: Usage) -> Usage:
    """Return what the endpoint has counted; what it can be at most where it says nothing sensible."""
    fields = value if isinstance(value, dict) else {}
    prompt, completion = _count(fields.get("prompt_tokens")), _count(fields.get("completion_tokens"))
    return sent if prompt is None or completion is None else Usage(1, prompt, completion)


def _count(value: Any) -> int | None:
    """Return a number of tokens, None where it is none; `true` is an int to Python."""
    return value if type(value) is int and 0 <= value < _MAX_COUNT else None
