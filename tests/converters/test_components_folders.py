"""A tower, a decoder and a projector in three folders: written, loaded by transformers, and exactly back."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, CLIPVisionModel, SiglipVisionModel

from tests.converters.folders import VARIANTS, same_folder


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def checkpoint(request, make_checkpoint):
    return make_checkpoint(**request.param)


def test_three_folders_come_back_to_the_bit(run, checkpoint, tensors_of, tmp_path):
    assert run("trainer", "components", checkpoint, tmp_path / "parts").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["image_model", "projector", "text_model"]
    assert run("components", "trainer", tmp_path / "parts", tmp_path / "back").exit_code == 0
    same_folder(checkpoint, tmp_path / "back", tensors_of)


def test_transformers_loads_the_parts_and_finds_the_same_logits(run, checkpoint, tmp_path):
    run("trainer", "components", checkpoint, tmp_path / "parts")
    kind = json.loads((tmp_path / "parts" / "image_model" / "config.json").read_text())["architectures"][0]
    tower = {"CLIPVisionModel": CLIPVisionModel, "SiglipVisionModel": SiglipVisionModel}[kind]
    for program, part in ((tower, "image_model"), (AutoModelForCausalLM, "text_model")):
        _, report = program.from_pretrained(tmp_path / "parts" / part, local_files_only=True, output_loading_info=True)
        assert not any(report.values()), (part, report)
    result = run("verify", checkpoint, tmp_path / "parts", "--tolerance", "1e-5", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["passed"], len(report["probes"])) == (0, True, 2)
    assert min(probe["max_logit"] for probe in report["probes"]) > 0.5


def test_verify_sees_one_weight_of_a_part(run, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()
    run("trainer", "components", checkpoint, tmp_path / "parts")
    path = tmp_path / "parts" / "projector" / "mm_projector.bin"
    tensors = torch.load(path, weights_only=True)
    tensors["model.mm_projector.2.bias"][0] += 3
    torch.save(tensors, path)
    assert run("verify", checkpoint, tmp_path / "parts").exit_code == 5


def test_a_tokenizer_goes_with_the_decoder(run, make_checkpoint, tmp_path):
    run("trainer", "components", make_checkpoint(), tmp_path / "parts")
    assert AutoTokenizer.from_pretrained(tmp_path / "parts" / "text_model")("a").input_ids


def test_the_other_order_of_formats_is_exact_too(run, make_checkpoint, tensors_of, tmp_path):
    checkpoint = make_checkpoint(num_kv_heads=2)
    for source, target, folder, out in (
        ("trainer", "components", checkpoint, "a"),
        ("components", "hf", tmp_path / "a", "b"),
        ("hf", "components", tmp_path / "b", "c"),
        ("components", "llava", tmp_path / "c", "d"),
        ("llava", "components", tmp_path / "d", "e"),
        ("components", "cerebras", tmp_path / "e", "f"),
        ("cerebras", "components", tmp_path / "f", "g"),
    ):
        assert run(source, target, folder, tmp_path / out).exit_code == 0, (source, target)
    for part in ("image_model", "text_model"):
        before, after = (load_file(tmp_path / name / part / "model.safetensors") for name in ("a", "g"))
        assert before.keys() == after.keys()
        assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_without_a_projector_a_fresh_one_is_made_and_said(run, components, tensors_of, tmp_path):
    vision, language = components
    (tmp_path / "two").mkdir()
    vision.rename(tmp_path / "two" / "image_model")
    language.rename(tmp_path / "two" / "text_model")
    result = run("components", "trainer", tmp_path / "two", tmp_path / "start")
    assert (result.exit_code, "a fresh one was made (mlp2x_gelu, seed 0)" in result.stderr) == (0, True)
    parts = ["--vision", tmp_path / "two" / "image_model", "--language", tmp_path / "two" / "text_model"]
    assert run("components", "trainer", *parts, tmp_path / "again").exit_code == 0
    first, second = tensors_of(tmp_path / "start"), tensors_of(tmp_path / "again")
    assert all(torch.equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["OUT"], "give --vision and --language, or the folder SRC"),
        (["PARTS", "OUT", "--vision", "PARTS"], "leave --vision and --language out"),
        (["PARTS", "OUT", "more"], "expected [SRC] DST, found 3 folders"),
    ],
)
def test_what_was_meant_is_asked(run, make_checkpoint, tmp_path, words, said):
    run("trainer", "components", make_checkpoint(), tmp_path / "parts")
    names = {"OUT": tmp_path / "out", "PARTS": tmp_path / "parts"}
    result = run("components", "trainer", *(names.get(word, word) for word in words))
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize("layer", [9, "first"])
def test_a_layer_that_the_tower_has_not_is_refused(run, make_checkpoint, edit_json, tmp_path, layer):
    run("trainer", "components", make_checkpoint(), tmp_path / "parts")
    edit_json(tmp_path / "parts" / "projector" / "config.json", mm_vision_select_layer=layer)
    result = run("components", "trainer", tmp_path / "parts", tmp_path / "out")
    assert (result.exit_code, "does not fit this tower" in result.stderr) == (5, True), result.stderr
    assert not (tmp_path / "out").exists()
