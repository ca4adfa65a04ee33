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
from tests.tiny_llava import tiny_llava
from trainer.model import save_model

#: A fingerprint as training leaves it in `data.json`.
DATA = {
    "max_seq_length": 128,
    "num_patches": 9,
    "image_start_idx": 35,
    "template": "vicuna_v1",
    "image_fit": "pad",
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "tokenizer_fingerprint": "ab" * 32,
    "training": {"steps": 7, "shards_manifest_sha256": "cd" * 32, "settings": {"optimizer.peak_lr": 2e-05}},
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
        own = {"vocab_size": 400, "max_position_embeddings": 256, "rope_theta": 5000.0}
        model = tiny_llava(3, 4, vision, kind, **(own | language))
        save_model(tmp_path / name, model.to(dtype).state_dict(), model.config, tiny_tokenizer_dir, data)
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
def llava_folder(run, make_checkpoint, tmp_path) -> Path:
    """An export for the original LLaVA of the trainer folder `checkpoint` beside it."""
    assert run("trainer", "llava", make_checkpoint(num_kv_heads=2), tmp_path / "out").exit_code == 0
    return tmp_path / "out"


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
