"""The Llama-family decoder over samples that lie end to end, equal to transformers' `LlamaForCausalLM`.

Mistral, Qwen2 and Qwen3 differ in biases and norms of their attention alone (`LanguageConfig.family`).

Shapes: T tokens of all samples, H query heads, K key/value heads, D width (`head` of one head), V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from trainer.attention import ATTENTION, Segments
from trainer.model.config import LanguageConfig, RopeScaling
from trainer.model.table import Table

#: cos and sin of the rotary angles, each (T, 1, head), in the dtype of the hidden states.
Rotation = tuple[Tensor, Tensor]

#: What of a layer is computed again in the backward pass, instead of being kept: `mlp` is the gated network with its
#: norm, the widest part; `layer` all of it, so that the layer's input alone is kept.
Recomputed = Literal["nothing", "mlp", "layer"]


@dataclass(frozen=True, slots=True)
class OutputLayer:
    """The largest matrix: from hidden states (N, D) to logits (N, V)."""

    project: Callable[[Tensor], Tensor]
    weight: Tensor | None
    """(V, D), where a product with it is all that `project` does; None where more is done (LoRA)."""


#: What is made of the chosen tokens' hidden states instead of their logits.
Head = Callable[[Tensor, OutputLayer], Tensor]


class LanguageModel(nn.Module):
    """Embedding table, decoder layers, final norm and output layer."""

    def __init__(self, config: LanguageConfig, attention: str) -> None:
        super().__init__()
        self.config = config
        self.embed = Table(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, attention) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "T D"],
        positions: Int64[Tensor, " T"],
        segments: Segments,
        at: Int64[Tensor, " at"] | None = None,
        head: Head | None = None,
    ) -> Float[Tensor, "..."]:
        """Return the logits of the tokens `at` (all by default) for vectors that are already embedded.

        With a `head`, return what that makes of those tokens' hidden states and the output layer.
        """
        rotation = rotary(positions, self.config, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, rotation, segments)
        # Only chosen tokens go through the output layer, the largest matrix: most tokens are never trained on.
        hidden = self.norm(hidden if at is None else hidden[at])
        output = self.output_layer()
        return output.project(hidden) if head is None else head(hidden, output)

    def compute_again(self, what: Recomputed, num_layers: int | None = None) -> None:
        """Say what the first layers (None: all) compute again in the backward pass instead of keeping it."""
        for layer in list(self.layers)[:num_layers]:
            assert isinstance(layer, DecoderLayer)
            layer.recomputed = what

    def output_layer(self) -> OutputLayer:
        """Return the output layer with the weights as they are now; sharded ones are whole inside `forward` alone."""
        if self.lm_head is None:
            return OutputLayer(partial(F.linear, weight=self.embed.weight), self.embed.weight)
        plain = type(self.lm_head) is nn.Linear and self.lm_head.bias is None
        return OutputLayer(self.lm_head, self.lm_head.weight if plain else None)


class DecoderLayer(nn.Module):
    """One layer: attention and a gated network, each behind a norm and beside a shortcut."""

    def __init__(self, config: LanguageConfig, attention: str) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = DecoderAttention(config, attention)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMlp(config)
        self.recomputed: Recomputed = "nothing"

    def forward(self, hidden: Float[Tensor, "T D"], rotation: Rotation, segments: Segments) -> Float[Tensor, "T D"]:
        """Return the hidden states after this layer."""
        if self.recomputed == "layer":
            return _computed_again(self._attend_and_think, hidden, rotation, segments)
        return self._attend_and_think(hidden, rotation, segments)

    def _attend_and_think(self, hidden: Tensor, rotation: Rotation, segments: Segments) -> Tensor:
        q, k, v = self.before_attention(hidden, rotation)
        hidden = hidden + self.attention(q, k, v, segments)
        return _computed_again(self._think, hidden) if self.recomputed == "mlp" else self._think(hidden)

    def _think(self, hidden: Tensor) -> Tensor:
        # The last product stands outside of what is compiled: computing again stops right before it, since nobody
        # needs its result then. A compiled part runs as a whole.
        return hidden + self.mlp.down(self.before_down(hidden))

    def before_attention(self, hidden: Float[Tensor, "T D"], rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (T, H, head), keys and values (T, K, head), the first two turned by their positions."""
        return self.attention.project(self.attention_norm(hidden), rotation)

    def before_down(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T M"]:
        """Return what the gated network holds before its last product."""
        return self.mlp.gated(self.mlp_norm(hidden))


class DecoderAttention(nn.Module):
    """Causal attention inside each sample, with rotary positions and grouped key/value heads."""

    def __init__(self, config: LanguageConfig, attention: str) -> None:
        super().__init__()
        self.backend = attention
        self.head_dim = config.head_dim
        width, bias = config.hidden_size, config.qkv_bias
        self.q = nn.Linear(width, config.num_heads * config.head_dim, bias=bias)
        self.k = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=bias)
        self.v = nn.Linear(width, config.num_kv_heads * config.head_dim, bias=bias)
        self.o = nn.Linear(config.num_heads * config.head_dim, width, bias=config.attention_bias)
        self.q_norm, self.k_norm = (
            nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps) if config.has_qk_norm else None for _ in "qk"
        )

    def forward(
        self,
        q: Float[Tensor, "T H head"],
        k: Float[Tensor, "T K head"],
        v: Float[Tensor, "T K head"],
        segments: Segments,
    ) -> Float[Tensor, "T D"]:
        """Return what each token read from its own sample."""
        return self.o(ATTENTION[self.backend](q, k, v, segments).flatten(1))

    def project(self, hidden: Float[Tensor, "T D"], rotation: Rotation) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries (T, H, head), keys and values (T, K, head), the first two turned by their positions."""
        q, k, v = (project(hidden).unflatten(-1, (-1, self.head_dim)) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return rotate(q, rotation), rotate(k, rotation), v


class GatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`; M is the width between."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def gated(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T M"]:
        """Return what `down` is applied to, computed token by token."""
        return F.silu(self.gate(hidden)) * self.up(hidden)


def _computed_again(function: Callable[..., Tensor], *inputs: object) -> Tensor:
    # Nothing in a layer draws from the global generator (LoRA's dropout follows from where the run stands).
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def rotary(positions: Int64[Tensor, " T"], config: LanguageConfig, dtype: torch.dtype) -> Rotation:
    """Return cos and sin of the rotary angles, each (T, 1, head_dim).

    Computed in fp32 whatever the model's dtype: bf16 cannot tell neighbouring positions apart beyond 256.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    frequencies = 1.0 / config.rope_theta**exponents
    if config.rope_scaling is not None:
        frequencies = stretched(frequencies, config.rope_scaling)
    angles = positions.float()[:, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1)[:, None, :]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def stretched(frequencies: Float[Tensor, " half"], scaling: RopeScaling) -> Float[Tensor, " half"]:
    """Return the frequencies of a decoder whose positions are stretched, as transformers' `ROPE_INIT_FUNCTIONS`."""
    slow = frequencies / scaling.factor
    if scaling.kind == "linear":
        return slow
    # How often a wave turns within the length that was first trained: often, it stays; hardly once, it is stretched.
    turns = scaling.original_max_position_embeddings * frequencies / (2 * math.pi)
    share = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    return torch.lerp(slow, frequencies, share.clamp(0, 1))


def rotate(x: Float[Tensor, "T H head"], rotation: Rotation) -> Float[Tensor, "T H head"]:
    """Turn each pair (i, i + head/2) of a head by its angle: the layout of Hugging Face's Llama weights."""
    cos, sin = rotation
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin
