"""The model against transformers' `LlavaForConditionalGeneration` with the same weights."""

import pytest
import torch

#: As transformers' `SiglipVisionConfig` has it.
SIGLIP = {"kind": "siglip", "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

VARIANTS = {
    "plain": {},
    "grouped-query": {"num_kv_heads": 2},
    "one key head, wide heads": {"num_kv_heads": 1, "head_dim": 12},
    "attention bias": {"attention_bias": True},
    "tied": {"tie_embeddings": True},
    "all at once": {"num_kv_heads": 2, "attention_bias": True, "tie_embeddings": True, "rope_theta": 500.0},
    "last layer": {"vision": {"select_layer": -1}},
    "a layer from below": {"vision": {"select_layer": 1}},
    "class token kept": {"vision": {"select_feature": "cls_patch"}},
    "exact gelu": {"vision": {"hidden_act": "gelu"}},
    "ragged patches": {"vision": {"image_size": 14}},
    "mistral": {"family": "mistral", "num_kv_heads": 2, "sliding_window": 64},
    "qwen2": {"family": "qwen2", "num_kv_heads": 2, "tie_embeddings": True},
    "qwen3": {"family": "qwen3", "num_kv_heads": 2, "head_dim": 12},
    "stretched as Llama 3": {
        "rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_position_embeddings": 32},
        "rope_theta": 500.0,
    },
    "stretched evenly": {"rope_scaling": {"kind": "linear", "factor": 4.0}},
    "siglip": {"vision": SIGLIP},
    "siglip's last layer": {"vision": {**SIGLIP, "select_layer": -1}},
}


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def twins(request, make_model, hf_twin):
    ours = make_model(**request.param)
    return ours, hf_twin(ours)


def run_theirs(theirs, ours, batch, labels=None):
    kwargs = {"pixel_values": ours.normalise(batch.pixels)} if len(batch.pixels) else {}
    if labels is not None:
        kwargs["labels"] = labels[None]
    return theirs(input_ids=batch.input_ids[None], **kwargs)


@pytest.mark.parametrize("samples", [[(11, 1)], [(13, 0)], [(9, 3)]], ids=["picture", "text only", "three pictures"])
def test_logits_equal_those_of_transformers(twins, make_batch, samples):
    ours, theirs = twins
    batch = make_batch(samples, ours.config)
    with torch.no_grad():
        logits, expected = ours(batch), run_theirs(theirs, ours, batch).logits[0]
    assert expected.abs().max() > 0.5
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


def test_loss_and_gradients_equal_those_of_transformers(twins, make_batch, image_id, their_name):
    ours, theirs = twins
    batch = make_batch([(12, 1)], ours.config)
    labels = torch.where(batch.input_ids == image_id, -100, batch.input_ids)
    expected = run_theirs(theirs, ours, batch, labels).loss
    expected.backward()
    loss = torch.nn.functional.cross_entropy(ours(batch)[:-1], labels[1:], ignore_index=-100)
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    compare_gradients(ours, theirs, their_name)


def compare_gradients(ours, theirs, their_name):
    from_theirs = dict(theirs.named_parameters())
    num_compared = 0
    for name, parameter in ours.named_parameters():
        gradient = from_theirs[their_name(name)].grad
        if parameter.grad is None or gradient is None:
            # Layers above the selected one: transformers runs them and uses nothing of it; we do not run them.
            assert parameter.grad is None
            assert gradient is None or not gradient.any()
            continue
        if name.startswith("vision") and name.endswith("attention.k.bias"):
            continue  # it shifts all scores of a query alike: the true gradient is 0, what is left is rounding
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-5 * gradient.abs().max().item())
        num_compared += 1
    assert num_compared > 30
