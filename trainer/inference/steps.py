"""A run that has not ended, opened to be asked: its latest checkpoint, or any of them.

A checkpoint (`trainer.checkpoint`) holds what is trained; the rest is read from the starting weights, which it knows by
their hash alone. Adapters are merged as at the run's end, so a checkpoint of the last step is answered by what `final/`
holds, as long as that is exported in fp32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn

from trainer.config import LoraConfig
from trainer.errors import IntegrityError, TrainError
from trainer.inference.distcp import TrainedWeights
from trainer.inference.sources import Source
from trainer.lora import ADAPTERS, LoraLinear, apply_lora, lora_layers, merged
from trainer.model import FolderError, LlavaConfig, LlavaModel, parameter_shapes
from trainer.model.folder import TOKENIZER, read_parameters, weights_identity
from trainer.optimizer import freeze

#: What all of these are needed for is merging; a run's settings have each of them.
_OF_ADAPTERS = ("layers", "rank", "alpha", "base")


def open_step(folder: Path, base: Path | None) -> Source:
    """Open a checkpoint to go on from, and the weights that its run started from.

    Raises:
        TrainError: no base, or one with other weights.
        IntegrityError: the checkpoint is damaged.
        FolderError: the base is.
    """
    from trainer.checkpoint import read_state

    state = read_state(folder)
    started_from = state.model.get("starting_weights")
    if base is None:
        raise TrainError(
            f"{folder} is a checkpoint to go on from, which holds what is trained alone: name with --base the folder"
            " that the run started from (its config's `model`)"
        )
    if (found := weights_identity(base)) != started_from:
        raise TrainError(
            f"--base {base}: its weights ({found[:12]}…) are not those that {folder} started from"
            f" ({str(started_from)[:12]}…)"
        )
    if not (base / TOKENIZER / "tokenizer.json").is_file():
        raise FolderError(f"{base} is incomplete: {TOKENIZER}/tokenizer.json is missing")
    weights = _weights(folder, base, state.model, state.settings)
    notes = [f"{folder}: asked as it stands after step {state.step}"]
    if not state.record:
        notes.append(f"{folder} was saved before checkpoints recorded how prompts are made; taken: what is usual")
    return Source(weights.config, state.record, base / TOKENIZER, partial(_fill, weights), notes)


@dataclass(frozen=True, slots=True)
class _Weights:
    """Where the whole model's weights come from."""

    trained: TrainedWeights
    base: Path
    config: LlavaConfig
    layers: Mapping[str, LoraLinear]
    """Those with adapters, by name, without their weights."""
    lora: LoraConfig | None
    dtype: torch.dtype
    """What the run computes in."""

    def whole(self) -> Iterator[tuple[str, Tensor]]:
        """Yield every tensor of the model by its name, one at a time; `IntegrityError` or `FolderError`."""
        shapes = parameter_shapes(self.config)
        for name, tensor in read_parameters(self.base, shapes, self.trained.names):
            layer = self.layers.get(name.removesuffix(".weight"))
            yield name, tensor if layer is None else self._merged(layer, tensor)
        for name in self.trained.names:
            if name in shapes:
                yield name, self.trained.read(name)

    def _merged(self, layer: LoraLinear, weight: Tensor) -> Tensor:
        """Return a weight (O, D) with the adapters added, in fp32."""
        assert self.lora is not None
        plain = nn.Linear(*reversed(weight.shape), bias=False, device="meta")
        plain.weight = nn.Parameter(weight, requires_grad=False)
        own = LoraLinear(plain, layer.name, self.lora, seed=0)
        if own.in_four_bits:
            own.take_weight(weight, self.dtype)
        adapters = {name: self.trained.read(name) for name in (f"{layer.name}.{adapter}" for adapter in ADAPTERS)}
        frozen = {} if own.in_four_bits else {f"{layer.name}.weight": own.weight}
        return merged(adapters | frozen, own)[f"{layer.name}.weight"]


def _weights(folder: Path, base: Path, model: Mapping[str, Any], settings: Mapping[str, Any]) -> _Weights:
    """Build the run's model without its weights, as `trainer.build` does, for the names of what it trains."""
    try:
        sizes = {name: value for name, value in model.items() if name != "starting_weights"}
        config = LlavaConfig.model_validate(sizes)
        lora = _lora(settings) if settings["lora"] else None
        with torch.device("meta"):
            adapted = LlavaModel(config)
            if lora is not None:
                apply_lora(adapted, lora, seed=0)
        freeze(adapted, settings["freeze"])
        dtype = getattr(torch, settings["dtype"])
    except (KeyError, TypeError, AttributeError, ValidationError, TrainError) as error:
        cause = str(error).partition("\n")[0]
        raise IntegrityError(f"{folder / 'state.json'} does not say what the run trains: {cause}") from error
    trained = {name: tuple(one.shape) for name, one in adapted.named_parameters() if one.requires_grad}
    layers = {layer.name: layer for layer in lora_layers(adapted)}
    return _Weights(TrainedWeights(folder, trained), base, config, layers, lora, dtype)


def _lora(settings: Mapping[str, Any]) -> LoraConfig:
    return LoraConfig(**{name: settings[f"lora.{name}"] for name in _OF_ADAPTERS})


def _fill(weights: _Weights, device: torch.device, dtype: torch.dtype) -> LlavaModel:
    with torch.device("meta"):
        model = LlavaModel(weights.config)
    model.to(dtype).to_empty(device=device)
    state = model.state_dict()
    for name, tensor in weights.whole():
        state[name].copy_(tensor)
    return model
