"""What is in a model folder, in a few lines."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from converters.formats import FORMATS, detect, hf_tokenizer, read_with
from converters.hub import Hub


def describe(folder: Path, others: Mapping[str, Path]) -> dict[str, Any]:
    """Return the format, sizes, number of parameters, dtypes, tokenizer and training data of a model folder.

    Of `others` (`vision`, `tokenizer`, `base`) its format takes what it needs; a part of a model (an adapter, a
    projector) is described as what it makes of its `base`, where that is given.
    """
    name = detect(folder)
    of_part = FORMATS[name].describe
    part = of_part(folder) if of_part else {}
    if of_part and "base" not in others:
        return {"format": name, **part}
    hub = read_with(name, folder, others)
    return {
        "format": name,
        **part,
        "num_parameters": sum(tensor.num_bytes // tensor.dtype.itemsize for tensor in hub.tensors),
        "num_bytes": sum(tensor.num_bytes for tensor in hub.tensors),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in hub.tensors}),
        "tokenizer": sorted(hub.tokenizer),
        "later_turns": later_turns(name, hub),
        "config": hub.config.model_dump(mode="json"),
        "trained_on": hub.data,
    }


def later_turns(name: str, hub: Hub) -> str:
    """Say how turns after the first are split into tokens, and whether the folder's own tokenizer does the same.

    `legacy` of a Llama tokenizer decides whether text behind `</s>` opens with `▁`. transformers 5 splits an export's
    text as if it were true; a model that was trained otherwise sees other ids from the second turn on.
    """
    legacy = hf_tokenizer.is_legacy(hub.tokenizer)
    trained = "with `▁` (legacy: true)" if legacy else "without `▁` (legacy: false)"
    if not hf_tokenizer.is_llama(hub.tokenizer):
        return "as the template writes them"
    said = f"text behind </s> opens {trained} in training"
    return f"{said}; this folder's own tokenizer opens it with `▁`" if name == "hf" and not legacy else said


def as_text(description: dict[str, Any]) -> str:
    """Return a description as lines of `part.key: value`."""
    return "\n".join(f"{key}: {value}" for key, value in _flat("", description))


def _flat(prefix: str, value: Any) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}" if prefix else key, inner)]
    if isinstance(value, list):
        value = ", ".join(str(item) for item in value)
    absent = "unknown" if prefix == "trained_on" else "none"
    return [(prefix, absent if value is None else value)]
