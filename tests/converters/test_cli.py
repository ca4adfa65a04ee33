"""What the command line says, and how it ends."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from converters import cli
from converters.formats import FORMATS


@pytest.fixture
def pair(run, make_checkpoint, tmp_path):
    """A checkpoint and its export."""
    checkpoint = make_checkpoint()
    assert run("trainer", "hf", checkpoint, tmp_path / "hf").exit_code == 0
    return checkpoint, tmp_path / "hf"


def change_one_value(folder, name, tensors_of):
    tensors = tensors_of(folder)
    tensors[name].view(-1)[0] += 3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_every_format_is_listed(run):
    result = run("formats")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in [*FORMATS, "components"])


def test_every_pair_of_formats_is_a_command(run):
    for source in FORMATS:
        for target in FORMATS:
            expected = 2 if source == target else 0
            assert run(source, target, "--help").exit_code == expected


def test_a_folder_that_holds_something_is_a_conflict(run, pair):
    result = run("trainer", "hf", *pair)
    assert (result.exit_code, "already exists" in result.stderr) == (4, True)
    assert "Traceback" not in result.output


def test_an_error_leaves_nothing_behind(run, pair, tmp_path, monkeypatch):
    def stop(*arguments):
        raise OSError(28, "No space left on device", "model.safetensors")

    monkeypatch.setattr("converters.formats.hf.write_tensors", stop)
    result = run("trainer", "hf", pair[0], tmp_path / "new")
    assert (result.exit_code, "no space left" in result.stderr) == (6, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "hf"]


def test_a_damaged_checkpoint_is_an_integrity_error(run, pair, tmp_path):
    weights = pair[0] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    result = run("trainer", "hf", pair[0], tmp_path / "new")
    assert (result.exit_code, "not a whole safetensors file" in result.stderr) == (5, True)


def test_a_folder_of_no_known_format_is_a_usage_error(run, tmp_path):
    result = run("info", tmp_path)
    assert (result.exit_code, "no model in a format that is known here: trainer, hf" in result.stderr) == (2, True)


def test_info_tells_the_same_of_both_formats(run, pair):
    ours, theirs = (json.loads(run("info", folder, "--json").stdout) for folder in pair)
    assert (ours.pop("format"), theirs.pop("format")) == ("trainer", "hf")
    assert ours.pop("tokenizer") == theirs.pop("tokenizer")
    assert theirs.pop("later_turns").startswith(ours.pop("later_turns"))
    assert ours == theirs
    assert ours["config"]["language"]["vocab_size"] == 400
    told = run("info", pair[0]).stdout
    assert "config.vision.patch_size: 4" in told
    assert "config.language.rope_scaling: none" in told


@pytest.mark.parametrize("legacy", [True, False])
def test_info_says_where_later_turns_are_split_otherwise(run, make_checkpoint, edit_json, tmp_path, legacy):
    checkpoint = make_checkpoint()
    edit_json(checkpoint / "tokenizer" / "tokenizer_config.json", legacy=legacy)
    assert run("trainer", "hf", checkpoint, tmp_path / "hf").exit_code == 0
    trained = "text behind </s> opens with `▁` (legacy: true)" if legacy else "opens without `▁` (legacy: false)"
    differs = "this folder's own tokenizer opens it with `▁`"
    for folder, own in ((checkpoint, False), (tmp_path / "hf", not legacy)):
        told = run("info", folder).stdout
        assert (trained in told, differs in told) == (True, own), told
    card = (tmp_path / "hf" / "README.md").read_text()
    assert ("in training (`legacy: false`) with `USER`" in card) == (not legacy)


def test_verify_prints_the_largest_difference(run, pair):
    result = run("verify", *pair)
    assert result.exit_code == 0
    assert "picture and text: " in result.stdout
    assert "text alone: " in result.stdout
    assert "within tolerance 0.0001" in result.stdout


@pytest.mark.parametrize(
    ("name", "text_alone_differs"),
    [
        ("language_model.model.layers.0.mlp.up_proj.weight", True),
        ("vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias", False),
        ("multi_modal_projector.linear_2.bias", False),
    ],
)
def test_verify_finds_a_single_changed_weight(run, pair, tensors_of, name, text_alone_differs):
    change_one_value(pair[1], name, tensors_of)
    result = run("verify", *pair, "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["passed"]) == (5, False)
    with_picture, text = (probe["max_difference"] for probe in report["probes"])
    assert with_picture > 1e-4
    assert (text > 1e-4) == text_alone_differs


def test_verify_does_not_take_nan_for_agreement(run, pair, tensors_of):
    tensors = tensors_of(pair[1])
    tensors["language_model.model.norm.weight"][0] = torch.nan
    save_file(tensors, pair[1] / "model.safetensors", metadata={"format": "pt"})
    assert run("verify", *pair).exit_code == 5


def test_verify_takes_a_picture_and_a_question(run, pair, tmp_path):
    pixels = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    assert run("verify", *pair, "--image", tmp_path / "picture.png", "--prompt", "Why?").exit_code == 0
    (tmp_path / "picture.png").write_bytes(b"not a picture")
    result = run("verify", *pair, "--image", tmp_path / "picture.png")
    assert (result.exit_code, "picture.png" in result.stderr) == (2, True)


def test_verify_refuses_models_that_read_other_tokens(run, pair, make_checkpoint):
    other = make_checkpoint("other", vision={"image_size": 16})
    result = run("verify", pair[0], other)
    assert (result.exit_code, "other tokens or pixels" in result.stderr) == (5, True)


@pytest.mark.parametrize(("text", "num_bytes"), [("5GB", 5 * 10**9), ("1.5mb", 1_500_000), ("10B", 10)])
def test_sizes_are_read_with_their_unit(text, num_bytes):
    assert cli.Size().convert(text, None, None) == num_bytes


@pytest.mark.parametrize("text", ["5", "GB", "-1GB", "five GB", "0GB"])
def test_a_size_without_sense_is_a_usage_error(run, pair, tmp_path, text):
    result = run("trainer", "hf", pair[0], tmp_path / "new", f"--shard-size={text}")
    assert (result.exit_code, "is not a size such as 5GB" in result.stderr) == (2, True)


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("question", ["What is shown?", " Why <image> so? ", ""])
def test_verify_passes_an_exports_own_processor(run, make_checkpoint, tmp_path, fit, question):
    checkpoint = make_checkpoint(data={"template": "vicuna_v1", "image_fit": fit})
    run("trainer", "hf", checkpoint, tmp_path / "hf")
    result = run("verify", checkpoint, tmp_path / "hf", "--prompt", question, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["processors"] == {str(checkpoint): None, str(tmp_path / "hf"): []}
    assert "its processor makes the ids and pixels of training" in run("verify", checkpoint, tmp_path / "hf").stdout


@pytest.mark.parametrize(
    ("file", "changes", "said"),
    [
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0.5]}, "makes other pixels of the picture: "),
        ("preprocessor_config.json", {"image_processor_type": "CLIPImageProcessor"}, "makes other pixels of the pict"),
        ("preprocessor_config.json", {"do_rescale": False}, "makes other pixels of the picture: the largest diff"),
        ("preprocessor_config.json", {"crop_size": {"height": 8, "width": 8}, "size": {"shortest_edge": 8}}, "hf: its"),
        ("preprocessor_config.json", {"size": "large"}, "hf: its processor cannot be used: "),
        ("processor_config.json", {"num_additional_image_tokens": 0}, "makes other ids of the prompt: "),
    ],
)
def test_verify_finds_a_processor_that_is_not_trainings(run, pair, edit_json, file, changes, said):
    edit_json(pair[1] / file, **changes)
    result = run("verify", *pair, "--json")
    assert (result.exit_code, said in result.stderr) == (5, True), result.output


def test_verify_finds_a_tokenizer_that_is_not_trainings(run, pair):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        content = json.loads((pair[1] / name).read_text())
        tokens = content["added_tokens"] if name == "tokenizer.json" else content["added_tokens_decoder"].values()
        for token in tokens:
            # The newline behind the picture goes.
            token["rstrip"] = token["content"] == "<image>"
        (pair[1] / name).write_text(json.dumps(content))
    result = run("verify", *pair)
    said = f"error: {pair[1]}: its processor makes other ids of the prompt: 100, training 101; the first difference is"
    assert (result.exit_code, said in result.stderr) == (5, True), result.output


@pytest.mark.parametrize("mode", ["RGBA", "I;16"])
def test_verify_compares_no_pixels_that_transformers_reads_otherwise(run, pair, tmp_path, mode):
    shape = (20, 30, 4) if mode == "RGBA" else (20, 30)
    pixels = np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8 if mode == "RGBA" else np.uint16)
    Image.fromarray(pixels * (1 if mode == "RGBA" else 200)).save(tmp_path / "picture.png")
    result = run("verify", *pair, "--image", tmp_path / "picture.png")
    assert result.exit_code == 0, result.output


def test_verify_asks_no_processor_of_another_programs_folder(run, pair, edit_json):
    edit_json(pair[1] / "config.json", llava_prep=None)
    edit_json(pair[1] / "preprocessor_config.json", image_processor_type="CLIPImageProcessor")
    result = run("verify", *pair, "--json")
    assert (result.exit_code, set(json.loads(result.stdout)["processors"].values())) == (0, {None})
