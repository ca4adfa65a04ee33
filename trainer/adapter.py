"""A trained LoRA as peft's folder, for transformers' `LlavaForConditionalGeneration` of the starting weights.

```
FOLDER/adapter_config.json           what peft's `LoraConfig` reads
FOLDER/adapter_model.safetensors     the thin matrices, and the projector whole where it was trained in full
FOLDER/data.json                     what the shards were that it was trained on
```

The names are those of transformers since 4.52, whose LLaVA holds `model.language_model` and not `language_model.model`.
"""

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from trainer.config import LoraConfig
from trainer.errors import TrainError
from trainer.lora import ADAPTERS, LoraLinear, lora_layers
from trainer.model import whole_folder

#: What peft puts before the name of a tensor.
_PREFIX = "base_model.model."

#: Our name of a layer -> transformers'.
_NAMES = (
    (r"language\.lm_head", "lm_head"),
    (r"language\.layers\.(\d+)\.attention\.([qkvo])", r"model.language_model.layers.\1.self_attn.\2_proj"),
    (r"language\.layers\.(\d+)\.mlp\.(gate|up|down)", r"model.language_model.layers.\1.mlp.\2_proj"),
    (r"projector\.up", "model.multi_modal_projector.linear_1"),
    (r"projector\.down", "model.multi_modal_projector.linear_2"),
)


def name_in_transformers(layer: str) -> str | None:
    """Return transformers' name of one of our linear layers; None for the tower's, which no two versions name alike."""
    for ours, theirs in _NAMES:
        if found := re.fullmatch(ours, layer):
            return found.expand(theirs)
    return None


def check_exportable(model: nn.Module) -> None:
    """Refuse what an adapter's folder cannot hold, before the training.

    Raises:
        TrainError: an adapted layer of the tower, or weights other than the projector's that are trained in full.
    """
    tower = [layer.name for layer in lora_layers(model) if name_in_transformers(layer.name) is None]
    if tower:
        raise TrainError(f"lora.export: adapter knows no name for {tower[0]}: leave the tower out, or export merged")
    full = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    full = [name for name in full if not name.endswith(ADAPTERS) and not name.startswith("projector.")]
    if full:
        raise TrainError(
            f"lora.export: adapter holds adapters and the projector; {full[0]} is trained too: freeze it, or export"
            " merged"
        )
    if _projector_is_trained(model) and any(layer.name.startswith("projector.") for layer in lora_layers(model)):
        raise TrainError("lora.export: adapter holds the projector whole or adapted: adapt both of its layers or none")


def _projector_is_trained(model: nn.Module) -> bool:
    return any(
        parameter.requires_grad and name.startswith("projector.") and not name.endswith(ADAPTERS)
        for name, parameter in model.named_parameters()
    )


def save_adapter(
    folder: Path,
    weights: Mapping[str, Tensor],
    model: nn.Module,
    config: LoraConfig,
    dtype: torch.dtype,
    layout: Mapping[str, Any],
) -> None:
    """Write the folder: complete under its name, or not there at all.

    `weights` are all of the model's, the adapters among them. Raises `FolderConflict` when `folder` is not empty.
    """
    layers = list(lora_layers(model))
    tensors = _adapter_tensors(weights, layers)
    whole_projector = _projector_is_trained(model)
    if whole_projector:
        tensors |= _projector_tensors(weights)
    tensors = {_PREFIX + name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()}
    with whole_folder(folder) as unfinished:
        settings = _settings(config, [_their_name(layer.name) for layer in layers], whole_projector)
        _write(unfinished / "adapter_config.json", settings)
        _write(unfinished / "data.json", layout)
        save_file(tensors, str(unfinished / "adapter_model.safetensors"), metadata={"format": "pt"})
        shutil.copymode(unfinished / "data.json", unfinished / "adapter_model.safetensors")


def _write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _their_name(layer: str) -> str:
    name = name_in_transformers(layer)
    assert name is not None, layer
    return name


def _adapter_tensors(weights: Mapping[str, Tensor], layers: list[LoraLinear]) -> dict[str, Tensor]:
    tensors = {}
    for layer in layers:
        for ours, theirs in zip(ADAPTERS, ("lora_A", "lora_B"), strict=True):
            tensors[f"{_their_name(layer.name)}.{theirs}.weight"] = weights[f"{layer.name}.{ours}"]
    return tensors


def _projector_tensors(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    ours = [name for name in weights if name.startswith("projector.")]
    tensors = {}
    for name in ours:
        layer, _, part = name.rpartition(".")
        tensors[f"{_their_name(layer)}.{part}"] = weights[name]
    if not any(name.startswith("projector.down.") for name in ours):
        # transformers' projector always has two layers; of a linear one the second is the identity (converters).
        width = len(weights["projector.up.bias"])
        tensors[f"{_their_name('projector.down')}.weight"] = torch.eye(width)
        tensors[f"{_their_name('projector.down')}.bias"] = torch.zeros(width)
    return tensors


def _settings(config: LoraConfig, layers: list[str], whole_projector: bool) -> dict[str, Any]:
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "bias": "none",
        "target_modules": layers,
        "modules_to_save": ["multi_modal_projector"] if whole_projector else None,
    }
