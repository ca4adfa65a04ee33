"""What makes two tokenizers the same: vocabulary, merges, special ids, rules for text, and how later turns are split.

Tokens that an export adds behind the vocabulary (`<image>`, `<pad>`) and everything that does not change ids (order of
keys, padding and truncation settings) are left out, so that a folder saved again by another library keeps its hash. The
chat template is left out too: shards carry a hash of what their template writes (`RowLayout.template_sha256`).
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token")

#: The files that make up a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")

#: Tokens beside the vocabulary that templates write, whose ids therefore count.
CHAT_TOKENS = (
    "<|begin_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|im_start|>",
    "<|im_end|>",
    "[INST]",
    "[/INST]",
)

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
        "special_ids": {name: ids.get(special_token(config, name) or "") for name in _special_names(tokenizer)},
        "legacy": legacy(config, tokenizer),
        # Named only where there are any, so that a Llama-2 tokenizer has the hash that it always had.
        **_nonempty("chat_ids", {token: ids[token] for token in CHAT_TOKENS if token in ids}),
        **_nonempty("merging", _merging(tokenizer)),
    }
    text = json.dumps(identity, ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def special_ids(folder: Path | str) -> dict[str, int | None]:
    """Return the ids of `bos_token` and `eos_token` of the tokenizer in `folder`; None for one that it has not."""
    tokenizer, config = read_tokenizer_files(folder)
    ids = {entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])}
    ids = tokenizer["model"]["vocab"] | ids
    return {name: ids.get(special_token(config, name) or "") for name in SPECIAL_TOKENS[:2]}


def num_ids(folder: Path | str) -> int:
    """Return the number that every id of the tokenizer in `folder` is below, its added tokens included."""
    tokenizer, _ = read_tokenizer_files(folder)
    added = (entry["id"] for entry in tokenizer.get("added_tokens", []))
    return 1 + max([*tokenizer["model"]["vocab"].values(), *added], default=-1)


def _special_names(tokenizer: dict[str, Any]) -> tuple[str, ...]:
    """Bytes leave nothing unknown; transformers names an `unk_token` for a byte-level tokenizer that had none."""
    return SPECIAL_TOKENS if text_rules(tokenizer) == [BLANK_RULE] else SPECIAL_TOKENS[:2]


def _nonempty(name: str, value: dict[str, Any]) -> dict[str, Any]:
    return {name: value} if value else {}


def _merging(tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return the model's settings that change ids, where they are not those of a Llama-2 or a GPT-2 file."""
    model = tokenizer["model"]
    flags = {name: model.get(name) for name in ("dropout", "ignore_merges", "continuing_subword_prefix")}
    flags["end_of_word_suffix"] = model.get("end_of_word_suffix")
    llama_type = text_rules(tokenizer) == [BLANK_RULE]
    found = {name: value for name, value in flags.items() if value}
    return found | ({} if bool(model.get("byte_fallback")) == llama_type else {"byte_fallback": not llama_type})


def read_chat_template(folder: Path | str, config: dict[str, Any]) -> str | None:
    """Return the Jinja text of a tokenizer's chat template: its own file, else the config's entry (a list has names).

    Raises:
        TokenizerFileError: the entry is neither a text nor a list of named texts.
    """
    path = Path(folder) / "chat_template.jinja"
    if path.is_file():
        return path.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        found = named.get("default")
    if found is not None and not isinstance(found, str):
        raise TokenizerFileError(f"{folder}: chat_template is a {type(found).__name__}, expected a text")
    return found


def read_tokenizer_files(folder: Path | str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `tokenizer.json` and `tokenizer_config.json` (empty if absent) of a folder."""
    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        hint = ""
        if (folder / "tokenizer.model").is_file():
            hint = f"; there is a tokenizer.model: `llava-convert tokenizer {folder} NEW_FOLDER` makes one of it"
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
    named = [BLANK_RULE if _is_blank_rule(rule) else _without_offsets(rule) for rule in rules]
    # Said twice, it changes nothing the second time.
    return [rule for index, rule in enumerate(named) if rule != BLANK_RULE or BLANK_RULE not in named[:index]]


def _without_offsets(rule: dict[str, Any]) -> dict[str, Any]:
    """Drop what changes the offsets that a tokenizer reports, and no id."""
    return {key: value for key, value in rule.items() if key != "trim_offsets"}


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
