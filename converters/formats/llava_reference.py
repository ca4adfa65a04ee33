"""The original LLaVA's folders in transformers' own parts: what `verify` runs."""

from pathlib import Path

import torch
from torch import nn
from transformers import CLIPVisionModel, LlamaForCausalLM, MistralForCausalLM

from converters.errors import ConversionError
from converters.formats import llava, llava_config
from converters.formats.hf_config import read_json
from converters.formats.transformers_parts import InParts, projector
from converters.pickles import read_weights
from trainer.model import listed

_DECODERS = {"llama": LlamaForCausalLM, "mistral": MistralForCausalLM}


def original(folder: Path, vision: Path | None = None) -> InParts:
    """Load both folders; `vision` is the tower's in place of `mm_vision_tower`."""
    text = llava.text_folder(folder)
    settings = llava_config.load(text)
    tower = vision or llava.tower_folder(text, settings.tower)
    decoder = _DECODERS[settings.language.family](llava_config.decoder_config(read_json(text / "config.json")))
    decoder = decoder.float().eval()
    between = projector(settings.projector, settings.tower_width, settings.language.hidden_size)
    # There the original has it, under the name of its file.
    decoder.model.mm_projector = between
    _fill(decoder, text, settings.language.tie_embeddings)
    return InParts(
        tower=CLIPVisionModel.from_pretrained(tower, local_files_only=True, dtype=torch.float32).eval(),
        projector=between,
        decoder=decoder,
        select_layer=settings.select_layer,
        drops_first=settings.select_feature == "patch",
    )


def _fill(decoder: nn.Module, text: Path, tied: bool) -> None:
    """Load the weights by their own names; raises `ConversionError` for any that are missing or left over."""
    found = {tensor.name: tensor for tensor in read_weights(text) if not tensor.name.startswith(llava.TOWER)}
    state = decoder.state_dict()
    missing = state.keys() - found.keys() - ({"lm_head.weight"} if tied else set())
    left = [name for name in found.keys() - state.keys() if not name.endswith("rotary_emb.inv_freq")]
    if missing or left:
        raise ConversionError(f"{text}: missing: {listed(sorted(missing))}; left over: {listed(sorted(left))}")
    for name in found.keys() & state.keys():
        if found[name].shape != tuple(state[name].shape):
            raise ConversionError(f"{text}: {name} {found[name].shape}, expected {tuple(state[name].shape)}")
        with torch.no_grad():
            state[name].copy_(found[name].load())
