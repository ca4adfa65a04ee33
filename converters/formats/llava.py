"""The original LLaVA (github.com/haotian-liu/LLaVA, 1.2), as its own loader opens it.

```
FOLDER/text_model_llava/    config.json (LlavaLlamaForCausalLM), model.safetensors (or shards with an index),
                            generation_config.json, the tokenizer's files, README.md
FOLDER/image_model/         a `CLIPVisionModel`: config.json, model.safetensors, preprocessor_config.json
```

The loader (llava/model/builder.py) goes by the folder's name: without `llava` in it no tower is loaded and nobody is
told, with `mistral` in it the decoder is a Mistral's. Weights go through transformers' `from_pretrained`, which takes
safetensors before `.bin`. The tower always comes from the folder that `mm_vision_tower` names; what the checkpoint
itself holds of one is passed over, unless `unfreeze_mm_vision_tower` is set. Reading does the same.
"""

from pathlib import Path

from converters.errors import ConversionError
from converters.files import LazyTensor, write_tensors
from converters.formats import hf_config, hf_files, hf_tokenizer, llava_config
from converters.formats.hf import read_record
from converters.formats.llava_projector import projector_rules
from converters.formats.parts import common_dtype, generation, read_tower, write_json, write_tower
from converters.formats.transformers_names import decoder_rules, tower_rules
from converters.hub import Hub, check_shapes, read_tokenizer
from converters.pickles import has_weights, read_weights
from converters.rules import Rule, to_ours, to_theirs
from trainer.model import LlavaConfig, VisionConfig, parameter_shapes

#: The folder of the decoder; the loader's rule about names is at the top of this file.
TEXT_MODEL = {"llama": "text_model_llava", "mistral": "text_model_llava_mistral"}
IMAGE_MODEL = "image_model"

#: What names of the tower begin with where the checkpoint holds one.
TOWER = "model.vision_tower.vision_tower.vision_model."


def rules(config: LlavaConfig) -> list[Rule]:
    """Return the table: every tensor of the format and of ours."""
    return [
        *tower_rules(TOWER, config.vision),
        *projector_rules(config.projector.kind),
        *decoder_rules("", config.language),
    ]


def suits(folder: Path) -> bool:
    """Return whether a folder looks like this format, or holds one that does."""
    return bool(_text_folders(folder))


def _text_folders(folder: Path) -> list[Path]:
    """Return the folder itself if it is a decoder's of this format, or else those in it that are."""
    if _is_text_folder(folder):
        return [folder]
    return [path for path in sorted(folder.iterdir()) if "llava" in path.name.lower() and _is_text_folder(path)]


def text_folder(folder: Path) -> Path:
    """Return the decoder's folder: the one that was given, or the only one in it; raises `ConversionError`."""
    found = _text_folders(folder)
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise ConversionError(f"{folder}: expected one folder of a LLaVA decoder, found {names}")
    return found[0]


def _is_text_folder(folder: Path) -> bool:
    try:
        config = hf_config.read_json(folder / "config.json")
    except ConversionError:
        return False
    # Exports of transformers are of model_type `llava` too, and have no such key.
    return "mm_vision_tower" in config


def read(folder: Path, vision: Path | None = None, tokenizer: Path | None = None) -> Hub:
    """Read the two folders, or the decoder's alone.

    `vision` is the tower's folder in place of `mm_vision_tower`; `tokenizer` one with `tokenizer.json`, which the
    original, with its slow tokenizers, does not save.

    Raises `ConversionError` for what is damaged, `UnsupportedError` for what the trainer's model does not have.
    """
    text = text_folder(folder)
    settings = llava_config.load(text)
    tower = vision or tower_folder(text, settings.tower)
    config = _config(settings, tower)
    tensors = _tensors(text, tower, config, settings.unfrozen_tower)
    check_shapes(config, tensors)
    if tokenizer is None and not any((text / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ConversionError(f"{text} holds no tokenizer: give a folder that has it with --tokenizer")
    files = read_tokenizer(tokenizer or text)
    hf_tokenizer.check_rows(files, config.language.vocab_size)
    record = read_record(text)
    data = {"image_fit": settings.image_fit} if record is None else record.data
    if data and data.get("image_fit", "pad") != settings.image_fit:  # the loader goes by config.json
        data = {**data, "image_fit": settings.image_fit}
    return Hub(config, tensors, files, data)


def tower_folder(text: Path, named: str) -> Path:
    """Return where `mm_vision_tower` leads: as it is, or beside the decoder, where folders were moved together."""
    beside = text.resolve().parent
    for path in ([Path(named)] if Path(named).is_absolute() else []) + [beside / named, beside / Path(named).name]:
        if (path / "config.json").is_file():
            return path
    raise ConversionError(
        f"{text}/config.json: mm_vision_tower is {named!r}, which is no folder here: give the tower's with --vision"
    )


def _config(settings: llava_config.Settings, tower: Path) -> LlavaConfig:
    vision = hf_config.to_our_vision(hf_config.load_their_config(tower, ("clip", "clip_vision_model")))
    if vision.hidden_size != settings.tower_width:
        found = f"mm_hidden_size is {settings.tower_width}, but the tower in {tower} is {vision.hidden_size} wide"
        raise ConversionError(f"{settings.place}: {found}")
    chosen = {"select_layer": settings.select_layer, "select_feature": settings.select_feature}
    mean, std = hf_config.read_mean_and_std(tower)
    return LlavaConfig(
        vision=VisionConfig.model_validate(vision.model_dump() | chosen),
        projector=settings.projector,
        language=settings.language,
        image_mean=mean,
        image_std=std,
    )


def _tensors(text: Path, tower: Path, config: LlavaConfig, unfrozen: bool) -> list[LazyTensor]:
    """Return the tensors of both folders; those of the tower from where the original takes them."""
    found, expected = read_weights(text), parameter_shapes(config)
    if unfrozen or not has_weights(tower):
        return to_ours(found, rules(config), expected)
    table = [Rule(TOWER + "*", None), *projector_rules(config.projector.kind), *decoder_rules("", config.language)]
    of_text = to_ours(found, table, [name for name in expected if not name.startswith("vision.")])
    by_name = {tensor.name: tensor for tensor in (*read_tower(tower, config), *of_text)}
    return [by_name[name] for name in expected]


def write(hub: Hub, folder: Path, max_shard_bytes: int) -> None:
    """Write both folders into an existing, empty folder; `finish` must follow.

    Raises `UnsupportedError` for what the original does not have.
    """
    llava_config.refuse_unsupported(hub.config)
    data = dict(hub.data or {})
    hf_files.check_wording(data.get("template", "vicuna_v1"), data.get("image_fit", "pad"), data.get("system_prompt"))
    hf_tokenizer.check_rows(hub.tokenizer, hub.config.language.vocab_size)
    write_tower(hub, folder / IMAGE_MODEL, max_shard_bytes)
    others = [tensor for tensor in hub.tensors if not tensor.name.startswith("vision.")]
    text = folder / TEXT_MODEL[hub.config.language.family]
    text.mkdir()
    write_tensors(text, to_theirs(others, rules(hub.config)), max_shard_bytes)
    ids = hf_tokenizer.special_ids(hub.tokenizer)
    config = llava_config.to_their_config(hub.config, ids, common_dtype(others), data)
    config |= {"mm_vision_tower": IMAGE_MODEL, hf_config.RECORD: {"data": hub.data}}
    write_json(text / "config.json", config)
    write_json(text / "generation_config.json", generation(ids))
    for name, content in hub.tokenizer.items():
        (text / name).write_bytes(content)
    (text / "README.md").write_text(_card(hub), encoding="utf-8")


def finish(unfinished: Path, folder: Path) -> None:
    """Let `mm_vision_tower` lead to the tower from wherever the loader is called; `folder` is the name it will have."""
    (path,) = unfinished.glob("*/generation_config.json")
    config = hf_config.read_json(path.parent / "config.json")
    config["mm_vision_tower"] = str(folder.absolute() / IMAGE_MODEL)
    write_json(path.parent / "config.json", config)


def losses(hub: Hub) -> list[str]:
    """Return what the format cannot say of a model, and what to do about it."""
    template = (hub.data or {}).get("template")
    said = [
        "LLaVA's config names no prompt: its programs guess one from the folder's name; give --conv-mode "
        + ("plain" if str(template).startswith("plain") else "vicuna_v1"),
        "mm_vision_tower holds the full path of image_model: mend it in config.json after the folders were moved",
    ]
    if template is None:
        said.append("how pictures were fitted is not known: image_aspect_ratio is pad, as in LLaVA-1.5")
    if hub.config.language.family == "llama" and "tokenizer.model" not in hub.tokenizer:
        said.append(
            "the model has no tokenizer.model, which LLaVA's loader needs: copy the decoder's beside config.json"
        )
    return said


def _card(hub: Hub) -> str:
    """Return `README.md`."""
    notes = "\n".join(f"* {loss[0].upper()}{loss[1:]}." for loss in losses(hub))
    return _CARD.format(notes=notes, data=hf_files.trained_on(hub.data))


_CARD = """\
# A LLaVA model

Exported by llava-prep, for the programs of github.com/haotian-liu/LLaVA. The folder's name must keep `llava` in it.

{notes}

## What it was trained on

{data}
"""
