"""The order of a training run: check, build, resume, step, save, export.

Nothing is allocated on a device before shards, model folder and checkpoint are known to belong together.
"""

import math
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch.distributed.tensor.experimental import implicit_replication

from trainer import samples
from trainer.adapter import save_adapter
from trainer.batches import MicroBatch, Step, StepDataset, load_steps, named_rows
from trainer.build import add_gradients, build_model
from trainer.checkpoint import (
    Checkpoints,
    RunState,
    check_resumable,
    free_space,
    gathered_weights,
    read_state,
    whole_weights,
)
from trainer.config import TrainConfig, fixed_settings
from trainer.curve import draw_curve
from trainer.distributed import World, gather_objects, raise_faults, sum_over_ranks
from trainer.errors import ConflictError, IntegrityError, StorageError, TrainError
from trainer.flops import model_flops
from trainer.heldout import Evaluator, Standing, evaluations_after, is_due
from trainer.lora import fill_from_folder, initialise_adapters
from trainer.loss import choose_cross_entropy
from trainer.memory import saving_more
from trainer.metrics import EvaluationMetrics, measure
from trainer.model import save_model
from trainer.optimizer import build_optimizer, clip_gradients, lr_factor, set_learning_rates
from trainer.plan import Plan, make_plan
from trainer.report import MetricsLog
from trainer.samples import SampleAnswer, Sampler
from trainer.saving import Saved, check_host_memory
from trainer.stopping import StopSignal
from trainer.trackers import open_trackers


class Trainer:
    """A model, its optimizer and the number of steps that are done."""

    def __init__(self, plan: Plan, world: World, checkpoints: Checkpoints) -> None:
        """Build everything, and fill it from the latest checkpoint or from the starting weights."""
        self.plan = plan
        self.world = world
        self.checkpoints = checkpoints
        self.model = build_model(plan.config, plan.model, plan.attention, world)
        self.cross_entropy = choose_cross_entropy(plan.config.cross_entropy, self.model, world.device)
        self.optimizer = build_optimizer(self.model.named_parameters(), plan.config.optimizer)
        self.evaluator = None if plan.evaluation is None else Evaluator(plan.evaluation, plan.config, world)
        self.sampler = None
        if plan.config.samples.every is not None:
            self.sampler = Sampler(plan.rows, plan.evaluation, plan.config, plan.model, world)
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

    def sample(self, stop: StopSignal) -> list[SampleAnswer]:
        """Return the answers that are due after this step, if any; called by all ranks."""
        if self.sampler is None or not samples.is_due(self.steps_done, self.plan.config.samples):
            return []
        return self.sampler.run(self.model, self.steps_done, stop.agreed)

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
        config, batches = self.plan.config, data.micro_batches
        sums = add_gradients(
            self.model, batches, data.num_loss_tokens, self.cross_entropy, self.world, data.number, config.reduce_once
        )
        # Read once, after the last: until then the host runs ahead of the device.
        return sums.double().tolist()

    def _named(self, micro_batches: Sequence[MicroBatch]) -> str:
        """Name rows of all ranks' micro-batches, for a message; called by all ranks."""
        mine = [source for micro_batch in micro_batches for source in micro_batch.sources]
        return named_rows([source for theirs in gather_objects(mine, self.world) for source in theirs])

    def save(self) -> Saved:
        """Write a checkpoint, while training goes on if the config says so; `finish` waits until it is whole.

        Raises:
            StorageError: it cannot be written, or the one before could not.
        """
        return self._save(meanwhile=self.plan.config.checkpoint_async)

    def finish(self) -> None:
        """Leave a whole checkpoint of this very step; if the latest one is, add only what was evaluated since.

        Raises:
            StorageError: it cannot be written, or the one before could not.
        """
        if self.steps_saved != self.steps_done:
            self._save(meanwhile=False)
        self.checkpoints.wait()
        if self.standing_saved != self.standing:
            self.checkpoints.amend(self._state())
            self.standing_saved = self.standing

    def _save(self, meanwhile: bool) -> Saved:
        saved = self.checkpoints.save(self.model, self.optimizer, self._state(), meanwhile)
        self.steps_saved, self.standing_saved = self.steps_done, self.standing
        return saved

    def _state(self) -> RunState:
        return self.plan.state_after(self.steps_done, self.world, self.standing)

    def export(self, folder: Path) -> None:
        """Write the trained weights as a model folder, or those of adapters as peft's.

        Raises:
            StorageError: it cannot be written; the last checkpoint is there, so the same command tries again.
        """
        config, record = self.plan.config, self.plan.record_after(self.steps_done)
        dtype = getattr(torch, config.export_dtype)
        adapter = config.lora if config.lora is not None and config.lora.export == "adapter" else None
        weights = whole_weights(self.model, dtype) if adapter is None else gathered_weights(self.model)
        if not self.world.is_first:
            return
        try:
            if adapter is None:
                save_model(folder, weights, self.plan.model, config.model / "tokenizer", record)
            else:
                save_adapter(folder, weights, self.model, adapter, dtype, record)
        except (OSError, SafetensorError) as error:
            raise StorageError(f"{folder} cannot be written ({free_space(folder.parent)}): {error}") from error


def _too_little_memory(config: TrainConfig, error: torch.OutOfMemoryError) -> str:
    choices = " or ".join(["lower it", *(f"set {setting}" for setting in saving_more(config))])
    return f"the GPU's memory is too small for max_tokens={config.max_tokens}: {choices} ({error})"


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
    check_host_memory(plan.model, config, world)
    trainer = Trainer(plan, world, checkpoints)
    log = _open_log(trainer)
    try:
        _take_steps(trainer, log, stop)
        trainer.finish()
        if trainer.is_finished:
            trainer.export(config.output_dir / "final")
        if log is not None:
            _draw_curve(config.output_dir, log)
            log.say(_last_words(trainer))
    except BaseException:
        _finish_writing(checkpoints, log)
        raise
    finally:
        if log is not None:
            log.close()
    return 0 if trainer.is_finished else stop.exit_code


def _finish_writing(checkpoints: Checkpoints, log: MetricsLog | None) -> None:
    """Let the checkpoint that is being written become whole in a run that ends with an error of its own."""
    try:
        checkpoints.wait()
    except (StorageError, RuntimeError) as error:  # the latter where another rank has gone
        if log is not None:
            log.say(f"error: {error}")


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
        f" cross entropy {trainer.cross_entropy}, activation checkpointing {config.activation_checkpointing},"
        f" {'compiled' if config.compile else 'not compiled'},"
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
    started, checkpoint_seconds = time.perf_counter(), 0.0
    for data in steps:
        waited = time.perf_counter() - started
        _raise_faults(data, world)
        loss, grad_norm, lr = trainer.step(data)
        if log is not None:
            seconds = time.perf_counter() - started
            log.write(measure(data, loss, grad_norm, lr, seconds, waited, trainer.flops, world, checkpoint_seconds))
        checkpoint_seconds = 0.0
        if (answers := trainer.sample(stop)) and log is not None:
            log.sampled(answers)
        if stop.agreed() or not _goes_on(trainer, log, stop):
            return
        if config.save_every is not None and trainer.steps_done % config.save_every == 0:
            saved = trainer.save()
            checkpoint_seconds = saved.seconds
            if log is not None:
                log.say(saved.line())
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
