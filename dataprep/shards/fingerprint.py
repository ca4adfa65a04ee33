"""What makes two tokenizers the same: vocabulary, merges, special ids and the way later turns are split.

Tokens that an export adds behind the vocabulary (`<image>`, `<pad>`) and everything that does not change ids (order of
keys, padding and truncation settings) are left out, so that a folder saved again by another library keeps its hash.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token")


def tokenizer_fingerprint(folder: Path | str) -> str:
    """Return a sha256 (hex) of the tokenizer in `folder` (`tokenizer.json` and `tokenizer_config.json`).

    Raises:
        FileNotFoundError: no `tokenizer.json` there.
        ValueError: it is not a tokenizer file.
    """
    tokenizer, config = read_tokenizer_files(folder)
    vocabulary = sorted((index, token) for token, index in tokenizer["model"]["vocab"].items())
    ids = {token: index for index, token in vocabulary}
    ids |= {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    identity = {
        "kind": tokenizer["model"].get("type"),
        "vocabulary": vocabulary,
        "merges": [_pair(merge) for merge in tokenizer["model"].get("merges", [])],
        "special_ids": {name: ids.get(special_token(config, name) or "") for name in SPECIAL_TOKENS},
        "legacy": legacy(config),
    }
    text = json.dumps(identity, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def read_tokenizer_files(folder: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `tokenizer.json` and `tokenizer_config.json` (empty if absent) of a folder."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = ""
        if (folder / "tokenizer.model").is_file():
            hint = "; there is a tokenizer.model: load it once with transformers' AutoTokenizer and save it again"
        raise FileNotFoundError(f"{path}: no such file; the tokenizer must be a folder with a tokenizer.json{hint}")
    tokenizer = json.loads(path.read_text("utf-8"))
    if not isinstance(tokenizer, dict) or not isinstance(tokenizer.get("model", {}).get("vocab"), dict):
        raise ValueError(f"{path}: expected a tokenizers file with model.vocab as a table of token and id")
    config_path = folder / "tokenizer_config.json"
    return tokenizer, json.loads(config_path.read_text("utf-8")) if config_path.is_file() else {}


def special_token(config: dict[str, Any], name: str) -> str | None:
    """Return a special token's text; the config writes it as a string or as a table with `content`."""
    token = config.get(name)
    return token.get("content") if isinstance(token, dict) else token


def legacy(config: dict[str, Any]) -> bool:
    """Return whether later turns open with `▁USER` (true) or `USER`; transformers treats a missing key as true."""
    value = config.get("legacy")
    return True if value is None else bool(value)


def _pair(merge: str | list[str]) -> list[str]:
    """Files of different ages write a merge as "a b" or as ["a", "b"]."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
