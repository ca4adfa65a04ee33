"""Tower, projector and decoder in one: `ModelInput` -> logits.

Shapes: T tokens of all samples, I pictures (may be 0), P patches of a picture, D width, V vocabulary.
"""

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor, nn

from trainer.model.config import LlavaConfig
from trainer.model.inputs import ModelInput
from trainer.model.language import Head, LanguageModel
from trainer.model.projector import Projector
from trainer.model.vision import VisionTower


class LlavaModel(nn.Module):
    """LLaVA over packed samples, equal to transformers' `LlavaForConditionalGeneration`.

    Its parameter names are the names that all converters translate to and from. It has no buffers: what is
    computed from the config is computed in `forward`, so a model built on the meta device needs its weights only.
    """

    def __init__(self, config: LlavaConfig, attention: str = "sdpa") -> None:
        super().__init__()
        self.config = config
        self.vision = VisionTower(config.vision)
        self.projector = Projector(config)
        self.language = LanguageModel(config.language, attention)

    def forward(
        self, batch: ModelInput, at: Int64[Tensor, " at"] | None = None, head: Head | None = None
    ) -> Float[Tensor, "..."]:
        """Return the logits (out, V) of the tokens `at`, or of all tokens, in the dtype of the weights.

        With a `head`, return what that makes of those tokens' hidden states and the output layer: a loss, say, for
        which the logits never have to be whole.

        A batch without pictures sends zero rows through tower and projector, so that their gradients are zeros
        and not missing: every rank of a distributed run takes part in the same reductions.
        """
        return self.language(self.embed(batch), batch.positions, batch.segments, at, head)

    def embed(self, batch: ModelInput) -> Float[Tensor, "T D"]:
        """Return what the decoder reads: the ids' rows of the table, and the pictures' patches at their slots."""
        features = self.projector(self._seen(batch.pixels)).flatten(0, 1)
        # The ids at the image slots are free; 0 is a row that every table has.
        embedded = self.language.embed(batch.input_ids.index_fill(0, batch.image_slots, 0))
        return embedded.index_copy(0, batch.image_slots, features.to(embedded.dtype))

    def _seen(self, pixels: UInt8[Tensor, "I 3 size size"]) -> Float[Tensor, "I P V"]:
        """Return the tower's features; a frozen tower leaves no graph behind."""
        is_trained = any(parameter.requires_grad for parameter in self.vision.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and is_trained):
            return self.vision(self.normalise(pixels))

    def normalise(self, pixels: UInt8[Tensor, "I 3 size size"]) -> Float[Tensor, "I 3 size size"]:
        """Return `(pixels / 255 - mean) / std` in the dtype of the tower, computed in fp32."""
        mean_std = zip(self.config.image_mean, self.config.image_std, strict=True)
        # Colour by colour with plain numbers: no tensor has to travel to the device for this.
        colours = [(pixels[:, i].float() / 255 - mean) / std for i, (mean, std) in enumerate(mean_std)]
        return torch.stack(colours, dim=1).to(self.vision.patch_embedding.weight.dtype)


def parameter_shapes(config: LlavaConfig) -> dict[str, tuple[int, ...]]:
    """Return the name and shape of every parameter of a model, without allocating one."""
    with torch.device("meta"):
        model = LlavaModel(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
