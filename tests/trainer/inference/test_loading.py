"""A model of any format is asked as it was trained; what does not agree with its fingerprint is refused."""

import json
import shutil
import weakref
from dataclasses import replace

import pytest
import torch

from converters.errors import UnsupportedError
from converters.formats import trainer as trainer_format
from converters.hub import build_model
from dataprep.templates import VICUNA_SYSTEM
from tests.dataprep.chat_families import FAMILIES
from tests.trainer.inference.conftest import fingerprint
from trainer.adapter import save_adapter
from trainer.config import LoraConfig
from trainer.errors import IntegrityError, TrainError
from trainer.inference import Request, Sampling, open_assistant
from trainer.inference.loading import _fit_of_processor, pick, pick_dtype
from trainer.lora import apply_lora, initialise_adapters, merged
from trainer.model import FolderError, load_model, save_model

SHORT = Sampling(max_new_tokens=12)


def asked(pictures):
    return [Request(["How many bars?"], pictures[0]), Request(["Why?"])]


@pytest.mark.parametrize("name", ["hf", "llava", "cerebras"])
def test_every_format_answers_as_the_checkpoint_it_was_made_of(checkpoint, assistant, converted, pictures, name, capfd):
    capfd.readouterr()
    other = open_assistant(converted(checkpoint, name), device="cpu")
    assert capfd.readouterr().err == ""
    assert other.layout == assistant.layout
    assert other.answer(asked(pictures), SHORT) == assistant.answer(asked(pictures), SHORT)


def test_what_the_fingerprint_says_is_how_the_model_is_asked(assistant, tiny_tokenizer_dir):
    data = fingerprint(tiny_tokenizer_dir)
    assert assistant.layout.image_start_idx == data["image_start_idx"] > 30
    assert (assistant.template, assistant.layout.image_fit) == ("vicuna_v1", "pad")
    assert assistant.layout.system_prompt == VICUNA_SYSTEM
    assert assistant.layout.tokenizer_fingerprint == data["tokenizer_fingerprint"]


def test_an_adapter_is_asked_with_its_base(checkpoint, assistant, tiny_tokenizer_dir, tmp_path, pictures):
    model, config = load_model(checkpoint)
    settings = LoraConfig(rank=2, alpha=8, dropout=0.0)
    apply_lora(model, settings, seed=0)
    initialise_adapters(model, seed=0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_b"):
                parameter.normal_(generator=torch.Generator().manual_seed(len(name)))
    weights, data = dict(model.state_dict()), fingerprint(tiny_tokenizer_dir)
    save_adapter(tmp_path / "adapter", weights, model, settings, torch.float32, data)
    save_model(tmp_path / "merged", merged(weights, model), config, tiny_tokenizer_dir, data)
    found = open_assistant(tmp_path / "adapter", device="cpu", base=checkpoint).answer(asked(pictures), SHORT)
    assert found == open_assistant(tmp_path / "merged", device="cpu").answer(asked(pictures), SHORT)
    assert found != assistant.answer(asked(pictures), SHORT)
    with pytest.raises(UnsupportedError, match="is an adapter alone: name the model it was trained beside with --base"):
        open_assistant(tmp_path / "adapter", device="cpu")
    with pytest.raises(TrainError, match="base: .* is a whole model"):
        open_assistant(checkpoint, device="cpu", base=checkpoint)


def test_the_model_lies_in_memory_once(checkpoint):
    hub, alive = trainer_format.read(checkpoint), []

    def watched(tensor):
        def load():
            assert not [name for name, reference in alive if reference() is not None]
            loaded = tensor.load()
            alive.append((tensor.name, weakref.ref(loaded)))
            return loaded

        return replace(tensor, load=load)

    watching = replace(hub, tensors=[watched(tensor) for tensor in hub.tensors])
    model = build_model(watching, torch.device("cpu"), torch.float32)
    expected, _ = load_model(checkpoint)
    assert len(alive) == len(expected.state_dict()) > 50
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in expected.state_dict().items())


def test_another_template_than_trainings_is_refused_unless_it_is_forced(
    checkpoint, tiny_tokenizer_dir, pictures, capfd
):
    with pytest.raises(
        TrainError, match=r"template: plain is asked for, but .* was trained with vicuna_v1; .* --force-template"
    ):
        open_assistant(checkpoint, device="cpu", template="plain")
    assert open_assistant(checkpoint, device="cpu", template="vicuna_v1").template == "vicuna_v1"
    capfd.readouterr()
    forced = open_assistant(checkpoint, device="cpu", template="plain", force_template=True)
    said = capfd.readouterr().err
    assert "note: asked in plain, although" in said and "the picture stands at token 1 in a prompt of plain, at" in said
    assert forced.answer(asked(pictures)[:1], SHORT)[0].num_prompt_tokens == 10


def test_an_unknown_template_is_refused_with_the_choices(checkpoint):
    with pytest.raises(TrainError, match="template: 'vicuna' is not known; choose one of plain, plain_eos, vicuna_v1"):
        open_assistant(checkpoint, device="cpu", template="vicuna")


def test_a_model_without_a_fingerprint_is_asked_in_llavas_own_template_with_a_note(
    save_checkpoint, assistant, pictures, capfd
):
    folder = save_checkpoint(data={})
    assert not (folder / "data.json").exists()
    capfd.readouterr()
    found = open_assistant(folder, device="cpu")
    said = capfd.readouterr().err
    assert f"note: {folder} does not say which template it was trained with; taken: vicuna_v1 (see --template)" in said
    assert "does not say how pictures were fitted in training; taken: pad" in said
    assert found.answer(asked(pictures), SHORT) == assistant.answer(asked(pictures), SHORT)
    assert open_assistant(folder, device="cpu", template="mistral").template == "mistral"
    assert "which template" not in capfd.readouterr().err


def test_a_foreign_exports_processor_says_how_pictures_are_fitted(checkpoint, converted, tmp_path, capfd):
    shutil.copytree(converted(checkpoint, "hf"), tmp_path / "foreign")
    path = tmp_path / "foreign" / "config.json"
    config = json.loads(path.read_text())
    del config["llava_prep"]
    path.write_text(json.dumps(config))
    assert open_assistant(tmp_path / "foreign", device="cpu").layout.image_fit == "pad"
    path = tmp_path / "foreign" / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"image_processor_type": "CLIPImageProcessor"}))
    assert open_assistant(tmp_path / "foreign", device="cpu").layout.image_fit == "crop"
    assert "taken: crop" in capfd.readouterr().err
    for kind, fit in (("LlavaImageProcessorFast", "pad"), ("CLIPImageProcessorFast", "crop")):
        path.unlink(missing_ok=True)
        settings = {"image_processor": {"image_processor_type": kind}}
        (tmp_path / "foreign" / "processor_config.json").write_text(json.dumps(settings))
        assert _fit_of_processor(tmp_path / "foreign") == fit
    assert _fit_of_processor(tmp_path) == "pad"


def test_a_template_that_does_not_fit_the_tokenizer_is_refused_with_those_that_do(save_checkpoint, tmp_path):
    qwen = FAMILIES["qwen2"](tmp_path / "qwen")
    folder = save_checkpoint(data={}, tokenizer=qwen, vocab_size=1000)
    with pytest.raises(TrainError, match="vicuna_v1: needs a Llama-type .* that fit its tokenizer: plain, .*chatml"):
        open_assistant(folder, device="cpu")
    assert open_assistant(folder, device="cpu", template="chatml").template == "chatml"


CHANGES = [
    ({"tokenizer_fingerprint": "ab" * 32}, "tokenizer: trained with abababababab…, the folder's is "),
    ({"image_start_idx": 35}, r"image_start_idx: the picture stands at token 6\d in a prompt of vicuna_v1, at 35 in"),
    ({"num_patches": 576}, "num_patches: trained with 576, the model has 9"),
    ({"image_size": 336}, "image_size: trained with 336, the model has 12"),
    ({"image_mean": [0.5, 0.5, 0.5]}, r"image_mean: trained with \[0.5, 0.5, 0.5\], the model has \(0.48"),
    ({"image_std": "x"}, "image_std: trained with x, the model has"),
    ({"eos_id": 7}, "eos_id: trained with 7, the folder's tokenizer has 2"),
    ({"template": "llama5"}, "was trained with the template llama5; known here are plain, "),
    ({"template": ["a"]}, r"template: expected a text, found \['a'\]"),
    ({"image_fit": "stretch"}, "was trained with image_fit 'stretch'; known here are pad and crop"),
    ({"template_sha256": "cd" * 32}, r"template vicuna_v1 writes other words .* than in training \(cdcdcdcdcdcd…\)"),
]


@pytest.mark.parametrize(("changes", "message"), CHANGES)
def test_a_folder_that_differs_from_its_fingerprint_is_refused_with_both_values(
    save_checkpoint, tiny_tokenizer_dir, changes, message
):
    folder = save_checkpoint()
    (folder / "data.json").write_text(json.dumps(fingerprint(tiny_tokenizer_dir) | changes))
    with pytest.raises(IntegrityError, match=message) as refused:
        open_assistant(folder, device="cpu")
    assert str(folder) in str(refused.value)


@pytest.mark.parametrize("system", ["Be brief.", "", None])
def test_the_system_prompt_of_training_is_written(save_checkpoint, tiny_tokenizer_dir, system, capfd):
    data = fingerprint(tiny_tokenizer_dir, system=system)
    folder = save_checkpoint(data=data)
    capfd.readouterr()
    found = open_assistant(folder, device="cpu")
    assert found.layout.system_prompt == (VICUNA_SYSTEM if system is None else system)
    assert found.layout.image_start_idx == data["image_start_idx"]
    other = open_assistant(folder, device="cpu", system="You are a parrot, and a loud one.")
    assert other.layout.system_prompt == "You are a parrot, and a loud one."
    assert "the picture stands at token" in capfd.readouterr().err


def test_shards_from_before_system_prompts_were_recorded_had_the_templates_own(save_checkpoint, tiny_tokenizer_dir):
    data = fingerprint(tiny_tokenizer_dir) | {"system_prompt": "", "template_sha256": ""}
    assert open_assistant(save_checkpoint(data=data), device="cpu").layout.system_prompt == VICUNA_SYSTEM


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
@pytest.mark.parametrize("as_file", [True, False])
def test_a_tokenizers_own_chat_template_is_found_where_it_lies(save_checkpoint, tmp_path, name, as_file):
    tokenizer = FAMILIES[name](tmp_path / name)
    if as_file:
        path = tokenizer / "tokenizer_config.json"
        config = json.loads(path.read_text())
        (tokenizer / "chat_template.jinja").write_text(config.pop("chat_template"))
        path.write_text(json.dumps(config))
    data = fingerprint(tokenizer, "tokenizer")
    folder = save_checkpoint(data=data, tokenizer=tokenizer, vocab_size=1000)
    found = open_assistant(folder, device="cpu")
    assert (found.template, found.layout.image_start_idx) == ("tokenizer", data["image_start_idx"])
    assert found.answer([Request(["Why?"])], SHORT)
    (folder / "tokenizer" / "chat_template.jinja").write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}"
    )
    with pytest.raises(IntegrityError, match="template tokenizer writes other words or control tokens here"):
        open_assistant(folder, device="cpu")


def test_a_folder_that_is_no_model_is_refused_with_what_it_is(checkpoint, tmp_path):
    with pytest.raises(TrainError, match=r"none: no such folder"):
        open_assistant(tmp_path / "none")
    (tmp_path / "step").mkdir()
    (tmp_path / "step" / "state.json").touch()
    with pytest.raises(IntegrityError, match=r"step/state.json is not the state of a run"):
        open_assistant(tmp_path / "step")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UnsupportedError, match="holds no model in a format that is known"):
        open_assistant(tmp_path / "empty")
    shutil.copytree(checkpoint, tmp_path / "half")
    weights = tmp_path / "half" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(FolderError, match="is not a whole safetensors file"):
        open_assistant(tmp_path / "half", device="cpu")


def test_a_device_and_a_dtype_that_are_not_there_are_refused_with_the_choices():
    assert pick("cpu") == torch.device("cpu")
    for name in ("cuda:7", "gpu", "meta:x"):
        with pytest.raises(TrainError, match=f"device: {name}: .*; choose auto, cpu or cuda"):
            pick(name)
    if not torch.cuda.is_available():
        assert pick("auto") == torch.device("cpu")
        with pytest.raises(TrainError, match="device: cuda:0: "):
            pick("cuda")
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    with pytest.raises(TrainError, match="dtype: 'int8' is not known; choose auto, float32, bfloat16, float16"):
        pick_dtype("int8", torch.device("cpu"))
