"""A whole model in miniature, with weights in which nothing can hide."""

import torch

from trainer.model import LanguageConfig, LlavaConfig, LlavaModel, ProjectorConfig, VisionConfig, initialise


def tiny_llava(
    seed: int,
    noise_seed: int,
    vision: dict | None = None,
    kind: str = "mlp2x_gelu",
    **language: int | float | bool,
) -> LlavaModel:
    """Build a tiny model; `language` changes the decoder, `vision` and `kind` the tower and the projector."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4}
    sizes |= {"head_dim": 8, "vocab_size": 96, "max_position_embeddings": 128}
    tower = {"hidden_size": 24, "intermediate_size": 40, "num_layers": 3, "num_heads": 2}
    tower |= {"image_size": 12, "patch_size": 4}
    config = LlavaConfig(
        vision=VisionConfig(**(tower | (vision or {}))),
        projector=ProjectorConfig(kind=kind),
        language=LanguageConfig(**(sizes | language)),
        image_mean=(0.48145466, 0.4578275, 0.40821073),
        image_std=(0.26862954, 0.26130258, 0.27577711),
    )
    model = LlavaModel(config)
    initialise(model, seed)
    _enlarge(model, noise_seed)
    return model


def _enlarge(model: LlavaModel, seed: int) -> None:
    """Give biases and norms values of their own and matrices some size, so that no part can hide in a comparison."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1).add_(torch.randn(parameter.shape, generator=generator) * 0.1)
