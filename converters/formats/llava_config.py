"""`config.json` of the original LLaVA's decoder, which holds all but the tower's sizes, to ours and back."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from converters.errors import ConversionError, UnsupportedError
from converters.formats.hf_config import MAX_REASON, read_json, to_our_language
from converters.formats.llava_projector import projector_settings
from trainer.model import LanguageConfig, LlavaConfig, ProjectorConfig

if TYPE_CHECKING:
    from transformers import PretrainedConfig

#: The original's `model_type` -> the decoder's; `llava` is that of its releases before 1.2.
MODEL_TYPES = {"llava_llama": "llama", "llava": "llama", "llava_mistral": "mistral"}

#: How the original fits pictures into a square -> our word; without the key it crops (llava/mm_utils.py).
_FITS = {"pad": "pad", "square": "crop", None: "crop"}
_RATIOS = {"pad": "pad", "crop": "square"}

#: Keys that decide what is computed -> what the trainer's model has; None is a key that is not there or null.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "image_aspect_ratio": tuple(_FITS),
    "mm_patch_merge_type": ("flat", None),
    "mm_projector_type": ("linear", "mlp2x_gelu", None),
    "mm_resampler_type": (None,),
    "mm_use_im_start_end": (False, None),
    "mm_vision_select_feature": ("patch", "cls_patch", None),
    "s2": (False, None),
    "use_mm_proj": (True, None),
}

#: Keys that are read elsewhere, and keys that change no number: they say how the model was trained, add a token that
#: stands in no prompt (`mm_use_im_patch_token`), or belong to an `image_aspect_ratio` that is refused.
_KNOWN = {
    *_SUPPORTED,
    *("mm_hidden_size", "mm_vision_select_layer", "mm_vision_tower", "unfreeze_mm_vision_tower"),
    *("freeze_mm_mlp_adapter", "freeze_mm_vision_resampler", "mm_projector_lr", "mm_use_im_patch_token"),
    *("mm_vision_tower_lr", "tune_mm_mlp_adapter", "tune_mm_vision_resampler"),
    *("image_crop_resolution", "image_grid_pinpoints", "image_split_resolution"),
}


@dataclass(frozen=True, slots=True)
class Settings:
    """What a decoder's folder says."""

    place: str
    """The file, for messages."""
    language: LanguageConfig
    projector: ProjectorConfig
    tower: str
    """`mm_vision_tower`: a folder or a hub id."""
    tower_width: int
    select_layer: int
    select_feature: str
    image_fit: str
    unfrozen_tower: bool
    """Whether the tower was trained, so that the checkpoint's own counts."""


def load(folder: Path) -> Settings:
    """Read `config.json`; raises `ConversionError` for what is wrong, `UnsupportedError` for what we do not have."""
    place, content = f"{folder}/config.json", read_json(folder / "config.json")
    _refuse_unknown(content, place)
    kind, feature = content.get("mm_projector_type"), content.get("mm_vision_select_feature")
    return Settings(
        place=place,
        language=_language(content, place),
        # The two defaults are the original's own (multimodal_projector/builder.py, multimodal_encoder/clip_encoder.py).
        projector=ProjectorConfig.model_validate({"kind": kind or "linear"}),
        tower=_get(content, "mm_vision_tower", str, place),
        tower_width=_get(content, "mm_hidden_size", int, place),
        select_layer=_get(content, "mm_vision_select_layer", int, place),
        select_feature=feature or "patch",
        image_fit=_FITS[content.get("image_aspect_ratio")],
        unfrozen_tower=bool(content.get("unfreeze_mm_vision_tower")),
    )


def _get(content: dict[str, Any], key: str, kind: type, place: str) -> Any:
    found = content.get(key)
    if type(found) is not kind:
        raise ConversionError(f"{place}: {key}: expected {'a name' if kind is str else 'a number'}, found {found!r}")
    return found


def _refuse_unknown(content: dict[str, Any], place: str) -> None:
    if content.get("model_type") not in MODEL_TYPES:
        known = " or ".join(MODEL_TYPES)
        raise UnsupportedError(f"{place}: model_type is {content.get('model_type')!r}; supported is {known}")
    wrong = [
        f"{key} is {content.get(key)!r}, supported is {_either(values)}"
        for key, values in _SUPPORTED.items()
        if content.get(key) not in values
    ]
    of_pictures = {key for key in content if key.startswith(("mm_", "image_", "s2")) or "_mm_" in key}
    wrong += [f"{key} is not known here" for key in sorted(of_pictures - _KNOWN)]
    if wrong:
        raise UnsupportedError(f"{place}: {'; '.join(wrong)}")


def _either(values: tuple[Any, ...]) -> str:
    return " or ".join(repr(value) for value in values if value is not None) or "null"


def _language(content: dict[str, Any], place: str) -> LanguageConfig:
    if type(content.get("vocab_size")) is not int:
        raise ConversionError(f"{place}: vocab_size: expected a number, found {content.get('vocab_size')!r}")
    try:
        theirs = decoder_config(content)
    except Exception as error:  # transformers checks the values, and each version of it raises something else
        reason = " ".join(str(error).split())
        raise ConversionError(f"{place} is not a decoder's config: {reason[:MAX_REASON]}") from error
    return to_our_language(theirs, theirs.vocab_size, bool(theirs.tie_word_embeddings))


def decoder_config(content: dict[str, Any]) -> "PretrainedConfig":
    """Return the decoder's part of a `config.json` as transformers reads it."""
    from transformers import LlamaConfig, MistralConfig

    reader = {"llama": LlamaConfig, "mistral": MistralConfig}[MODEL_TYPES[content["model_type"]]]
    return reader.from_dict({key: value for key, value in content.items() if key not in ("model_type", "torch_dtype")})


def refuse_unsupported(config: LlavaConfig) -> None:
    """Refuse, in one `UnsupportedError`, what the original (with its transformers 4.37) has no way to hold."""
    language, scaling = config.language, config.language.rope_scaling
    head_dim = language.hidden_size // language.num_heads
    stretched = scaling is not None and (scaling.kind != "linear" or scaling.factor <= 1)
    problems = {
        f"a {config.vision.kind} tower (it has CLIP alone)": config.vision.kind != "clip",
        f"a {language.family} decoder (it has Llama and Mistral)": language.family not in ("llama", "mistral"),
        f"heads of {language.head_dim} values (its are hidden_size / num_heads, {head_dim})": language.head_dim
        * language.num_heads
        != language.hidden_size,
        "rotary positions of this kind (it has linear, by more than 1)": stretched,
        "a sliding window in a Llama": language.family == "llama" and language.sliding_window is not None,
        "stretched rotary positions in a Mistral": language.family == "mistral" and scaling is not None,
    }
    if said := [what for what, is_so in problems.items() if is_so]:
        raise UnsupportedError(f"the original LLaVA has no way to hold {'; '.join(said)}")


def to_their_config(
    config: LlavaConfig, ids: dict[str, int | None], dtype: str, data: dict[str, Any]
) -> dict[str, Any]:
    """Return `config.json` of the decoder's folder, all but `mm_vision_tower`.

    `ids` holds `bos`, `eos` and `pad`; `data` is what the model was trained on, empty where that is not known.
    """
    language = config.language
    # Longer prompts are cut by the original, so a length that is not known does not stand there.
    length = {"tokenizer_model_max_length": data["max_seq_length"]} if "max_seq_length" in data else {}
    return {
        "architectures": [f"Llava{language.family.capitalize()}ForCausalLM"],
        "model_type": f"llava_{language.family}",
        "torch_dtype": dtype,
        "vocab_size": language.vocab_size,
        "hidden_act": "silu",
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_kv_heads,
        "max_position_embeddings": language.max_position_embeddings,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_theta": language.rope_theta,
        **_of_family(language),
        "tie_word_embeddings": language.tie_embeddings,
        "use_cache": True,
        **{f"{name}_token_id": index for name, index in ids.items()},
        **projector_settings(config),
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "use_mm_proj": True,
        "tune_mm_mlp_adapter": False,
        "freeze_mm_mlp_adapter": False,
        "unfreeze_mm_vision_tower": False,
        "image_aspect_ratio": _RATIOS[data.get("image_fit", "pad")],
        "tokenizer_padding_side": "right",
        **length,
    }


def _of_family(language: LanguageConfig) -> dict[str, Any]:
    if language.family == "mistral":
        return {"sliding_window": language.sliding_window}
    scaling = language.rope_scaling
    table = None if scaling is None else {"type": scaling.kind, "factor": scaling.factor}
    return {"attention_bias": language.attention_bias, "pretraining_tp": 1, "rope_scaling": table}
