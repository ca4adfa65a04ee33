"""What a training step costs in floating-point operations, and what a GPU could do at most.

Model FLOPs, as MFU counts them: the arithmetic that the samples ask for, whatever the program spends besides. Counted
are matrix products alone, a multiplication and an addition as two operations:

* a weight of n numbers: 2n a vector forward; 2n more where the weight is trained (its gradient), and 2n more where
  something before it is trained (the gradient of its input). So a trained decoder costs 6N a token, a frozen one behind
  a trained projector 4N, and a frozen tower 2N.
* decoder attention: a token reads itself and what stands before it in its own sample, 4 operations a pair and dimension
  of the queries; backward twice that, where gradients pass.
* tower attention: the same over all pairs of a picture's tokens.
* the output layer: at trained tokens only, as the trainer runs it.

Not counted, as nobody asked for them: padding, dummy pictures, activations computed a second time
(`activation_checkpointing`), and all that is no matrix product. LLaVA-1.5 7B: 27 GFLOP a token in phase 1 (samples of
599 tokens), 40 in phase 2 (837).
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from trainer.batches import Step
from trainer.model import LlavaConfig, LlavaModel, parameter_shapes

#: Dense bfloat16 FLOP/s of one GPU as its maker states them (data sheets of NVIDIA and AMD, without sparsity), by a
#: part of the name that `torch.cuda.get_device_name` gives; the first that fits counts.
PEAK_FLOPS = (
    ("B200", 2250e12),
    ("GH200", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800", 989e12),
    ("H20", 148e12),
    ("A100", 312e12),
    ("A800", 312e12),
    ("A40", 149.7e12),
    ("A30", 165e12),
    ("A10G", 70e12),
    ("A10", 125e12),
    ("RTX A6000", 154.8e12),
    ("L40S", 362e12),
    ("L40", 181e12),
    ("L4", 121e12),
    ("RTX 6000 Ada", 364.2e12),
    ("RTX 4090", 165.2e12),
    ("RTX 3090", 71.2e12),
    ("MI300X", 1307.4e12),
)


def peak_flops(device_name: str) -> float | None:
    """Return the dense bfloat16 FLOP/s of a GPU by its name; None where the table does not know it."""
    return next((peak for part, peak in PEAK_FLOPS if re.search(rf"\b{re.escape(part)}\b", device_name)), None)


@dataclass(frozen=True, slots=True)
class ModelFlops:
    """Operations of forward and backward together."""

    per_token: float
    """Of the decoder's layers, without attention."""
    per_pair: float
    """Of the decoder's attention: for a token and one that it reads, itself included."""
    per_trained_token: float
    """Of the output layer."""
    per_picture: float
    """Of tower and projector."""

    def of(self, data: Step) -> float:
        """Return the operations of one optimizer step, over all ranks."""
        return (
            self.per_token * data.num_useful_tokens
            + self.per_pair * data.num_attention_pairs
            + self.per_trained_token * data.num_loss_tokens
            + self.per_picture * data.num_pictures
        )


@dataclass(frozen=True, slots=True)
class _Weight:
    """A parameter, and where it stands on the way from the pixels to the loss."""

    stage: int
    vectors: str
    """What it is applied to: `picture` (and then to each of its vectors), `token`, `trained token`, or `nothing`."""
    trained: bool
    numbers: int
    """Times the vectors of a picture, for `picture`."""


def model_flops(model: LlavaModel) -> ModelFlops:
    """Count what a model costs as it is frozen now; parameters added to it (LoRA) count as what they are."""
    # Weights of 4 bits are no parameters, but multiplied like any other.
    parameters = {name: (shape, False) for name, shape in parameter_shapes(model.config).items()}
    parameters |= {name: (tuple(found.shape), found.requires_grad) for name, found in model.named_parameters()}
    weights = list(_weights(parameters, model.config))
    first = min((weight.stage for weight in weights if weight.trained), default=len(weights))
    costs: dict[str, float] = dict.fromkeys(("picture", "token", "trained token", "nothing"), 0.0)
    for weight in weights:
        costs[weight.vectors] += 2.0 * weight.numbers * (1 + weight.trained + (weight.stage > first))
    language, vision = model.config.language, model.config.vision
    pair = 4.0 * language.num_heads * language.head_dim * language.num_layers
    tower = 4.0 * vision.num_positions**2 * vision.hidden_size * vision.num_layers_run
    return ModelFlops(
        per_token=costs["token"],
        # The scores' gradients go to queries and keys, both functions of what a layer reads.
        per_pair=pair * (3 if first <= _LAST_LANGUAGE_STAGE else 1),
        per_trained_token=costs["trained token"],
        per_picture=costs["picture"] + tower * (3 if first < _PROJECTOR_STAGE else 1),
    )


#: Stages: the tower's patches, its layers, the projector's two, the decoder's table and layers, the output. A layer has
#: ten, by the order in which its parameters are applied.
_STAGES = {"attention_norm": 0, "norm1": 0, "q": 1, "k": 1, "v": 1, "q_norm": 2, "k_norm": 2, "o": 3}
_STAGES |= {"mlp_norm": 5, "norm2": 5, "gate": 6, "up": 6, "down": 8}
_STAGES_A_LAYER = 10
_PROJECTOR_STAGE = 10_000
_LANGUAGE_STAGE = 20_000
_LAST_LANGUAGE_STAGE = 30_000


def _weights(parameters: Mapping[str, tuple[tuple[int, ...], bool]], config: LlavaConfig) -> Iterator[_Weight]:
    """Yield the weights of parameters, whose shapes are given and whether they are trained."""
    vision, layer = config.vision, re.compile(r"(?:vision|language)\.layers\.(\d+)\.")
    patches = (vision.image_size // vision.patch_size) ** 2
    for name, (shape, trained) in parameters.items():
        numbers, matrix = math.prod(shape), len(shape) >= 2
        number = int(found.group(1)) if (found := layer.match(name)) else 0
        module, kind = name.split(".")[-2:]
        inside = number * _STAGES_A_LAYER + _STAGES.get(module, 0) + (kind == "lora_b")
        if name.startswith("vision.layers."):
            run = matrix and number < vision.num_layers_run
            yield _Weight(1 + inside, "picture" if run else "nothing", trained, numbers * vision.num_positions)
        elif name.startswith("vision."):
            convolution = name == "vision.patch_embedding.weight"
            yield _Weight(0, "picture" if convolution else "nothing", trained, numbers * patches)
        elif name.startswith("projector."):
            stage = _PROJECTOR_STAGE + 2 * (module == "down") + (kind == "lora_b")
            yield _Weight(stage, "picture" if matrix else "nothing", trained, numbers * vision.num_patches)
        elif name.startswith("language.layers."):
            yield _Weight(_LANGUAGE_STAGE + 1 + inside, "token" if matrix else "nothing", trained, numbers)
        elif name == "language.embed.weight":
            yield _Weight(_LANGUAGE_STAGE, "nothing", trained, numbers)  # looked up, not multiplied
            if config.language.tie_embeddings:
                yield _Weight(_LAST_LANGUAGE_STAGE + 1, "trained token", trained, numbers)
        else:
            stage = _LAST_LANGUAGE_STAGE + 1 + (module == "lm_head") + (kind == "lora_b")
            yield _Weight(stage, "trained token" if matrix else "nothing", trained, numbers)
