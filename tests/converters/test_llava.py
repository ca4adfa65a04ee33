"""The original LLaVA's folders: exact both ways, and key by key what the original has."""

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionModel

from tests.converters.folders import same_folder, text_of

VARIANTS = {
    "plain": {},
    "grouped, biased": {"num_kv_heads": 2, "attention_bias": True},
    "tied": {"tie_embeddings": True},
    "linear projector": {"kind": "linear"},
    "class token, last layer": {"vision": {"select_feature": "cls_patch", "select_layer": -1, "hidden_act": "gelu"}},
    "first layers": {"vision": {"select_layer": 1}},
    "bfloat16": {"dtype": torch.bfloat16},
    "rows to spare": {"vocab_size": 470},
    "stretched evenly": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "mistral": {"family": "mistral", "num_kv_heads": 2, "sliding_window": 200},
    "mistral without a window": {"family": "mistral", "num_kv_heads": 2, "rope_theta": 1e6},
    "starting weights": {"data": None},
    "cropped": {"data": {"template": "plain", "image_fit": "crop", "max_seq_length": 64}},
}

#: Names and shapes of a Llama's folder as the original's own code saves them: hidden 32, MLP 48, 400 rows, tower 24.
LAYER = {
    "input_layernorm.weight": (32,),
    "mlp.down_proj.weight": (32, 48),
    "mlp.gate_proj.weight": (48, 32),
    "mlp.up_proj.weight": (48, 32),
    "post_attention_layernorm.weight": (32,),
    "self_attn.k_proj.weight": (16, 32),
    "self_attn.o_proj.weight": (32, 32),
    "self_attn.q_proj.weight": (32, 32),
    "self_attn.v_proj.weight": (16, 32),
}
DECODER = {
    "lm_head.weight": (400, 32),
    "model.embed_tokens.weight": (400, 32),
    "model.mm_projector.0.bias": (32,),
    "model.mm_projector.0.weight": (32, 24),
    "model.mm_projector.2.bias": (32,),
    "model.mm_projector.2.weight": (32, 32),
    "model.norm.weight": (32,),
    **{f"model.layers.{number}.{name}": shape for number in range(2) for name, shape in LAYER.items()},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def checkpoint(request, make_checkpoint):
    return make_checkpoint(**request.param)


def test_it_comes_back_to_the_bit(run, checkpoint, tensors_of, tmp_path):
    assert run("trainer", "llava", checkpoint, tmp_path / "out").exit_code == 0
    assert run("llava", "trainer", tmp_path / "out", tmp_path / "back").exit_code == 0
    same_folder(checkpoint, tmp_path / "back", tensors_of)


def test_the_originals_way_of_computing_finds_the_same_logits(run, checkpoint, tmp_path):
    run("trainer", "llava", checkpoint, tmp_path / "out")
    result = run("verify", checkpoint, tmp_path / "out", "--tolerance", "1e-5", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["passed"], len(report["probes"])) == (0, True, 2), result.output
    assert min(probe["max_logit"] for probe in report["probes"]) > 0.5


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.k_proj.weight", "model.mm_projector.0.weight", "model.mm_projector.2.bias"]
)
def test_verify_finds_a_single_changed_weight(run, llava_folder, tmp_path, tensors_of, name):
    tensors = tensors_of(text_of(llava_folder))
    tensors[name].view(-1)[0] += 3
    save_file(tensors, text_of(llava_folder) / "model.safetensors", metadata={"format": "pt"})
    assert run("verify", tmp_path / "checkpoint", llava_folder).exit_code == 5


def test_the_decoders_folder_holds_what_the_original_saves_by_name_and_shape(llava_folder, tensors_of):
    assert {name: tuple(tensor.shape) for name, tensor in tensors_of(text_of(llava_folder)).items()} == DECODER


def test_a_linear_projector_has_the_originals_two_names(run, make_checkpoint, tensors_of, tmp_path):
    run("trainer", "llava", make_checkpoint(kind="linear"), tmp_path / "out")
    found = {
        name: tuple(t.shape) for name, t in tensors_of(text_of(tmp_path / "out")).items() if "mm_projector" in name
    }
    assert found == {"model.mm_projector.weight": (32, 24), "model.mm_projector.bias": (32,)}


def test_every_value_stands_under_the_name_of_the_table(llava_folder, tmp_path, tensors_of):
    ours, theirs = tensors_of(tmp_path / "checkpoint"), tensors_of(text_of(llava_folder))
    tower = tensors_of(llava_folder / "image_model")
    for our_name, their_name, found in (
        ("language.embed.weight", "model.embed_tokens.weight", theirs),
        ("language.layers.1.attention.q.weight", "model.layers.1.self_attn.q_proj.weight", theirs),
        ("language.layers.0.mlp.gate.weight", "model.layers.0.mlp.gate_proj.weight", theirs),
        ("language.layers.0.attention_norm.weight", "model.layers.0.input_layernorm.weight", theirs),
        ("language.layers.0.mlp_norm.weight", "model.layers.0.post_attention_layernorm.weight", theirs),
        ("projector.up.weight", "model.mm_projector.0.weight", theirs),
        ("projector.down.bias", "model.mm_projector.2.bias", theirs),
        ("vision.layers.2.attention.o.bias", "vision_model.encoder.layers.2.self_attn.out_proj.bias", tower),
        ("vision.class_embedding", "vision_model.embeddings.class_embedding", tower),
    ):
        assert torch.equal(ours[our_name], found[their_name]), our_name


def test_the_config_has_the_originals_keys(llava_folder):
    config = json.loads((text_of(llava_folder) / "config.json").read_text())
    expected = {
        "architectures": ["LlavaLlamaForCausalLM"],
        "model_type": "llava_llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "hidden_size": 32,
        "image_aspect_ratio": "pad",
        "mm_hidden_size": 24,
        "mm_projector_type": "mlp2x_gelu",
        "mm_use_im_patch_token": False,
        "mm_use_im_start_end": False,
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_vision_tower": str(llava_folder / "image_model"),
        "num_key_value_heads": 2,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "tokenizer_model_max_length": 128,
        "tokenizer_padding_side": "right",
        "torch_dtype": "float32",
        "unfreeze_mm_vision_tower": False,
        "use_mm_proj": True,
        "vocab_size": 400,
    }
    assert {key: config.get(key) for key in expected} == expected


def test_transformers_opens_the_towers_folder_as_the_original_does(llava_folder):
    _, report = CLIPVisionModel.from_pretrained(llava_folder / "image_model", output_loading_info=True)
    assert not any(report.values()), report
    processor = CLIPImageProcessor.from_pretrained(llava_folder / "image_model")
    assert (processor.size["shortest_edge"], processor.crop_size["height"]) == (12, 12)


@pytest.mark.parametrize(("family", "name"), [("llama", "text_model_llava"), ("mistral", "text_model_llava_mistral")])
def test_the_folders_name_lets_the_originals_loader_choose(run, make_checkpoint, tmp_path, family, name):
    assert run("trainer", "llava", make_checkpoint(family=family), tmp_path / "out").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["image_model", name]


def test_what_the_format_cannot_say_is_said(run, make_checkpoint, tmp_path):
    result = run("trainer", "llava", make_checkpoint(data=None), tmp_path / "out")
    said = [line for line in result.stderr.splitlines() if line.startswith("note: ")]
    assert len(said) == 4
    for word in (
        "--conv-mode vicuna_v1",
        "full path of image_model",
        "image_aspect_ratio is pad",
        "no tokenizer.model",
    ):
        assert word in result.stderr
        assert word in (text_of(tmp_path / "out") / "README.md").read_text()
    checkpoint = make_checkpoint("whole")
    (checkpoint / "tokenizer/tokenizer.model").write_bytes(b"pieces")
    result = run("trainer", "llava", checkpoint, tmp_path / "other")
    assert result.stderr.count("note: ") == 2
    assert (text_of(tmp_path / "other") / "tokenizer.model").read_bytes() == b"pieces"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"family": "qwen2"}, "a qwen2 decoder (it has Llama and Mistral)"),
        ({"family": "qwen3"}, "a qwen3 decoder"),
        ({"vision": {"kind": "siglip", "hidden_act": "gelu"}}, "a siglip tower (it has CLIP alone)"),
        ({"head_dim": 12}, "heads of 12 values (its are hidden_size / num_heads, 8)"),
        ({"rope_scaling": {"kind": "llama3", "factor": 8.0}}, "rotary positions of this kind"),
        ({"rope_scaling": {"kind": "linear", "factor": 1.0}}, "rotary positions of this kind"),
        ({"sliding_window": 100}, "a sliding window in a Llama"),
        ({"data": {"template": "foo"}}, "template is 'foo'"),
        ({"family": "qwen2", "head_dim": 12}, "a qwen2 decoder (it has Llama and Mistral); heads of 12"),
    ],
)
def test_what_the_original_does_not_have_is_not_written(run, make_checkpoint, tmp_path, changes, said):
    result = run("trainer", "llava", make_checkpoint(**changes), tmp_path / "out")
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


# Whole or not at all; in the middle of a run

KILLED = """
import os, signal, sys
from converters import files
from converters.cli import main
written = files._write_tensor
def write(file, tensor):
    written(file, tensor)
    write.left -= 1
    if not write.left:
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
write.left = int(sys.argv.pop(1))
files._write_tensor = write
main()
"""


@pytest.mark.parametrize("num_written", [1, 60, 75])
def test_a_kill_in_the_middle_leaves_nothing_under_the_folders_name(make_checkpoint, tmp_path, num_written):
    command = [sys.executable, "-c", KILLED, str(num_written), "trainer", "llava"]
    done = subprocess.run([*command, make_checkpoint(), tmp_path / "out"], env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists()
    left = [path.name for path in tmp_path.iterdir() if path.name != "checkpoint"]
    assert [name.startswith(".out.unfinished-") for name in left] == [True]
