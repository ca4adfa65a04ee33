"""Where to ask, with which key, how the model is to answer, and how long to wait for it."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from dataprep.errors import CommandError
from dataprep.llm.exchange import place

#: The variable whose key is meant for a host, and goes to no other without being named.
OWN_VARIABLES = {"api.openai.com": "OPENAI_API_KEY"}

MAX_PICTURE_BYTES = 20 << 20

#: How the files of pictures that endpoints take begin.
_PICTURES = {b"\xff\xd8\xff": "jpeg", b"\x89PNG\r\n": "png", b"GIF8": "gif", b"RIFF": "webp"}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and which model. The key is shown by nothing that prints this."""

    url: str
    """Of chat completions."""
    model: str
    key: str = field(default="", repr=False)

    @property
    def shown(self) -> str:
        """The address as it may be printed and kept."""
        return place(self.url)


@dataclass(frozen=True, slots=True)
class Settings:
    """How the model is to answer."""

    max_tokens: int = 1024
    """The longest answer."""
    temperature: float = 0.0
    extra: Mapping[str, Any] = field(default_factory=dict)
    """More keys of the request's body; None takes one away, for servers that know `max_completion_tokens` instead."""

    def body(self) -> dict[str, Any]:
        """Return the request's keys but model and messages."""
        keys = {"max_tokens": self.max_tokens, "temperature": self.temperature, **self.extra}
        return {name: value for name, value in keys.items() if value is not None}

    @property
    def longest(self) -> int:
        """The tokens of the longest answer, whatever its key is called."""
        named = (self.body().get(name) for name in ("max_tokens", "max_completion_tokens"))
        return max((value for value in named if isinstance(value, int)), default=self.max_tokens)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait, and how often to try. All times in seconds."""

    tries: int = 6
    """Of a request that gets no response."""
    first_pause: float = 1.0
    """Before the second try; each further one is twice as long. All are shortened by up to a half, at random, so that
    many requests do not come again together."""
    longest_pause: float = 60.0
    longest_wait: float = 300.0
    """An endpoint that asks for a longer wait than this ends the run."""
    connect: float = 10.0
    read: float = 300.0
    """Without a byte. A response comes as one piece, so a long answer is long in coming."""
    whole: float = 300.0
    """For a whole response."""
    grace: float = 10.0
    """For what is under way when the run is told to end."""
    give_up_after: int = 5
    """So many requests in a row without a response end the run: the endpoint is down."""
    max_bytes: int = 4 << 20
    """Of a response."""


def open_endpoint(base_url: str, model: str, key_variable: str | None = None, needs_key: bool = True) -> Endpoint:
    """Return an endpoint, its key taken from the environment.

    Args:
        base_url: such as http://127.0.0.1:8000/v1, with or without /chat/completions.
        key_variable: the environment variable with the key. Without it no key is sent, but to a host of
            `OWN_VARIABLES`: a key goes nowhere that it was not meant for.
        needs_key: False where nothing will be sent: the variable need not be set.

    Raises:
        CommandError: no address, or the variable is not set.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise CommandError(
            f"--endpoint {base_url.rpartition('@')[2]}: expected an address such as http://127.0.0.1:8000/v1"
        )
    if parts.username or parts.password:
        raise CommandError(f"--endpoint {place(base_url)}: holds a password; put keys into a --key-variable")
    path = parts.path.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"
    variable = key_variable or OWN_VARIABLES.get(host)
    key = os.environ.get(variable, "").strip() if variable else ""
    if needs_key and variable and not (key.isascii() and key.isprintable() and key):
        raise CommandError(f"--key-variable {variable}: the environment holds no key of this name")
    return Endpoint(urlunsplit(parts._replace(path=path, fragment="")), model, key)


def picture_part(content: bytes) -> dict[str, Any]:
    """Return a picture as a part of a message's `content`, as a data URL: the endpoint need not reach our files.

    Raises:
        ValueError: not a JPEG, PNG, GIF or WebP, or larger than `MAX_PICTURE_BYTES`.
    """
    kind = next((kind for begins, kind in _PICTURES.items() if content.startswith(begins)), None)
    if kind is None or len(content) > MAX_PICTURE_BYTES:
        found = f"begins with {content[:4]!r}" if kind is None else f"has {len(content)} bytes"
        raise ValueError(f"expected a JPEG, PNG, GIF or WebP of at most {MAX_PICTURE_BYTES} bytes; it {found}")
    coded = base64.b64encode(content).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/{kind};base64,{coded}"}}
