"""A tiny model that answers, and a benchmark in miniature."""

from pathlib import Path

import pytest

from tests.tiny_llava import tiny_llava
from tests.trainer.evaluation import layouts
from trainer.model import save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory, tiny_tokenizer_dir) -> Path:
    """A folder that can be asked; what it says is noise, and depends on the question."""
    folder = tmp_path_factory.mktemp("model") / "final"
    model = tiny_llava(3, 4, vocab_size=400, max_position_embeddings=512, rope_theta=5000.0)
    save_model(folder, model.state_dict(), model.config, tiny_tokenizer_dir)
    return folder


@pytest.fixture(scope="session")
def charts(tmp_path_factory) -> Path:
    """ChartQA's layout: 24 questions about 8 pictures."""
    return layouts.chartqa(tmp_path_factory.mktemp("charts"), 8)
