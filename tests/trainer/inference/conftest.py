"""Tiny checkpoints that keep the fingerprint of shards, as the trainer leaves them, and pictures to ask about."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from converters.formats import FORMATS, detect
from dataprep.config import CompileConfig, ImageConfig
from dataprep.encoding import TextEncoder
from dataprep.layouts import find_layout
from tests.tiny_llava import tiny_llava
from trainer.inference import Assistant, open_assistant
from trainer.model import LlavaModel, save_model


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def fingerprint(tokenizer: Path, template: str = "vicuna_v1", fit: str = "pad", system: str | None = None) -> dict:
    """What `data.json` holds after training on shards of this template."""
    image = ImageConfig(size=12, patch_size=4, fit=fit)
    phase = 1 if template.startswith("plain") else 2
    config = CompileConfig(phase=phase, template=template, system=system, image=image, max_seq_length=200)
    return asdict(find_layout(config, TextEncoder(tokenizer)))


def _strengthen_layers(model: LlavaModel) -> None:
    """With tied embeddings a token's own row is nearly all that its logits hold: it would say itself for ever."""
    with torch.no_grad():
        for layer in model.language.layers:
            layer.attention.o.weight.mul_(8)
            layer.mlp.down.weight.mul_(8)


@pytest.fixture(scope="session")
def save_checkpoint(tmp_path_factory, tiny_tokenizer_dir) -> Callable[..., Path]:
    """Write a tiny checkpoint; keywords change the decoder, `vision` and `kind` the rest, `data` the fingerprint."""

    def save(
        vision: dict | None = None,
        kind: str = "mlp2x_gelu",
        data: dict | None = None,
        tokenizer: Path = tiny_tokenizer_dir,
        seed: int = 3,
        **language,
    ) -> Path:
        folder = tmp_path_factory.mktemp("model") / "final"
        own = {"vocab_size": 400, "max_position_embeddings": 256, "rope_theta": 5000.0}
        model = tiny_llava(seed, 4, vision, kind, **(own | language))
        if model.config.language.tie_embeddings:
            _strengthen_layers(model)
        data = fingerprint(tokenizer) if data is None else data or None
        if data and model.config.vision.num_patches != data.get("num_patches"):
            data = {**data, "num_patches": model.config.vision.num_patches}
        save_model(folder, model.state_dict(), model.config, tokenizer, data)
        return folder

    return save


@pytest.fixture(scope="session")
def converted() -> Callable[[Path, str], Path]:
    """Convert a model folder to a format, beside it."""

    def convert(folder: Path, name: str) -> Path:
        out = folder.with_name(f"{folder.name}-{name}")
        if out.exists():
            return out
        out.mkdir()
        known = FORMATS[name]
        known.write(FORMATS[detect(folder)].read(folder), out, 1 << 30)
        if known.finish is not None:
            known.finish(out, out)
        return out

    return convert


@pytest.fixture(scope="session")
def checkpoint(save_checkpoint) -> Path:
    return save_checkpoint()


@pytest.fixture(scope="session")
def assistant(checkpoint) -> Assistant:
    return open_assistant(checkpoint, device="cpu")


@pytest.fixture(scope="session")
def pictures(tmp_path_factory) -> list[Path]:
    """Pictures of noise, of several shapes."""
    folder, generator = tmp_path_factory.mktemp("pictures"), np.random.default_rng(5)
    for number in range(3):
        pixels = generator.integers(0, 256, (14 + 9 * number, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return sorted(folder.iterdir())
