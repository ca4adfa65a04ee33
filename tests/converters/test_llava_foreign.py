"""Folders of the original LLaVA as others leave them: pickled, moved, without tower or tokenizer, or not ours."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from converters.formats import llava
from tests.converters.folders import same_folder, text_of


def as_bins(folder: Path, num_files: int) -> None:
    """Turn a folder's safetensors into torch's pickles, in shards with an index or in one file."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if num_files == 1:
        torch.save(tensors, folder / "pytorch_model.bin")
        return
    weight_map = {}
    for number in range(num_files):
        name = f"pytorch_model-{number + 1:05d}-of-{num_files:05d}.bin"
        part = {key: tensors[key] for key in list(tensors)[number::num_files]}
        torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def published(llava_folder: Path, edit_json, **changes) -> Path:
    """Make of an export what the original's own training leaves: no record of ours, settings of its training."""
    text = text_of(llava_folder)
    settings = {"llava_prep": None, "model_type": "llava", "mm_use_im_patch_token": False, "mm_resampler_type": None}
    settings |= {"tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False, "mm_projector_lr": None}
    edit_json(text / "config.json", **(settings | changes))
    return text


@pytest.mark.parametrize("num_files", [1, 3])
def test_pickled_weights_are_read_whole_and_in_shards(run, llava_folder, tensors_of, tmp_path, num_files):
    as_bins(text_of(llava_folder), num_files)
    as_bins(llava_folder / "image_model", 1)
    assert run("llava", "trainer", llava_folder, tmp_path / "back").exit_code == 0
    same_folder(tmp_path / "checkpoint", tmp_path / "back", tensors_of)


def test_the_decoders_folder_alone_is_read_with_the_tower_beside_it(run, llava_folder, tensors_of, tmp_path):
    assert run("llava", "trainer", text_of(llava_folder), tmp_path / "back").exit_code == 0
    same_folder(tmp_path / "checkpoint", tmp_path / "back", tensors_of)


def test_folders_that_were_moved_together_find_each_other(run, llava_folder, tensors_of, tmp_path):
    llava_folder.rename(tmp_path / "moved")
    assert run("llava", "trainer", tmp_path / "moved", tmp_path / "back").exit_code == 0
    same_folder(tmp_path / "checkpoint", tmp_path / "back", tensors_of)


def test_a_tower_on_the_hub_is_asked_for_and_taken_from_where_it_is_given(run, llava_folder, edit_json, tmp_path):
    text = published(llava_folder, edit_json, mm_vision_tower="openai/clip-vit-large-patch14-336")
    result = run("llava", "trainer", text, tmp_path / "back")
    assert (result.exit_code, "give the tower's with --vision" in result.stderr) == (5, True)
    assert "'openai/clip-vit-large-patch14-336', which is no folder here" in result.stderr
    assert run("llava", "trainer", text, tmp_path / "back", "--vision", llava_folder / "image_model").exit_code == 0


def test_a_tokenizer_json_that_the_original_does_not_save_is_taken_from_where_it_is_given(
    run, llava_folder, tensors_of, tmp_path
):
    (text_of(llava_folder) / "tokenizer.json").unlink()
    result = run("llava", "trainer", llava_folder, tmp_path / "back")
    assert (result.exit_code, "holds no tokenizer: give a folder" in result.stderr) == (5, True), result.stderr
    given = ["--tokenizer", tmp_path / "checkpoint/tokenizer"]
    assert run("llava", "trainer", llava_folder, tmp_path / "back", *given).exit_code == 0
    same_folder(tmp_path / "checkpoint", tmp_path / "back", tensors_of)


def with_own_tower(text: Path, change: float) -> dict[str, torch.Tensor]:
    """Put a tower into the checkpoint, its values another's than of the folder beside; return them."""
    tower = {name: tensor + change for name, tensor in load_file(text.parent / "image_model/model.safetensors").items()}
    own = {llava.TOWER.removesuffix("vision_model.") + name: tensor for name, tensor in tower.items()}
    save_file(load_file(text / "model.safetensors") | own, text / "model.safetensors", metadata={"format": "pt"})
    return tower


@pytest.mark.parametrize(("unfrozen", "has_weights", "change"), [(True, True, 1), (False, True, 0), (False, False, 1)])
def test_the_tower_is_taken_from_where_the_original_takes_it(
    run, llava_folder, edit_json, tensors_of, tmp_path, unfrozen, has_weights, change
):
    text = published(llava_folder, edit_json, unfreeze_mm_vision_tower=unfrozen)
    with_own_tower(text, 1.0)
    if not has_weights:
        (llava_folder / "image_model/model.safetensors").unlink()
    assert run("llava", "trainer", text, tmp_path / "back").exit_code == 0
    before, after = tensors_of(tmp_path / "checkpoint"), tensors_of(tmp_path / "back")
    assert torch.equal(after["vision.pre_norm.bias"], before["vision.pre_norm.bias"] + change)
    assert torch.equal(after["projector.up.bias"], before["projector.up.bias"])


@pytest.mark.parametrize(("ratio", "fit"), [("pad", "pad"), ("square", "crop"), (None, "crop")])
def test_how_pictures_are_fitted_is_taken_over(run, llava_folder, edit_json, tmp_path, ratio, fit):
    text = published(llava_folder, edit_json, image_aspect_ratio=ratio)
    assert run("llava", "trainer", text, tmp_path / "back").exit_code == 0
    assert json.loads((tmp_path / "back/data.json").read_text()) == {"image_fit": fit}


def test_a_changed_setting_counts_more_than_our_record(run, llava_folder, edit_json, tmp_path):
    edit_json(text_of(llava_folder) / "config.json", image_aspect_ratio="square")
    assert run("llava", "trainer", llava_folder, tmp_path / "back").exit_code == 0
    assert json.loads((tmp_path / "back/data.json").read_text())["image_fit"] == "crop"


@pytest.mark.parametrize(
    ("changes", "exit_code", "said"),
    [
        (
            {"model_type": "llava_mpt"},
            2,
            "model_type is 'llava_mpt'; supported is llava_llama or llava or llava_mistral",
        ),
        ({"image_aspect_ratio": "anyres"}, 2, "image_aspect_ratio is 'anyres', supported is 'pad' or 'square'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, 2, "mm_patch_merge_type is 'spatial_unpad', supported is 'flat'"),
        ({"mm_projector_type": "mlp3x_gelu"}, 2, "mm_projector_type is 'mlp3x_gelu', supported is 'linear' or 'mlp2x"),
        ({"mm_resampler_type": "perceiver"}, 2, "mm_resampler_type is 'perceiver', supported is null"),
        ({"mm_use_im_start_end": True, "s2": True}, 2, "mm_use_im_start_end is True, supported is False; s2 is True"),
        (
            {"mm_tiling": 3, "image_scale": 1},
            2,
            "config.json: image_scale is not known here; mm_tiling is not known here",
        ),
        ({"mm_hidden_size": 25}, 5, "mm_hidden_size is 25, but the tower in"),
        ({"mm_hidden_size": "24"}, 5, "mm_hidden_size: expected a number, found '24'"),
        ({"mm_vision_select_layer": None}, 5, "mm_vision_select_layer: expected a number, found None"),
        ({"mm_vision_select_layer": -9}, 2, "select_layer -9 is outside a tower of 3 layers"),
        ({"mm_vision_tower": None}, 5, "expected one folder of a LLaVA decoder, found none"),
        ({"mm_vision_tower": 3}, 5, "mm_vision_tower: expected a name, found 3"),
        ({"vocab_size": None}, 5, "vocab_size: expected a number, found None"),
        ({"vocab_size": 500}, 5, "tensors are of another shape than the config says"),
        ({"hidden_size": "wide"}, 5, "is not a decoder's config"),
        ({"hidden_act": "gelu"}, 2, "hidden_act is 'gelu'; supported is 'silu'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 2, "rotary positions of type 'dynamic'"),
        ({"llava_prep": 3}, 5, "llava_prep: expected a table, found 3"),
    ],
)
def test_what_is_not_ours_is_refused_by_name(run, llava_folder, edit_json, tmp_path, changes, exit_code, said):
    edit_json(text_of(llava_folder) / "config.json", **changes)
    result = run("llava", "trainer", llava_folder, tmp_path / "back")
    assert (result.exit_code, said in result.stderr) == (exit_code, True), result.stderr
    assert result.stderr.count("\n") == 1


def test_unknown_and_missing_tensors_are_all_in_one_error(run, llava_folder, rename_tensors, tmp_path):
    strays = {"model.mm_projector.0.bias": "model.mm_projector.4.bias", "model.norm.weight": "model.image_newline"}
    rename_tensors(text_of(llava_folder), lambda name: strays.get(name, name))
    result = run("llava", "trainer", llava_folder, tmp_path / "back")
    said = (
        "no rule for model.image_newline, model.mm_projector.4.bias; not found: language.norm.weight, projector.up.bias"
    )
    assert (result.exit_code, said in result.stderr) == (5, True), result.stderr


def test_a_folder_without_a_decoder_or_with_two_is_named(run, llava_folder, tmp_path):
    result = run("llava", "trainer", llava_folder / "image_model", tmp_path / "back")
    assert (result.exit_code, "expected one folder of a LLaVA decoder, found none" in result.stderr) == (5, True)
    shutil.copytree(text_of(llava_folder), llava_folder / "other-llava")
    result = run("llava", "trainer", llava_folder, tmp_path / "back")
    assert (result.exit_code, "found other-llava, text_model_llava" in result.stderr) == (5, True)


def test_info_knows_the_format_of_both_folders_and_of_the_decoders(run, llava_folder, edit_json, tmp_path):
    for folder in (llava_folder, text_of(llava_folder)):
        assert json.loads(run("info", folder, "--json").stdout)["format"] == "llava"
    published(llava_folder, edit_json)
    assert json.loads(run("info", text_of(llava_folder), "--json").stdout)["format"] == "llava"
    run("trainer", "hf", tmp_path / "checkpoint", tmp_path / "several/llava-hf")
    result = run("info", tmp_path / "several")
    assert (result.exit_code, "no model in a format that is known" in result.stderr) == (2, True)
