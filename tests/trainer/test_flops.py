"""What a step costs: by hand for one matrix, by torch's own counter for a whole tiny model, by LLaVA's sizes for 7B."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from configs import load
from tests.trainer.tiny_run import TINY
from trainer.batches import Step, StepDataset
from trainer.config import LoraConfig, TrainConfig
from trainer.flops import ModelFlops, model_flops, peak_flops
from trainer.lora import apply_lora, initialise_adapters
from trainer.loss import loss_sum
from trainer.model import LanguageConfig, LlavaConfig, LlavaModel, VisionConfig
from trainer.optimizer import freeze
from trainer.packing import SampleOrder

LLAVA_7B = LlavaConfig(
    vision=VisionConfig(
        hidden_size=1024, intermediate_size=4096, num_layers=24, num_heads=16, image_size=336, patch_size=14
    ),
    language=LanguageConfig(
        vocab_size=32000, hidden_size=4096, intermediate_size=11008, num_layers=32, num_heads=32, num_kv_heads=32,
        head_dim=128, max_position_embeddings=4096,
    ),
    image_mean=(0.5, 0.5, 0.5),
    image_std=(0.3, 0.3, 0.3),
)  # fmt: skip


def flops_of_7b(name: str) -> ModelFlops:
    with torch.device("meta"):
        model = LlavaModel(LLAVA_7B)
    freeze(model, load(TrainConfig, name).frozen_patterns)
    return model_flops(model)


def test_phase_1_of_7b_costs_4n_a_token_and_the_tower_once():
    flops = flops_of_7b("phase1_7b")
    assert flops.per_token == pytest.approx(4 * 6.476e9, rel=1e-4)
    assert flops.per_trained_token == 4 * 32000 * 4096
    # 366 GFLOP forward, no backward; the projector's first layer without the gradient of its input.
    assert flops.per_picture == pytest.approx(366e9 + 576 * (4 * 1024 * 4096 + 6 * 4096 * 4096), rel=2e-3)


def test_phase_2_of_7b_costs_6n_a_token():
    flops = flops_of_7b("phase2_7b")
    assert flops.per_token == pytest.approx(6 * 6.476e9, rel=1e-4)
    assert flops.per_trained_token == 6 * 32000 * 4096
    assert flops.per_picture == flops_of_7b("phase1_7b").per_picture
    # Queries and keys, then scores and values: 2 x 2 operations, and twice that backward.
    assert flops.per_pair == 3 * 4 * 4096 * 32


@pytest.mark.parametrize(
    ("frozen", "lora"),
    [
        ([r"vision\.", r"language\."], None),
        ([r"vision\."], None),
        ([], None),
        ([r"vision\.", r"projector\.", r"language\.(?!lm_head)"], None),
        ([r"vision\.", r"projector\.", r"language\.(?!norm)"], None),
        ([r"vision\.", r"projector\.", r"language\.(?!layers\.1\.mlp_norm)"], None),
        ([r"vision\.", r"projector\.", r"language\.(?!layers\.0\.attention_norm)"], None),
        ([r"vision\.", r"projector\.", r"language\.(?!layers\.1\.attention\.[qo])"], None),
        ([r"vision\.(?!layers\.0\.mlp)", r"projector\.", r"language\."], None),
        ([r"vision\.", r"language\."], LoraConfig(rank=2, dropout=0.0)),
        ([r"vision\.", r"projector\.", r"language\."], LoraConfig(rank=2, dropout=0.0)),
    ],
)
def test_the_count_is_torchs_own(workplace, frozen, lora):
    """torch's counter sees every product that is run, and the reference backend's squares of scores where ours counts
    causal pairs; so both are compared without attention.
    """
    model = LlavaModel(TINY)
    if lora is not None:
        apply_lora(model, lora, seed=0)
        initialise_adapters(model, 0)
    freeze(model, frozen)
    flops = model_flops(model)
    order = SampleOrder(workplace.reader.lengths, seed=0, samples_per_step=23)
    step = StepDataset(workplace.reader, order, workplace.root / "images", max_tokens=4000)[0]
    batch = step.micro_batches[0].to(torch.device("cpu"))
    counter = FlopCounterMode(display=False)
    with counter:
        loss_sum(model(batch.inputs, batch.loss_positions), batch.labels).backward()
    by_operation = counter.get_flop_counts()["Global"]
    products = sum(count for operation, count in by_operation.items() if "attention" not in str(operation))
    attention_free = replace(flops, per_pair=0.0, per_picture=flops.per_picture - tower_attention(model))
    ours = attention_free.of(step)
    assert ours == products


def tower_attention(model: LlavaModel) -> float:
    # 5 tokens a picture, 16 wide, one layer that is run.
    return 4.0 * 5**2 * 16 * (3 if any(p.requires_grad for p in model.vision.parameters()) else 1)


def test_pairs_and_pictures_of_a_step_are_counted_by_the_sample(workplace):
    reader = workplace.reader
    step = StepDataset(reader, SampleOrder(reader.lengths, 0, samples_per_step=23), workplace.root / "images", 64)[0]
    pairs = sum(int(np.tril(np.ones((length, length))).sum()) for length in reader.lengths)
    assert step.num_attention_pairs == pairs
    assert step.num_pictures == sum(number % 3 != 0 for number in range(23))


def test_a_step_costs_the_sum_of_its_parts():
    step = Step(
        number=0, epoch=0, micro_batches=(), num_samples=1, num_loss_tokens=5, num_useful_tokens=3,
        num_computed_tokens=99, num_pictures=7, num_attention_pairs=11,
    )  # fmt: skip
    flops = ModelFlops(per_token=1, per_pair=100, per_trained_token=10_000, per_picture=1_000_000)
    assert flops.of(step) == 3 + 1_100 + 50_000 + 7_000_000


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10G", 70e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_a_gpu_is_known_by_its_name(name, peak):
    assert peak_flops(name) == peak
