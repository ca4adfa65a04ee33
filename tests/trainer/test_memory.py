"""The arithmetic of what lies on a GPU before the first token."""

import pytest
import torch

from configs import load
from tests.trainer.tiny_run import TINY
from trainer.checkpoint import Checkpoints
from trainer.config import TrainConfig
from trainer.distributed import open_world
from trainer.loop import Trainer, make_plan
from trainer.memory import SHIPPED, fixed_bytes
from trainer.model import parameter_shapes

GB = 1e9


def needed(name, *changes):
    return fixed_bytes(SHIPPED["13b" if "13b" in name else "7b"], load(TrainConfig, name, changes))


def test_the_models_are_llavas():
    counts = [sum(torch.Size(shape).numel() for shape in parameter_shapes(SHIPPED[size]).values()) for size in SHIPPED]
    # liuhaotian/llava-v1.5-7b and -13b: 7.06 and 13.35 billion with the tower.
    assert [round(count / 1e9, 2) for count in counts] == [7.06, 13.35]


def test_full_phase_2_takes_16_bytes_a_trained_parameter():
    found = needed("phase2_7b")
    assert found.gradients * 2 == found.states
    num_trained = found.gradients / 4
    assert num_trained == pytest.approx(6.76e9, rel=1e-3)
    assert found.weights + found.gradients + found.states == pytest.approx(16 * num_trained + 4 * 0.3e9, rel=2e-3)


def test_lora_with_4_bits_fits_24_gb_and_full_training_or_a_base_of_16_bits_with_its_activations_does_not():
    assert needed("phase2_7b_qlora").total < 10 * GB
    # Layer inputs of 4,096 tokens in bf16, and twice the largest layer's own activations: below 4 GB.
    assert needed("phase2_7b_qlora").total + 4 * GB + 1 * GB < 24 * GB
    assert needed("phase2_7b_lora").total > 20 * GB
    assert needed("phase2_7b", "optimizer.states=int8").total > 48 * GB


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("phase1_7b", 29.9), ("phase2_7b", 110.7), ("phase2_7b_lora", 22.1), ("phase2_7b_qlora", 9.6),
        ("phase1_13b", 55.8), ("phase2_13b", 212.0), ("phase2_13b_lora", 38.5),
    ],
)  # fmt: skip
def test_the_table_of_the_readme(name, total):
    assert round(needed(name).total / GB, 1) == total


def numel_bytes(tensor):
    """Bytes of a tensor, those inside a packed one counted by its parts; torchao's lookup tables are not counted."""
    if hasattr(tensor, "codes"):
        return tensor.codes.numel() + tensor.scale.numel() * 4
    if hasattr(tensor, "quantized_data"):
        parts = (tensor.quantized_data, tensor.quantized_scalers, tensor.quantization_factor)
        return sum(part.numel() * part.element_size() for part in parts)
    return tensor.numel() * tensor.element_size()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora": {"rank": 4, "base": "bfloat16"}},
        {"optimizer": {"states": "int8"}},
        {"lora": {"rank": 4, "base": "nf4"}, "optimizer": {"states": "int8"}},
    ],
)
def test_the_arithmetic_is_what_a_trainer_holds(workplace, tmp_path, changes):
    if "nf4" in str(changes) or "int8" in str(changes):
        pytest.importorskip("torchao", reason="torchao is not installed")
    config = workplace.config(tmp_path, **changes)
    with open_world(torch.device("cpu")) as world:
        trainer = Trainer(make_plan(config, world.device), world, Checkpoints(tmp_path, 1, world))
        from torch.distributed.checkpoint.state_dict import get_state_dict

        get_state_dict(trainer.model, trainer.optimizer)  # brings the optimizer's states about
        expected = fixed_bytes(TINY, config)
        parameters = list(trainer.model.parameters())
        packed = [layer.packed for layer in trainer.model.modules() if getattr(layer, "packed", None) is not None]
        weights = sum(numel_bytes(tensor) for tensor in [*parameters, *packed])
        # The factors of scales are fp32 here, where the run computes in fp32, and bf16 in a run as it is meant.
        assert expected.weights == weights - 2 * sum(tensor.quantization_factor.numel() for tensor in packed)
        assert expected.gradients == sum(numel_bytes(p) for p in parameters if p.requires_grad)
        states = [s for state in trainer.optimizer.state.values() for key, s in state.items() if key != "step"]
        assert states and expected.states == sum(numel_bytes(state) for state in states)
    assert expected.gathered == 0
