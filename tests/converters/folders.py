"""What the tests of several formats say about folders."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

Tensors = Callable[[Path], dict[str, torch.Tensor]]

#: Every decoder and tower that is supported, and what else changes tables and configs.
VARIANTS = {
    "plain": {},
    "grouped, biased": {"num_kv_heads": 2, "attention_bias": True},
    "tied": {"tie_embeddings": True},
    "linear projector": {"kind": "linear"},
    "wide heads": {"head_dim": 12, "num_kv_heads": 1},
    "class token, last layer": {"vision": {"select_feature": "cls_patch", "select_layer": -1, "hidden_act": "gelu"}},
    "bfloat16": {"dtype": torch.bfloat16},
    "rows to spare": {"vocab_size": 470},
    "mistral": {"family": "mistral", "num_kv_heads": 2, "sliding_window": 200},
    "qwen2": {"family": "qwen2", "tie_embeddings": True},
    "qwen3": {"family": "qwen3", "num_kv_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6},
    "stretched as Llama 3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_position_embeddings": 16}},
    "stretched evenly": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "siglip": {"vision": {"kind": "siglip", "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}},
}


def text_of(folder: Path) -> Path:
    """The decoder in a folder of the original LLaVA."""
    return folder / "text_model_llava"


def same_folder(a: Path, b: Path, tensors_of: Tensors) -> None:
    """Two trainer folders hold one model to the bit, its settings, tokenizer and record of its training."""
    before, after = tensors_of(a), tensors_of(b)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert after[name].dtype == tensor.dtype
        assert torch.equal(after[name], tensor), name
    files = ("config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json")
    for file in (*files, *(["data.json"] if (a / "data.json").exists() else [])):
        assert json.loads((b / file).read_text()) == json.loads((a / file).read_text()), file
    assert (a / "data.json").exists() == (b / "data.json").exists()
