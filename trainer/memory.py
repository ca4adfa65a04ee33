"""What a run takes of a GPU's memory before the first token: arithmetic over the parameters, nothing is measured.

    python -m trainer.memory [CONFIG ...]

Not counted: activations (they grow with `max_tokens`), the allocator's gaps and CUDA itself, about 1 GB.
"""

import sys
from dataclasses import dataclass

import torch
from torch import nn

from configs import load
from trainer.config import TrainConfig
from trainer.lora import apply_lora, lora_layers
from trainer.lowbit import nf4_blocks
from trainer.model import LanguageConfig, LlavaConfig, LlavaModel, VisionConfig
from trainer.optimizer import freeze

_TOWER = VisionConfig(
    hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, image_size=336, patch_size=14
)


def vicuna(hidden_size: int, intermediate_size: int, num_layers: int, num_heads: int) -> LlavaConfig:
    """Return LLaVA-1.5 with a Vicuna of these sizes and CLIP-L/14 at 336 pixels."""
    language = LanguageConfig(
        vocab_size=32000,
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=hidden_size // num_heads,
        max_position_embeddings=4096,
    )
    half = (0.5, 0.5, 0.5)
    return LlavaConfig(vision=_TOWER, language=language, image_mean=half, image_std=half)


#: The models of the shipped configs, by what their names hold.
SHIPPED = {"7b": vicuna(4096, 11008, 32, 32), "13b": vicuna(5120, 13824, 40, 40)}


@dataclass(frozen=True, slots=True)
class FixedBytes:
    """Bytes of all processes together, but for `gathered`, which each of them holds."""

    weights: int
    gradients: int
    states: int
    gathered: int
    """Copies in the dtype of computing: of the parts outside the layers, of a layer at work and of the next."""

    @property
    def total(self) -> int:
        """Bytes on a single GPU."""
        return self.weights + self.gradients + self.states + self.gathered


def fixed_bytes(model: LlavaConfig, config: TrainConfig) -> FixedBytes:
    """Return what weights, gradients and optimizer states take, from the shapes alone."""
    with torch.device("meta"):
        built = LlavaModel(model)
        if config.lora is not None:
            apply_lora(built, config.lora, config.seed)
    freeze(built, config.frozen_patterns)
    trained = [parameter for parameter in built.parameters() if parameter.requires_grad]
    packed = sum(_packed_bytes(layer.lora_a.shape[1] * layer.lora_b.shape[0]) for layer in lora_layers(built))
    in_four_bits = config.lora is not None and config.lora.base == "nf4"
    return FixedBytes(
        weights=sum(_bytes(parameter) for parameter in built.parameters()) + (packed if in_four_bits else 0),
        gradients=sum(_bytes(parameter) for parameter in trained),
        states=sum(_state_bytes(parameter, config.optimizer.states) for parameter in trained),
        gathered=0 if config.dtype == "float32" else _gathered(built),
    )


def _bytes(parameter: nn.Parameter) -> int:
    return parameter.numel() * parameter.element_size()


def _packed_bytes(num_values: int) -> int:
    """Half a byte a value, one a scale, two a factor of scales (torchao's NF4 of a bf16 weight)."""
    num_scales, num_factors = nf4_blocks(num_values)
    return num_values // 2 + num_scales + 2 * num_factors


def _state_bytes(parameter: nn.Parameter, states: str) -> int:
    values = parameter.numel()
    if states == "float32" or values < 4096 or values % 256:
        return 8 * values
    return 2 * (values + values // 256 * 4)


def _gathered(model: LlavaModel) -> int:
    layers = [sum(p.numel() for p in layer.parameters()) for layer in [*model.vision.layers, *model.language.layers]]
    outside = sum(parameter.numel() for parameter in model.parameters()) - sum(layers)
    return 2 * (outside + 2 * max(layers))


def _main() -> None:
    for name in sys.argv[1:]:
        size = next(size for size in SHIPPED if size in name.split("_"))
        found = fixed_bytes(SHIPPED[size], load(TrainConfig, name))
        parts = (found.weights, found.gradients, found.states, found.gathered, found.total)
        print("  ".join([f"{name:24}", *(f"{part / 1e9:7.1f}" for part in parts)]), "GB")


if __name__ == "__main__":
    _main()
