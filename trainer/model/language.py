"""The Llama-family decoder over samples that lie end to end, equal to transformers' `LlamaForCausalLM`.

Mistral, Qwen2 and Qwen3 differ in biases and norms of their attention alone (`LanguageConfig.family`).

Shapes: T tokens of all samples, H query heads, K key/value heads, D width (`head` of one head), V vocabulary.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from trainer.attention import ATTENTION, Segments
from trainer.model.config import LanguageConfig, RopeScaling

#: cos and sin of the rotary angles, each (T, 1, head), in the dtype of the hidden states.
Rotation = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Embedding table, decoder layers, final norm and output layer."""

    def __init__(self, config: LanguageConfig, attention: str) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, attention) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.lm_head = None if config.tie_embeddings else nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(
        self,
        hidden: Float[Tensor, "T D"],
        positions: Int64[Tensor, " T"],
        segments: Segments,
        at: Int64[Tensor, " at"] | None = None,
    ) -> Float[Tensor, "out V"]:
        """Return the logits of the tokens `at` (all by default) for vectors that are already embedded."""
        rotation = rotary(positions, self.config, hidden.dtype)
        for layer in self.layers:
            hidden = layer(hidden, rotation, segments)
        # Only chosen tokens go through the output layer, the largest matrix: most tokens are never trained on.
        hidden = self.norm(hidden if at is None else hidden[at])
        return F.linear(hidden, self.embed.weight) if self.lm_head is None else self.lm_head(hidden)


class DecoderLayer(nn.Module):
    """One layer: attention and a gated network, each behind a norm and beside a shortcut."""

    def __init__(self, config: LanguageConfig, attention: str) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.attention = DecoderAttention(config, attention)
        self.mlp_norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.mlp = GatedMlp(config)

    def forward(self, hidden: Float[Tensor, "T D"], rotation: Rotation, segments: Segments) -> Float[Tensor, "T D"]:
        """Return the hidden states after this layer."""
        hidden = hidden + self.attention(self.attention_norm(hidden), rotation, segments)
        return hidden + self.mlp(self.mlp_norm(hidden))


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

    def forward(self, hidden: Float[Tensor, "T D"], rotation: Rotation, segments: Segments) -> Float[Tensor, "T D"]:
        """Return what each token read from its own sample."""
        q, k, v = (project(hidden).unflatten(-1, (-1, self.head_dim)) for project in (self.q, self.k, self.v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        attended = ATTENTION[self.backend](rotate(q, rotation), rotate(k, rotation), v, segments)
        return self.o(attended.flatten(1))


class GatedMlp(nn.Module):
    """`down(silu(gate(x)) * up(x))`."""

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, hidden: Float[Tensor, "T D"]) -> Float[Tensor, "T D"]:
        """Return the network's part of each token, computed token by token."""
        return self.down(F.silu(self.gate(hidden)) * self.up(hidden))


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
