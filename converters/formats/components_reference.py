"""A `components` folder, its tower and decoder loaded by transformers: what `verify` runs."""

from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, CLIPVisionModel, SiglipVisionModel

from converters.formats import components
from converters.formats.llava_projector import PREFIX, projector_rules
from converters.formats.transformers_parts import InParts, projector
from converters.rules import to_theirs

_TOWERS = {"clip": CLIPVisionModel, "siglip": SiglipVisionModel}


def in_parts(folder: Path) -> InParts:
    """Load the three folders; raises `ConversionError` or `UnsupportedError` as reading them does."""
    hub = components.read(folder)
    config = hub.config
    between = projector(config.projector, config.vision.hidden_size, config.language.hidden_size)
    own = [tensor for tensor in hub.tensors if tensor.name.startswith("projector.")]
    renamed = to_theirs(own, projector_rules(config.projector.kind))
    between.load_state_dict({tensor.name.removeprefix(PREFIX): tensor.load() for tensor in renamed})
    tower = _TOWERS[config.vision.kind].from_pretrained(
        folder / components.IMAGE_MODEL, local_files_only=True, dtype=torch.float32
    )
    decoder = AutoModelForCausalLM.from_pretrained(
        folder / components.TEXT_MODEL, local_files_only=True, dtype=torch.float32
    )
    drops_first = config.vision.has_class_token and config.vision.select_feature == "patch"
    return InParts(_eval(tower), _eval(between), _eval(decoder), config.vision.select_layer, drops_first)


def _eval(module: nn.Module) -> nn.Module:
    return module.float().eval()
