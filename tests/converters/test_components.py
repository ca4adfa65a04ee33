"""Starting weights from a CLIP folder and a Llama folder."""

import json

import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionModel, LlamaForCausalLM

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
    from trainer.attention import Segments

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
    assert (result.exit_code, "holds no tokenizer.json" in result.stderr) == (5, True)
