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
        "model", "data.shards", "data.image_dir", "data.packing", "lora.export", "max_tokens", "pad_to_multiple",
        "num_workers", "attention", "activation_checkpointing", "checkpointed_layers", "compile", "cross_entropy",
        "reshard_after_forward", "reduce_once", "device", "output_dir", "export_dtype", "save_every",
        "keep", "checkpoint_async", "resume", "stop_after", "log_every", "evaluation.shards", "evaluation.every",
        "evaluation.max_samples", "samples.every", "samples.count", "samples.max_new_tokens", "log.tensorboard",
        "log.wandb",
    }
)  # fmt: skip

#: Settings of the evaluation that decide, where there is a `patience`, after which step the run ends.
DECIDE_THE_END = frozenset({"evaluation.every", "evaluation.max_samples"})

Share = Annotated[float, Field(ge=0, lt=1)]


def _checked_regexes(patterns: tuple[str, ...]) -> tuple[str, ...]:
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return patterns


class DataConfig(StrictConfig):
    """Where the samples come from."""

    shards: Path | None = None
    """Folder of shards that `llava-prep to-h5` wrote; by default `ROOT/h5/phaseN`, where ROOT is the workspace's."""

    image_dir: Path | None = None
    """The folder that image keys are relative to; by default the workspace's root. Pictures in the shards need none."""

    image_pixels: Literal["fast", "exact"] = "fast"
    """How pictures in files are scaled: `fast` differs from Pillow's pixels by 1 or 2 levels, `exact` does not.
    Pictures in the shards stay as `to-h5 --image-pixels` made them."""

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
    states: Literal["float32", "int8"] = "float32"
    """What AdamW's two moments are kept in; `int8` takes torchao, and 2 bytes a parameter instead of 8."""


class LoraConfig(StrictConfig):
    """Thin matrices that are trained beside frozen linear layers; the defaults are LLaVA's own recipe.

    The adapters are trained whatever `freeze` says, the weights they stand beside never.
    """

    layers: tuple[str, ...] = (r"language\.layers\.",)
    """Regular expressions; a linear layer whose name begins with a match gets an adapter. By default all of the
    decoder's, the output layer not among them."""

    rank: PositiveInt = 128
    alpha: PositiveInt = 256
    """What the adapters add is multiplied by alpha / rank."""

    dropout: Share = 0.05
    """Part of the adapters' inputs that is zeroed in training. Which ones follows from seed, step, micro-batch, rank
    and layer: a resumed run drops the same, one with another `max_tokens` or number of processes others."""

    base: Literal["float32", "bfloat16", "nf4"] = "float32"
    """What the frozen weights beside the adapters are kept in. `nf4` (QLoRA's 4 bits) takes torchao, and each process
    holds them whole; the others are sharded."""

    export: Literal["merged", "adapter"] = "merged"
    """What `final/` holds: a whole model, or an adapter that peft loads on transformers' model of the starting
    weights (`llava-convert trainer hf`)."""

    @field_validator("layers")
    @classmethod
    def _are_regexes(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        if not patterns:
            raise ValueError("expected at least one regular expression")
        return _checked_regexes(patterns)


class EvaluationConfig(StrictConfig):
    """How well the model does on samples that it does not train on; without `shards`, nobody asks."""

    shards: Path | None = None
    """Folder of shards, such as the `holdout/` that `to-h5 --holdout` writes inside its output folder."""

    every: PositiveInt | None = None
    """Steps between evaluations; None: only at the end. The end of a run is always evaluated."""

    max_samples: PositiveInt | None = None
    """Evaluate so many of the samples, spread evenly over the folder; None: all."""

    patience: PositiveInt | None = None
    """End the run after so many evaluations in a row without a better loss; None: never before its time. The weights
    that it ends with are those of its last step."""

    min_delta: NonNegativeFloat = 0.0
    """A loss counts as better if it is lower than the best one by more than this."""

    @model_validator(mode="after")
    def _has_what_it_needs(self) -> "EvaluationConfig":
        for name in ("every", "max_samples", "patience"):
            if getattr(self, name) is not None and self.shards is None:
                raise ValueError(f"{name} needs shards to evaluate: give evaluation.shards")
        if self.patience is not None and self.every is None:
            raise ValueError("patience counts evaluations: give evaluation.every")
        return self


class SamplesConfig(StrictConfig):
    """Answers of the model as it is, to look at: greedy, to rows of `evaluation.shards`, or else of the training's."""

    every: PositiveInt | None = None
    """Steps between them; None: never."""

    count: PositiveInt = 4
    """Questions, the same ones each time, spread evenly over the folder."""

    max_new_tokens: PositiveInt = 32
    """Tokens of an answer, at most. Each costs a forward pass of all its text."""


class LogConfig(StrictConfig):
    """Where the numbers go besides the terminal, `metrics.jsonl` and `evaluations.jsonl`."""

    tensorboard: bool = False
    """Write event files to `tensorboard/` in the run's folder; needs the package tensorboard."""

    wandb: str | None = None
    """Log to this project of Weights & Biases; needs the package wandb. Without an account or a network it logs
    offline, to `wandb/` in the run's folder."""


class TrainConfig(StrictConfig):
    """One training run."""

    FOLDER: ClassVar[str] = "train"

    phase: Literal[1, 2]
    """1 aligns the projector with captions, 2 tunes it and the language model on instructions."""

    model: Path
    """Folder of the starting weights (`llava-convert` writes them, and so does the end of a run)."""

    output_dir: Path
    """Folder of the run: `checkpoints/`, `metrics.jsonl`, `loss.svg`, and the trained weights in `final/`."""

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
    """Of the order of the samples, and of LoRA's first values and dropout."""

    freeze: tuple[str, ...] | None = None
    """Regular expressions; a parameter whose name begins with a match is not trained. By default the tower, and in
    phase 1, or with `lora`, the language model too. `[]` trains everything."""

    lora: LoraConfig | None = None
    """Train adapters beside frozen layers instead of the layers; None: no adapters."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the model computes in. Weights, gradient sums and optimizer states are float32 either way."""

    attention: str = "auto"
    """A backend of `trainer.attention` (flash, varlen, sdpa, flex), or `auto`: the first of them that can train."""

    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What of the decoder's layers is computed again in the backward pass instead of being kept: nothing; the gated
    network, which is the widest part (15 % more work in phase 2 of a 7B model, and 2.7 times less memory); or the whole
    layer (26 % and 19 times). `python -m trainer.memory` has the bytes a token."""

    checkpointed_layers: NonNegativeInt | None = None
    """Treat this many of the decoder's layers so, the first ones, and keep everything of the others; None: all."""

    compile: bool = False
    """Compile what lies between the attention calls (torch.compile), in the first steps of every run. On a CPU it takes
    a C++ compiler. Not with `lora.dropout` or 4-bit weights."""

    cross_entropy: Literal["auto", "liger", "chunked", "whole"] = "auto"
    """Which way of `trainer.loss` goes from hidden states to the loss; `auto`: the first of them that can run. `liger`
    (liger-kernel, on CUDA) and `chunked` (plain torch) never hold the logits of all trained tokens at once."""

    reshard_after_forward: bool = True
    """Drop a layer's gathered weights after its forward pass, and gather them again for the backward pass. False: keep
    them, 2 bytes a parameter with bfloat16, and save a third of what the ranks send each other."""

    reduce_once: bool = False
    """Add gradients up over the ranks once a step, after its last micro-batch. Worth it where the network is slow and a
    step has several micro-batches; until then every rank holds whole gradients, 4 bytes a trained parameter."""

    reduce_dtype: Literal["float32", "bfloat16"] = "float32"
    """What gradients are added up in over the ranks; a rank's sum over micro-batches is float32 either way."""

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

    checkpoint_async: bool = True
    """Write checkpoints while training goes on, from a copy in the host's memory: 12 bytes a trained parameter over all
    ranks (6 with `optimizer.states: int8`). False: stop and write, without the copy. The last one is always so."""

    resume: Literal["auto", "never"] = "auto"
    """`auto`: go on from the latest whole checkpoint in `output_dir`, if there is one."""

    stop_after: PositiveInt | None = None
    """Save and stop after this many steps of the run, to be resumed later; the schedule stays that of the whole run."""

    log_every: PositiveInt = 1
    """Steps between printed lines; `metrics.jsonl` has every step."""

    export_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the weights in `final/` are rounded to; float32 keeps them as they were trained."""

    evaluation: EvaluationConfig = EvaluationConfig()

    samples: SamplesConfig = SamplesConfig()

    log: LogConfig = LogConfig()

    @field_validator("freeze")
    @classmethod
    def _are_regexes(cls, patterns: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if patterns is None else _checked_regexes(patterns)

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
        if self.freeze is not None:
            return self.freeze
        return FROZEN_BY_PHASE[1 if self.lora is not None else self.phase]

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
    settings["lora"] = config.lora is not None  # else a run with adapters would differ from one without in no name
    free = FREE_TO_CHANGE if config.evaluation.patience is None else FREE_TO_CHANGE - DECIDE_THE_END
    return {name: value for name, value in settings.items() if name not in free}


def _flatten(values: dict[str, object], prefix: str = "") -> Iterable[tuple[str, object]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
