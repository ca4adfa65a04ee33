"""Does a model's folder agree with the fingerprint of the shards that it was trained on?"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dataprep.encoding import TextEncoder
from trainer.errors import IntegrityError
from trainer.model import LlavaConfig

_TEXTS = ("template", "template_sha256", "system_prompt", "image_fit", "tokenizer_fingerprint")
_NUMBERS = ("image_start_idx", "num_patches", "image_size", "bos_id", "eos_id")


def check_facts(
    folder: Path, facts: Mapping[str, Any], config: LlavaConfig, encoder: TextEncoder, fingerprint: str
) -> None:
    """Compare what the fingerprint says of tokenizer and pictures with what is there; absent entries say nothing.

    Raises:
        IntegrityError: they differ; every difference is a line.
    """
    faults = [*_type_faults(facts), *_tokenizer_faults(facts, encoder, fingerprint), *_picture_faults(facts, config)]
    if faults:
        raise IntegrityError("\n".join(f"{folder}: {fault}" for fault in faults))


def _type_faults(facts: Mapping[str, Any]) -> Iterator[str]:
    for names, kind, said in ((_TEXTS, str, "a text"), (_NUMBERS, int, "a whole number")):
        for name in names:
            if not isinstance(facts.get(name, kind()), kind):
                yield f"{name}: expected {said}, found {facts[name]!r}"


def _tokenizer_faults(facts: Mapping[str, Any], encoder: TextEncoder, fingerprint: str) -> Iterator[str]:
    trained = facts.get("tokenizer_fingerprint")
    if trained is not None and trained != fingerprint:
        yield f"tokenizer: trained with {str(trained)[:12]}…, the folder's is {fingerprint[:12]}…"
    for name, found in (("bos_id", encoder.bos_id), ("eos_id", encoder.eos_id)):
        if facts.get(name, found) != found:
            yield f"{name}: trained with {facts[name]}, the folder's tokenizer has {found}"


def _picture_faults(facts: Mapping[str, Any], config: LlavaConfig) -> Iterator[str]:
    pairs = (
        ("num_patches", config.vision.num_patches),
        ("image_size", config.vision.image_size),
        ("image_mean", config.image_mean),
        ("image_std", config.image_std),
    )
    for name, found in pairs:
        trained = facts.get(name, found)
        values = [np.asarray(value) for value in (trained, found)]
        alike = values[0].shape == values[1].shape and values[0].dtype.kind in "if"
        if not alike or not np.allclose(*values, rtol=0, atol=1e-6):
            yield f"{name}: trained with {trained}, the model has {found}"
