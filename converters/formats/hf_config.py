"""`config.json` of transformers' LLaVA and of its parts, to the trainer's sizes and back.

transformers itself reads the files: they leave out what equals its defaults, and each version names things anew. It is
loaded when it is needed: that takes longer than torch, and a conversion that only writes its formats needs none of it.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from converters.errors import ConversionError, UnsupportedError
from trainer.model import LanguageConfig, LlavaConfig, ProjectorConfig, RopeScaling, VisionConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: Mean and standard deviation of OpenAI's CLIP, which a folder without image settings was trained with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

#: What each `model_type` of a tower's folder is to us; a whole CLIP or SigLIP has a tower in it.
TOWERS = {"clip": "clip", "clip_vision_model": "clip", "siglip": "siglip", "siglip_vision_model": "siglip"}

#: The same for decoders.
DECODERS = {name: name for name in ("llama", "mistral", "qwen2", "qwen3")}

#: One number for red, green and blue each.
Colours = tuple[float, float, float]

#: Letters of another program's error that a message repeats, at most.
MAX_REASON = 300

#: Where an export keeps what the way back needs; transformers carries keys that it does not know.
RECORD = "llava_prep"

_FEATURES = {"default": "patch", "full": "cls_patch"}
_STRATEGIES = {ours: theirs for theirs, ours in _FEATURES.items()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON table; raises `ConversionError` when it is missing or holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConversionError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConversionError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: expected a table, found a {type(content).__name__}")
    return content


def load_their_config(folder: Path, model_types: Collection[str]) -> "PretrainedConfig":
    """Read `config.json` through transformers.

    Raises `UnsupportedError` for another `model_type`, `ConversionError` for values that transformers refuses.
    """
    found = read_json(folder / "config.json").get("model_type")
    if found not in model_types:
        raise UnsupportedError(f"{folder}/config.json: model_type is {found!r}, expected {' or '.join(model_types)}")
    from transformers import AutoConfig, CLIPVisionConfig, SiglipVisionConfig

    reader = {"clip": CLIPVisionConfig, "siglip": SiglipVisionConfig}.get(TOWERS.get(str(found), ""), AutoConfig)
    try:
        return reader.from_pretrained(folder)
    except Exception as error:  # transformers checks the values, and each version of it raises something else
        reason = " ".join(str(error).split())
        raise ConversionError(f"{folder}/config.json is not a {found} config: {reason[:MAX_REASON]}") from error


def to_our_config(theirs: "PretrainedConfig", vocab_size: int, projector_kind: str, folder: Path) -> LlavaConfig:
    """Translate a whole LLaVA config; `vocab_size` is the number of rows that are kept of the embedding table.

    Raises `UnsupportedError` for what the trainer's model does not have.
    """
    _require(theirs, {"multimodal_projector_bias": (True, None), "projector_hidden_act": ("gelu", "linear")})
    vision = to_our_vision(theirs.vision_config)
    # Without a class token, "default" would drop the first patch.
    allowed = tuple(_FEATURES) if vision.has_class_token else ("full",)
    _require(theirs, {"vision_feature_select_strategy": allowed})
    if not isinstance(theirs.vision_feature_layer, int):
        raise UnsupportedError(f"vision_feature_layer {theirs.vision_feature_layer}: several layers are not supported")
    tied = bool(theirs.tie_word_embeddings or theirs.text_config.tie_word_embeddings)
    language = to_our_language(theirs.text_config, vocab_size, tied)
    feature = _FEATURES[theirs.vision_feature_select_strategy] if vision.has_class_token else "patch"
    vision = vision.model_copy(update={"select_layer": theirs.vision_feature_layer, "select_feature": feature})
    mean, std = read_mean_and_std(folder)
    projector = ProjectorConfig.model_validate({"kind": projector_kind})
    return LlavaConfig(vision=vision, projector=projector, language=language, image_mean=mean, image_std=std)


def to_our_vision(theirs: "PretrainedConfig") -> VisionConfig:
    """Translate a tower's config; LLaVA's choice of layer is not part of it and stays at our default."""
    _require(theirs, {"model_type": ("clip_vision_model", "siglip_vision_model"), "num_channels": (3,)})
    return VisionConfig.model_validate(
        {
            "kind": TOWERS[str(theirs.model_type)],
            "hidden_size": theirs.hidden_size,
            "intermediate_size": theirs.intermediate_size,
            "num_layers": theirs.num_hidden_layers,
            "num_heads": theirs.num_attention_heads,
            "image_size": theirs.image_size,
            "patch_size": theirs.patch_size,
            "layer_norm_eps": theirs.layer_norm_eps,
            "hidden_act": theirs.hidden_act,
        }
    )


def to_our_language(theirs: "PretrainedConfig", vocab_size: int, tied: bool) -> LanguageConfig:
    """Translate a decoder's config."""
    _require(theirs, {"model_type": tuple(DECODERS), "hidden_act": ("silu",), "mlp_bias": (False, None)})
    theta, scaling = _rope(theirs)
    family = DECODERS[str(theirs.model_type)]
    return LanguageConfig.model_validate(
        {
            "family": family,
            "vocab_size": vocab_size,
            "hidden_size": theirs.hidden_size,
            "intermediate_size": theirs.intermediate_size,
            "num_layers": theirs.num_hidden_layers,
            "num_heads": theirs.num_attention_heads,
            "num_kv_heads": theirs.num_key_value_heads or theirs.num_attention_heads,
            "head_dim": getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
            "rope_theta": theta,
            "rope_scaling": scaling,
            "sliding_window": _sliding_window(theirs),
            "rms_norm_eps": theirs.rms_norm_eps,
            "attention_bias": family in ("llama", "qwen3") and bool(theirs.attention_bias),
            "tie_embeddings": tied,
            "max_position_embeddings": theirs.max_position_embeddings,
        }
    )


def _rope(theirs: "PretrainedConfig") -> tuple[float, RopeScaling | None]:
    """transformers 5 has one table `rope_parameters`, 4 has `rope_theta` and an optional `rope_scaling`."""
    table = getattr(theirs, "rope_parameters", None) or getattr(theirs, "rope_scaling", None) or {}
    theta = float(table.get("rope_theta", getattr(theirs, "rope_theta", None) or 10000.0))
    kind = table.get("rope_type", table.get("type", "default"))
    if kind == "default":
        return theta, None
    known = {name: table[name] for name in RopeScaling.model_fields if name in table}
    try:
        return theta, RopeScaling.model_validate({**known, "kind": kind})
    except ValidationError as error:
        raise UnsupportedError(
            f"rotary positions of type {kind!r} ({error.errors()[0]['msg']}): supported are default, linear and llama3"
        ) from None


def _sliding_window(theirs: "PretrainedConfig") -> int | None:
    """Return the window of a decoder that has one in any layer; a Qwen names one that it does not use.

    A Llama has none, whatever its file says: transformers passes the key over.
    """
    window = getattr(theirs, "sliding_window", None) if theirs.model_type != "llama" else None
    return window if window and getattr(theirs, "use_sliding_window", True) else None


def _require(theirs: "PretrainedConfig", allowed: dict[str, tuple[Any, ...]]) -> None:
    for key, values in allowed.items():
        found = getattr(theirs, key, None)
        if found not in values:
            expected = " or ".join(repr(value) for value in values if value is not None)
            raise UnsupportedError(f"{type(theirs).__name__}.{key} is {found!r}; supported is {expected}")


def read_mean_and_std(folder: Path) -> tuple[Colours, Colours]:
    """Return how pixels are normalised: from either processor file, or CLIP's own figures where there is none."""
    path, settings = folder / "preprocessor_config.json", {}
    if path.exists():
        settings = read_json(path)
    elif (path := folder / "processor_config.json").exists():
        settings = table_in(read_json(path), "image_processor", str(path)) or {}
    return _colours(settings, "image_mean", CLIP_MEAN, path), _colours(settings, "image_std", CLIP_STD, path)


def _colours(settings: dict[str, Any], key: str, default: Colours, path: Path) -> Colours:
    found = settings.get(key, default)
    if not isinstance(found, list | tuple) or len(found) != 3 or not all(isinstance(x, int | float) for x in found):
        raise ConversionError(f"{path}: {key}: expected three numbers, found {found!r}")
    red, green, blue = map(float, found)
    return red, green, blue


def table_in(content: Mapping[str, Any], key: str, place: str) -> dict[str, Any] | None:
    """Return the table under a key, None where there is none; raises `ConversionError` for anything else."""
    found = content.get(key)
    if found is not None and not isinstance(found, dict):
        raise ConversionError(f"{place}: {key}: expected a table, found {found!r}")
    return found


def to_their_config(config: LlavaConfig, ids: dict[str, int], num_rows: int, dtype: str) -> dict[str, Any]:
    """Return `config.json` of an export.

    `ids` holds `image`, `pad`, `bos` and `eos`; `num_rows` is the exported size of the embedding table. RoPE and the
    dtype stand there under the names of transformers 4 and of 5.
    """
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "dtype": dtype,
        "torch_dtype": dtype,
        "image_seq_length": config.vision.num_patches,
        "image_token_index": ids["image"],
        "multimodal_projector_bias": True,
        "projector_hidden_act": "gelu" if config.projector.kind == "mlp2x_gelu" else "linear",
        "pad_token_id": ids["pad"],
        "tie_word_embeddings": config.language.tie_embeddings,
        "vision_feature_layer": config.vision.select_layer,
        "vision_feature_select_strategy": strategy(config.vision),
        "text_config": their_language(config.language, ids, num_rows, dtype),
        "vision_config": their_vision(config.vision, dtype),
    }


#: The decoders' classes in transformers.
_CLASSES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}


def strategy(config: VisionConfig) -> str:
    """Return transformers' word for the features that are used; `default` drops the first, which SigLIP has not."""
    return _STRATEGIES[config.select_feature] if config.has_class_token else "full"


def their_language(config: LanguageConfig, ids: Mapping[str, int | None], num_rows: int, dtype: str) -> dict[str, Any]:
    """Return `config.json` of a decoder, or the part of it in an export's; `ids` holds `pad`, `bos` and `eos`.

    Raises `UnsupportedError` for what transformers' class does not have.
    """
    if config.family == "llama" and config.sliding_window is not None:
        raise UnsupportedError(
            f"language.sliding_window is {config.sliding_window}: transformers' Llama has none, a Mistral has"
        )
    own: dict[str, Any] = {"mlp_bias": False} if config.family == "llama" else {}
    if config.family in ("llama", "qwen3"):
        own["attention_bias"] = config.attention_bias
    if config.family != "llama":
        own["sliding_window"] = config.sliding_window
    if config.family.startswith("qwen"):
        own["use_sliding_window"] = config.sliding_window is not None
    return {
        "architectures": [f"{_CLASSES[config.family]}ForCausalLM"],
        "model_type": config.family,
        "dtype": dtype,
        "torch_dtype": dtype,
        "vocab_size": num_rows,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        **_their_rope(config),
        "tie_word_embeddings": config.tie_embeddings,
        "bos_token_id": ids["bos"],
        "eos_token_id": ids["eos"],
        "pad_token_id": ids["pad"],
        **own,
    }


def _their_rope(config: LanguageConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {
            "rope_theta": config.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        }
    own = ["factor"] if scaling.kind == "linear" else list(RopeScaling.model_fields)[1:]
    table = {"rope_type": scaling.kind, **{name: getattr(scaling, name) for name in own}}
    return {
        "rope_theta": config.rope_theta,
        "rope_scaling": table,
        "rope_parameters": {**table, "rope_theta": config.rope_theta},
    }


def their_vision(config: VisionConfig, dtype: str) -> dict[str, Any]:
    """Return `config.json` of a tower, or the part of it in an export's."""
    own = {"projection_dim": config.hidden_size} if config.kind == "clip" else {"vision_use_head": False}
    return {
        "model_type": f"{config.kind}_vision_model",
        "dtype": dtype,
        "torch_dtype": dtype,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": 3,
        "layer_norm_eps": config.layer_norm_eps,
        "hidden_act": config.hidden_act,
        **own,
    }
