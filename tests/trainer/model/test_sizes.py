"""Sizes that do not fit together, fresh weights, and shapes that the signatures promise."""

import importlib
import sys

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook
from pydantic import ValidationError

import trainer.attention
import trainer.model
from trainer.model import LanguageConfig, VisionConfig, initialise

VISION = {
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_layers": 3,
    "num_heads": 2,
    "image_size": 12,
    "patch_size": 4,
}
LANGUAGE = {"vocab_size": 9, "hidden_size": 32, "intermediate_size": 48, "num_layers": 1, "num_heads": 4}
LANGUAGE |= {"num_kv_heads": 2, "head_dim": 8, "max_position_embeddings": 9}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_heads": 5}, "hidden_size 24 is not a multiple of num_heads 5"),
        ({"patch_size": 13}, "patch_size 13 is larger than image_size 12"),
        ({"select_layer": -5}, "select_layer -5 is outside a tower of 3 layers"),
        ({"select_layer": 4}, "select_layer 4 is outside"),
        ({"hidden_act": "relu"}, "quick_gelu"),
    ],
)
def test_a_tower_that_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        VisionConfig(**(VISION | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"), ({"head_dim": 7}, "head_dim 7 is odd")],
)
def test_a_decoder_that_does_not_fit_together_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        LanguageConfig(**(LANGUAGE | change))


def test_a_clip_l_336_tower_gives_576_patches_from_its_last_but_one_layer():
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_layers": 24, "num_heads": 16}
    tower = VisionConfig(**sizes, image_size=336, patch_size=14)
    assert (tower.num_patches, tower.num_layers_run) == (576, 23)


def test_fresh_weights_depend_on_the_seed_alone(make_model):
    first, again, other = make_model(seed=1), make_model(seed=1), make_model(seed=2)
    initialise(first, 5)
    initialise(again, 5)
    initialise(other, 6)
    assert all(torch.equal(x, y) for x, y in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.projector.up.weight, other.projector.up.weight)
    assert first.language.norm.weight.eq(1).all()
    assert first.language.embed.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert first.projector.up.weight.abs().max().item() == pytest.approx(24**-0.5, rel=0.05)
    assert all(parameter.abs().sum() > 0 for name, parameter in first.named_parameters() if name.endswith("weight"))


@pytest.fixture
def checked_model():
    """`trainer.model` imported anew with every shape in a signature checked at each call."""
    parts = ("trainer.model", "trainer.attention")
    ours = {name: module for name, module in sys.modules.items() if name.startswith(parts)}
    for name in ours:
        del sys.modules[name]
    try:
        with install_import_hook(parts, "beartype.beartype"):
            yield importlib.import_module("trainer.model")
    finally:
        for name in [n for n in sys.modules if n.startswith(parts)]:
            del sys.modules[name]
        sys.modules.update(ours)
        trainer.model, trainer.attention = (ours[name] for name in parts)


@pytest.mark.parametrize("num_images", [0, 2])
def test_every_shape_is_what_its_signature_says(checked_model, num_images):
    model = checked_model.LlavaModel(checked_config(checked_model))
    batch = checked_batch(checked_model, num_images)
    assert model(batch).shape == (30, 9)
    assert model(batch, torch.tensor([1, 2])).shape == (2, 9)


def test_a_wrong_shape_or_dtype_is_refused_in_tests(checked_model):
    with pytest.raises(TypeCheckError, match="positions"):
        checked_batch(checked_model, 1, positions=torch.arange(29))
    model = checked_model.LlavaModel(checked_config(checked_model))
    with pytest.raises(TypeCheckError, match="pixels"):
        model.normalise(torch.zeros(1, 3, 12, 12))


def checked_config(package):
    vision, language = package.VisionConfig(**VISION), package.LanguageConfig(**LANGUAGE)
    means = {"image_mean": (0.5, 0.5, 0.5), "image_std": (0.5, 0.5, 0.5)}
    return package.LlavaConfig(vision=vision, language=language, **means)


def checked_batch(package, num_images, **changes):
    segments = sys.modules["trainer.attention"].Segments(torch.tensor([0, 30], dtype=torch.int32), 30)
    values = {"input_ids": torch.arange(30) % 9, "positions": torch.arange(30), "segments": segments}
    values |= {"image_slots": torch.arange(9 * num_images) + 1}
    values |= {"pixels": torch.zeros(num_images, 3, 12, 12, dtype=torch.uint8)}
    return package.ModelInput(**(values | changes))
