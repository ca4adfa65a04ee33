"""What a run is made of, opened and checked before anything is allocated on a device."""

from dataclasses import asdict, dataclass

import torch

from configs import VERSION
from dataprep.shards import ShardReader
from trainer import attention
from trainer.checkpoint import RunState
from trainer.config import TrainConfig, fixed_settings
from trainer.distributed import World
from trainer.errors import TrainError
from trainer.heldout import Standing
from trainer.lowbit import check_installed
from trainer.model import LlavaConfig, load_config
from trainer.model.folder import weights_identity
from trainer.opening import check_training, open_evaluation, open_training
from trainer.packing import SampleOrder
from trainer.trackers import check_trackers


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of, checked, before anything is allocated."""

    config: TrainConfig
    model: LlavaConfig
    rows: ShardReader
    evaluation: ShardReader | None
    """The rows that the model is evaluated on."""
    order: SampleOrder
    num_steps: int
    attention: str
    starting_weights: str

    def state_after(self, step: int, world: World, standing: Standing) -> RunState:
        """Return what a checkpoint records when `step` steps are done."""
        settings = fixed_settings(self.config)
        if self.evaluation is not None and self.config.evaluation.patience is not None:
            settings["evaluation.data"] = self.evaluation.manifest_sha256
        return RunState(
            step=step,
            epoch=self.order.epoch_of(max(step - 1, 0)),
            settings=settings,
            model={**self.model.model_dump(mode="json"), "starting_weights": self.starting_weights},
            data=self.rows.manifest_sha256,
            world_size=world.size,
            torch=torch.__version__,
            evaluation=asdict(standing),
            record=self.record_after(step),
        )

    def record_after(self, step: int) -> dict[str, object]:
        """Return what stands in a model's `data.json` when `step` steps are done: on what it was trained, and how.

        The shards' layout, and under `training` all that decides what was learned from them. It holds no path, so
        that the same run elsewhere leaves the same record.
        """
        training = {
            "steps": step,
            "shards_manifest_sha256": self.rows.manifest_sha256,
            "starting_weights": self.starting_weights,
            "settings": fixed_settings(self.config),
            "llava_prep": VERSION,
            "torch": torch.__version__,
        }
        return {**asdict(self.rows.layout), "training": training}


def make_plan(config: TrainConfig, device: torch.device) -> Plan:
    """Open the data, read the model's config, and make sure that they belong together.

    `config` has its places filled in (`TrainConfig.with_workspace`).

    Raises:
        TrainError, ShardError, FolderError, ValueError: what does not fit, in one sentence.
    """
    check_installed(config)
    check_trackers(config.log)
    rows = open_training(config)
    model = load_config(config.model)
    check_training(config, rows, model)
    evaluation = open_evaluation(config, rows, model)
    order = SampleOrder(rows.lengths, config.seed, config.global_batch_size, config.global_batch_tokens)
    num_steps = config.max_steps or order.num_steps(config.epochs or 1)
    backend = _choose_attention(config.attention, device, getattr(torch, config.dtype))
    return Plan(config, model, rows, evaluation, order, num_steps, backend, weights_identity(config.model))


def _choose_attention(name: str, device: torch.device, dtype: torch.dtype) -> str:
    try:
        return attention.choose(name, device, dtype)
    except ValueError as error:
        raise TrainError(str(error)) from None
