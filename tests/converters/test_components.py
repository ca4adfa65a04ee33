"""Starting weights from a CLIP folder and a Llama folder."""

import json
import shutil

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from trainer.attention import Segments
from trainer.model import load_model


@pytest.fixture
def join(run, components, tmp_path):
    def call(*options, out="start"):
        vision, language = components
        return run("components", "trainer", "--vision", vision, "--language", language, tmp_path / out, *options)

    return call


def test_both_parts_arrive_to_the_bit(join, components, tensors_of, tmp_path):
    assert join().exit_code == 0
    found = tensors_of(tmp_path / "start")
    tower, decoder = tensors_of(components[0]), tensors_of(components[1])
    for ours, theirs in (
        ("vision.layers.1.attention.o.bias", tower["encoder.layers.1.self_attn.out_proj.bias"]),
        ("vision.pre_norm.weight", tower["pre_layrnorm.weight"]),
        ("language.layers.1.mlp.down.weight", decoder["model.layers.1.mlp.down_proj.weight"]),
        ("language.lm_head.weight", decoder["lm_head.weight"]),
    ):
        assert torch.equal(found[ours], theirs)
    num_fresh = sum(name.startswith("projector.") for name in found)
    assert len(found) == len(tower) + len(decoder) + num_fresh == len(tower) + len(decoder) + 4


def test_the_parts_compute_what_they_computed(join, components, tmp_path):
    join()
    model, _ = load_model(tmp_path / "start")
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    ids = torch.arange(20)
    with torch.no_grad():
        tower = CLIPVisionModel.from_pretrained(components[0])(pixels, output_hidden_states=True)
        torch.testing.assert_close(model.vision(pixels), tower.hidden_states[-2][:, 1:], rtol=0, atol=1e-5)
        decoder = LlamaForCausalLM.from_pretrained(components[1])
        expected = decoder(input_ids=ids[None]).logits[0]
    segments = Segments(torch.tensor([0, 20], dtype=torch.int32), 20)
    with torch.no_grad():
        logits = model.language(model.language.embed(ids), torch.arange(20), segments)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_the_projector_depends_on_the_seed_alone(join, tensors_of, tmp_path):
    for out, seed in (("a", 1), ("b", 1), ("c", 2)):
        assert join("--seed", seed, out=out).exit_code == 0
    a, b, c = (tensors_of(tmp_path / out) for out in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    changed = {name for name in a if not torch.equal(a[name], c[name])}
    assert changed == {f"projector.{layer}.{part}" for layer in ("up", "down") for part in ("weight", "bias")}


def test_a_linear_projector_is_one_layer(join, tensors_of, tmp_path):
    assert join("--projector", "linear").exit_code == 0
    assert sum(name.startswith("projector.") for name in tensors_of(tmp_path / "start")) == 2


def test_a_whole_clip_gives_its_tower(join, components, tensors_of, tmp_path):
    join(out="from-tower")
    tower = CLIPVisionModel.from_pretrained(components[0])
    text = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 1, "num_attention_heads": 2}
    text |= {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 2}
    clip = CLIPModel(CLIPConfig(vision_config=tower.config.to_dict(), text_config=text, projection_dim=16))
    clip.vision_model.load_state_dict(tower.state_dict())
    for file in components[0].iterdir():
        file.unlink()
    clip.save_pretrained(components[0])
    assert join(out="from-clip").exit_code == 0
    first, second = tensors_of(tmp_path / "from-tower"), tensors_of(tmp_path / "from-clip")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_tower_saved_by_transformers_4_is_read(join, components, rename_tensors, tmp_path):
    rename_tensors(components[0], lambda name: f"vision_model.{name}")
    assert join().exit_code == 0


def test_tied_embeddings_stay_tied(join, components, rename_tensors, edit_json, tensors_of, tmp_path):
    edit_json(components[1] / "config.json", tie_word_embeddings=True)
    assert join(out="with-a-copy").exit_code == 0
    rename_tensors(components[1], lambda name: None if name == "lm_head.weight" else name)
    assert join(out="without").exit_code == 0
    assert "language.lm_head.weight" not in tensors_of(tmp_path / "with-a-copy")
    assert tensors_of(tmp_path / "with-a-copy").keys() == tensors_of(tmp_path / "without").keys()


def test_the_towers_own_normalisation_is_taken(join, components, tmp_path):
    settings = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (components[0] / "preprocessor_config.json").write_text(json.dumps(settings))
    join()
    assert load_model(tmp_path / "start")[1].image_mean == (0.1, 0.2, 0.3)


def test_start_weights_have_a_tokenizer_and_no_data(join, tiny_tokenizer_dir, tmp_path):
    join()
    assert not (tmp_path / "start/data.json").exists()
    for file in tiny_tokenizer_dir.iterdir():
        assert (tmp_path / "start/tokenizer" / file.name).read_bytes() == file.read_bytes()


def test_an_output_layer_that_is_missing_is_named(join, components, rename_tensors):
    rename_tensors(components[1], lambda name: None if name == "lm_head.weight" else name)
    result = join()
    assert (result.exit_code, "not found: language.lm_head.weight" in result.stderr) == (5, True)


def test_another_kind_of_model_is_refused(join, components, edit_json):
    edit_json(components[1] / "config.json", model_type="gpt2")
    result = join()
    assert (result.exit_code, "model_type is 'gpt2', expected llama" in result.stderr) == (2, True)


def test_a_folder_without_a_tokenizer_is_refused(join, components):
    (components[1] / "tokenizer.json").unlink()
    result = join()
    assert (result.exit_code, "holds no tokenizer: neither" in result.stderr) == (5, True)


def save_siglip(folder, whole: bool) -> SiglipVisionModel:
    torch.manual_seed(1)
    sizes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 2}
    tower = SiglipVisionConfig(**sizes, image_size=12, patch_size=4)
    model = SiglipVisionModel(tower)
    if whole:
        text = SiglipTextConfig(**sizes, vocab_size=20, max_position_embeddings=8)
        both = SiglipModel(SiglipConfig(vision_config=tower.to_dict(), text_config=text.to_dict()))
        both.vision_model.load_state_dict(model.state_dict())
        both.save_pretrained(folder)
    else:
        model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("whole", [False, True], ids=["tower alone", "whole SigLIP"])
def test_a_siglip_tower_computes_what_it_computed(run, components, tmp_path, whole):
    theirs = save_siglip(tmp_path / "siglip", whole)
    arguments = ("--vision", tmp_path / "siglip", "--language", components[1])
    assert run("components", "trainer", *arguments, tmp_path / "start").exit_code == 0
    model, config = load_model(tmp_path / "start")
    assert (config.vision.kind, config.vision.num_patches) == ("siglip", 9)
    pixels = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = theirs(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(model.vision(pixels), expected, rtol=0, atol=1e-5)


DECODERS = {
    "mistral": (MistralForCausalLM, MistralConfig, {"sliding_window": 64}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"use_sliding_window": False}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 12}),
    "llama 3": (
        LlamaForCausalLM,
        LlamaConfig,
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
}


@pytest.mark.parametrize(("kind", "config", "own"), DECODERS.values(), ids=DECODERS)
def test_other_decoders_compute_what_they_computed(run, components, tmp_path, kind, config, own):
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    theirs = kind(config(**sizes, num_key_value_heads=2, vocab_size=400, **own))
    with torch.no_grad():
        for parameter in theirs.parameters():  # fresh biases and norms would hide
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    theirs.save_pretrained(tmp_path / "language")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(components[1] / name, tmp_path / "language")
    arguments = ("--vision", components[0], "--language", tmp_path / "language")
    assert run("components", "trainer", *arguments, tmp_path / "start").exit_code == 0
    model, ours = load_model(tmp_path / "start")
    assert ours.language.family == theirs.config.model_type
    ids = torch.arange(20)
    with torch.no_grad():
        expected = theirs(input_ids=ids[None]).logits[0]
        segments = Segments(torch.tensor([0, 20], dtype=torch.int32), 20)
        logits = model.language(model.language.embed(ids), torch.arange(20), segments)
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
