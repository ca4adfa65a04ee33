"""Which tokenizers the recipe is exact with, and how one is set up so that text stays text.

Two kinds are: Llama-type BPE (SentencePiece: blanks are `▁`, unknown characters are bytes) and byte-level BPE (Llama-3,
Qwen: text is cut by a pattern, then made of bytes). Everything else would be silently inexact and is refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from dataprep.shards.fingerprint import BLANK_RULE, legacy, special_token, text_rules
from dataprep.templates.dialect import AddedToken, Dialect

BLANK = "▁"
NEWLINE_BYTE = "<0x0A>"

#: How a Llama-type vocabulary writes a byte for which it has no piece.
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


class TokenizerError(ValueError):
    """A tokenizer that this recipe cannot be exact with."""


def text_only(files: dict[str, Any]) -> dict[str, Any]:
    """Return the tokenizer file with nothing that adds, cuts or fills text, and no token beside the vocabulary.

    Without added tokens every literal in a text (`</s>`, `<|im_end|>`, `<tool_call>`) is text, whether its entry is
    marked special or not, also in a copy that was pickled (which loses `encode_special_tokens`).
    """
    nothing = {"truncation": None, "padding": None, "post_processor": None, "added_tokens": []}
    files = {**files, **nothing, "normalizer": _no_prepend(files.get("normalizer"))}
    pre = files.get("pre_tokenizer")
    if pre and pre.get("type") == "Metaspace":
        kept = {key: value for key, value in pre.items() if key != "add_prefix_space"}
        files["pre_tokenizer"] = {**kept, "prepend_scheme": "never"}
    return files


def _no_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    if normalizer is None or normalizer.get("type") == "Prepend":
        return None
    if normalizer.get("type") == "Sequence":
        kept = [_no_prepend(inner) for inner in normalizer["normalizers"]]
        return {**normalizer, "normalizers": [inner for inner in kept if inner]}
    return normalizer


def control_ids(files: dict[str, Any], config: dict[str, Any]) -> dict[str, int]:
    """Return the ids of every token beside the vocabulary, and of the named special tokens."""
    ids = {entry["content"]: entry["id"] for entry in files.get("added_tokens", [])}
    vocabulary = files["model"]["vocab"]
    for name in _special_names(config):
        token = special_token(config, name)
        if token is not None and token not in ids and token in vocabulary:
            ids[token] = vocabulary[token]
    return ids


def _special_names(config: dict[str, Any]) -> list[str]:
    """Name the special tokens that transformers hands to a chat template."""
    return [name for name in config if name.endswith("_token") and isinstance(config[name], str | dict)]


def dialect_of(
    files: dict[str, Any], config: dict[str, Any], chat_template: str | None, ids: dict[str, int]
) -> Dialect:
    """Return what templates have to know of a tokenizer; `ids` are its `control_ids`."""
    flags = {entry["content"]: entry for entry in files.get("added_tokens", [])}
    added = {
        token: AddedToken(
            special=flags.get(token, {}).get("special", True),
            lstrip=flags.get(token, {}).get("lstrip", False),
            rstrip=flags.get(token, {}).get("rstrip", False),
        )
        for token in ids
    }
    specials = {name: token for name in _special_names(config) if (token := special_token(config, name)) in ids}
    return Dialect(
        legacy=legacy(config, files),
        byte_level=text_rules(files) != [BLANK_RULE],
        newline_cuts=_newline_is_alone(files["model"]),
        specials={name: token for name, token in specials.items() if token is not None},
        added=added,
        chat_template=chat_template,
    )


def _newline_is_alone(model: dict[str, Any]) -> bool:
    """Return whether no piece joins a newline to another character."""
    vocabulary = model["vocab"]
    known = "\n" in vocabulary or (NEWLINE_BYTE in vocabulary and model.get("byte_fallback"))
    joined = any(
        ("\n" in piece and piece != "\n") or (NEWLINE_BYTE in piece and len(piece) > 6) for piece in vocabulary
    )
    return bool(known) and not joined


def refuse_unsafe(files: dict[str, Any], folder: Path) -> None:
    """Check what the recipe stands on.

    Raises:
        TokenizerError: names what was found and what is needed.
    """
    kind, rules = files["model"].get("type"), text_rules(files)
    llama_type = rules == [BLANK_RULE]
    if kind != "BPE" or not (llama_type or _is_byte_level(rules)):
        raise TokenizerError(
            f"{folder}: a {kind} tokenizer with the text rules {str(rules)[:200]}; templates need a Llama-type one"
            f" (BPE, and nothing but {BLANK_RULE!r}) or a byte-level one (BPE, patterns that split and ByteLevel)"
        )
    if files["model"].get("dropout"):
        raise TokenizerError(f"{folder}: the tokenizer drops merges at random (dropout {files['model']['dropout']})")
    if llama_type:
        _refuse_crossing(files["model"]["vocab"], folder)
    else:
        _refuse_missing_bytes(files["model"]["vocab"], folder)


def _refuse_crossing(vocabulary: dict[str, int], folder: Path) -> None:
    crossing = [piece for piece in vocabulary if BLANK in piece.lstrip(BLANK)]
    if crossing:
        raise TokenizerError(
            f"{folder}: {len(crossing)} pieces have a blank behind another character ({crossing[0]!r}), so prompts"
            " cannot be cut at blanks; templates need a Llama-type (SentencePiece) vocabulary"
        )
    if BLANK not in "".join(vocabulary):
        raise TokenizerError(f"{folder}: no piece has {BLANK!r}; templates need a Llama-type vocabulary")


def _refuse_missing_bytes(vocabulary: dict[str, int], folder: Path) -> None:
    missing = [byte for character, byte in BYTE_OF.items() if character not in vocabulary]
    if missing:
        raise TokenizerError(
            f"{folder}: {len(missing)} of the 256 bytes are no piece of the vocabulary (byte {missing[0]}), so some"
            " texts would be lost"
        )


def _is_byte_level(rules: list[Any]) -> bool:
    """Return whether nothing happens to text but composing it (NFC), splitting it, and turning it into bytes."""
    steps = [rule for rule in rules if isinstance(rule, dict)]
    harmless = all(
        step.get("type") == "NFC"
        or (step.get("type") == "Split" and step.get("behavior") != "Removed")
        or (step.get("type") == "Digits")
        or (step.get("type") == "ByteLevel" and not step.get("add_prefix_space"))
        for step in steps
    )
    return len(steps) == len(rules) and harmless and "ByteLevel" in [step.get("type") for step in steps[-1:]]


#: The characters that a byte-level vocabulary is written in: printable bytes as themselves, the others shifted.
_PRINTABLE = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
_SHIFTED = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + place): byte for place, byte in enumerate(_SHIFTED)}


def piece_bytes(piece: str, byte_level: bool) -> bytes:
    """Return what a piece of the vocabulary writes, in UTF-8; a single byte of a character is that byte."""
    if byte_level and all(character in BYTE_OF for character in piece):
        return bytes(BYTE_OF[character] for character in piece)
    if not byte_level and (byte := _BYTE_PIECE.fullmatch(piece)):
        return bytes([int(byte[1], 16)])
    return piece.encode() if byte_level else piece.replace(BLANK, " ").encode()


def readable(piece: str, byte_level: bool) -> str:
    """Return a piece of the vocabulary as it reads: blanks for `▁`, what is no whole character as `<0x0A>`."""
    if not byte_level:
        return piece.replace(BLANK, " ")
    if not all(character in BYTE_OF for character in piece):
        return piece
    code = bytes(BYTE_OF[character] for character in piece)
    try:
        return code.decode("utf-8")
    except UnicodeDecodeError:
        return "".join(f"<0x{byte:02X}>" for byte in code)
