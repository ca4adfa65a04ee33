"""Exports are complete and exact; what others write is read whatever its names."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration

from converters.verify import open_side, processor_differences
from dataprep.images import load_image, pad_colour
from dataprep.shards.fingerprint import tokenizer_fingerprint
from tests.converters.folders import VARIANTS, same_folder
from tests.tiny_llava import tiny_llava
from trainer.model import save_model


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def checkpoint(request, make_checkpoint):
    return make_checkpoint(**request.param)


@pytest.fixture
def exported(run, make_checkpoint, tmp_path):
    assert run("trainer", "hf", make_checkpoint(), tmp_path / "hf").exit_code == 0
    return tmp_path / "hf"


def test_an_export_comes_back_to_the_bit(run, checkpoint, tensors_of, tmp_path):
    assert run("trainer", "hf", checkpoint, tmp_path / "hf").exit_code == 0
    assert run("hf", "trainer", tmp_path / "hf", tmp_path / "back").exit_code == 0
    same_folder(checkpoint, tmp_path / "back", tensors_of)


def test_transformers_loads_an_export_and_finds_the_same_logits(run, checkpoint, tmp_path):
    run("trainer", "hf", checkpoint, tmp_path / "hf")
    _, report = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "hf", local_files_only=True, output_loading_info=True
    )
    assert not any(report.values()), report
    result = run("verify", checkpoint, tmp_path / "hf", "--tolerance", "1e-5", "--json")
    report = json.loads(result.stdout)
    assert (result.exit_code, report["passed"], len(report["probes"])) == (0, True, 2)
    assert min(probe["max_logit"] for probe in report["probes"]) > 0.5


def test_embeddings_grow_to_a_multiple_of_64_by_their_mean(exported, tensors_of, make_checkpoint):
    before, after = tensors_of(make_checkpoint("same")), tensors_of(exported)
    for ours, theirs in (
        ("language.embed.weight", "language_model.model.embed_tokens.weight"),
        ("language.lm_head.weight", "language_model.lm_head.weight"),
    ):
        assert after[theirs].shape == (448, 32)
        assert torch.equal(after[theirs][:400], before[ours])
        torch.testing.assert_close(after[theirs][400:], before[ours].mean(0).expand(48, -1), rtol=0, atol=1e-6)


def test_names_are_those_of_the_hub(exported, tensors_of):
    names = tensors_of(exported)
    assert "vision_tower.vision_model.encoder.layers.2.self_attn.out_proj.weight" in names
    assert {n.split(".")[0] for n in names} == {"vision_tower", "multi_modal_projector", "language_model"}


def test_a_prompt_gets_as_many_image_tokens_as_the_config_says(exported):
    processor = AutoProcessor.from_pretrained(exported, local_files_only=True)
    config = json.loads((exported / "config.json").read_text())
    prompt = "USER: <image>\nquestion ASSISTANT:"
    picture = Image.new("RGB", (31, 17), "red")
    ids = processor(images=picture, text=prompt, return_tensors="pt")["input_ids"][0]
    assert (ids == config["image_token_index"]).sum() == config["image_seq_length"] == 9
    assert config["image_token_index"] == processor.tokenizer.convert_tokens_to_ids("<image>") == 400
    assert processor.tokenizer.pad_token_id == config["pad_token_id"] == 401


@pytest.mark.parametrize("legacy", [True, False])
def test_the_exports_processor_makes_the_tokens_of_training(run, make_checkpoint, edit_json, tmp_path, legacy):
    checkpoint = make_checkpoint()
    edit_json(checkpoint / "tokenizer/tokenizer_config.json", legacy=legacy)
    run("trainer", "hf", checkpoint, tmp_path / "hf")
    exported, trained = (open_side(folder, {}) for folder in (tmp_path / "hf", checkpoint))
    assert processor_differences(exported, trained, None, "How many bars are there?") == []
    # Loaded without the model's config, the tokenizer is of another class in transformers 5: the same tokens.
    (tmp_path / "hf/config.json").unlink()
    alone = AutoProcessor.from_pretrained(tmp_path / "hf", local_files_only=True).tokenizer
    pieces = alone.convert_ids_to_tokens(alone("USER: <image>\nquestion").input_ids)
    assert pieces[pieces.index("<image>") + 1].startswith("▁")


@pytest.mark.parametrize("fit", ["pad", "crop"])
@pytest.mark.parametrize("size", [(31, 17), (12, 40), (12, 12)])
def test_the_exports_pixels_are_those_of_training(run, make_checkpoint, tmp_path, fit, size):
    data = {"image_fit": fit, "template": "vicuna_v1"}
    run("trainer", "hf", make_checkpoint(data=data), tmp_path / "hf")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf", local_files_only=True)
    theirs = processor.image_processor(Image.open(tmp_path / "picture.png"), return_tensors="np")["pixel_values"][0]
    mean, std = (np.array(processor.image_processor.to_dict()[key]) for key in ("image_mean", "image_std"))
    ours = (load_image(tmp_path / "picture.png", 12, fit, pad_colour(mean.tolist())) / 255 - mean) / std
    np.testing.assert_allclose(theirs, ours.transpose(2, 0, 1), rtol=0, atol=1e-5)


def test_the_chat_template_writes_prompts_as_llava_does(exported):
    processor = AutoProcessor.from_pretrained(exported, local_files_only=True)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": " How many? "}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "seven"}]},
        {"role": "user", "content": "Why?"},
    ]
    system = (
        "A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions. "
    )
    written = "USER: <image>\nHow many? ASSISTANT: seven</s>USER: Why? "
    assert processor.apply_chat_template(messages) == system + written
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == system + written + "ASSISTANT:"
    other = [{"role": "system", "content": "Be brief."}, *messages[2:]]
    assert processor.apply_chat_template(other) == "Be brief. USER: Why? "


def test_a_caption_model_is_asked_with_the_picture_alone(run, make_checkpoint, tmp_path):
    run("trainer", "hf", make_checkpoint(data={"template": "plain", "image_fit": "crop"}), tmp_path / "hf")
    processor = AutoProcessor.from_pretrained(tmp_path / "hf", local_files_only=True)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Describe it."}]}]
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == "<image>"


def test_an_export_generates(exported):
    model = LlavaForConditionalGeneration.from_pretrained(exported, local_files_only=True)
    processor = AutoProcessor.from_pretrained(exported, local_files_only=True)
    inputs = processor(images=Image.new("RGB", (12, 12)), text="USER: <image>\nWhy? ASSISTANT:", return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=3, min_new_tokens=3)
    assert out.shape[1] == inputs["input_ids"].shape[1] + 3


def test_the_model_card_says_what_an_export_adds(exported):
    card = (exported / "README.md").read_text()
    assert "400 trained rows" in card
    assert "| later turns | open with `▁USER`; in training (`legacy: false`) with `USER` |" in card


def test_llama_2s_vocabulary_grows_as_the_hubs_llava_has_it(run, shared, tensors_of, tmp_path):
    model = tiny_llava(3, 4, vocab_size=32000)
    save_model(tmp_path / "checkpoint", model.state_dict(), model.config, shared / "tokenizer-llama2")
    assert run("trainer", "hf", tmp_path / "checkpoint", tmp_path / "hf").exit_code == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert (config["image_token_index"], config["pad_token_id"], config["text_config"]["vocab_size"]) == (
        32000,
        32001,
        32064,
    )
    tokenizer = AutoProcessor.from_pretrained(tmp_path / "hf", local_files_only=True).tokenizer
    assert tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]) == [32000, 32001]
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        table = tensors_of(tmp_path / "hf")[name]
        assert len(table) == 32064
        assert torch.allclose(table[32000:], table[:32000].mean(dim=0).expand(64, -1), atol=1e-7)
    assert run("hf", "trainer", tmp_path / "hf", tmp_path / "back").exit_code == 0
    same_folder(tmp_path / "checkpoint", tmp_path / "back", tensors_of)


def test_the_model_card_carries_the_fingerprints(run, make_checkpoint, tmp_path):
    checkpoint = make_checkpoint()
    for target, card in (("hf", "README.md"), ("llava", "text_model_llava/README.md")):
        run("trainer", target, checkpoint, tmp_path / target)
        text = (tmp_path / target / card).read_text()
        for line in (f"| tokenizer_fingerprint | {'ab' * 32} |", f"| shards_manifest_sha256 | {'cd' * 32} |"):
            assert line in text
        assert "## How" in text and "| optimizer.peak_lr | 2e-05 |" in text
        assert "{'" not in text


def test_a_sharded_export_loads(run, make_checkpoint, tmp_path):
    assert run("trainer", "hf", make_checkpoint(), tmp_path / "hf", "--shard-size", "60KB").exit_code == 0
    assert len(list((tmp_path / "hf").glob("model-*.safetensors"))) > 2
    assert run("verify", tmp_path / "checkpoint", tmp_path / "hf").exit_code == 0
    assert run("hf", "trainer", tmp_path / "hf", tmp_path / "back").exit_code == 0


def fresh_v5(name):
    return name.replace("vision_model.", "")


def in_memory_v4_52(name):
    return (
        name.replace("language_model.lm_head", "lm_head")
        if "lm_head" in name
        else f"model.{name}".replace("language_model.model.", "language_model.")
    )


def in_memory_v5(name):
    return in_memory_v4_52(name).replace("vision_model.", "")


@pytest.mark.parametrize("naming", [fresh_v5, in_memory_v4_52, in_memory_v5])
def test_every_naming_of_transformers_is_read(run, exported, rename_tensors, tensors_of, tmp_path, naming):
    before = tensors_of(exported).keys()
    rename_tensors(exported, naming)
    assert tensors_of(exported).keys() != before
    assert run("hf", "trainer", exported, tmp_path / "back").exit_code == 0
    original, back = tensors_of(tmp_path / "checkpoint"), tensors_of(tmp_path / "back")
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())


def test_what_transformers_saves_itself_is_read_without_our_record(run, exported, tensors_of, tmp_path):
    LlavaForConditionalGeneration.from_pretrained(exported).save_pretrained(tmp_path / "foreign")
    AutoProcessor.from_pretrained(exported).save_pretrained(tmp_path / "foreign")
    content = json.loads((tmp_path / "foreign/config.json").read_text())
    content.pop("llava_prep")
    (tmp_path / "foreign/config.json").write_text(json.dumps(content))
    result = run("hf", "trainer", tmp_path / "foreign", tmp_path / "back")
    assert result.exit_code == 0, result.output
    original, back = tensors_of(tmp_path / "checkpoint"), tensors_of(tmp_path / "back")
    assert original.keys() == back.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in original.items())
    tokenizer = json.loads((tmp_path / "back/tokenizer/tokenizer.json").read_text())
    assert not {"<image>", "<pad>"} & {token["content"] for token in tokenizer["added_tokens"]}


def test_the_tokenizer_comes_back_with_its_fingerprint(run, exported, tiny_tokenizer_dir, tmp_path):
    run("hf", "trainer", exported, tmp_path / "back")
    assert tokenizer_fingerprint(tmp_path / "back/tokenizer") == tokenizer_fingerprint(tiny_tokenizer_dir)


@pytest.mark.parametrize("place", ["file", "config"])
def test_a_tokenizers_own_chat_template_comes_back(run, make_checkpoint, edit_json, tensors_of, tmp_path, place):
    checkpoint, wording = make_checkpoint(), "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    if place == "file":
        (checkpoint / "tokenizer" / "chat_template.jinja").write_text(wording)
    else:
        edit_json(checkpoint / "tokenizer" / "tokenizer_config.json", chat_template=wording)
    folder = checkpoint
    for number, (source, target) in enumerate([("trainer", "hf"), ("hf", "llava"), ("llava", "trainer")]):
        assert run(source, target, folder, tmp_path / str(number)).exit_code == 0
        folder = tmp_path / str(number)
    assert wording not in (tmp_path / "0" / "chat_template.jinja").read_text()
    same_folder(checkpoint, folder, tensors_of)
    own = folder / "tokenizer" / "chat_template.jinja"
    assert (own.read_text() if own.exists() else None) == (wording if place == "file" else None)


def test_position_ids_and_old_frequencies_are_dropped_by_name(run, exported, tmp_path):
    from safetensors.torch import load_file, save_file

    extra = {
        "vision_tower.vision_model.embeddings.position_ids": torch.arange(10),
        "language_model.model.layers.1.self_attn.rotary_emb.inv_freq": torch.ones(4),
    }
    save_file(load_file(exported / "model.safetensors") | extra, exported / "model.safetensors")
    assert run("hf", "trainer", exported, tmp_path / "back").exit_code == 0


def test_unknown_and_missing_tensors_are_all_in_one_error(run, exported, rename_tensors, tmp_path):
    rename_tensors(exported, lambda name: {"multi_modal_projector.linear_1.bias": "stray.a"}.get(name, name))
    rename_tensors(exported, lambda name: {"language_model.model.norm.weight": "stray.b"}.get(name, name))
    result = run("hf", "trainer", exported, tmp_path / "back")
    assert result.exit_code == 5
    assert "no rule for stray.a, stray.b; not found: language.norm.weight, projector.up.bias" in result.stderr
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "llava_next"}, "model_type is 'llava_next', expected llava"),
        ({"vision_feature_layer": [-2, -3]}, "several layers are not supported"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act is 'relu'; supported is 'gelu' or 'linear'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias is False"),
    ],
)
def test_what_the_trainer_does_not_have_is_refused(run, exported, edit_json, tmp_path, changes, said):
    edit_json(exported / "config.json", **changes)
    result = run("hf", "trainer", exported, tmp_path / "back")
    assert (result.exit_code, said in result.stderr) == (2, True), result.stderr


def test_rotary_positions_of_another_kind_are_refused(run, exported, tmp_path):
    content = json.loads((exported / "config.json").read_text())
    scaled = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 5000.0}
    content["text_config"] |= {"rope_parameters": scaled}
    (exported / "config.json").write_text(json.dumps(content))
    result = run("hf", "trainer", exported, tmp_path / "back")
    assert (result.exit_code, "rotary positions of type 'dynamic'" in result.stderr) == (2, True)


def test_a_tokenizer_with_more_ids_than_rows_is_refused(run, make_checkpoint, tmp_path):
    result = run("trainer", "hf", make_checkpoint(vocab_size=390), tmp_path / "hf")
    assert result.exit_code == 5
    assert "the tokenizer has 400 ids, but the embedding table only 390 rows" in result.stderr
