"""What a training config accepts, and what it says of what it does not."""

from pathlib import Path

import pytest

from configs import ConfigError, load, shipped
from trainer.config import FREE_TO_CHANGE, TrainConfig, fixed_settings

BASE = """\
phase: 1
model: start
output_dir: out
global_batch_size: 8
max_tokens: 128
epochs: 1
optimizer:
  peak_lr: 1e-3
"""


def load_text(tmp_path, text, *overrides):
    path = tmp_path / "train.yaml"
    path.write_text(text, encoding="utf-8")
    return load(TrainConfig, path, overrides)


@pytest.mark.parametrize("name", shipped("train"))
def test_every_shipped_config_loads(name):
    config = load(TrainConfig, name)
    assert config.phase == int(name.removeprefix("phase")[0])


def test_the_shipped_configs_are_the_four_promised():
    assert shipped("train") == ["phase1_7b", "phase1_tiny", "phase2_7b", "phase2_tiny"]


@pytest.mark.parametrize(("name", "peak_lr", "samples"), [("phase1_7b", 1e-3, 256), ("phase2_7b", 2e-5, 128)])
def test_the_7b_configs_are_llavas_recipe(name, peak_lr, samples):
    config = load(TrainConfig, name)
    assert (config.optimizer.peak_lr, config.global_batch_size, config.epochs) == (peak_lr, samples, 1)
    assert (config.optimizer.warmup_ratio, config.optimizer.weight_decay) == (0.03, 0.0)
    assert (config.optimizer.max_grad_norm, config.dtype, config.max_steps) == (1.0, "bfloat16", None)


def test_phase_1_trains_the_projector_and_phase_2_the_language_model_too(tmp_path):
    assert load_text(tmp_path, BASE).frozen_patterns == (r"vision\.", r"language\.")
    assert load_text(tmp_path, BASE, "phase=2").frozen_patterns == (r"vision\.",)
    assert load_text(tmp_path, BASE, "freeze=[]").frozen_patterns == ()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optimizer.warmup_ration=0.1", "optimizer.warmup_ration: unknown key, did you mean warmup_ratio?"),
        ("freeze=['(']", r"'\(' is not a regular expression"),
        ("global_batch_tokens=100", "exactly one of global_batch_size and global_batch_tokens; both are given"),
        ("epochs=null", "exactly one of epochs and max_steps; neither is given"),
        ("pad_to_multiple=48", "max_tokens 128 is not a multiple of pad_to_multiple 48"),
        ("dtype=float8", "dtype: expected 'float32' or 'bfloat16'"),
        ("data.packing=bins", "data.packing: expected 'packed' or 'none'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, override, message):
    with pytest.raises(ConfigError, match=message):
        load_text(tmp_path, BASE, override)


def test_the_workspace_says_where_data_lies_unless_the_config_does(tmp_path):
    filled = load_text(tmp_path, BASE).with_workspace(Path("root"))
    assert (filled.data.shards, filled.data.image_dir) == (Path("root/h5/phase1"), Path("root"))
    own = load_text(tmp_path, BASE, "data.shards=here", "data.image_dir=there").with_workspace(Path("root"))
    assert (own.data.shards, own.data.image_dir) == (Path("here"), Path("there"))


def test_what_decides_learning_is_fixed_and_the_rest_is_free(tmp_path):
    fixed = fixed_settings(load_text(tmp_path, BASE))
    assert {"phase", "seed", "freeze", "dtype", "optimizer.peak_lr", "global_batch_size", "epochs"} <= fixed.keys()
    assert not fixed.keys() & FREE_TO_CHANGE


def test_every_free_setting_exists(tmp_path):
    config = load_text(tmp_path, BASE)
    names = {*TrainConfig.model_fields, *(f"data.{name}" for name in type(config.data).model_fields)}
    assert names >= FREE_TO_CHANGE


def test_the_default_freeze_written_out_is_the_same_setting(tmp_path):
    written_out = load_text(tmp_path, BASE, r"freeze=['vision\.', 'language\.']")
    assert fixed_settings(written_out) == fixed_settings(load_text(tmp_path, BASE))
