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

#: The files that make up a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

#: Blanks become `▁`, and nothing else happens to the text.
BLANK_RULE = "blank to ▁"


class TokenizerFileError(ValueError):
    """A tokenizer's files that cannot be read."""


def tokenizer_fingerprint(folder: Path | str) -> str:
    """Return a sha256 (hex) of the tokenizer in `folder` (`tokenizer.json` and `tokenizer_config.json`).

    Raises:
        FileNotFoundError: no `tokenizer.json` there.
        TokenizerFileError: it is not a tokenizer file.
    """
    tokenizer, config = read_tokenizer_files(folder)
    vocabulary = sorted((index, token) for token, index in tokenizer["model"]["vocab"].items())
    ids = {token: index for index, token in vocabulary}
    ids |= {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    identity = {
        "kind": tokenizer["model"].get("type"),
        "vocabulary": vocabulary,
        "merges": [_pair(merge) for merge in tokenizer["model"].get("merges", [])],
        "text_rules": text_rules(tokenizer),
        "special_ids": {name: ids.get(special_token(config, name) or "") for name in SPECIAL_TOKENS},
        "legacy": legacy(config, tokenizer),
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
    tokenizer = _read_object(path)
    model = tokenizer.get("model")
    if not isinstance(model, dict) or not isinstance(model.get("vocab"), dict):
        raise TokenizerFileError(f"{path}: expected a tokenizers file with model.vocab as a table of token and id")
    config_path = folder / "tokenizer_config.json"
    return tokenizer, _read_object(config_path) if config_path.is_file() else {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise TokenizerFileError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise TokenizerFileError(f"{path}: expected an object, found a {type(content).__name__}")
    return content


def special_token(config: dict[str, Any], name: str) -> str | None:
    """Return a special token's text; the config writes it as a string or as a table with `content`."""
    token = config.get(name)
    return token.get("content") if isinstance(token, dict) else token


def text_rules(tokenizer: dict[str, Any]) -> list[Any]:
    """Return what happens to text before the vocabulary is applied, dummy prefixes apart.

    A Llama file says `Replace " " by "▁"` among its normalizers or has a `Metaspace` pre-tokenizer, by its age; both
    mean the same, and `[BLANK_RULE]` stands for either.
    """
    rules = [rule for rule in _flat(tokenizer.get("normalizer"), "normalizers") if rule.get("type") != "Prepend"]
    rules += _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")
    named = [BLANK_RULE if _is_blank_rule(rule) else rule for rule in rules]
    # Said twice, it changes nothing the second time.
    return [rule for index, rule in enumerate(named) if rule != BLANK_RULE or BLANK_RULE not in named[:index]]


def _flat(rule: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    if rule is None:
        return []
    return [step for part in rule[inner] for step in _flat(part, inner)] if rule.get("type") == "Sequence" else [rule]


def _is_blank_rule(rule: dict[str, Any]) -> bool:
    if rule.get("type") == "Metaspace":
        return rule.get("replacement") == "▁"
    return rule.get("type") == "Replace" and rule.get("pattern") == {"String": " "} and rule.get("content") == "▁"


def legacy(config: dict[str, Any], tokenizer: dict[str, Any]) -> bool:
    """Return whether later turns open with `▁USER` (true) or `USER`.

    transformers 5 does not save the key; it writes the setting into the `Metaspace` pre-tokenizer instead (`always` for
    true, `first` for false). Where neither says anything, transformers takes it as true.
    """
    if config.get("legacy") is not None:
        return bool(config["legacy"])
    schemes = [rule.get("prepend_scheme") for rule in _flat(tokenizer.get("pre_tokenizer"), "pretokenizers")]
    return "first" not in schemes


def _pair(merge: str | list[str]) -> list[str]:
    """Files of different ages write a merge as "a b" or as ["a", "b"]."""
    return merge.split(" ", 1) if isinstance(merge, str) else list(merge)
