"""Shards that were not compiled for the model are refused, and both sides are named."""

import json
from dataclasses import replace

import numpy as np
import pytest

from dataprep.shards.fingerprint import tokenizer_fingerprint
from tests.trainer.tiny_run import TINY, tiny_layout
from trainer.errors import IntegrityError
from trainer.fingerprint import check_fingerprint

NAMES = ("tokenizer.json", "tokenizer_config.json")
LENGTHS = np.array([10, 40], dtype=np.int32)


@pytest.fixture
def model_folder(tmp_path, tiny_tokenizer_dir):
    (tmp_path / "tokenizer").symlink_to(tiny_tokenizer_dir)
    return tmp_path


def test_shards_that_fit_pass(model_folder, tiny_tokenizer_dir):
    for phase in (1, 2):
        check_fingerprint(tiny_layout(tiny_tokenizer_dir, phase), LENGTHS, TINY, model_folder, phase)


@pytest.mark.parametrize(
    ("change", "both"),
    [
        ({"phase": 1}, ("phase 1", "phase 2")),
        ({"tokenizer_fingerprint": "f" * 64}, ("ffffffffffff…", "tokenizer is ")),
        ({"vocab_size": 401}, ("401", "400")),
        ({"num_patches": 9, "hole_length": 10}, ("9", "4")),
        ({"max_seq_length": 6}, ("3 to 7", "a row of 6")),
        ({"image_start_idx": 1}, ("2 to 7", "1 to 5")),
        ({"image_start_idx": 4}, ("2 to 7", "4 to 8")),
        ({"hole_start": 4, "hole_length": 3}, ("4 to 7", "3 to 7")),
        ({"hole_length": 4}, ("2 to 6", "3 to 7")),
        ({"image_size": 42}, ("42", "28")),
        ({"image_mean": (0.5, 0.4, 0.31)}, ("(0.5, 0.4, 0.31)", "(0.5, 0.4, 0.3)")),
        ({"image_std": (0.2, 0.3, 0.2)}, ("(0.2, 0.3, 0.2)", "(0.2, 0.3, 0.25)")),
        ({"image_mean": (0.4, 0.4, 0.3)}, ("(0.4, 0.4, 0.3)", "(0.5, 0.4, 0.3)")),
        ({"image_mean": (0.5, 0.5, 0.3)}, ("(0.5, 0.5, 0.3)", "(0.5, 0.4, 0.3)")),
        ({"image_std": (0.3, 0.3, 0.25)}, ("(0.3, 0.3, 0.25)", "(0.2, 0.3, 0.25)")),
        ({"image_std": (0.2, 0.4, 0.25)}, ("(0.2, 0.4, 0.25)", "(0.2, 0.3, 0.25)")),
        ({"image_size": 14}, ("14", "28")),
        ({"num_patches": 3, "hole_length": 4}, ("compiled for 3", "model has 4")),
        ({"image_start_idx": 0}, ("2 to 7", "0 to 4")),
        ({"hole_length": 6}, ("2 to 8", "3 to 7")),
        ({"hole_start": -1, "hole_length": 8}, ("-1 to 7", "3 to 7")),
        ({"vocab_size": 32000}, ("32000", "400")),
        ({"template": "plain"}, ("plain", "phase 2")),
        ({"template": "plain_eos"}, ("plain_eos", "phase 2")),
        ({"bos_id": 7}, ("id 7", "tokenizer 1")),
        ({"bos_id": -1}, ("id -1", "tokenizer 1")),
        ({"eos_id": 3}, ("id 3", "tokenizer 2")),
        ({"pad_id": 400}, ("id 400", "embeds 400")),
    ],
)
def test_a_difference_is_refused_naming_both_values(model_folder, tiny_tokenizer_dir, change, both):
    layout = replace(tiny_layout(tiny_tokenizer_dir), **change)
    with pytest.raises(IntegrityError) as refused:
        check_fingerprint(layout, LENGTHS, TINY, model_folder, phase=2)
    (line,) = str(refused.value).splitlines()
    assert all(value in line for value in both)


def test_rows_longer_than_the_models_positions_are_refused(model_folder, tiny_tokenizer_dir):
    with pytest.raises(IntegrityError, match="longest row .* 65 tokens, the model was made for 64"):
        check_fingerprint(tiny_layout(tiny_tokenizer_dir), np.array([65], dtype=np.int32), TINY, model_folder, 2)


def test_every_difference_is_told_at_once(model_folder, tiny_tokenizer_dir):
    layout = replace(tiny_layout(tiny_tokenizer_dir), phase=1, num_patches=9, hole_length=10, vocab_size=500)
    with pytest.raises(IntegrityError) as refused:
        check_fingerprint(layout, LENGTHS, TINY, model_folder, phase=2)
    assert [line.split(":")[0] for line in str(refused.value).splitlines()] == ["phase", "vocabulary", "image patches"]


def test_a_model_without_a_tokenizer_is_refused(tmp_path, tiny_tokenizer_dir):
    with pytest.raises(IntegrityError, match="tokenizer: the model's cannot be read: .*tokenizer.json"):
        check_fingerprint(tiny_layout(tiny_tokenizer_dir), LENGTHS, TINY, tmp_path, phase=2)


@pytest.mark.parametrize(
    ("part", "change", "both"),
    [
        ("vision", {"image_size": 42}, ("for 28", "has 42")),
        ("vision", {"patch_size": 7}, ("for 4", "has 16")),
        ("vision", {"patch_size": 28}, ("for 4", "has 1")),
        ("vision", {"select_feature": "cls_patch"}, ("for 4", "has 5")),
        ("language", {"vocab_size": 399}, ("400", "399")),
        ("language", {"vocab_size": 256}, ("400", "256")),
        ("language", {"max_position_embeddings": 39}, ("40 tokens", "made for 39")),
        ("language", {"sliding_window": 39}, ("40 tokens", "window 39")),
        (None, {"image_mean": (0.48, 0.4, 0.3)}, ("(0.5, 0.4, 0.3)", "(0.48, 0.4, 0.3)")),
        (None, {"image_std": (0.2, 0.3, 0.27)}, ("(0.2, 0.3, 0.25)", "(0.2, 0.3, 0.27)")),
    ],
)
def test_a_model_that_differs_in_one_value_is_refused_naming_both(model_folder, tiny_tokenizer_dir, part, change, both):
    model = TINY.model_copy(update=change)
    if part is not None:
        model = TINY.model_copy(update={part: getattr(TINY, part).model_copy(update=change)})
    with pytest.raises(IntegrityError) as refused:
        check_fingerprint(tiny_layout(tiny_tokenizer_dir), LENGTHS, model, model_folder, phase=2)
    assert any(all(value in line for value in both) for line in str(refused.value).splitlines()), str(refused.value)


def swap_merges(files, config):
    files["model"]["merges"][:2] = files["model"]["merges"][1::-1]


def rename_a_piece(files, config):
    piece = next(reversed(files["model"]["vocab"]))
    files["model"]["vocab"][piece + "x"] = files["model"]["vocab"].pop(piece)


def take_another_eos(files, config):
    config["eos_token"] = "<unk>"


def forget_legacy(files, config):
    config["legacy"] = not config.get("legacy", True)


def normalise_text(files, config):
    files["normalizer"]["normalizers"].append({"type": "Lowercase"})


@pytest.mark.parametrize("change", [swap_merges, rename_a_piece, take_another_eos, forget_legacy, normalise_text])
def test_a_tokenizer_that_differs_in_one_thing_is_refused_naming_both(tmp_path, tiny_tokenizer_dir, change):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    files, config = (json.loads((tiny_tokenizer_dir / name).read_text()) for name in NAMES)
    change(files, config)
    for name, content in zip(NAMES, (files, config), strict=True):
        (folder / name).write_text(json.dumps(content))
    layout = tiny_layout(tiny_tokenizer_dir)
    with pytest.raises(IntegrityError) as refused:
        check_fingerprint(layout, LENGTHS, TINY, tmp_path, phase=2)
    first = str(refused.value).splitlines()[0]
    assert layout.tokenizer_fingerprint[:12] in first and tokenizer_fingerprint(folder)[:12] in first


def test_the_original_recipe_crops_in_phase_1_and_pads_in_phase_2(model_folder, tiny_tokenizer_dir):
    for phase, fit in ((1, "crop"), (2, "pad")):
        layout = replace(tiny_layout(tiny_tokenizer_dir, phase), image_fit=fit)
        check_fingerprint(layout, LENGTHS, TINY, model_folder, phase)
