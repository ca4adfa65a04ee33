"""The tokenizer of an export: `<image>` and `<pad>` behind the vocabulary, and exactly back.

The trainer needs neither token: the place of the picture is data, and nothing is padded. transformers needs both.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.errors import ConversionError

IMAGE, PAD = "<image>", "<pad>"

#: The tokenizer's own wording of conversations; in an export the one that the model was trained on stands there.
CHAT_TEMPLATE = "chat_template.jinja"

#: What only an export has in `tokenizer_config.json`.
_EXPORT_KEYS = ("processor_class", "image_token", "chat_template")


@dataclass(frozen=True, slots=True)
class Extended:
    """A tokenizer with the two tokens."""

    files: dict[str, bytes]
    ids: dict[str, int]
    """`image`, `pad`, `bos` and `eos`."""
    num_tokens: int
    """Ids of the extended tokenizer."""
    undo: dict[str, Any]
    """What `restore` needs."""


def extend(files: Mapping[str, bytes], chat_template: str) -> Extended:
    """Add `<image>` and `<pad>` where they are missing, and what transformers needs to use them.

    `legacy` becomes true: text that follows the picture then begins with `▁`, as the trained prompts have it. With
    `legacy: false` transformers 5's `LlamaTokenizer`, which sets up its own rules in place of those in
    `tokenizer.json`, would drop it.
    """
    tokenizer, config = _tokenizer(files), _config(files)
    ids = _ids(tokenizer)
    added = {}
    for token in (IMAGE, PAD):
        if token not in ids:
            added[token] = ids[token] = max(ids.values()) + 1
    entries = [_entry(token, index) for token, index in added.items()]
    tokenizer["added_tokens"] = [*tokenizer.get("added_tokens", []), *entries]
    undo: dict[str, Any] = {"added_tokens": added, "pre_tokenizer": tokenizer.get("pre_tokenizer")}
    tokenizer["pre_tokenizer"] = _blank_after_specials(tokenizer.get("pre_tokenizer"))
    changes = {"legacy": True, "pad_token": PAD, "padding_side": "left"}
    undo["chat_template"] = files[CHAT_TEMPLATE].decode("utf-8") if CHAT_TEMPLATE in files else None
    undo["tokenizer_config"] = {key: config.get(key) for key in (*changes, *_EXPORT_KEYS)}
    decoder = {str(entry["id"]): {k: v for k, v in entry.items() if k != "id"} for entry in entries}
    config |= changes | {"added_tokens_decoder": (config.get("added_tokens_decoder") or {}) | decoder}
    config |= {"processor_class": "LlavaProcessor", "image_token": IMAGE, "chat_template": chat_template}
    special_ids = {name: _special_id(config, ids, f"{name}_token") for name in ("bos", "eos")}
    # special_tokens_map.json repeats tokenizer_config.json, which wins; left as it is.
    out = {**files, "tokenizer.json": _dump(tokenizer), "tokenizer_config.json": _dump(config)}
    return Extended(out, {"image": ids[IMAGE], "pad": ids[PAD], **special_ids}, max(ids.values()) + 1, undo)


def is_legacy(files: Mapping[str, bytes]) -> bool:
    """Return whether text behind `</s>` opens with `▁`; transformers treats a missing key as true."""
    return _config(files).get("legacy") is not False


def is_llama(files: Mapping[str, bytes]) -> bool:
    """Return whether the tokenizer is of SentencePiece's kind, where blanks are `▁` and `legacy` means something."""
    return "▁" in _tokenizer(files)["model"]["vocab"]


def restore(files: Mapping[str, bytes], undo: Mapping[str, Any] | None) -> dict[str, bytes]:
    """Take `extend` back; without its record (an export of another program) only what can be known."""
    tokenizer, config = _tokenizer(files), _config(files)
    if undo and not all(_is_table(undo.get(key)) for key in ("added_tokens", "tokenizer_config")):
        raise ConversionError("config.json's record of the tokenizer needs added_tokens and tokenizer_config, tables")
    removed = dict(undo["added_tokens"]) if undo else removable(files)
    tokenizer["added_tokens"] = [
        entry for entry in tokenizer.get("added_tokens", []) if entry["content"] not in removed
    ]
    decoder = config.get("added_tokens_decoder") or {}
    config["added_tokens_decoder"] = {i: entry for i, entry in decoder.items() if entry["content"] not in removed}
    for key in _EXPORT_KEYS:
        config.pop(key, None)
    if undo:
        tokenizer["pre_tokenizer"] = undo.get("pre_tokenizer")
        config |= undo["tokenizer_config"]
    elif config.get("pad_token") in removed:
        config["pad_token"] = config.get("unk_token")
    config = {key: value for key, value in config.items() if value is not None}
    own = {name: content for name, content in files.items() if name != CHAT_TEMPLATE}
    if undo and isinstance(wording := undo.get("chat_template"), str):
        own[CHAT_TEMPLATE] = wording.encode("utf-8")
    return {**own, "tokenizer.json": _dump(tokenizer), "tokenizer_config.json": _dump(config)}


def num_tokens(files: Mapping[str, bytes]) -> int:
    """Return the number of ids: one more than the largest."""
    return max(_ids(_tokenizer(files)).values()) + 1


def check_rows(files: Mapping[str, bytes], num_rows: int) -> None:
    """Refuse an embedding table with fewer rows than the tokenizer has ids."""
    num_ids = num_tokens(files)
    if num_ids > num_rows:
        raise ConversionError(f"the tokenizer has {num_ids} ids, but the embedding table only {num_rows} rows")


def removable(files: Mapping[str, bytes]) -> dict[str, int]:
    """Return those of `<image>` and `<pad>` that stand behind all other ids: with them their rows can go."""
    ids = _ids(_tokenizer(files))
    found = {token: ids[token] for token in (IMAGE, PAD) if token in ids}
    others = max((index for token, index in ids.items() if token not in found), default=-1)
    return found if found and min(found.values()) > others else {}


def special_token(files: Mapping[str, bytes], name: str) -> str | None:
    """Return the text of a token such as `eos_token`, None where `tokenizer_config.json` does not name it."""
    return _content(_config(files), name)


def special_ids(files: Mapping[str, bytes]) -> dict[str, int | None]:
    """Return the ids of `bos`, `eos` and `pad`; None for one that `tokenizer_config.json` does not name."""
    ids, config = _ids(_tokenizer(files)), _config(files)
    return {name: ids.get(_content(config, f"{name}_token") or "") for name in ("bos", "eos", "pad")}


def _tokenizer(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return `tokenizer.json`, as far as it is used here of the kind that it should be."""
    tokenizer = _parse(files, "tokenizer.json")
    model = tokenizer.get("model")
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocab, dict) or not vocab:
        raise ConversionError("tokenizer.json has no table model.vocab: only BPE tokenizers are supported")
    for token, index in vocab.items():
        if type(index) is not int:
            raise ConversionError(f"tokenizer.json: model.vocab: {token!r} has {index!r} for an id")
    added = tokenizer.get("added_tokens", [])
    if not isinstance(added, list):
        raise ConversionError(f"tokenizer.json: added_tokens: expected a list, found a {type(added).__name__}")
    for entry in added:
        if not _is_table(entry) or type(entry.get("id")) is not int or not isinstance(entry.get("content"), str):
            raise ConversionError(f"tokenizer.json: added_tokens: expected id and content, found {entry!r}")
    _require_table(tokenizer, "pre_tokenizer", "tokenizer.json")
    return tokenizer


def _config(files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return `tokenizer_config.json`, as far as it is used here of the kind that it should be."""
    config = _parse(files, "tokenizer_config.json")
    decoder = _require_table(config, "added_tokens_decoder", "tokenizer_config.json") or {}
    for index, entry in decoder.items():
        if not _is_table(entry) or not isinstance(entry.get("content"), str):
            raise ConversionError(f"tokenizer_config.json: added_tokens_decoder.{index}: expected a token's table")
    return config


def _parse(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        content = json.loads(files.get(name, b"{}"))
    except ValueError as error:
        raise ConversionError(f"{name} of the tokenizer is not JSON: {error}") from error
    if not _is_table(content):
        raise ConversionError(f"{name} of the tokenizer: expected a table, found a {type(content).__name__}")
    return content


def _is_table(value: Any) -> bool:
    return isinstance(value, dict)


def _require_table(content: Mapping[str, Any], key: str, place: str) -> dict[str, Any] | None:
    found = content.get(key)
    if found is not None and not _is_table(found):
        raise ConversionError(f"{place}: {key}: expected a table, found a {type(found).__name__}")
    return found


def _dump(table: dict[str, Any]) -> bytes:
    return (json.dumps(table, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def _ids(tokenizer: dict[str, Any]) -> dict[str, int]:
    return dict(tokenizer["model"]["vocab"]) | {
        entry["content"]: entry["id"] for entry in tokenizer.get("added_tokens", [])
    }


def _entry(token: str, index: int) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": index, "content": token, **flags}


def _blank_after_specials(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any] | None:
    """As `legacy` in `extend`, for the programs that do read `tokenizer.json`."""
    if pre_tokenizer and pre_tokenizer.get("prepend_scheme") == "first":
        return {**pre_tokenizer, "prepend_scheme": "always"}
    return pre_tokenizer


def _special_id(config: dict[str, Any], ids: dict[str, int], name: str) -> int:
    content = _content(config, name)
    if content is None or content not in ids:
        raise ConversionError(f"tokenizer_config.json: {name} is {content!r}, which has no id")
    return ids[content]


def _content(config: Mapping[str, Any], name: str) -> str | None:
    """Return a token's text; it stands there as it is, or in a table."""
    token = config.get(name)
    content = token.get("content") if isinstance(token, dict) else token
    if content is not None and not isinstance(content, str):
        raise ConversionError(f"tokenizer_config.json: {name}: expected a token, found {token!r}")
    return content
