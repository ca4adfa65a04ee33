"""A checkpoint folder: what is saved is loaded to the bit, and what is not whole is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from trainer.model import (
    FolderConflict,
    FolderError,
    LlavaConfig,
    load_layout,
    load_model,
    parameter_shapes,
    save_model,
)
from trainer.model.folder import whole_folder


@pytest.fixture
def saved(tmp_path, make_model, tiny_tokenizer_dir) -> Path:
    model = make_model()
    folder = tmp_path / "checkpoint"
    save_model(folder, model.state_dict(), model.config, tiny_tokenizer_dir, {"phase": 2, "num_patches": 9})
    return folder


def test_a_saved_model_loads_to_the_bit(saved, make_model, tiny_tokenizer_dir):
    expected = make_model()
    model, config = load_model(saved)
    assert config == expected.config
    assert all(torch.equal(tensor, expected.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert load_layout(saved) == {"phase": 2, "num_patches": 9}
    for file in tiny_tokenizer_dir.iterdir():
        assert (saved / "tokenizer" / file.name).read_bytes() == file.read_bytes()
    assert [path.name for path in saved.parent.iterdir()] == ["checkpoint"]


def test_a_tied_model_has_no_output_layer_of_its_own(tmp_path, make_model, tiny_tokenizer_dir):
    model = make_model(tie_embeddings=True)
    save_model(tmp_path / "tied", model.state_dict(), model.config, tiny_tokenizer_dir)
    assert "language.lm_head.weight" not in load_file(tmp_path / "tied/model.safetensors")
    assert load_layout(tmp_path / "tied") is None
    assert load_model(tmp_path / "tied")[0].language.lm_head is None


def test_weights_are_loaded_in_the_dtype_asked_for(saved):
    model, _ = load_model(saved, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_sharded_weights_load_like_one_file(saved):
    expected = load_model(saved)[0].state_dict()
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    parts = {"model-00001-of-00002.safetensors": {}, "model-00002-of-00002.safetensors": {}}
    for i, name in enumerate(sorted(tensors)):
        parts[list(parts)[i % 2]][name] = tensors[name]
    for file, part in parts.items():
        save_file(part, saved / file)
    weight_map = {name: file for file, part in parts.items() for name in part}
    (saved / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in load_model(saved)[0].state_dict().items())
    (saved / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FolderError, match="model-00002-of-00002.safetensors"):
        load_model(saved)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer/tokenizer.json"])
def test_an_incomplete_folder_is_refused_with_what_is_missing(saved, missing):
    (saved / missing).unlink()
    with pytest.raises(FolderError, match=f"incomplete: .*{Path(missing).name}"):
        load_model(saved)


def test_a_file_that_is_cut_short_is_refused(saved):
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FolderError, match="model.safetensors is not a whole safetensors file"):
        load_model(saved)


def test_all_missing_tensors_are_named_in_one_error(saved):
    tensors = load_file(saved / "model.safetensors")
    del tensors["projector.up.bias"], tensors["language.norm.weight"]
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(FolderError, match="2 tensors are missing: language.norm.weight, projector.up.bias"):
        load_model(saved)


def test_all_unknown_tensors_are_named_in_one_error(saved):
    tensors = load_file(saved / "model.safetensors")
    save_file(tensors | {"b": torch.ones(1), "a": torch.ones(1)}, saved / "model.safetensors")
    with pytest.raises(FolderError, match="2 tensors are unknown: a, b"):
        load_model(saved)


def test_a_tensor_of_another_shape_is_refused(saved):
    tensors = load_file(saved / "model.safetensors")
    tensors["projector.up.bias"] = torch.ones(5)
    save_file(tensors, saved / "model.safetensors")
    with pytest.raises(FolderError, match=r"projector.up.bias \(5,\), expected \(32,\)"):
        load_model(saved)


def test_an_unknown_setting_in_the_config_is_refused(saved):
    config = json.loads((saved / "config.json").read_text())
    config["vision"]["num_layer"] = 3
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(FolderError, match="config.json: vision.num_layer: Extra inputs are not permitted"):
        load_model(saved)


def test_a_folder_that_holds_something_is_not_overwritten(saved, make_model, tiny_tokenizer_dir):
    model = make_model()
    before = (saved / "model.safetensors").read_bytes()
    with pytest.raises(FolderConflict, match="already exists"):
        save_model(saved, model.state_dict(), model.config, tiny_tokenizer_dir)
    assert (saved / "model.safetensors").read_bytes() == before


def test_an_error_while_writing_leaves_nothing(tmp_path, make_model):
    model = make_model()
    with pytest.raises(FileNotFoundError):
        save_model(tmp_path / "new", model.state_dict(), model.config, tmp_path / "no-such-tokenizer")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_folder_may_be_filled(tmp_path):
    (tmp_path / "empty").mkdir()
    with whole_folder(tmp_path / "empty") as folder:
        (folder / "file").write_text("whole")
    assert (tmp_path / "empty/file").read_text() == "whole"
    shutil.rmtree(tmp_path / "empty")


def test_the_config_survives_json(tmp_path, make_model):
    config = make_model(num_kv_heads=2, rope_theta=1e6).config
    config.to_json(tmp_path / "config.json")
    assert LlavaConfig.from_json(tmp_path / "config.json") == config


def test_shapes_are_known_without_weights(make_model):
    model = make_model(kind="linear")
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert parameter_shapes(model.config) == expected
    assert "projector.down.weight" not in expected


def test_a_config_that_is_no_text_is_refused(saved):
    (saved / "config.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(FolderError, match="config.json is not UTF-8: invalid start byte at byte 0"):
        load_model(saved)


@pytest.mark.parametrize("content", ["[]", "{", "3"])
def test_a_fingerprint_that_is_no_table_is_refused(saved, content):
    (saved / "data.json").write_text(content)
    with pytest.raises(FolderError, match="data.json"):
        load_layout(saved)
