"""LLaVA out of transformers' own tower and decoder, put together as the original's code does: what `verify` runs.

llava/model/llava_arch.py: the tower's chosen hidden state goes through the projector, and stands in the prompt in place
of `<image>`. None of the trainer's model is used here, so that the two can be compared.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from trainer.model import ProjectorConfig


@dataclass(frozen=True, slots=True)
class InParts:
    """A model in fp32."""

    tower: nn.Module
    """A `CLIPVisionModel` or `SiglipVisionModel`."""
    projector: nn.Module
    decoder: Any
    """A `LlamaForCausalLM` or what has its names."""
    select_layer: int
    drops_first: bool
    """Whether the first of the tower's vectors, that of the class token, is left out."""

    def logits(
        self, ids: Int[Tensor, " T"], is_slot: Bool[Tensor, " T"], pixels: Float[Tensor, "B 3 H W"]
    ) -> Float[Tensor, "T C"]:
        """Return the logits of a prompt with one picture or none; ids at the picture's slots do not count."""
        embedded = self.decoder.get_input_embeddings()(ids.masked_fill(is_slot, 0))
        if len(pixels):
            hidden = self.tower(pixels, output_hidden_states=True).hidden_states[self.select_layer][0]
            features = hidden[1:] if self.drops_first else hidden
            start = int(is_slot.int().argmax())
            text = embedded[~is_slot]
            embedded = torch.cat([text[:start], self.projector(features), text[start:]])
        return self.decoder(inputs_embeds=embedded[None]).logits[0]


def projector(config: ProjectorConfig, tower_width: int, width: int) -> nn.Module:
    """Return an empty projector, as llava/model/multimodal_projector/builder.py makes it."""
    first = nn.Linear(tower_width, width)
    return first if config.kind == "linear" else nn.Sequential(first, nn.GELU(), nn.Linear(width, width))
