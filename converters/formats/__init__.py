"""The formats, written out by hand: a new one is a file here and a line in `FORMATS`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from converters.errors import UnsupportedError
from converters.formats import cerebras, components, hf, llava, llava_projector, peft, trainer
from converters.hub import Hub


def _no_losses(hub: Hub) -> list[str]:
    return []


@dataclass(frozen=True, slots=True)
class Format:
    """One way in which a model lies on disk."""

    title: str
    suits: Callable[[Path], bool]
    read: Callable[..., Hub]
    """`read(folder, **others)`; `others` are those of `others` that were given."""
    write: Callable[[Hub, Path, int], None]
    """`write(hub, folder, max_shard_bytes)`."""
    others: Mapping[str, str] = field(default_factory=dict)
    """Further folders that may be needed to read: option -> its help."""
    losses: Callable[[Hub], list[str]] = _no_losses
    """`losses(hub)`: what of a model the format cannot say, and what to do about it."""
    describe: Callable[[Path], dict[str, Any]] | None = None
    """What `info` says of a folder that is no whole model."""
    is_file: bool = False
    """Whether one file may be read, without the folder around it."""
    one_file: bool = False
    """Whether its weights are one file, however large."""
    finish: Callable[[Path, Path], None] | None = None
    """`finish(unfinished, folder)`: called last, with the name that the written folder is about to get."""


#: Every format by the name that the command line gives it.
FORMATS: dict[str, Format] = {
    "trainer": Format("llava-prep's own checkpoint folder", trainer.suits, trainer.read, trainer.write),
    "hf": Format("transformers' LlavaForConditionalGeneration", hf.suits, hf.read, hf.write),
    "components": Format(
        "a tower, a decoder and a projector in folders of their own (image_model/, text_model/, projector/)",
        components.suits,
        components.read,
        components.write,
        others={"tokenizer": "A folder whose tokenizer stands in place of the decoder's."},
    ),
    "llava": Format(
        "the original LLaVA's text_model_llava/ with image_model/ beside it",
        llava.suits,
        llava.read,
        llava.write,
        others={
            "vision": "The tower's folder, where config.json's mm_vision_tower leads nowhere.",
            "tokenizer": "A folder with the tokenizer, for a source that has none.",
        },
        losses=llava.losses,
        finish=llava.finish,
    ),
    "llava-projector": Format(
        "a projector alone, mm_projector.bin",
        llava_projector.suits,
        llava_projector.read,
        llava_projector.write,
        others={"base": "The model that the projector belongs to, in any format."},
        losses=llava_projector.losses,
        describe=llava_projector.describe,
        is_file=True,
        one_file=True,
    ),
    "cerebras": Format(
        "the Cerebras Model Zoo's checkpoint and yaml (Release 2.3)",
        cerebras.suits,
        cerebras.read,
        cerebras.write,
        others={"tokenizer": "A folder with the tokenizer, for a source that has none, as the Model Zoo's."},
        losses=cerebras.losses,
        one_file=True,
    ),
    "peft": Format(
        "a LoRA adapter of peft, merged into its base",
        peft.suits,
        peft.read,
        peft.write,
        others={"base": "The model that the adapter was trained beside, in any format."},
        describe=peft.describe,
    ),
}


def read_with(name: str, source: Path, others: Mapping[str, Path]) -> Hub:
    """Read a folder of a format; of `others`, further folders by their option's name, it is given those it takes."""
    known = FORMATS[name]
    return known.read(source, **{option: folder for option, folder in others.items() if option in known.others})


def detect(folder: Path) -> str:
    """Return the name of the format of a folder; raises `UnsupportedError` when no format knows it."""
    # Parts of a model first: their folders may hold the config of the model that they belong to.
    for name, known in sorted(FORMATS.items(), key=lambda item: item[1].describe is None):
        if known.suits(folder):
            return name
    raise UnsupportedError(f"{folder} holds no model in a format that is known here: {', '.join(FORMATS)}")
