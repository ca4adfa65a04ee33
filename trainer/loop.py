"""The order of a training run: check, build, resume, step, save, export.

Nothing is allocated on a device before shards, model folder and checkpoint are known to belong together.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils.checkpoint import checkpoint

from dataprep.shards import ShardReader
from trainer import attention
from trainer.batches import MicroBatch, Step, StepDataset, load_steps
from trainer.checkpoint import Checkpoints, RunState, check_resumable, free_space, read_state, whole_weights
from trainer.config import TrainConfig, fixed_settings
from trainer.distributed import World, gather_objects, shard, sum_over_ranks
from trainer.errors import ConflictError, IntegrityError, StorageError, TrainError
from trainer.fingerprint import check_fingerprint
from trainer.loss import loss_sum
from trainer.metrics import MetricsLog, StepMetrics
from trainer.model import LlavaConfig, LlavaModel, load_config, save_model
from trainer.model.folder import fill_parameters, weights_identity
from trainer.optimizer import build_optimizer, clip_gradients, freeze, lr_factor, set_learning_rates
from trainer.packing import SampleOrder
from trainer.stopping import StopSignal

#: Rows that a message names, at most; a step has hundreds.
MAX_NAMED_ROWS = 8


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of, checked, before anything is allocated."""

    config: TrainConfig
    model: LlavaConfig
    rows: ShardReader
    order: SampleOrder
    num_steps: int
    attention: str
    starting_weights: str

    def state_after(self, step: int, world: World) -> RunState:
        """Return what a checkpoint records when `step` steps are done."""
        return RunState(
            step=step,
            epoch=self.order.epoch_of(max(step - 1, 0)),
            settings=fixed_settings(self.config),
            model={**self.model.model_dump(mode="json"), "starting_weights": self.starting_weights},
            data=self.rows.manifest_sha256,
            world_size=world.size,
            torch=torch.__version__,
        )


def make_plan(config: TrainConfig, device: torch.device) -> Plan:
    """Open the data, read the model's config, and make sure that they belong together.

    `config` has its places filled in (`TrainConfig.with_workspace`).

    Raises:
        TrainError, ShardError, FolderError, ValueError: what does not fit, in one sentence.
    """
    rows = _open_rows(config)
    model = load_config(config.model)
    check_fingerprint(rows.layout, rows.lengths, model, config.model, config.phase)
    _check_budget(config, rows)
    _check_image_dir(config, rows)
    order = SampleOrder(rows.lengths, config.seed, config.global_batch_size, config.global_batch_tokens)
    num_steps = config.max_steps or order.num_steps(config.epochs or 1)
    backend = _choose_attention(config.attention, device, getattr(torch, config.dtype))
    return Plan(config, model, rows, order, num_steps, backend, weights_identity(config.model))


def _open_rows(config: TrainConfig) -> ShardReader:
    shards = config.data.shards
    if shards is None or not shards.is_dir():
        raise TrainError(f"data.shards: {shards} is no folder; `llava-prep to-h5 --phase {config.phase}` makes one")
    if not config.model.is_dir():
        raise TrainError(
            f"model: {config.model} is no folder; `llava-convert components trainer` makes starting weights"
        )
    rows = ShardReader(shards)
    if len(rows) == 0:
        raise TrainError(f"data.shards: {shards} holds no rows")
    return rows


def _choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    try:
        return attention.choose(name, device, dtype)
    except ValueError as error:
        raise TrainError(str(error)) from None


def _check_budget(config: TrainConfig, rows: ShardReader) -> None:
    packed = config.data.packing == "packed"
    longest = int(rows.lengths.max(initial=0)) if packed else rows.layout.max_seq_length
    if longest > config.max_tokens:
        what = "the longest sample has" if packed else "with packing: none every row takes"
        raise TrainError(f"max_tokens: {what} {longest} tokens, a micro-batch holds {config.max_tokens}")


def _check_image_dir(config: TrainConfig, rows: ShardReader) -> None:
    """Look for one picture that no shard holds, so that a wrong root is found now and not by every worker."""
    from_files = (rows.has_image & ~rows.has_embedded).nonzero()[0]
    if not len(from_files):
        return
    key, image_dir = rows[int(from_files[0])].img_path, config.data.image_dir
    if key is not None and (image_dir is None or not (image_dir / key).is_file()):
        missing = f"{image_dir} does not hold" if image_dir else "none is given, and no shard holds"
        raise TrainError(
            f"data.image_dir: {missing} {key}, the picture of row {from_files[0]};"
            " give the folder that the image keys are relative to"
        )


def build_model(plan: Plan, world: World) -> LlavaModel:
    """Return the model without its weights: frozen, sharded and on its device."""
    with torch.device("meta"):
        model = LlavaModel(plan.model, plan.attention)
    freeze(model, plan.config.frozen_patterns)
    if plan.config.activation_checkpointing:
        for layer in model.language.layers:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    shard(model, world, getattr(torch, plan.config.dtype))
    return model.to_empty(device=world.device)


class Trainer:
    """A model, its optimizer and the number of steps that are done."""

    def __init__(self, plan: Plan, world: World, checkpoints: Checkpoints) -> None:
        """Build everything, and fill it from the latest checkpoint or from the starting weights."""
        self.plan = plan
        self.world = world
        self.checkpoints = checkpoints
        self.model = build_model(plan, world)
        self.optimizer = build_optimizer(self.model.named_parameters(), plan.config.optimizer)
        self.steps_done, self.steps_saved = 0, -1
        latest = checkpoints.latest()
        if latest is None:
            # Every rank reads the file and keeps its own part of each tensor.
            with implicit_replication():
                fill_parameters(self.model, plan.config.model)
        else:
            checkpoints.load(latest, self.model, self.optimizer)
            self.steps_done = self.steps_saved = read_state(latest).step

    def step(self, data: Step) -> tuple[float, float, float]:
        """Take one optimizer step; return its loss, gradient norm and learning rate.

        Raises:
            IntegrityError: no token to train on, or a number that is none; the weights are then as before.
        """
        config = self.plan.config
        if data.num_loss_tokens == 0:
            raise IntegrityError(f"step {data.number + 1} has no trained token: {self._named(data.micro_batches)}")
        try:
            sums = self._backward(data)
        except torch.OutOfMemoryError as error:
            raise TrainError(f"step {data.number + 1}: {_too_little_memory(config, error)}") from error
        (total,) = sum_over_ranks([sum(sums)])
        if not math.isfinite(total):
            broken = [batch for batch, value in zip(data.micro_batches, sums, strict=True) if not math.isfinite(value)]
            raise IntegrityError(
                f"step {data.number + 1}: the loss is {total} in the micro-batch of {self._named(broken)}"
            )
        grad_norm = clip_gradients(self.model.parameters(), config.optimizer.max_grad_norm)
        if not math.isfinite(grad_norm):
            raise IntegrityError(
                f"step {data.number + 1}: the gradient's norm is {grad_norm}: {self._named(data.micro_batches)}"
            )
        factor = lr_factor(data.number, self.plan.num_steps, config.optimizer.warmup_ratio)
        lr = set_learning_rates(self.optimizer, factor)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps_done = data.number + 1
        return total / data.num_loss_tokens, grad_norm, lr

    def _backward(self, data: Step) -> list[float]:
        """Add up the gradients of this rank's micro-batches; return the summed loss of each."""
        sums = []
        for micro_batch in data.micro_batches:
            batch = micro_batch.to(self.world.device)
            loss = loss_sum(self.model(batch.inputs, batch.loss_positions), batch.labels)
            (loss / data.num_loss_tokens).backward()
            sums.append(loss.detach())
        # Read once, after the last: until then the host runs ahead of the device.
        return torch.stack(sums).double().tolist()

    def _named(self, micro_batches: Sequence[MicroBatch]) -> str:
        """Name rows of all ranks' micro-batches, for a message; called by all ranks."""
        mine = [source for micro_batch in micro_batches for source in micro_batch.sources]
        sources = [source for theirs in gather_objects(mine, self.world) for source in theirs]
        more = len(sources) - MAX_NAMED_ROWS
        return ", ".join(sources[:MAX_NAMED_ROWS]) + (f" and {more} more rows" if more > 0 else "")

    def save(self) -> None:
        """Write a checkpoint, unless the latest one is of this very step."""
        if self.steps_saved != self.steps_done:
            self.checkpoints.save(self.model, self.optimizer, self.plan.state_after(self.steps_done, self.world))
            self.steps_saved = self.steps_done

    def export(self, folder: Path) -> None:
        """Write the trained weights as a model folder.

        Raises:
            StorageError: it cannot be written; the last checkpoint is there, so the same command tries again.
        """
        config = self.plan.config
        weights = whole_weights(self.model, getattr(torch, config.export_dtype))
        if not self.world.is_first:
            return
        try:
            save_model(folder, weights, self.plan.model, config.model / "tokenizer", asdict(self.plan.rows.layout))
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{folder} cannot be written ({free_space(folder.parent)}): {error}") from error


def _too_little_memory(config: TrainConfig, error: torch.OutOfMemoryError) -> str:
    also = "" if config.activation_checkpointing else ", or set activation_checkpointing=true"
    return f"the GPU's memory is too small for max_tokens={config.max_tokens}: lower it{also} ({error})"


def train(config: TrainConfig, world: World, stop: StopSignal) -> int:
    """Train as the config says, from where the output folder stands.

    Returns the process's exit code: 0, or 128 + the number of the signal that stopped the run, which can be resumed.
    """
    plan = make_plan(config, world.device)
    checkpoints = Checkpoints(config.output_dir, config.keep, world)
    if done := _look_at_output(plan, checkpoints, world):
        if world.is_first:
            print(done)
        return 0
    trainer = Trainer(plan, world, checkpoints)
    log = _open_log(plan, world, trainer.steps_done)
    try:
        _take_steps(trainer, log, stop)
        trainer.save()
        if trainer.steps_done == plan.num_steps:
            trainer.export(config.output_dir / "final")
        if log is not None:
            log.say(_last_words(plan, trainer.steps_done))
    finally:
        if log is not None:
            log.close()
    return stop.exit_code if trainer.steps_done < plan.num_steps else 0


def _look_at_output(plan: Plan, checkpoints: Checkpoints, world: World) -> str | None:
    """Refuse an output folder that holds another run; return a sentence if this run is already complete."""
    latest, final = checkpoints.latest(), plan.config.output_dir / "final"
    if latest is not None and plan.config.resume == "never":
        raise ConflictError(f"{latest} exists and resume is never: give another output_dir, or resume=auto")
    if latest is None and final.exists():
        raise ConflictError(f"{final} exists, and no checkpoint to resume: give another output_dir or remove it")
    if latest is None:
        return None
    saved = read_state(latest)
    check_resumable(latest, saved, plan.state_after(saved.step, world))
    if not final.exists():
        return None
    if saved.step < plan.num_steps:
        raise ConflictError(
            f"{final} exists, but {latest} has {plan.num_steps - saved.step} steps to go: remove or rename {final.name}"
        )
    return f"all {plan.num_steps} steps are done already; the weights are in {final}"


def _open_log(plan: Plan, world: World, steps_done: int) -> MetricsLog | None:
    if not world.is_first:
        return None
    config = plan.config
    log = MetricsLog(config.output_dir / "metrics.jsonl", steps_done, plan.num_steps, config.log_every)
    log.say(
        f"phase {config.phase}: {len(plan.rows):,} samples, {plan.num_steps:,} steps,"
        f" {world.size} x {world.device.type}, {config.dtype}, attention {plan.attention},"
        f" packing {config.data.packing}, {config.max_tokens:,} tokens a micro-batch;"
        f" {'starting' if steps_done == 0 else f'resuming after step {steps_done:,}'}"
    )
    return log


def _take_steps(trainer: Trainer, log: MetricsLog | None, stop: StopSignal) -> None:
    """Train until the end of the run, its `stop_after`, or a signal."""
    plan, world, config = trainer.plan, trainer.world, trainer.plan.config
    last = min(plan.num_steps, config.stop_after or plan.num_steps)
    dataset = StepDataset(
        rows=plan.rows,
        order=plan.order,
        image_dir=config.data.image_dir,
        max_tokens=config.max_tokens,
        packed=config.data.packing == "packed",
        pad_to_multiple=config.pad_to_multiple,
        rank=world.rank,
        num_ranks=world.size,
    )
    steps = load_steps(dataset, range(trainer.steps_done, last), config.num_workers, world.device.type == "cuda")
    started = time.perf_counter()
    for data in steps:
        waited = time.perf_counter() - started
        _raise_faults(data, world)
        loss, grad_norm, lr = trainer.step(data)
        if log is not None:
            log.write(_measure(data, loss, grad_norm, lr, time.perf_counter() - started, waited, world))
        if stop.agreed():
            return
        if config.save_every is not None and trainer.steps_done % config.save_every == 0:
            trainer.save()
        started = time.perf_counter()


def _raise_faults(data: Step, world: World) -> None:
    """Stop all ranks if one of them could not read its part of the step."""
    (num_faults,) = sum_over_ranks([float(data.fault is not None)])
    if num_faults:
        faults = [fault for fault in gather_objects(data.fault, world) if fault is not None]
        raise IntegrityError(f"step {data.number + 1}: {'; '.join(faults)}")


def _measure(
    data: Step, loss: float, grad_norm: float, lr: float, seconds: float, waited: float, world: World
) -> StepMetrics:
    on_gpu = world.device.type == "cuda"
    return StepMetrics(
        step=data.number + 1,
        epoch=data.epoch,
        loss=loss,
        grad_norm=grad_norm,
        lr=lr,
        num_samples=data.num_samples,
        num_loss_tokens=data.num_loss_tokens,
        useful_tokens=data.num_useful_tokens,
        computed_tokens=data.num_computed_tokens,
        seconds=seconds,
        data_seconds=waited,
        memory_gb=torch.cuda.max_memory_allocated(world.device) / 1e9 if on_gpu else None,
    )


def _last_words(plan: Plan, steps_done: int) -> str:
    output = plan.config.output_dir
    if steps_done == plan.num_steps:
        return f"done: {steps_done} steps; the weights are in {output / 'final'}"
    return f"stopped after step {steps_done} of {plan.num_steps}; run the same command again to go on"
