"""What a training run is: every setting, its default and its reason.

torchrun trainer/run.py CONFIG [key=value ...]
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_validator,
)

from configs import StrictConfig

#: What a phase leaves untrained unless `freeze` says otherwise: LLaVA-1.5's recipe.
FROZEN_BY_PHASE: dict[int, tuple[str, ...]] = {1: (r"vision\.", r"language\."), 2: (r"vision\.",)}

#: Settings that say where and how a run is computed, not what it computes: a resumed run may change them. All others
#: decide what is learned, up to rounding, and must stay as they were.
FREE_TO_CHANGE = frozenset(
    {
        "model", "data.shards", "data.image_dir", "data.packing", "max_tokens", "pad_to_multiple", "num_workers",
        "attention", "activation_checkpointing", "device", "output_dir", "export_dtype", "save_every", "keep", "resume",
        "stop_after", "log_every",
    }
)  # fmt: skip

Share = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(StrictConfig):
    """Where the samples come from."""

    shards: Path | None = None
    """Folder of shards that `llava-prep to-h5` wrote; by default `ROOT/h5/phaseN`, where ROOT is the workspace's."""

    image_dir: Path | None = None
    """The folder that image keys are relative to; by default the workspace's root. Pictures in the shards need none."""

    packing: Literal["packed", "none"] = "packed"
    """`none` trains the rows as they are stored, padding and dummy pictures included: slower, and the same steps."""


class OptimizerConfig(StrictConfig):
    """AdamW, and a learning rate that warms up and then falls to zero along a cosine."""

    peak_lr: PositiveFloat
    projector_peak_lr: PositiveFloat | None = None
    """Another peak for the projector's parameters; None: the same."""
    warmup_ratio: Share = 0.03
    """Part of all steps, rounded up, in which the learning rate rises."""
    beta1: Share = 0.9
    beta2: Share = 0.999
    eps: PositiveFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    """Gradients of a larger norm (over all trained parameters) are scaled down to it."""


class TrainConfig(StrictConfig):
    """One training run."""

    FOLDER: ClassVar[str] = "train"

    phase: Literal[1, 2]
    """1 aligns the projector with captions, 2 tunes it and the language model on instructions."""

    model: Path
    """Folder of the starting weights (`llava-convert` writes them, and so does the end of a run)."""

    output_dir: Path
    """Folder of the run: `checkpoints/`, `metrics.jsonl`, and the trained weights in `final/`."""

    data: DataConfig = DataConfig()

    optimizer: OptimizerConfig

    max_tokens: PositiveInt
    """Tokens of a micro-batch, at most: as many as memory holds. Changes speed, and nothing else but rounding."""

    global_batch_size: PositiveInt | None = None
    """Samples of an optimizer step, over all ranks and micro-batches."""

    global_batch_tokens: PositiveInt | None = None
    """Instead of `global_batch_size`: as many samples as hold at most this many attended tokens."""

    epochs: PositiveInt | None = None
    max_steps: PositiveInt | None = None
    """Optimizer steps of the whole run, over as many epochs as they need; instead of `epochs`."""

    seed: NonNegativeInt = 0
    """Of the order of the samples."""

    freeze: tuple[str, ...] | None = None
    """Regular expressions; a parameter whose name begins with a match is not trained. By default the tower, and in
    phase 1 the language model too. `[]` trains everything."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in. Weights, gradient sums and optimizer states are float32 either way."""

    attention: str = "auto"
    """A backend of `trainer.attention` (flash, varlen, sdpa, flex), or `auto`: the first of them that can train."""

    activation_checkpointing: bool = False
    """Compute the decoder's layers again in the backward pass instead of keeping their activations."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto`: CUDA where there is any."""

    num_workers: NonNegativeInt = 2
    """Processes a rank that read rows and decode pictures ahead of the training; 0: none, in the training's own."""

    pad_to_multiple: PositiveInt = 1
    """Micro-batches are padded to a multiple of this many tokens, for kernels that are faster so."""

    save_every: PositiveInt | None = None
    """Steps between checkpoints; None: only at the end or when the run is stopped."""

    keep: PositiveInt = 2
    """Checkpoints that are kept, the latest ones."""

    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on from the latest whole checkpoint in `output_dir`, if there is one."""

    stop_after: PositiveInt | None = None
    """Save and stop after this many steps of the run, to be resumed later; the schedule stays that of the whole run."""

    log_every: PositiveInt = 1
    """Steps between printed lines; `metrics.jsonl` has every step."""

    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the weights in `final/` are rounded to; float32 keeps them as they were trained."""

    @field_validator("freeze")
    @classmethod
    def _are_regexes(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for pattern in patterns or ():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _one_measure_each(self) -> "TrainConfig":
        _exactly_one(self, "global_batch_size", "global_batch_tokens")
        _exactly_one(self, "epochs", "max_steps")
        if self.max_tokens % self.pad_to_multiple:
            raise ValueError(
                f"max_tokens {self.max_tokens} is not a multiple of pad_to_multiple {self.pad_to_multiple}"
            )
        return self

    @property
    def frozen_patterns(self) -> tuple[str, ...]:
        """The regular expressions that are in force."""
        return FROZEN_BY_PHASE[self.phase] if self.freeze is None else self.freeze

    def with_workspace(self, root: Path) -> "TrainConfig":
        """Return the config with the data's places filled in from the workspace's root."""
        shards = self.data.shards or root / "h5" / f"phase{self.phase}"
        data = self.data.model_copy(update={"shards": shards, "image_dir": self.data.image_dir or root})
        return self.model_copy(update={"data": data})


def _exactly_one(config: TrainConfig, first: str, second: str) -> None:
    given = [name for name in (first, second) if getattr(config, name) is not None]
    if len(given) != 1:
        found = "both are given" if given else "neither is given"
        raise ValueError(f"give exactly one of {first} and {second}; {found}")


def fixed_settings(config: TrainConfig) -> dict[str, object]:
    """Return the settings that decide what is learned, by dotted name, as JSON has them."""
    settings = dict(_flatten(config.model_dump(mode="json")))
    settings["freeze"] = list(config.frozen_patterns)
    return {name: value for name, value in settings.items() if name not in FREE_TO_CHANGE}


def _flatten(values: dict[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
