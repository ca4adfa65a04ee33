"""Numbers of 4 and 8 bits through torchao: frozen base weights under LoRA, and AdamW's states.

torchao is asked for where a setting needs it, and nowhere else.
"""

import math
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from trainer.config import OptimizerConfig, TrainConfig
from trainer.errors import TrainError

#: Values that share one 8-bit scale, and scales that share one fp32 factor: QLoRA's (Dettmers et al. 2023, section 3).
NF4_BLOCK = 64
NF4_SCALES = 256


def check_installed(config: TrainConfig) -> None:
    """Refuse settings of 4 and 8 bits where torchao is not installed.

    Raises:
        TrainError: it is not; the sentence says which setting needs it.
    """
    wanting = []
    if config.optimizer.states == "int8":
        wanting.append("optimizer.states: int8")
    if config.lora is not None and config.lora.base == "nf4":
        wanting.append("lora.base: nf4")
    if wanting and find_spec("torchao") is None:
        raise TrainError(f"{' and '.join(wanting)}: torchao is not installed; `pip install torchao` brings it")


def adamw_8bit(groups: Sequence[dict[str, Any]], config: OptimizerConfig) -> torch.optim.Optimizer:
    """Return torchao's AdamW: both states in blocks of 256 values of 8 bits that share a scale.

    Tensors of fewer than 4,096 values, or whose number is no multiple of 256, keep fp32 states. Everything is computed
    in fp32. On the CPU its step is not compiled: that would ask for a C++ compiler.
    """
    AdamW8bit: Any = import_module("torchao.optim").AdamW8bit

    class Eager(AdamW8bit):
        def step(self, closure: Any = None) -> Any:
            with torch.compiler.set_stance("force_eager"):
                return super().step(closure)

    on_gpu = all(parameter.is_cuda for group in groups for parameter in group["params"])
    return (AdamW8bit if on_gpu else Eager)(
        groups, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay
    )


def to_nf4(weight: Tensor, name: str) -> Tensor:
    """Return a weight in 4 bits: torchao's `NF4Tensor`, on the same device and of the same dtype in appearance.

    Raises:
        TrainError: its values are no multiple of a block of 64.
    """
    if weight.numel() % NF4_BLOCK:
        raise TrainError(
            f"lora.base: nf4 cuts a weight into blocks of {NF4_BLOCK} values; {name} has {weight.numel()} of them"
        )
    num_scales, num_factors = nf4_blocks(weight.numel())
    return import_module("torchao.quantization").to_nf4(weight.contiguous(), NF4_BLOCK, num_scales // num_factors)


def nf4_blocks(num_values: int) -> tuple[int, int]:
    """Return how many scales a weight of 4 bits has, and how many factors those share; torchao cuts them evenly."""
    num_scales = num_values // NF4_BLOCK
    return num_scales, num_scales // math.gcd(num_scales, NF4_SCALES)


def nf4_linear(inputs: Tensor, weight: Tensor) -> Tensor:
    """Return `inputs @ weight.T`; forward and backward each unpack the weight, and neither keeps it unpacked."""
    return F.linear(inputs, weight)


def from_nf4(weight: Tensor) -> Tensor:
    """Return the values that a 4-bit weight stands for, in fp32."""
    return weight.to(torch.float32)
