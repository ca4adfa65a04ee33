"""Where a run stands, on disk: whole or absent, and the same for any number of processes.

```
OUTPUT_DIR/checkpoints/step-00000500/   *.distcp .metadata  trained weights and optimizer states
                                                            (torch.distributed.checkpoint)
                                        state.json          what the run is and where it stands
OUTPUT_DIR/final/                       the trained weights, a model folder of `trainer.model`
```

The order of the samples follows from seed and step, so there is no state of a loader to keep. Frozen weights are the
starting weights, which `state.json` knows by their hash: they are read from there again, and not saved.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from dataprep.shards import publish, sync_folder
from trainer.distributed import World
from trainer.errors import IntegrityError, StorageError, TrainError
from trainer.lora import merged

STATE = "state.json"

#: A checkpoint holds what is trained. (`strict` would miss the rest when it is loaded.)
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)


@dataclass(frozen=True, slots=True)
class RunState:
    """What a checkpoint belongs to, and how far it has come."""

    step: int
    """Optimizer steps that are done."""
    epoch: int
    """Of the last of them, counted from 0."""
    settings: Mapping[str, Any]
    """`trainer.config.fixed_settings`: all that decides what is learned."""
    model: Mapping[str, Any]
    """The `LlavaConfig`."""
    data: str
    """The shards' `manifest_sha256`."""
    world_size: int
    torch: str
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """The `Standing` of the evaluations."""


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks together, but for `latest` and `all`."""

    def __init__(self, output_dir: Path, keep: int, world: World) -> None:
        self.folder = output_dir / "checkpoints"
        self.keep = keep
        self.world = world

    def all(self) -> list[Path]:
        """Return the whole checkpoints, the oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / STATE).is_file())

    def latest(self) -> Path | None:
        """Return the latest whole checkpoint, if there is one."""
        return next(reversed(self.all()), None)

    def save(self, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState) -> Path:
        """Write a checkpoint, give it its name when it is whole, and remove those that are not kept.

        Raises:
            StorageError: it cannot be written; those before it are as they were.
        """
        whole = self.folder / f"step-{state.step:08d}"
        unfinished = self.folder / f".{whole.name}.unfinished"
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_behind in self.folder.glob(".*.unfinished"):
                shutil.rmtree(left_behind)
        dist.barrier()
        weights, moments = get_state_dict(model, optimizer, options=TRAINED)
        try:
            save_shards({"model": weights, "optimizer": moments}, checkpoint_id=unfinished)
        except CheckpointException as error:
            raise StorageError(f"{whole} cannot be written ({free_space(self.folder)}): {_cause(error)}") from error
        if self.world.is_first:
            write_state(unfinished, state)
            unfinished.rename(whole)
            sync_folder(self.folder)  # before older ones go: a power cut must not take both
            for old in self.all()[: -self.keep]:
                shutil.rmtree(old)
        dist.barrier()
        return whole

    def amend(self, state: RunState) -> None:
        """Write another state into the latest checkpoint, which is of the same step."""
        latest = self.latest()
        if self.world.is_first and latest is not None:
            write_state(latest, state)
        dist.barrier()

    def load(self, path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Fill optimizer and trained weights from a checkpoint, whatever number of processes wrote it.

        Raises:
            IntegrityError: the checkpoint is damaged.
        """
        weights, moments = get_state_dict(model, optimizer, options=TRAINED)
        try:
            load_shards({"model": weights, "optimizer": moments}, checkpoint_id=path)
        except (Exception, CheckpointException) as error:  # a damaged file makes the unpickler raise nearly anything
            raise IntegrityError(
                f"{path} cannot be read: {_cause(error)}; remove it to go on from the one before"
            ) from error
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=TRAINED)


def free_space(folder: Path) -> str:
    """Return what a message says of the disk that an existing folder lies on."""
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there"


def _cause(error: BaseException) -> str:
    """Return the first rank's reason, in one line."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return f"{type(error).__name__}: {error}".partition("\n")[0]


def write_state(path: Path, state: RunState) -> None:
    """Write what a checkpoint says of itself; one that says something already says either the old or the new."""
    publish(path / STATE, (json.dumps(asdict(state), indent=2) + "\n").encode("utf-8"))


def read_state(path: Path) -> RunState:
    """Return what a checkpoint says of itself.

    Raises:
        IntegrityError: it does not say it in a way that this program reads.
    """
    try:
        return RunState(**json.loads((path / STATE).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise IntegrityError(f"{path / STATE} is not the state of a run: {error}") from None


def check_resumable(path: Path, saved: RunState, now: RunState) -> None:
    """Refuse to go on from a checkpoint of another run.

    Raises:
        TrainError: data, model or a setting that decides what is learned has changed, or the number of processes where
            states of 8 bits cannot follow; it says which.
    """
    changes = _changes("data", saved.data, now.data)
    changes += _changes("model", saved.model, now.model)
    changes += _changes("", saved.settings, now.settings)
    if now.settings.get("optimizer.states") == "int8" and saved.world_size != now.world_size:
        # Each process quantises its own part of a tensor, in blocks that another number of them would cut.
        changes.append(
            f"states of 8 bits were saved by {saved.world_size} processes, and cannot be spread over {now.world_size}"
        )
    if changes:
        raise TrainError(
            f"cannot resume {path}: {'; '.join(changes)} (set it back, or give another output_dir to start anew)"
        )


def _changes(name: str, saved: Any, now: Any) -> list[str]:
    """Name what differs, down to the single value. A setting that one side does not know is no difference."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        inner = [(f"{name}.{key}" if name else str(key), key) for key in saved if key in now]
        return [change for dotted, key in inner for change in _changes(dotted, saved[key], now[key])]
    return [] if saved == now else [f"{name} was {_short(saved)}, is {_short(now)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:20] + "…"


def gathered_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    """Gather all parameters on the CPU of rank 0; the other ranks get nothing."""
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return cast(dict[str, torch.Tensor], weights)


def whole_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Gather the whole model on the CPU of rank 0, adapters merged, rounded to `dtype`; other ranks get nothing."""
    return {name: tensor.to(dtype) for name, tensor in merged(gathered_weights(model), model).items()}
