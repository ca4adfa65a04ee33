"""The order of a training run: check, build, resume, step, save, export.

Nothing is allocated on a device before shards, model folder and checkpoint are known to belong together.
"""

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.tensor.experimental import implicit_replication
from torch.utils.checkpoint import checkpoint

from trainer.adapter import check_exportable, save_adapter
from trainer.batches import MicroBatch, Step, StepDataset, load_steps
from trainer.checkpoint import (
    Checkpoints,
    check_resumable,
    free_space,
    gathered_weights,
    read_state,
    whole_weights,
)
from trainer.config import TrainConfig, fixed_settings
from trainer.curve import draw_curve
from trainer.distributed import World, gather_objects, raise_faults, shard, sum_over_ranks
from trainer.errors import ConflictError, IntegrityError, StorageError, TrainError
from trainer.evaluation import Evaluator, Standing, evaluations_after, is_due
from trainer.flops import model_flops
from trainer.lora import apply_lora, begin_micro_batch, fill_from_folder, initialise_adapters
from trainer.loss import loss_sum
from trainer.metrics import EvaluationMetrics, measure
from trainer.model import LlavaModel, save_model
from trainer.optimizer import build_optimizer, clip_gradients, freeze, lr_factor, set_learning_rates
from trainer.plan import Plan, make_plan
from trainer.report import MetricsLog
from trainer.stopping import StopSignal
from trainer.trackers import open_trackers

#: Rows that a message names, at most; a step has hundreds.
MAX_NAMED_ROWS = 8


def build_model(plan: Plan, world: World) -> LlavaModel:
    """Return the model without its weights: frozen, sharded and on its device."""
    with torch.device("meta"):
        model = LlavaModel(plan.model, plan.attention)
        if plan.config.lora is not None:
            apply_lora(model, plan.config.lora, plan.config.seed)
    freeze(model, plan.config.frozen_patterns)
    if plan.config.lora is not None and plan.config.lora.export == "adapter":
        check_exportable(model)
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
        self.evaluator = None if plan.evaluation is None else Evaluator(plan.evaluation, plan.config, world)
        self.flops = model_flops(self.model)
        self.steps_done, self.steps_saved = 0, -1
        self.standing = self.standing_saved = Standing()
        latest = checkpoints.latest()
        # Every rank reads the file and keeps its own part of each tensor.
        with implicit_replication():
            dtype = getattr(torch, plan.config.dtype)
            fill_from_folder(self.model, plan.config.model, dtype, only_frozen=latest is not None)
            initialise_adapters(self.model, plan.config.seed)
        if latest is not None:
            checkpoints.load(latest, self.model, self.optimizer)
            state = read_state(latest)
            self.steps_done = self.steps_saved = state.step
            self.standing = self.standing_saved = Standing(**state.evaluation)

    @property
    def awaits_evaluation(self) -> bool:
        """Whether the model is to be evaluated as it is now, and was not yet."""
        due = is_due(self.steps_done, self.plan.num_steps, self.plan.config.evaluation)
        return due and self.standing.step < self.steps_done

    @property
    def is_finished(self) -> bool:
        """Whether all is done but the export."""
        if self.standing.is_over(self.plan.config.evaluation):
            return True
        return self.steps_done == self.plan.num_steps and not self.awaits_evaluation

    def evaluate(self, stop: StopSignal) -> EvaluationMetrics | None:
        """Evaluate the model as it is now; None if a signal came in between, and it is to be done another time."""
        assert self.evaluator is not None
        found = self.evaluator.run(self.model, self.steps_done, stop.agreed)
        if found is not None:
            min_delta = self.plan.config.evaluation.min_delta
            self.standing = self.standing.after(self.steps_done, found.loss, min_delta)
        return found

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
        for number, micro_batch in enumerate(data.micro_batches):
            begin_micro_batch(self.model, data.number, number, self.world.rank)
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
        """Write a checkpoint; if the latest one is of this very step, only what was evaluated since."""
        state = self.plan.state_after(self.steps_done, self.world, self.standing)
        if self.steps_saved != self.steps_done:
            self.checkpoints.save(self.model, self.optimizer, state)
        elif self.standing_saved != self.standing:
            self.checkpoints.amend(state)
        self.steps_saved, self.standing_saved = self.steps_done, self.standing

    def export(self, folder: Path) -> None:
        """Write the trained weights as a model folder, or those of adapters as peft's.

        Raises:
            StorageError: it cannot be written; the last checkpoint is there, so the same command tries again.
        """
        config, layout = self.plan.config, asdict(self.plan.rows.layout)
        dtype = getattr(torch, config.export_dtype)
        adapter = config.lora if config.lora is not None and config.lora.export == "adapter" else None
        weights = whole_weights(self.model, dtype) if adapter is None else gathered_weights(self.model)
        if not self.world.is_first:
            return
        try:
            if adapter is None:
                save_model(folder, weights, self.plan.model, config.model / "tokenizer", layout)
            else:
                save_adapter(folder, weights, self.model, adapter, dtype, layout)
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
    log = _open_log(trainer)
    try:
        _take_steps(trainer, log, stop)
        trainer.save()
        if trainer.is_finished:
            trainer.export(config.output_dir / "final")
        if log is not None:
            _draw_curve(config.output_dir, log)
            log.say(_last_words(trainer))
    finally:
        if log is not None:
            log.close()
    return 0 if trainer.is_finished else stop.exit_code


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
    check_resumable(latest, saved, plan.state_after(saved.step, world, Standing()))
    if not final.exists():
        return None
    if Standing(**saved.evaluation).is_over(plan.config.evaluation):
        return f"the run ended early after step {saved.step} of {plan.num_steps}; the weights are in {final}"
    if saved.step < plan.num_steps:
        raise ConflictError(
            f"{final} exists, but {latest} has {plan.num_steps - saved.step} steps to go: remove or rename {final.name}"
        )
    return f"all {plan.num_steps} steps are done already; the weights are in {final}"


def _open_log(trainer: Trainer) -> MetricsLog | None:
    plan, world, steps_done = trainer.plan, trainer.world, trainer.steps_done
    if not world.is_first:
        return None
    config = plan.config
    log = MetricsLog(
        config.output_dir,
        steps_done,
        plan.num_steps,
        config.log_every,
        evaluated=trainer.standing.step,
        evaluations_left=lambda step: evaluations_after(step, plan.num_steps, config.evaluation),
        trackers=open_trackers(config.log, config.output_dir, steps_done, fixed_settings(config)),
    )
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
    # A resumed run may have been stopped when it was to be evaluated, or when there was nothing left but the export.
    if not _goes_on(trainer, log, stop):
        return
    dataset = StepDataset(
        rows=plan.rows,
        order=plan.order,
        image_dir=config.data.image_dir,
        max_tokens=config.max_tokens,
        packed=config.data.packing == "packed",
        pad_to_multiple=config.pad_to_multiple,
        rank=world.rank,
        num_ranks=world.size,
        image_pixels=config.data.image_pixels,
    )
    steps = load_steps(dataset, range(trainer.steps_done, last), config.num_workers, world.device.type == "cuda")
    started = time.perf_counter()
    for data in steps:
        waited = time.perf_counter() - started
        _raise_faults(data, world)
        loss, grad_norm, lr = trainer.step(data)
        if log is not None:
            seconds = time.perf_counter() - started
            log.write(measure(data, loss, grad_norm, lr, seconds, waited, trainer.flops, world))
        if stop.agreed() or not _goes_on(trainer, log, stop):
            return
        if config.save_every is not None and trainer.steps_done % config.save_every == 0:
            trainer.save()
        started = time.perf_counter()


def _goes_on(trainer: Trainer, log: MetricsLog | None, stop: StopSignal) -> bool:
    """Evaluate the model if it is time to; return whether there is anything to do after that."""
    if trainer.awaits_evaluation:
        found = trainer.evaluate(stop)
        if found is None:
            return False
        if log is not None:
            log.evaluated(found)
    return not trainer.is_finished


def _raise_faults(data: Step, world: World) -> None:
    """Stop all ranks if one of them could not read its part of the step."""
    raise_faults(f"step {data.number + 1}", data.fault, world)


def _draw_curve(output_dir: Path, log: MetricsLog) -> None:
    try:
        draw_curve(output_dir)
    except OSError as error:
        log.say(f"{output_dir / 'loss.svg'} cannot be written: {error}")


def _last_words(trainer: Trainer) -> str:
    num_steps, steps_done, standing = trainer.plan.num_steps, trainer.steps_done, trainer.standing
    final = trainer.plan.config.output_dir / "final"
    if not trainer.is_finished:
        return f"stopped after step {steps_done} of {num_steps}; run the same command again to go on"
    if steps_done < num_steps:
        return (
            f"done: the evaluation's loss was best after step {standing.best_step} ({standing.best_loss:.4f}) and not"
            f" better since, so the run ends after {steps_done} of {num_steps} steps; the weights are in {final}"
        )
    return f"done: {steps_done} steps; the weights are in {final}"
