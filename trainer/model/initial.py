"""Fresh weights from a seed: for a new projector, and for tiny models that train from nothing."""

import torch
from torch import Tensor, nn

from trainer.model.projector import Projector
from trainer.model.vision import VisionTower


def initialise(model: nn.Module, seed: int) -> None:
    """Fill every parameter of a module in place; the same seed and module always give the same weights.

    Norms start as the identity and biases at zero. Matrices and embeddings are normal, with a deviation of 0.02 in
    the decoder (transformers' `LlamaConfig.initializer_range`) and CLIP's own deviations in the tower. A projector
    starts as PyTorch's `nn.Linear` does, uniform within `1 / sqrt(inputs)`: what the original LLaVA trains from.
    Numbers are drawn in fp32 on the CPU, whatever the device and dtype of the module.
    """
    generator = torch.Generator().manual_seed(seed)
    in_projector = {layer for part in model.modules() if isinstance(part, Projector) for layer in part.children()}
    deviations = _tower_deviations(model)
    with torch.no_grad():
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                if module in in_projector:
                    fresh = _like_linear(module, parameter, generator)
                else:
                    fresh = _like_transformer(module, name, parameter, deviations.get(module, 0.02), generator)
                parameter.copy_(fresh)


def _like_linear(layer: nn.Module, parameter: Tensor, generator: torch.Generator) -> Tensor:
    bound = layer.get_parameter("weight").shape[1] ** -0.5
    return torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator)


def _like_transformer(
    module: nn.Module, name: str, parameter: Tensor, deviation: float, generator: torch.Generator
) -> Tensor:
    if name == "bias":
        return torch.zeros(parameter.shape)
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return torch.ones(parameter.shape)
    return torch.empty(parameter.shape).normal_(std=deviation, generator=generator)


def _tower_deviations(model: nn.Module) -> dict[nn.Module, float]:
    """Return the deviation of each matrix of a tower, as in transformers' `CLIPPreTrainedModel._init_weights`."""
    deviations: dict[nn.Module, float] = {}
    for tower in model.modules():
        if isinstance(tower, VisionTower):
            width, depth = tower.config.hidden_size, tower.config.num_layers
            deviations[tower] = width**-0.5
            for name, module in tower.layers.named_modules():
                if name.endswith(("attention.q", "attention.k", "attention.v", "mlp.down")):
                    deviations[module] = (2 * width * depth) ** -0.5
                elif name.endswith("attention.o"):
                    deviations[module] = width**-0.5
                elif name.endswith("mlp.up"):
                    deviations[module] = (2 * width) ** -0.5
    return deviations
