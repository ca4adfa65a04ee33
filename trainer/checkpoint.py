"""Where a run stands, on disk: whole or absent, and the same for any number of processes.

A checkpoint may be written while training goes on (`trainer.saving`), one at a time. It counts when every rank has
written its part: only then `state.json` is written, the folder gets its name, and older ones go.

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
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
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
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.checkpoint.state_dict_saver import save as save_shards

from dataprep.shards import publish, sync_folder
from trainer.distributed import World
from trainer.errors import IntegrityError, StorageError, TrainError
from trainer.lora import merged
from trainer.saving import HostCopy, Saved, WholeWriter, cause_of

STATE = "state.json"

#: A checkpoint holds what is trained. (`strict` would miss the rest when it is loaded.)
TRAINED = StateDictOptions(ignore_frozen_params=True, strict=False)

#: How long a rank that has written its part waits for the slowest; torch's own half an hour is short for 100 GB.
WRITING_TIMEOUT = timedelta(hours=6)


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
    record: Mapping[str, Any] = field(default_factory=dict)
    """What `data.json` would hold if the run ended here: how to ask the model. Empty in checkpoints of before."""


class Checkpoints:
    """The checkpoints of one run. Every method is called by all ranks together, but for `latest` and `all`."""

    def __init__(self, output_dir: Path, keep: int, world: World) -> None:
        self.folder = output_dir / "checkpoints"
        self.keep = keep
        self.world = world
        # The threads that write talk while the training does: over another group, and over the host.
        self._group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=WRITING_TIMEOUT))
        self._host_copy: HostCopy | None = None
        self._in_flight: tuple[Path, Future[Any]] | None = None

    def all(self) -> list[Path]:
        """Return the whole checkpoints, the oldest first."""
        return whole_checkpoints(self.folder)

    def latest(self) -> Path | None:
        """Return the latest whole checkpoint, if there is one."""
        return next(reversed(self.all()), None)

    def save(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, state: RunState, meanwhile: bool = False
    ) -> Saved:
        """Write a checkpoint, give it its name when it is whole, and remove those that are not kept.

        Args:
            meanwhile: return as soon as the state is copied, and write while training goes on; `wait` tells when the
                checkpoint is whole. Otherwise it is when this returns.

        Raises:
            StorageError: it cannot be written, or the one before could not; those before it are as they were.
        """
        started = time.perf_counter()
        self.wait()
        waited = time.perf_counter() - started
        whole = self.folder / f"step-{state.step:08d}"
        unfinished = _unfinished(whole)
        if self.world.is_first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left_behind in self.folder.glob(".*.unfinished"):
                shutil.rmtree(left_behind)
        dist.barrier()
        weights, moments = get_state_dict(model, optimizer, options=TRAINED)
        content = {"model": weights, "optimizer": moments}
        writer = WholeWriter(unfinished, partial(self._complete, unfinished, whole, state))
        if meanwhile:
            self._in_flight = whole, self._begin(content, writer)
        else:
            self._host_copy = None
            with self._told(whole):
                save_shards(content, storage_writer=writer, process_group=self._group)
        return Saved(state.step, time.perf_counter() - started, waited)

    def _begin(self, content: dict[str, Any], writer: WholeWriter) -> Future[Any]:
        """Copy the state to the host, and let a thread write it."""
        self._host_copy = self._host_copy or HostCopy(self.world.device)
        writing = async_save(content, storage_writer=writer, process_group=self._group, async_stager=self._host_copy)
        assert isinstance(writing, Future)
        return writing

    def _complete(self, unfinished: Path, whole: Path, state: RunState) -> None:
        """Called on rank 0, in the thread that writes, when every rank's part lies on the disk."""
        write_state(unfinished, state)
        unfinished.rename(whole)
        sync_folder(self.folder)  # before older ones go: a power cut must not take both
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old.rename(_unfinished(old)))  # cut short, it is none any more, and cleared away later

    def wait(self) -> None:
        """Wait until the checkpoint that is being written, if there is one, is whole.

        Raises:
            StorageError: it cannot be written.
        """
        if self._in_flight is None:
            return
        whole, writing = self._in_flight
        wait([writing])
        self._in_flight = None
        with self._told(whole):
            writing.result()

    @contextmanager
    def _told(self, whole: Path) -> Iterator[None]:
        """Say in one sentence why a checkpoint cannot be written, and give its space back."""
        try:
            yield
        except CheckpointException as error:
            told = f"{whole} cannot be written ({free_space(self.folder)}): {cause_of(error)}"
            if self.world.is_first:
                shutil.rmtree(_unfinished(whole), ignore_errors=True)
            raise StorageError(told) from error

    def amend(self, state: RunState) -> None:
        """Write another state into the latest checkpoint, which is of the same step."""
        self.wait()
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
                f"{path} cannot be read: {cause_of(error)}; remove it to go on from the one before"
            ) from error
        set_state_dict(model, optimizer, model_state_dict=weights, optim_state_dict=moments, options=TRAINED)


def whole_checkpoints(folder: Path) -> list[Path]:
    """Return the whole checkpoints in a run's folder of them, the oldest first."""
    return sorted(path for path in folder.glob("step-*") if (path / STATE).is_file())


def free_space(folder: Path) -> str:
    """Return what a message says of the disk that an existing folder lies on."""
    return f"{shutil.disk_usage(folder).free / 1e9:.1f} GB are free there"


def _unfinished(whole: Path) -> Path:
    """Return the name of a checkpoint that is not whole yet, or not any more."""
    return whole.with_name(f".{whole.name}.unfinished")


def write_state(path: Path, state: RunState) -> None:
    """Write what a checkpoint says of itself; one that says something already says either the old or the new."""
    publish(path / STATE, (json.dumps(asdict(state), indent=2) + "\n").encode("utf-8"))


def read_state(path: Path) -> RunState:
    """Return what a checkpoint says of itself.

    Raises:
        IntegrityError: it does not say it in a way that this program reads.
    """
    try:
        state = RunState(**json.loads((path / STATE).read_text(encoding="utf-8")))
        for name in ("settings", "model", "evaluation", "record"):
            if not isinstance(getattr(state, name), dict):
                raise TypeError(f"{name}: expected a table")
        return state
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
