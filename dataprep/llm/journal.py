"""The replies of a language model, kept line by line, so that an ended run goes on and nothing is paid for twice.

A line is a `Reply`. Its key is a hash of what was asked (model, messages, settings), so a changed prompt or setting
asks anew, and what is equal is asked once. A line is flushed before the next is asked for; the last line of a killed
run may be torn, and is taken off. Lines that hold no answer hold what a failed or interrupted try has cost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from dataprep.llm.budget import Message, Usage

#: What became of a request. Of `FINAL` kinds the endpoint would say the same again, so a rerun does not ask.
KINDS = {
    "answer": "an answer",
    "cut": "the answer was cut at the longest length asked for",
    "filtered": "the endpoint's content filter held the answer back",
    "too_long": "the request is longer than the model can read",
    "not_json": "the response is not JSON",
    "no_choices": "the response has no `choices` with a message",
    "empty": "the answer is empty",
    "too_big": "the response is larger than is read",
    "gave_up": "the endpoint gave no response, however often it was asked",
    "interrupted": "the run was ended before there was an answer",
}
FINAL = frozenset({"answer", "cut", "filtered", "too_long"})


class Reply(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of one request."""

    key: str
    kind: str
    """One of `KINDS`."""
    text: str = ""
    """The model's words; of an answer that was cut or filtered, those that came."""
    detail: str = ""
    """What was found, where it is no answer."""
    model: str = ""
    """What the endpoint says has answered."""
    usage: Usage = Usage()
    """Of all tries."""

    @property
    def final(self) -> bool:
        """Whether a rerun need not ask again."""
        return self.kind in FINAL


def request_key(model: str, messages: Sequence[Message], settings: Mapping[str, Any]) -> str:
    """Return the hash by which a request is known again."""
    asked = {"model": model, "messages": list(messages), "settings": dict(settings)}
    return hashlib.sha256(msgspec.json.encode(asked, order="deterministic")).hexdigest()


class Journal:
    """The file of replies, open for more; one process at a time.

    Args:
        path: made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spent = Usage()
        """By all runs."""
        self.replies: dict[str, Reply] = {}
        """The last of each key."""
        path.parent.mkdir(parents=True, exist_ok=True)
        end = self._read()
        self._file: BinaryIO = open(path, "ab")  # noqa: SIM115
        self._file.truncate(end)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def answered(self, key: str) -> Reply | None:
        """Return the reply that need not be asked for again."""
        reply = self.replies.get(key)
        return reply if reply is not None and reply.final else None

    def write(self, reply: Reply) -> None:
        """Add a reply; the system has it when this returns."""
        self._file.write(msgspec.json.encode(reply) + b"\n")
        self._file.flush()
        self._take(reply)

    def _take(self, reply: Reply) -> None:
        # What a later run could not get does not take the place of an answer that is there.
        if self.answered(reply.key) is None or reply.final:
            self.replies[reply.key] = reply
        self.spent += reply.usage

    def _read(self) -> int:
        """Read what is there; return where the last whole line ends."""
        replies, end = read_journal(self.path)
        for reply in replies:
            self._take(reply)
        return end


def read_journal(path: Path) -> tuple[list[Reply], int]:
    """Return the replies of a journal, and the byte at which its last whole line ends; nothing where there is none."""
    if not path.exists():
        return [], 0
    replies, end = [], 0
    decoder = msgspec.json.Decoder(Reply)
    with open(path, "rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            end += len(line)
            try:
                replies.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError):
                continue  # a damaged line costs asking again, no more
    return replies, end
