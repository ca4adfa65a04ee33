"""Shards that were not compiled for the model are refused, and both sides are named."""

from dataclasses import replace

import numpy as np
import pytest

from tests.trainer.tiny_run import TINY, tiny_layout
from trainer.errors import IntegrityError
from trainer.fingerprint import check_fingerprint

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
