"""Spans: what a conversation becomes before it becomes tokens."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Kind(Enum):
    """What a span becomes."""

    TEXT = "text"  # words of the record
    WORDING = "wording"  # words of the template, encoded once
    BOS = "bos"
    EOS = "eos"
    CONTROL = "control"  # another control token, named by the text
    IMAGE = "image"


class Span(NamedTuple):
    """A piece of a sample. Control ids come from spans of their kind alone, never from text."""

    kind: Kind
    text: str = ""
    trained: bool = False
    attended: bool = True
    """False in the hole that a text-only sample keeps where its picture would stand."""
