"""The dtype that is asked for, in every format; nothing becomes infinite."""

import json

import pytest
import torch
from safetensors.torch import save_file

from converters.formats import FORMATS

WRITTEN = [name for name in FORMATS if name not in ("peft", "trainer")]


@pytest.mark.parametrize("target", WRITTEN)
def test_every_format_is_written_in_the_dtype_asked_for(run, make_checkpoint, tensors_of, tmp_path, target):
    checkpoint = make_checkpoint()
    result = run("trainer", target, checkpoint, tmp_path / "out", "--dtype", "bfloat16")
    assert (result.exit_code, "note: weights are rounded from float32 to bfloat16" in result.stderr) == (0, True)
    base = ["--base", checkpoint] if target == "llava-projector" else []
    assert run(target, "trainer", tmp_path / "out", tmp_path / "back", *base).exit_code == 0
    before, after = tensors_of(checkpoint), tensors_of(tmp_path / "back")
    own = [name for name in before if name.startswith("projector.") or not base]
    assert len(own) > 3
    for name in own:
        assert torch.equal(after[name], before[name].bfloat16()), name


def test_a_wider_dtype_changes_no_value(run, make_checkpoint, tensors_of, tmp_path):
    checkpoint = make_checkpoint(dtype=torch.bfloat16)
    result = run("trainer", "hf", checkpoint, tmp_path / "hf", "--dtype", "float32")
    assert (result.exit_code, "rounded" in result.stderr) == (0, False)
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["dtype"] == "float32"
    assert run("hf", "trainer", tmp_path / "hf", tmp_path / "back", "--dtype", "bfloat16").exit_code == 0
    before, after = tensors_of(checkpoint), tensors_of(tmp_path / "back")
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_what_float16_cannot_hold_is_refused(run, make_checkpoint, tensors_of, tmp_path):
    checkpoint = make_checkpoint()
    tensors = tensors_of(checkpoint)
    tensors["language.norm.weight"][3] = 70_000
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    result = run("trainer", "hf", checkpoint, tmp_path / "hf", "--dtype", "float16")
    assert result.exit_code == 5
    assert "language.norm.weight: 7e+04 does not fit into float16, which ends at 6.55e+04" in result.stderr
    assert not (tmp_path / "hf").exists()
    assert run("trainer", "hf", checkpoint, tmp_path / "hf", "--dtype", "bfloat16").exit_code == 0


def test_one_file_is_not_cut(run, make_checkpoint, tmp_path):
    result = run("trainer", "cerebras", make_checkpoint(), tmp_path / "zoo", "--shard-size", "1MB")
    assert (result.exit_code, "the weights of cerebras are one file" in result.stderr) == (2, True)
