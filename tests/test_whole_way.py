"""The whole way on tiny weights: components, trainer, phase 1, phase 2, Hugging Face, an answer."""

import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from converters.cli import main as convert
from dataprep.cli import main as prepare
from trainer.main import main as train

COLOURS = {"red": (220, 30, 30), "blue": (30, 30, 220)}


@pytest.fixture(scope="module")
def raw(tmp_path_factory, tiny_tokenizer_dir):
    """A root with captions for phase 1 and questions for phase 2, and the two parts of a model."""
    root = tmp_path_factory.mktemp("way")
    (root / "images").mkdir()
    drawn = np.random.default_rng(0)
    captions, questions = [], []
    for number in range(24):
        name = list(COLOURS)[number % 2]
        pixels = np.array(COLOURS[name]) + drawn.integers(-20, 20, (36, 28, 3))
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / "images" / f"{number}.png")
        picture = {"id": str(number), "image": f"images/{number}.png"}
        captions.append(picture | {"conversations": turns("<image>", f"a {name} chart")})
        questions.append(picture | {"conversations": turns("<image>\nWhat colour is the chart?", name)})
    for phase, records in ((1, captions), (2, questions)):
        (root / "jsonl" / f"phase{phase}").mkdir(parents=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        (root / "jsonl" / f"phase{phase}" / "made.jsonl").write_text(lines)
    torch.manual_seed(0)
    sizes = {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 48}
    CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=28, patch_size=14)).save_pretrained(root / "clip")
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=400)).save_pretrained(root / "llama")
    for file in tiny_tokenizer_dir.iterdir():
        shutil.copy(file, root / "llama")
    return root


def turns(question, answer):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def command(program, *words):
    result = CliRunner().invoke(program, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_from_two_parts_and_raw_records_to_an_answer(raw, tmp_path):
    start, exported = tmp_path / "start", tmp_path / "hf"
    command(convert, "components", "trainer", "--vision", raw / "clip", "--language", raw / "llama", start)
    for phase, model in ((1, start), (2, tmp_path / "phase1" / "final")):
        shards = raw / "h5" / f"phase{phase}"
        settings = ["--set", "image.size=28", "--set", "image.patch_size=14", "--set", "max_seq_length=128"]
        words = ["--phase", phase, "--tokenizer", start / "tokenizer", *settings, "--max-refused", "0"]
        command(prepare, "--root", raw, "to-h5", *words)
        settings = [
            f"model={model}",
            f"output_dir={tmp_path / f'phase{phase}'}",
            f"data.shards={shards}",
            f"data.image_dir={raw}",
            "global_batch_size=8",
            "optimizer.peak_lr=3e-3",
            f"epochs={6 * phase}",
            "num_workers=0",
        ]
        assert train([f"configs/train/phase{phase}_tiny.yaml", *settings]) == 0
    command(convert, "trainer", "hf", tmp_path / "phase2" / "final", exported)
    card = (exported / "README.md").read_text()
    sha256 = hashlib.sha256((raw / "h5" / "phase2" / "manifest.json").read_bytes()).hexdigest()
    assert f"| shards_manifest_sha256 | {sha256} |" in card and "| global_batch_size | 8 |" in card
    command(convert, "verify", tmp_path / "phase2" / "final", exported, "--tolerance", "1e-5")
    assert [answer(exported, raw / "images" / f"{number}.png") for number in range(2)] == ["red", "blue"]


def answer(folder, path):
    """Ask as any user of transformers would."""
    model = AutoModelForImageTextToText.from_pretrained(folder, local_files_only=True).eval()
    processor = AutoProcessor.from_pretrained(folder, local_files_only=True)
    content = [{"type": "image"}, {"type": "text", "text": "What colour is the chart?"}]
    prompt = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    with Image.open(path) as picture:
        inputs = processor(images=picture.convert("RGB"), text=prompt, return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=6)[0, inputs["input_ids"].shape[1] :]
    return processor.decode(ids, skip_special_tokens=True).strip()
