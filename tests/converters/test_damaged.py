"""Folders that are damaged end a conversion with one sentence, never with a traceback."""

import json

import pytest

from converters.formats import hf_config, hf_files
from converters.rules import Rule, to_ours
from dataprep import templates
from dataprep.shards import foreign
from trainer.model.folder import MAX_NAMES, listed


@pytest.fixture
def exported(run, make_checkpoint, tmp_path):
    assert run("trainer", "hf", make_checkpoint(), tmp_path / "hf").exit_code == 0
    return tmp_path / "hf"


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("tokenizer.json", [], "tokenizer.json of the tokenizer: expected a table, found a list"),
        ("tokenizer_config.json", [], "tokenizer_config.json of the tokenizer: expected a table, found a list"),
        ("tokenizer.json", {"model": 3}, "tokenizer.json has no table model.vocab"),
        ("tokenizer.json", {"model": {"vocab": {"a": "b"}}}, "'a' has 'b' for an id"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": 3}, "added_tokens: expected a list"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "added_tokens": [3]}, "expected id and content, found 3"),
        ("tokenizer.json", {"model": {"vocab": {"a": 0}}, "pre_tokenizer": 3}, "pre_tokenizer: expected a table"),
        ("tokenizer_config.json", {"added_tokens_decoder": [1]}, "added_tokens_decoder: expected a table"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": 2}}, "added_tokens_decoder.1: expected a token's"),
        ("preprocessor_config.json", {"image_mean": 3}, "image_mean: expected three numbers, found 3"),
        ("preprocessor_config.json", {"image_std": [1, 2]}, "image_std: expected three numbers, found [1, 2]"),
        ("preprocessor_config.json", [], "preprocessor_config.json: expected a table, found a list"),
    ],
)
def test_a_file_of_another_kind_is_named(run, exported, tmp_path, file, content, said):
    (exported / file).write_text(json.dumps(content))
    refused(run("hf", "trainer", exported, tmp_path / "back"), 5, said)


@pytest.mark.parametrize(
    ("changes", "exit_code", "said"),
    [
        ({"llava_prep": 3}, 5, "config.json: llava_prep: expected a table, found 3"),
        ({"llava_prep": {"num_rows": "all"}}, 5, "llava_prep: num_rows: expected a number of rows, found 'all'"),
        ({"llava_prep": {"num_rows": True}}, 5, "llava_prep: num_rows: expected a number of rows, found True"),
        ({"llava_prep": {"num_rows": 10}}, 5, "the tokenizer has 400 ids, but the embedding table only 10 rows"),
        ({"llava_prep": {"num_rows": 900}}, 5, "tensors are of another shape than the config says"),
        ({"llava_prep": {"tokenizer": 3}}, 5, "llava_prep: tokenizer: expected a table, found 3"),
        ({"llava_prep": {"tokenizer": {"added_tokens": []}}}, 5, "needs added_tokens and tokenizer_config, tables"),
        ({"llava_prep": {"data": [3]}}, 5, "llava_prep: data: expected a table, found [3]"),
        ({"vision_feature_select_strategy": "foo"}, 5, "'vision_feature_select_strategy' expected one of"),
        ({"text_config": 3}, 5, "config.json is not a llava config"),
    ],
)
def test_a_config_of_other_values_is_named(run, exported, edit_json, tmp_path, changes, exit_code, said):
    edit_json(exported / "config.json", **changes)
    refused(run("hf", "trainer", exported, tmp_path / "back"), exit_code, said)


@pytest.mark.parametrize(
    ("content", "exit_code", "said"),
    [
        ('{"template": ', 5, "data.json is not JSON"),
        ("[]", 5, "data.json: expected a table, found a list"),
        ('{"template": "foo"}', 2, "template is 'foo'; supported is plain or plain_eos or vicuna_v1"),
        ('{"template": 3}', 2, "template is 3; supported is"),
        ('{"image_fit": "stretch"}', 2, "image_fit is 'stretch'; supported is pad or crop"),
    ],
)
def test_a_fingerprint_that_is_none_is_refused(run, make_checkpoint, tmp_path, content, exit_code, said):
    checkpoint = make_checkpoint()
    (checkpoint / "data.json").write_text(content)
    refused(run("trainer", "hf", checkpoint, tmp_path / "hf"), exit_code, said)


def refused(result, exit_code, said):
    assert (result.exit_code, said in result.stderr) == (exit_code, True), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


def test_a_long_list_of_missing_tensors_is_cut_and_counted():
    expected = [f"layers.{number:03d}" for number in range(300)]
    with pytest.raises(ValueError, match=r"not found: layers.000, .*layers.009 and 290 more \(300 in all\)$"):
        to_ours([], [Rule(name, name) for name in expected], expected)
    assert listed([str(number) for number in range(MAX_NAMES)]).endswith("8, 9")


def test_what_is_written_down_twice_is_the_same():
    # The converters read no shards and the shards convert nothing, so neither imports the other's.
    assert hf_files.VICUNA_SYSTEM == templates.VICUNA_SYSTEM
    assert (hf_config.CLIP_MEAN, hf_config.CLIP_STD) == (foreign.CLIP_MEAN, foreign.CLIP_STD)
    # Exports can say some of the templates; the others are refused by name (`check_wording`).
    assert set(hf_files.TEMPLATE_NAMES) <= set(templates.TEMPLATES)
