"""The vision tower: pictures -> patch features, equal to transformers' `CLIPVisionModel` and `SiglipVisionModel`.

Shapes: I pictures (may be 0), N tokens of a picture inside the tower, P of them given out, D width.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from trainer.model.config import VisionConfig
from trainer.model.table import Table


class VisionTower(nn.Module):
    """The tower up to the selected layer; the layers above it are kept as weights, but not run."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        width = config.hidden_size
        clip = config.kind == "clip"
        self.class_embedding = nn.Parameter(torch.zeros(width)) if config.has_class_token else None
        self.patch_embedding = nn.Conv2d(3, width, config.patch_size, stride=config.patch_size, bias=not clip)
        self.position_embedding = Table(config.num_positions, width)
        self.pre_norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if clip else nn.Identity()
        self.layers = nn.ModuleList(VisionLayer(config) for _ in range(config.num_layers))
        # LLaVA reads a hidden state before this norm; it is kept so that a tower converts back whole.
        self.post_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)

    def forward(self, pixels: Float[Tensor, "I 3 size size"]) -> Float[Tensor, "I P D"]:
        """Return the features of the selected layer; `pixels` are normalised."""
        hidden = self.patch_embedding(pixels).flatten(2).transpose(1, 2)
        if self.class_embedding is not None:
            hidden = torch.cat([self.class_embedding.expand(len(hidden), 1, -1), hidden], dim=1)
        hidden = self.pre_norm(hidden + self.position_embedding.weight)
        for layer in self.layers[: self.config.num_layers_run]:
            hidden = layer(hidden)
        drops_first = self.config.has_class_token and self.config.select_feature == "patch"
        return hidden[:, 1:] if drops_first else hidden


class VisionLayer(nn.Module):
    """One layer: attention and a two-layer network, each behind a norm and beside a shortcut."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = VisionAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = VisionMlp(config)

    def forward(self, hidden: Float[Tensor, "I N D"]) -> Float[Tensor, "I N D"]:
        """Return the hidden states after this layer."""
        hidden = hidden + self.attention(self.norm1(hidden))
        return hidden + self.mlp(self.norm2(hidden))


class VisionAttention(nn.Module):
    """Every token of a picture reads every token of the same picture."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.num_heads = config.num_heads
        width = config.hidden_size
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.o = nn.Linear(width, width)

    def forward(self, hidden: Float[Tensor, "I N D"]) -> Float[Tensor, "I N D"]:
        """Return what each token read from its picture."""
        q, k, v = (
            project(hidden).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for project in (self.q, self.k, self.v)
        )
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    """Two layers with the tower's activation between."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.activation = config.hidden_act
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Float[Tensor, "I N D"]) -> Float[Tensor, "I N D"]:
        """Return the network's part of each token, computed token by token."""
        hidden = self.up(hidden)
        if self.activation == "quick_gelu":
            # OpenAI's CLIP was trained with this approximation of GELU.
            return self.down(hidden * torch.sigmoid(1.702 * hidden))
        return self.down(F.gelu(hidden, approximate="tanh" if self.activation == "gelu_pytorch_tanh" else "none"))
