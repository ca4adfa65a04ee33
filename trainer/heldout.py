"""How well a model does on samples that it does not train on, and when to stop because it does no better.

Loss and accuracy are sums over the trained tokens of the whole set divided by their number, so neither the number of
ranks nor `max_tokens` changes them, up to rounding. The samples are packed as in training, in the order of the rows;
every rank runs as many micro-batches as any other, if need be of a single token that counts for nothing.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch.distributed.fsdp import FSDPModule

from dataprep.shards import ShardReader
from trainer.batches import Step, StepDataset, load_steps, named_rows
from trainer.config import EvaluationConfig, TrainConfig
from trainer.distributed import World, raise_faults, sum_over_ranks
from trainer.loss import loss_and_right
from trainer.metrics import EvaluationMetrics
from trainer.model import LlavaModel

#: Samples a rank that are dealt out at a time: enough to fill micro-batches well, few enough to lie in memory.
SAMPLES_A_RANK = 64


@dataclass(frozen=True, slots=True)
class Standing:
    """How the evaluations went so far. It lies in the checkpoint's state, so that a resumed run stops where the
    uninterrupted one does, whatever became of the log.
    """

    step: int = 0
    """Of the last evaluation; 0: there was none."""
    best_loss: float | None = None
    best_step: int = 0
    without_gain: int = 0
    """Evaluations since the best one."""

    def after(self, step: int, loss: float, min_delta: float) -> "Standing":
        """Return the standing after one more evaluation; better by `min_delta` or less is no better."""
        if self.best_loss is None or loss < self.best_loss - min_delta:
            return Standing(step, loss, step, 0)
        return Standing(step, self.best_loss, self.best_step, self.without_gain + 1)

    def is_over(self, config: EvaluationConfig) -> bool:
        """Return whether the run is to end here, since it gets no better."""
        return config.patience is not None and self.without_gain >= config.patience


def is_due(step: int, num_steps: int, config: EvaluationConfig) -> bool:
    """Return whether the model is evaluated after so many steps: every `every`, and after the last."""
    on_time = config.every is not None and step % config.every == 0
    return config.shards is not None and step > 0 and (on_time or step == num_steps)


def evaluations_after(step: int, num_steps: int, config: EvaluationConfig) -> int:
    """Return how many evaluations come after a step, if the run goes to its end."""
    if config.shards is None or step >= num_steps:
        return 0
    every = config.every or num_steps
    return num_steps // every - step // every + (num_steps % every > 0)


def chosen_rows(num_rows: int, max_samples: int | None) -> NDArray[np.int64]:
    """Return the rows that are evaluated: all, or `max_samples` that lie evenly over them.

    Shards often hold one source after the other: the first rows alone would be of one source.
    """
    count = num_rows if max_samples is None else min(max_samples, num_rows)
    return np.arange(count, dtype=np.int64) * num_rows // max(count, 1)


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Rows in a given order, so many at a time: what a `SampleOrder` is for training."""

    rows: NDArray[np.integer]
    rows_per_step: int

    @property
    def num_steps(self) -> int:
        """Steps that it takes to see every row once."""
        return -(-len(self.rows) // self.rows_per_step)

    def epoch_of(self, step: int) -> int:
        """Return 0: every row is seen once."""
        return 0

    def samples(self, step: int) -> NDArray[np.integer]:
        """Return the rows of a step."""
        return self.rows[step * self.rows_per_step : (step + 1) * self.rows_per_step]


class Evaluator:
    """Evaluates a model on the shards that `evaluation.shards` names."""

    def __init__(self, rows: ShardReader, config: TrainConfig, world: World) -> None:
        self._config = config
        self._world = world
        chosen = chosen_rows(len(rows), config.evaluation.max_samples)
        self._order = RowOrder(chosen, SAMPLES_A_RANK * world.size)
        self._dataset = StepDataset(
            rows=rows,
            order=self._order,
            image_dir=config.data.image_dir,
            max_tokens=config.max_tokens,
            pad_to_multiple=config.pad_to_multiple,
            rank=world.rank,
            num_ranks=world.size,
            image_pixels=config.data.image_pixels,
        )
        self._num_samples = len(chosen)
        self._num_loss_tokens = int(rows.num_loss_tokens[chosen].sum())

    def run(self, model: LlavaModel, step: int, stop: Callable[[], bool]) -> EvaluationMetrics | None:
        """Evaluate after `step` optimizer steps; None if `stop`, asked by all ranks together, says so in between.

        Raises:
            IntegrityError: a row that cannot be read, or a loss that is no number.
        """
        started = time.perf_counter()
        workers = min(self._config.num_workers, self._order.num_steps)
        steps = load_steps(self._dataset, range(self._order.num_steps), workers, self._world.device.type == "cuda")
        sums = np.zeros(2)
        with evaluating(model):
            for data in steps:
                raise_faults(f"evaluation after step {step}", data.fault, self._world)
                found = self._sums(model, data)
                raise_faults(f"evaluation after step {step}", _fault(data, found), self._world)
                sums += found.sum(axis=0)
                if stop():
                    return None
        loss, correct = sum_over_ranks(sums.tolist())
        return EvaluationMetrics(
            step=step,
            loss=loss / self._num_loss_tokens,
            accuracy=correct / self._num_loss_tokens,
            num_samples=self._num_samples,
            num_loss_tokens=self._num_loss_tokens,
            seconds=time.perf_counter() - started,
        )

    def _sums(self, model: LlavaModel, data: Step) -> NDArray[np.float64]:
        """Return summed loss and number of right tokens of each of this rank's micro-batches: float64 (n, 2)."""
        sums = []
        for micro_batch in data.micro_batches:
            batch = micro_batch.to(self._world.device)
            sums.append(model(batch.inputs, batch.loss_positions, partial(loss_and_right, labels=batch.labels)))
        return torch.stack(sums).cpu().numpy()


def _fault(data: Step, found: NDArray[np.float64]) -> str | None:
    """Name the rows of the micro-batches whose loss is no number."""
    broken = np.flatnonzero(~np.isfinite(found[:, 0]))
    if not len(broken):
        return None
    sources = [source for number in broken for source in data.micro_batches[number].sources]
    return f"the loss is {found[broken[0], 0]} in the micro-batch of {named_rows(sources)}"


@contextmanager
def evaluating(model: LlavaModel) -> Iterator[None]:
    """Leave gradients and dropout out for a while."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
        for module in model.modules():
            # The outermost weights stay gathered after a forward pass, since a backward pass is expected to follow.
            if isinstance(module, FSDPModule):
                module.reshard()
