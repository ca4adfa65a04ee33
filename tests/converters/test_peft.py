"""Adapters are merged as peft itself merges them, and refused where that would be something else."""

import json
import shutil

import peft
import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from trainer.adapter import save_adapter
from trainer.config import LoraConfig
from trainer.lora import apply_lora, initialise_adapters, merged
from trainer.model import load_model, save_model

EVERYWHERE = r".*language_model.*(q_proj|o_proj|up_proj|down_proj)|.*(fc1|linear_2)"
LORAS = {
    "attention": {"target_modules": ["q_proj", "v_proj"]},
    "everywhere, rank-stabilised": {"target_modules": EVERYWHERE, "use_rslora": True},
    "ranks and alphas of their own": {
        "target_modules": ["q_proj", "v_proj"],
        "rank_pattern": {"v_proj": 2},
        "alpha_pattern": {"layers.1.self_attn.v_proj": 3, "q_proj": 5},
    },
    "projector whole": {"target_modules": ["down_proj"], "modules_to_save": ["multi_modal_projector"]},
    "output layer": {"target_modules": ["lm_head", "gate_proj"]},
}


def refused(result, exit_code, said):
    assert (result.exit_code, said in result.stderr) == (exit_code, True), result.output
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1


@pytest.fixture
def base(run, make_checkpoint, tmp_path):
    """A checkpoint and the same as transformers loads it."""
    checkpoint = make_checkpoint(num_kv_heads=2)
    assert run("trainer", "hf", checkpoint, tmp_path / "base-hf").exit_code == 0
    return checkpoint, tmp_path / "base-hf"


@pytest.fixture
def adapt(base, tmp_path):
    """Put a random adapter of peft's beside the base, save it, and return the model."""

    def call(**settings):
        model = LlavaForConditionalGeneration.from_pretrained(base[1], local_files_only=True)
        model = peft.get_peft_model(model, peft.LoraConfig(**({"r": 4, "lora_alpha": 12} | settings)))
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_" in name or "modules_to_save" in name:
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.save_pretrained(tmp_path / "adapter")
        return model

    return call


# peft's own: of an attribute that transformers renames, and of a config that it cannot look up.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("settings", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("which", [0, 1], ids=["on a trainer folder", "on an export"])
def test_a_merge_is_peft_s_own(run, base, adapt, tensors_of, tmp_path, settings, which):
    model = adapt(**settings)
    out = tmp_path / "merged"
    result = run("peft", "trainer", tmp_path / "adapter", out, "--base", base[which])
    assert result.exit_code == 0, result.output
    shutil.copytree(base[1], tmp_path / "theirs")
    (tmp_path / "theirs/model.safetensors").unlink()
    model.merge_and_unload().save_pretrained(tmp_path / "theirs")
    record = {"llava_prep": json.loads((base[1] / "config.json").read_text())["llava_prep"]}
    config = json.loads((tmp_path / "theirs/config.json").read_text())
    (tmp_path / "theirs/config.json").write_text(json.dumps(config | record))
    result = run("verify", out, tmp_path / "theirs", "--tolerance", "1e-5", "--json")
    assert json.loads(result.stdout)["passed"], result.output
    before, after = tensors_of(base[0]), tensors_of(out)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    apart = run("verify", out, base[0], "--tolerance", "1e-5", "--json")
    assert not json.loads(apart.stdout)["passed"]


@pytest.mark.parametrize("kind", ["mlp2x_gelu", "linear"])
@pytest.mark.parametrize("whole", [True, False], ids=["projector whole", "projector frozen"])
def test_an_adapter_of_a_training_run_merges_as_the_run_itself_does(
    run, make_checkpoint, tiny_tokenizer_dir, tensors_of, tmp_path, kind, whole
):
    checkpoint = make_checkpoint(kind=kind)
    model, config = load_model(checkpoint)
    lora = LoraConfig(layers=(r"language\.layers\.\d+\.",), rank=3, alpha=6.0, dropout=0.0)
    apply_lora(model, lora, seed=1)
    initialise_adapters(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or (whole and name.startswith("projector."))
        parameter.requires_grad_(trained)
        if trained:
            parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    layout = {"template": "vicuna_v1", "image_fit": "crop"}
    save_adapter(tmp_path / "adapter", weights, model, lora, torch.float32, layout)
    save_model(tmp_path / "expected", merged(weights, model), config, tiny_tokenizer_dir)
    assert run("peft", "trainer", tmp_path / "adapter", tmp_path / "out", "--base", checkpoint).exit_code == 0
    expected, found = tensors_of(tmp_path / "expected"), tensors_of(tmp_path / "out")
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert json.loads((tmp_path / "out/data.json").read_text()) == layout


@pytest.fixture
def adapter(base, tmp_path):
    """A small adapter as files, by hand: one layer, and what `names` adds."""

    def call(extra=None, out=32, **settings):
        folder = tmp_path / "adapter"
        folder.mkdir(exist_ok=True)
        layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
        tensors = {f"{layer}.lora_A.weight": torch.ones(2, 32), f"{layer}.lora_B.weight": torch.ones(out, 2)}
        save_file(tensors | (extra or {}), folder / "adapter_model.safetensors")
        content = {"peft_type": "LORA", "r": 2, "lora_alpha": 8, "bias": "none", "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(content | settings))
        return folder

    return call


def test_the_original_llavas_lora_is_read(run, base, tensors_of, tmp_path):
    folder = tmp_path / "llava-lora"
    folder.mkdir()
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 32, generator=generator), torch.randn(48, 2, generator=generator)
    layer = "base_model.model.model.layers.1.mlp.up_proj"
    torch.save({f"{layer}.lora_A.weight": a, f"{layer}.lora_B.weight": b}, folder / "adapter_model.bin")
    shapes = {"0.weight": (32, 24), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    projector = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    names = {f"base_model.model.model.mm_projector.{name}": tensor for name, tensor in projector.items()}
    torch.save(names, folder / "non_lora_trainables.bin")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none", "modules_to_save": None}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llava_llama", "mm_vision_tower": "openai/clip"}))
    assert run("peft", "trainer", folder, tmp_path / "out", "--base", base[0]).exit_code == 0
    before, after = tensors_of(base[0]), tensors_of(tmp_path / "out")
    up = "language.layers.1.mlp.up.weight"
    assert torch.equal(after[up], before[up] + 2 * (b @ a))
    assert torch.equal(after["projector.down.weight"], projector["2.weight"])
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {up} | {f"projector.{layer}.{part}" for layer in ("up", "down") for part in ("weight", "bias")}
    assert json.loads(run("info", folder, "--json").stdout)["format"] == "peft"


def test_a_bfloat16_base_is_merged_in_fp32_and_stays_bfloat16(run, make_checkpoint, adapter, tensors_of, tmp_path):
    checkpoint = make_checkpoint("half", dtype=torch.bfloat16)
    folder = adapter()
    assert run("peft", "trainer", folder, tmp_path / "out", "--base", checkpoint).exit_code == 0
    name = "language.layers.0.attention.q.weight"
    before, after = tensors_of(checkpoint)[name], tensors_of(tmp_path / "out")[name]
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, (before.float() + 8).to(torch.bfloat16))


# peft's own: of an attribute that transformers renames, and of a config that it cannot look up.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning", "ignore::UserWarning")
def test_rows_are_merged_a_few_at_a_time(run, base, adapt, tensors_of, tmp_path, monkeypatch):
    adapt(target_modules=["lm_head"])
    for out, at_once in (("whole", 1 << 22), ("parts", 7 * 32)):
        monkeypatch.setattr("converters.formats.peft.MAX_AT_ONCE", at_once)
        assert run("peft", "trainer", tmp_path / "adapter", tmp_path / out, "--base", base[0]).exit_code == 0
    whole, parts = tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts")
    assert not torch.equal(whole["language.lm_head.weight"], tensors_of(base[0])["language.lm_head.weight"])
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=0, atol=1e-6)


def test_an_adapter_goes_to_any_format_at_once(run, base, adapter, tmp_path):
    assert run("peft", "hf", adapter(), tmp_path / "hf", "--base", base[0]).exit_code == 0
    assert run("peft", "trainer", adapter(), tmp_path / "out", "--base", base[0]).exit_code == 0
    result = run("verify", tmp_path / "hf", tmp_path / "out", "--tolerance", "1e-5", "--json")
    assert json.loads(result.stdout)["passed"]


def test_without_a_base_there_is_no_model(run, adapter, tmp_path):
    refused(run("peft", "trainer", adapter(), tmp_path / "out"), 2, "name the model it was trained beside with --base")


def test_a_merged_model_has_no_way_back(run, base, tmp_path):
    result = run("trainer", "peft", base[0], tmp_path / "out")
    refused(result, 2, "a merged model does not know its adapter: train with lora.export: adapter")
    assert not any("out" in path.name for path in tmp_path.iterdir())


def test_verify_and_info_take_the_base(run, base, adapter, tmp_path):
    adapter = adapter()
    assert run("peft", "hf", adapter, tmp_path / "merged", "--base", base[0]).exit_code == 0
    result = run("verify", adapter, tmp_path / "merged", "--base", base[0], "--tolerance", "1e-5", "--json")
    assert (result.exit_code, json.loads(result.stdout)["passed"]) == (0, True)
    assert run("verify", adapter, base[0], "--base", base[0], "--tolerance", "1e-5").exit_code == 5
    result = run("verify", adapter, base[0])
    assert (result.exit_code, "--base" in result.stderr) == (2, True)
    told = run("info", adapter, "--base", base[0]).stdout
    assert "config.language.num_kv_heads: 2" in told
    assert "rank" in told


def test_info_describes_an_adapter(run, adapter):
    found = json.loads(run("info", adapter(), "--json").stdout)
    assert (found["format"], found["rank"], found["alpha"], found["num_layers"]) == ("peft", 2, 8.0, 1)


@pytest.mark.parametrize(
    ("settings", "exit_code", "said"),
    [
        ({"use_dora": True}, 2, "not merged: use_dora True"),
        ({"bias": "all"}, 2, "not merged: bias 'all'"),
        ({"fan_in_fan_out": True}, 2, "not merged: fan_in_fan_out True"),
        ({"lora_bias": True}, 2, "not merged: lora_bias True"),
        ({"layer_replication": [[0, 1]]}, 2, "not merged: layer_replication"),
        ({"some_new_thing": {"a": 1}}, 2, "not merged: some_new_thing {'a': 1}"),
        ({"peft_type": "IA3"}, 2, "not merged: peft_type 'IA3'"),
        ({"init_lora_weights": "pissa"}, 2, "init_lora_weights 'pissa', which changes the base"),
        ({"init_lora_weights": ["x"]}, 2, "init_lora_weights ['x'], which changes the base"),
        ({"alpha_pattern": {"(a+)+$": 1}}, 2, "alpha_pattern: '(a+)+$' is no plain name"),
        ({"r": "2"}, 5, "expected numbers r and lora_alpha, found '2' and 8"),
        ({"r": 3}, 5, "A and B of rank 2, adapter_config.json says 3"),
        ({"rank_pattern": {"q_proj": 1}}, 5, "A and B of rank 2, adapter_config.json says 1"),
        ({"rank_pattern": [1]}, 5, "rank_pattern: expected a table, found [1]"),
        ({"alpha_pattern": {"q_proj": "x"}}, 5, "alpha_pattern: q_proj: expected a number, found 'x'"),
        ({"modules_to_save": ["multi_modal_projector"]}, 5, "names multi_modal_projector as trained whole, but no"),
        ({"modules_to_save": "all"}, 5, "modules_to_save: expected a list of names, found 'all'"),
    ],
)
def test_what_is_not_merged_is_named(run, base, adapter, tmp_path, settings, exit_code, said):
    refused(run("peft", "trainer", adapter(**settings), tmp_path / "out", "--base", base[0]), exit_code, said)
    assert not (tmp_path / "out").exists()


LAYER = "base_model.model.model.language_model.layers.0.self_attn."
OLD = "base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_"
NORM = "base_model.model.model.language_model.norm.weight"


@pytest.mark.parametrize(
    ("extra", "exit_code", "said"),
    [
        ({LAYER + "k_proj.lora_A.weight": (2, 32)}, 5, "A or B is missing of model.language_model.layers.0.self"),
        ({LAYER + "q_proj.lora_magnitude_vector": (32,)}, 2, "not merged: model.language_model.layers.0.self_attn.q_"),
        ({LAYER + "q_proj.lora_embedding_A": (2, 32)}, 2, "layers that are not linear, or no plain LoRA"),
        ({LAYER + "q_proj.bias": (32,)}, 5, "neither adapters nor in modules_to_save"),
        ({NORM: (32,)}, 5, "neither adapters nor in modules_to_save: model.language_model.norm"),
        ({"model.embed_tokens.weight": (30, 32)}, 5, "(30, 32), in the base (400, 32)"),
        ({"x.lora_A.weight": (2, 2), "x.lora_B.weight": (2, 2)}, 5, "no such layer in the base: x.weight"),
        ({OLD + "A.weight": (2, 32), OLD + "B.weight": (32, 2)}, 5, "are the same layer"),
    ],
    ids=["half a pair", "dora", "embedding", "bias", "norm", "few rows", "unknown layer", "one layer, two names"],
)
def test_tensors_that_do_not_fit_are_named(run, base, adapter, tmp_path, extra, exit_code, said):
    folder = adapter({name: torch.ones(shape) for name, shape in extra.items()})
    refused(run("peft", "trainer", folder, tmp_path / "out", "--base", base[0]), exit_code, said)
    assert not (tmp_path / "out").exists()


def test_b_of_another_size_is_named(run, base, adapter, tmp_path):
    result = run("peft", "trainer", adapter(out=31), tmp_path / "out", "--base", base[0])
    refused(result, 5, "A (2, 32) and B (31, 2), in the base (32, 32)")


def test_a_cut_file_is_refused(run, base, adapter, tmp_path):
    path = adapter() / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-5])
    refused(
        run("peft", "trainer", path.parent, tmp_path / "out", "--base", base[0]), 5, "is not a whole safetensors file"
    )
    path.unlink()
    refused(
        run("peft", "trainer", path.parent, tmp_path / "out", "--base", base[0]), 5, "is not a whole safetensors file"
    )


def test_a_pickle_that_runs_is_not_run(run, base, adapter, tmp_path):
    import os

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    folder = adapter()
    (folder / "adapter_model.safetensors").unlink()
    torch.save({"x": Evil()}, folder / "adapter_model.bin")
    refused(run("peft", "trainer", folder, tmp_path / "out", "--base", base[0]), 5, "was not run")
    assert not (tmp_path / "ran").exists()
