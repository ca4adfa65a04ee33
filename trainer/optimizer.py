"""What is trained, by which optimizer, and at which learning rate."""

import math
import re
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from trainer.config import OptimizerConfig
from trainer.errors import TrainError
from trainer.lora import adapted_parameters
from trainer.lowbit import adamw_8bit
from trainer.model import LlavaConfig, LlavaModel


def freeze(model: LlavaModel, patterns: Sequence[str]) -> None:
    """Take the gradients off every parameter whose name begins with a match of one of the regular expressions.

    The tower's layers above the one whose features are used get none in any case: they are not run. LoRA's adapters
    keep theirs, and the weights they stand beside get none, whatever the expressions say.

    Raises:
        TrainError: a pattern that matches no parameter, or nothing left to train.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(re.match(pattern, name) for name in names):
            raise TrainError(f"freeze: {pattern!r} matches no parameter; the names look like {_examples(names)}")
    adapters, beside_adapters = adapted_parameters(model)
    for name, parameter in model.named_parameters():
        frozen = name not in adapters and any(re.match(pattern, name) for pattern in patterns)
        frozen = frozen or name in beside_adapters
        parameter.requires_grad_(not frozen and not _is_never_run(name, model.config))
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainError(f"freeze: {', '.join(map(repr, patterns))} leave nothing to train")


def _examples(names: Sequence[str]) -> str:
    return ", ".join(
        next(name for name in names if name.startswith(part)) for part in ("vision", "projector", "language")
    )


def _is_never_run(name: str, config: LlavaConfig) -> bool:
    layer = re.match(r"vision\.layers\.(\d+)\.", name)
    return name.startswith("vision.post_norm.") or (
        layer is not None and int(layer.group(1)) >= config.vision.num_layers_run
    )


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return AdamW over the parameters that have gradients; each group knows its own peak learning rate."""
    projector, others = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (projector if name.startswith("projector.") else others).append(parameter)
    peaks = [(projector, config.projector_peak_lr or config.peak_lr), (others, config.peak_lr)]
    groups = [{"params": members, "lr": 0.0, "peak_lr": peak} for members, peak in peaks if members]
    if config.states == "int8":
        return adamw_8bit(groups, config)
    return torch.optim.AdamW(
        groups,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=all(parameter.is_cuda for group in groups for parameter in group["params"]),
    )


def lr_factor(step: int, num_steps: int, warmup_ratio: float) -> float:
    """Return the share of the peak learning rate in a step, counted from 0.

    Hugging Face's cosine schedule with warm-up, but for one thing: theirs spends the first step at a rate of zero.
    """
    num_warmup = math.ceil(warmup_ratio * num_steps)
    if step < num_warmup:
        return (step + 1) / (num_warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - num_warmup) / max(1, num_steps - num_warmup)))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set each group to its share of its own peak; return the highest."""
    rates = [factor * group["peak_lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)  # torchao's step is compiled, and would be anew for every other number
        else:
            group["lr"] = rate
    return max(rates)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> float:
    """Scale gradients down to a norm of `max_norm`; return the norm they had, over all ranks' shards."""
    norm = nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], max_norm)
    # Sharded gradients give a norm that is still spread over the ranks.
    full_tensor = getattr(norm, "full_tensor", None)
    return float(full_tensor() if full_tensor is not None else norm)
