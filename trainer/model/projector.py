"""The projector: patch features of the tower -> vectors of the decoder's width.

Shapes: P patches, V width of the tower, D width of the decoder.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainer.model.config import LlavaConfig


class Projector(nn.Module):
    """One linear layer (`linear`), or two with a GELU between (`mlp2x_gelu`, LLaVA-1.5's)."""

    def __init__(self, config: LlavaConfig) -> None:
        super().__init__()
        width = config.language.hidden_size
        self.up = nn.Linear(config.vision.hidden_size, width)
        self.down = nn.Linear(width, width) if config.projector.kind == "mlp2x_gelu" else None

    def forward(self, features: Float[Tensor, "*P V"]) -> Float[Tensor, "*P D"]:
        """Return one vector of the decoder's width for each patch."""
        hidden = self.up(features)
        return hidden if self.down is None else self.down(F.gelu(hidden))
