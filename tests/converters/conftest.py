"""Tiny checkpoints, and the command line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from safetensors.torch import load_file, save_file

from converters.cli import main
from trainer.model import (
    LanguageConfig,
    LlavaConfig,
    LlavaModel,
    ProjectorConfig,
    VisionConfig,
    initialise,
    save_model,
)

#: A fingerprint as training leaves it in `data.json`.
DATA = {
    "max_seq_length": 128,
    "num_patches": 9,
    "image_start_idx": 35,
    "template": "vicuna_v1",
    "image_fit": "pad",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "tokenizer_fingerprint": "ab" * 32,
}


@pytest.fixture(autouse=True)
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def run() -> Callable[..., Result]:
    """Run `llava-convert`; an error that no exit code stands for is raised."""

    def invoke(*arguments) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke


@pytest.fixture
def make_checkpoint(tmp_path, tiny_tokenizer_dir) -> Callable[..., Path]:
    """Write a tiny trainer folder; keywords change the decoder, `vision`, `kind`, `data` and `dtype` the rest."""

    def make(
        name: str = "checkpoint",
        vision: dict | None = None,
        kind: str = "mlp2x_gelu",
        data: dict | None = DATA,
        dtype: torch.dtype = torch.float32,
        **language,
    ) -> Path:
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_layers": 2, "num_heads": 4, "num_kv_heads": 4}
        sizes |= {"head_dim": 8, "vocab_size": 400, "max_position_embeddings": 256, "rope_theta": 5000.0}
        tower = {"hidden_size": 24, "intermediate_size": 40, "num_layers": 3, "num_heads": 2}
        tower |= {"image_size": 12, "patch_size": 4}
        config = LlavaConfig(
            vision=VisionConfig(**(tower | (vision or {}))),
            projector=ProjectorConfig(kind=kind),
            language=LanguageConfig(**(sizes | language)),
            image_mean=(0.48145466, 0.4578275, 0.40821073),
            image_std=(0.26862954, 0.26130258, 0.27577711),
        )
        model = LlavaModel(config)
        initialise(model, 3)
        # Logits of some size, and biases that are not all zero: nothing can hide in a comparison.
        generator = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(4 if p.ndim > 1 else 1).add_(torch.randn(p.shape, generator=generator) * 0.1)
        save_model(tmp_path / name, model.to(dtype).state_dict(), config, tiny_tokenizer_dir, data)
        return tmp_path / name

    return make


@pytest.fixture(scope="session")
def edit_json() -> Callable[..., None]:
    """Set keys of a JSON file; a value of None removes the key."""

    def edit(path: Path, **changes) -> None:
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit


@pytest.fixture(scope="session")
def rename_tensors() -> Callable[..., None]:
    """Rewrite a folder's weights under other names, and without those for which `change` returns None."""

    def rename(folder: Path, change: Callable[[str], str | None]) -> None:
        tensors = load_file(folder / "model.safetensors")
        renamed = {new: tensor for name, tensor in tensors.items() if (new := change(name))}
        save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})

    return rename


@pytest.fixture(scope="session")
def tensors_of() -> Callable[[Path], dict[str, torch.Tensor]]:
    """Load all tensors of a folder with one weight file."""
    return lambda folder: load_file(folder / "model.safetensors")


@pytest.fixture
def components(tmp_path, tiny_tokenizer_dir) -> tuple[Path, Path]:
    """A CLIP folder and a Llama folder, as transformers saves them."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=2,
        image_size=12,
        patch_size=4,
        projection_dim=16,
    )
    language = LlamaConfig(
        vocab_size=400,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    CLIPVisionModel(vision).save_pretrained(tmp_path / "clip")
    LlamaForCausalLM(language).save_pretrained(tmp_path / "llama")
    for file in tiny_tokenizer_dir.iterdir():
        shutil.copy(file, tmp_path / "llama")
    return tmp_path / "clip", tmp_path / "llama"
