"""What is trained, and how fast."""

import math

import pytest
import torch

from tests.trainer.tiny_run import TINY
from trainer.config import FROZEN_BY_PHASE, OptimizerConfig
from trainer.errors import TrainError
from trainer.model import LlavaModel
from trainer.optimizer import build_optimizer, clip_gradients, freeze, lr_factor, set_learning_rates


@pytest.fixture
def model():
    with torch.device("meta"):
        return LlavaModel(TINY)


def trained_parts(model):
    return {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("phase", "parts"), [(1, {"projector"}), (2, {"projector", "language"})])
def test_a_phase_trains_its_parts(model, phase, parts):
    freeze(model, FROZEN_BY_PHASE[phase])
    assert trained_parts(model) == parts


def test_layers_of_the_tower_that_are_not_run_are_never_trained(model):
    freeze(model, ())
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == {n for n, _ in model.named_parameters() if n.startswith(("vision.layers.1.", "vision.post_norm."))}
    assert frozen


def test_a_pattern_must_match_from_the_start_of_a_name(model):
    freeze(model, [r"language\.layers\.0\.attention\."])
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad and name.startswith("language")}
    assert frozen == {f"language.layers.0.attention.{projection}.weight" for projection in "qkvo"}
    with pytest.raises(TrainError, match="'layers' matches no parameter; the names look like vision"):
        freeze(model, ["layers"])


def test_freezing_everything_is_an_error(model):
    with pytest.raises(TrainError, match="nothing to train"):
        freeze(model, [".*"])


def test_the_projector_may_have_its_own_peak():
    model = LlavaModel(TINY)
    freeze(model, FROZEN_BY_PHASE[2])
    optimizer = build_optimizer(model.named_parameters(), OptimizerConfig(peak_lr=1e-3, projector_peak_lr=1e-2))
    assert set_learning_rates(optimizer, 0.5) == 0.5e-2
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.projector.up.weight)] == 0.5e-2
    assert rates[id(model.language.embed.weight)] == 0.5e-3
    assert len(rates) == sum(p.requires_grad for p in model.parameters())


def test_the_rate_rises_to_its_peak_and_falls_to_nothing():
    factors = [lr_factor(step, 100, 0.03) for step in range(100)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(a > b for a, b in zip(factors[3:], factors[4:], strict=False))
    assert 0 < factors[-1] < 1e-3
    assert factors[3 + 97 // 2] == pytest.approx(0.5, abs=0.01)


def test_the_cosine_is_hugging_faces_behind_the_warm_up():
    from transformers import get_cosine_schedule_with_warmup

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_cosine_schedule_with_warmup(optimizer, 3, 100)
    for step in range(100):
        if step >= 3:
            assert lr_factor(step, 100, 0.03) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_a_warm_up_of_a_broken_number_of_steps_is_rounded_up():
    # 3 % of 37 steps are 1.11: two steps of warm-up, then 35 of cosine.
    assert [lr_factor(step, 37, 0.03) for step in range(3)] == [1 / 3, 2 / 3, 1.0]
    assert lr_factor(20, 37, 0.03) == pytest.approx(0.5 * (1 + math.cos(math.pi * 18 / 35)), abs=1e-12)


def test_the_optimizer_gets_every_setting_of_the_config(model):
    freeze(model, FROZEN_BY_PHASE[2])
    settings = {"beta1": 0.83, "beta2": 0.971, "eps": 3e-7, "weight_decay": 0.017}
    optimizer = build_optimizer(
        model.named_parameters(), OptimizerConfig(peak_lr=3e-4, projector_peak_lr=7e-4, **settings)
    )
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.83, 0.971), 3e-7, 0.017)
    assert [group["peak_lr"] for group in optimizer.param_groups] == [7e-4, 3e-4]


def test_no_warm_up_starts_at_the_peak():
    assert lr_factor(0, 10, 0.0) == 1.0


def test_clipping_returns_the_norm_before_and_leaves_at_most_the_limit():
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parameters[0].grad = torch.tensor([3.0, 0.0])
    parameters[1].grad = torch.tensor([0.0, 4.0])
    assert clip_gradients([*parameters, torch.nn.Parameter(torch.zeros(1))], 1.0) == pytest.approx(5.0)
    assert torch.cat([p.grad for p in parameters]).norm() == pytest.approx(1.0, abs=1e-5)
