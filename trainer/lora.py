"""LoRA: two thin matrices beside a frozen linear layer, `W x + (alpha / rank) B A x` (Hu et al. 2021).

The frozen weights keep their names, so that whatever reads a model finds what it looks for; beside `LAYER.weight` stand
`LAYER.lora_a` and `LAYER.lora_b`. Weights of 4 bits are no parameters at all: they are not sharded (each process holds
them whole), not saved, and made again from the starting weights when a run goes on.

Shapes: R rank, D inputs and O outputs of a layer.
"""

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from trainer.config import LoraConfig
from trainer.errors import TrainError
from trainer.lowbit import from_nf4, nf4_linear, to_nf4
from trainer.model import LlavaModel, parameter_shapes
from trainer.model.folder import read_parameters

#: How the names of the thin matrices end.
ADAPTERS = ("lora_a", "lora_b")


class LoraLinear(nn.Module):
    """A linear layer whose weight is frozen, and what is learned beside it."""

    def __init__(self, base: nn.Linear, name: str, config: LoraConfig, seed: int) -> None:
        super().__init__()
        self.name, self.seed = name, seed
        self.dropout, self.scale = config.dropout, config.alpha / config.rank
        self.place: tuple[int, ...] = ()
        """Step, micro-batch and rank: what the dropout's seed follows from."""
        self.packed: Tensor | None = None
        """The weight in 4 bits; `weight` is then None."""
        self.in_four_bits = config.base == "nf4"
        if self.in_four_bits:
            self.register_parameter("weight", None)
        else:
            self.weight = nn.Parameter(base.weight.detach().to(getattr(torch, config.base)), requires_grad=False)
        self.bias = base.bias
        like = {"device": base.weight.device, "dtype": torch.float32}
        self.lora_a = nn.Parameter(torch.empty(config.rank, base.in_features, **like))
        self.lora_b = nn.Parameter(torch.empty(base.out_features, config.rank, **like))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (..., O) for inputs (..., D), in the inputs' dtype."""
        low_rank = F.linear(F.linear(self._dropped(inputs), self.lora_a), self.lora_b)
        return self._frozen(inputs) + low_rank * self.scale

    def _frozen(self, inputs: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        if not self.in_four_bits:
            return F.linear(inputs, self.weight.to(inputs.dtype), bias)
        assert self.packed is not None, f"{self.name} has no weight yet"
        outputs = nf4_linear(inputs, self.packed)
        return outputs if bias is None else outputs + bias

    def _dropped(self, inputs: Tensor) -> Tensor:
        """Zero a share of the inputs. The same place always drops the same ones: in a forward that is computed again
        for the backward pass, and in a run that goes on after a stop.
        """
        if not self.training or self.dropout == 0:
            return inputs
        digest = hashlib.blake2b(repr((self.seed, self.place, self.name)).encode(), digest_size=7).digest()
        generator = torch.Generator(inputs.device).manual_seed(int.from_bytes(digest, "little"))
        kept = torch.empty_like(inputs, requires_grad=False).bernoulli_(1 - self.dropout, generator=generator)
        return inputs * kept / (1 - self.dropout)

    def initialise(self, seed: int) -> None:
        """Begin as PEFT does: `lora_a` as a linear layer of PyTorch, `lora_b` zero, so that nothing is changed yet."""
        digest = hashlib.blake2b(repr((seed, self.name)).encode(), digest_size=7).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
        fresh = torch.empty(self.lora_a.shape)
        nn.init.kaiming_uniform_(fresh, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            self.lora_a.copy_(fresh)
            self.lora_b.zero_()

    def take_weight(self, weight: Tensor, dtype: torch.dtype) -> None:
        """Keep a weight (O, D) in 4 bits, on the device where the rest of the layer is; it is unpacked to `dtype`."""
        self.packed = to_nf4(weight.to(self.lora_a.device, dtype), f"{self.name}.weight")


def lora_layers(model: nn.Module) -> Iterator[LoraLinear]:
    """Yield the adapted layers of a model."""
    return (module for module in model.modules() if isinstance(module, LoraLinear))


def apply_lora(model: LlavaModel, config: LoraConfig, seed: int) -> None:
    """Put adapters beside every linear layer whose name begins with a match of one of the regular expressions.

    Raises:
        TrainError: an expression that matches no linear layer.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in config.layers:
        if not any(re.match(pattern, name) for name in linear):
            raise TrainError(
                f"lora.layers: {pattern!r} matches no linear layer; the names look like {_examples(list(linear))}"
            )
    for name, base in linear.items():
        if any(re.match(pattern, name) for pattern in config.layers):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, LoraLinear(base, name, config, seed))


def _examples(names: list[str]) -> str:
    firsts = (next(n for n in names if n.startswith(part)) for part in ("vision", "projector", "language"))
    return ", ".join(firsts)


def adapted_parameters(model: nn.Module) -> tuple[set[str], set[str]]:
    """Return the names of what is always trained (the adapters), and of what never is (what they stand beside)."""
    trained, frozen = set(), set()
    for layer in lora_layers(model):
        for name, _ in layer.named_parameters(recurse=False):
            (trained if name in ADAPTERS else frozen).add(f"{layer.name}.{name}")
    return trained, frozen


def begin_micro_batch(model: nn.Module, *place: int) -> None:
    """Tell each adapted layer where the run stands: step, micro-batch, rank."""
    for layer in lora_layers(model):
        layer.place = place


def fill_from_folder(model: LlavaModel, folder: Path, dtype: torch.dtype, only_frozen: bool = False) -> None:
    """Fill a model, adapted or not, with a folder's weights; adapters are left as they are.

    Args:
        dtype: what the run computes in, and 4-bit weights are unpacked to.
        only_frozen: leave out what is trained, and stands in a checkpoint.

    Raises:
        FolderError: tensors are missing, unknown or of another shape; they are listed.
    """
    parameters = dict(model.named_parameters())
    packed = {f"{layer.name}.weight": layer for layer in lora_layers(model) if layer.in_four_bits}
    trained = {name for name, parameter in parameters.items() if only_frozen and parameter.requires_grad}
    for name, tensor in read_parameters(folder, parameter_shapes(model.config), trained):
        if name in packed:
            packed[name].take_weight(tensor, dtype)
        else:
            with torch.no_grad():
                parameters[name].copy_(tensor)


def initialise_adapters(model: nn.Module, seed: int) -> None:
    """Give the adapters their first values, which depend on seed and layer alone, however the model is sharded."""
    for layer in lora_layers(model):
        layer.initialise(seed)


def merged(weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return whole weights (fp32, on the CPU) with the adapters added to what they stand beside, under its names.

    A weight of 4 bits is unpacked for it: the values that the adapters were trained with. Nothing in, nothing out.
    """
    result = dict(weights)
    for layer in lora_layers(model) if weights else ():
        first, second = (result.pop(f"{layer.name}.{adapter}") for adapter in ADAPTERS)
        name = f"{layer.name}.weight"
        base = result[name] if layer.packed is None else from_nf4(layer.packed).cpu()
        result[name] = base.float() + layer.scale * (second.float() @ first.float())
    return result
