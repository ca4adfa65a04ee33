"""Towers and decoders in folders of their own, as transformers' `save_pretrained` writes them."""

import json
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from converters.files import LazyTensor, write_tensors
from converters.formats import hf_config, hf_files, hf_tokenizer
from converters.formats.transformers_names import decoder_rules, tower_rules
from converters.hub import Hub
from converters.pickles import read_weights
from converters.rules import Rule, to_ours, to_theirs
from trainer.model import LlavaConfig, parameter_shapes

TOWER = "vision_model."

#: The other half of a `CLIPModel` or `SiglipModel`, which LLaVA has no use for.
_TEXT_HALF = [
    Rule("text_model.*", None),
    Rule("text_projection.weight", None),
    Rule("visual_projection.weight", None),
    Rule("logit_scale", None),
    Rule("logit_bias", None),
]

#: transformers 5 saves a tower alone without the prefix.
_BARE = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.", "head.")

_TOWER_CLASSES = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel"}


def read_tower(folder: Path, config: LlavaConfig) -> list[LazyTensor]:
    """Return the tensors of a tower's folder under our names, unread; `config` is of the whole model."""
    expected = [name for name in parameter_shapes(config) if name.startswith("vision.")]
    tensors = [_prefixed(tensor) for tensor in read_weights(folder)]
    return to_ours(tensors, [*tower_rules(TOWER, config.vision), *_TEXT_HALF], expected)


def _prefixed(tensor: LazyTensor) -> LazyTensor:
    return tensor.renamed(TOWER + tensor.name) if tensor.name.startswith(_BARE) else tensor


def read_decoder(folder: Path, config: LlavaConfig) -> list[LazyTensor]:
    """Return the tensors of a decoder's folder under our names, unread; `config` is of the whole model."""
    expected = [name for name in parameter_shapes(config) if name.startswith("language.")]
    return to_ours(read_weights(folder), decoder_rules("", config.language), expected)


def write_tower(hub: Hub, folder: Path, max_shard_bytes: int) -> None:
    """Write a model's tower into a new folder: `CLIPVisionModel` or `SiglipVisionModel`, and its image processor."""
    tensors, vision = _of(hub, "vision."), hub.config.vision
    folder.mkdir()
    write_tensors(folder, to_theirs(tensors, tower_rules(TOWER, vision)), max_shard_bytes)
    theirs = hf_config.their_vision(vision, common_dtype(tensors))
    write_json(folder / "config.json", {"architectures": [_TOWER_CLASSES[vision.kind]]} | theirs)
    # `crop` is the processor of the tower itself; LLaVA pads before it, where its config says so.
    processor = hf_files.image_processor(hub.config, "crop") | {"feature_extractor_type": "CLIPFeatureExtractor"}
    del processor["processor_class"]
    if vision.kind == "siglip":
        processor |= {"image_processor_type": "SiglipImageProcessor", "do_center_crop": False}
        processor["size"] = {"height": vision.image_size, "width": vision.image_size}
        del processor["feature_extractor_type"], processor["crop_size"]
    write_json(folder / "preprocessor_config.json", processor)


def write_decoder(hub: Hub, folder: Path, max_shard_bytes: int) -> None:
    """Write a model's decoder with its tokenizer into a new folder, as a `LlamaForCausalLM` (Mistral, Qwen) lies.

    Raises `UnsupportedError` for what transformers' class does not have.
    """
    tensors, language = _of(hub, "language."), hub.config.language
    ids = hf_tokenizer.special_ids(hub.tokenizer)
    config = hf_config.their_language(language, ids, language.vocab_size, common_dtype(tensors))
    folder.mkdir()
    write_tensors(folder, to_theirs(tensors, decoder_rules("", language)), max_shard_bytes)
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", generation(ids))
    for name, content in hub.tokenizer.items():
        (folder / name).write_bytes(content)


def generation(ids: dict[str, int | None]) -> dict[str, Any]:
    """Return `generation_config.json` of a decoder."""
    return {"do_sample": False} | {f"{name}_token_id": index for name, index in ids.items()}


def _of(hub: Hub, prefix: str) -> list[LazyTensor]:
    return [tensor for tensor in hub.tensors if tensor.name.startswith(prefix)]


def common_dtype(tensors: Sequence[LazyTensor]) -> str:
    """Return the one dtype that stands in a config: what loses nothing of any tensor."""
    return str(reduce(torch.promote_types, {tensor.dtype for tensor in tensors})).removeprefix("torch.")


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a table for people and programs to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
