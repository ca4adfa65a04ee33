"""Answers against transformers' `generate` on the same ids, and of a batch against one by one."""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlavaForConditionalGeneration
from transformers.generation.logits_process import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from trainer.errors import IntegrityError
from trainer.inference import Request, Sampling, open_assistant
from trainer.inference.cache import KeyValueCache
from trainer.inference.generation import new_cache, read_next, read_prompts
from trainer.inference.prompts import Prompt
from trainer.inference.sampling import choose, filtered, make_generator

EXAMPLES = 400 if os.environ.get("LLAVA_PREP_PROOFS") == "full" else 25

#: As transformers' `SiglipVisionConfig` has it.
SIGLIP = {"kind": "siglip", "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}

VARIANTS = {
    "llama": {},
    "grouped, biased, tied": {"num_kv_heads": 2, "attention_bias": True, "tie_embeddings": True},
    "one key head, wide heads": {"num_kv_heads": 1, "head_dim": 12},
    "stretched as Llama 3": {"rope_scaling": {"kind": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}},
    "mistral": {"family": "mistral", "num_kv_heads": 2, "sliding_window": 200},
    "mistral, prompts longer than its window": {"family": "mistral", "num_kv_heads": 2, "sliding_window": 40},
    "mistral, answers grow beyond its window": {"family": "mistral", "sliding_window": 92},
    "qwen2, tied": {"family": "qwen2", "num_kv_heads": 2, "tie_embeddings": True},
    "qwen3": {"family": "qwen3", "num_kv_heads": 2, "head_dim": 12, "rms_norm_eps": 1e-6},
    "siglip": {"vision": SIGLIP},
    "class token, last layer": {"vision": {"select_feature": "cls_patch", "select_layer": -1, "hidden_act": "gelu"}},
    "linear projector": {"kind": "linear"},
}
MANY = Sampling(max_new_tokens=24)


def requests(pictures):
    """Unequal lengths, with pictures and without, of one turn and of three."""
    return [
        Request(["What colour is the tallest bar?"], pictures[0]),
        Request(["How many?"]),
        Request(
            ["Why?", "since 2012", "In which year was it the lowest, and in which was it the highest?"], pictures[1]
        ),
        Request([""], pictures[2]),
        Request(["<image>\nA chart?"], pictures[0].read_bytes()),
    ]


def as_theirs(model, config, prompt: Prompt) -> dict:
    """What transformers takes for a prompt: its image token at the slots, and pixels that are normalised."""
    ids = torch.tensor([prompt.ids])
    ids[0, list(prompt.image_slots)] = model.config.image_token_index
    mean, std = (torch.tensor(values)[:, None, None] for values in (config.image_mean, config.image_std))
    shown = {"pixel_values": (prompt.pixels / 255 - mean) / std} if len(prompt.image_slots) else {}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **shown}


def theirs(model, config, prompt: Prompt, num_tokens: int) -> list[int]:
    """What transformers writes behind the prompt, without the token that ends it."""
    out = model.generate(
        **as_theirs(model, config, prompt),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
    )
    return [token for token in out[0, len(prompt.ids) :].tolist() if token != 2]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_greedy_answers_equal_those_of_transformers_token_for_token(save_checkpoint, converted, pictures, changes):
    folder = save_checkpoint(**changes)
    exported = converted(folder, "hf")
    model = LlavaForConditionalGeneration.from_pretrained(exported, local_files_only=True).eval()
    assistant = open_assistant(folder, device="cpu")
    asked = requests(pictures)
    prompts = [assistant.prompts.make(request) for request in asked]
    assert len({len(prompt.ids) for prompt in prompts}) > 3
    expected = [theirs(model, assistant.config, prompt, 24) for prompt in prompts]
    together = [answer.ids for answer in assistant.answer(asked, MANY)]
    assert together == expected
    assert [assistant.answer([request], MANY)[0].ids for request in asked] == expected
    assert [answer.ids for answer in open_assistant(exported, device="cpu").answer(asked, MANY)] == expected
    # Answers that never change, or that are all alike, would prove little.
    assert len({token for ids in expected for token in ids}) > 5
    assert len({tuple(ids) for ids in expected}) > 3
    compare_logits(assistant, model, prompts)


def compare_logits(assistant, model, prompts) -> None:
    """Write tokens of all kinds behind the prompts, one at a time, and compare with a whole pass of transformers."""
    cache, rows = new_cache(assistant.model, len(prompts)), [list(prompt.ids) for prompt in prompts]
    found = [read_prompts(assistant.model, prompts, cache)]
    for step in range(10):
        tokens = [(37 * step + 11 * row) % 397 + 3 for row in range(len(prompts))]
        rows = [[*ids, token] for ids, token in zip(rows, tokens, strict=True)]
        found.append(read_next(assistant.model, tokens, [1] * len(tokens), cache))
    for row, prompt in enumerate(prompts):
        written = Prompt(rows[row], prompt.image_slots, prompt.pixels)
        with torch.no_grad():
            expected = model(**as_theirs(model, assistant.config, written)).logits[0, len(prompt.ids) - 1 :]
        ours = torch.stack([logits[row] for logits in found])
        torch.testing.assert_close(ours, expected[:, : ours.shape[1]], rtol=1e-5, atol=5e-5)


def test_a_padded_batch_of_transformers_writes_the_same(checkpoint, assistant, converted, pictures):
    model = LlavaForConditionalGeneration.from_pretrained(converted(checkpoint, "hf"), local_files_only=True).eval()
    asked = [Request(["What colour?"]), Request(["How many bars are there in this chart?"]), Request(["Why?"])]
    prompts = [assistant.prompts.make(request).ids for request in asked]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    out = model.generate(
        input_ids=ids, attention_mask=mask, max_new_tokens=24, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    answers = assistant.answer(asked, MANY)
    assert any(answer.ended for answer in answers) or all(len(answer.ids) == 24 for answer in answers)
    for answer, row in zip(answers, out[:, longest:].tolist(), strict=True):
        assert row[: len(answer.ids)] == answer.ids
        assert set(row[len(answer.ids) :]) <= {0, 2}


def test_a_sample_that_stands_still_or_leaves_changes_no_other(assistant, pictures):
    prompts = [assistant.prompts.make(request) for request in requests(pictures)[:3]]
    cache, alone = new_cache(assistant.model, 3), new_cache(assistant.model, 1)
    read_prompts(assistant.model, prompts, cache)
    read_prompts(assistant.model, prompts[2:], alone)
    read_next(assistant.model, [5, 6, 7], [1, 0, 1], cache)
    read_next(assistant.model, [7], [1], alone)
    assert cache.lengths == [len(prompts[0].ids) + 1, len(prompts[1].ids), len(prompts[2].ids) + 1]
    cache.keep([0, 2])
    both = read_next(assistant.model, [8, 9], [1, 1], cache)
    torch.testing.assert_close(both[1:], read_next(assistant.model, [9], [1], alone), rtol=0, atol=2e-5)


def test_the_cache_grows_without_losing_what_it_holds(assistant):
    config = assistant.config.language
    cache = KeyValueCache(config, 1, torch.device("cpu"), torch.float32)
    cache.reserve(3)
    cache._keys[0][0, :, :3] = 7
    cache.reserve(1000)
    assert cache._keys[0].shape == (1, config.num_kv_heads, 1000, config.head_dim)
    assert (cache._keys[0][0, :, :3] == 7).all() and not cache._keys[0][0, :, 3:].any()


def test_an_answer_ends_with_the_models_positions_and_a_longer_prompt_is_refused(save_checkpoint):
    from dataprep.conversation import Refusal

    assistant = open_assistant(save_checkpoint(max_position_embeddings=80), device="cpu")
    (answer,) = assistant.answer([Request(["How?"])], Sampling(max_new_tokens=500))
    # The last token of an answer is not read, so it needs no position.
    assert answer.ended or answer.num_prompt_tokens + len(answer.ids) == 81
    assert not answer.ended, "this seed's answer must reach the end of the positions for the test to mean anything"
    with pytest.raises(Refusal, match=r"too_long: the prompt has \d+ tokens, the model was made for 80"):
        assistant.answer([Request(["How many bars are there in this chart? " * 4])])


def test_a_draw_follows_from_seed_and_prompt_alone(assistant, pictures):
    asked, drawn = requests(pictures), Sampling(max_new_tokens=16, temperature=1.5, top_p=0.95, top_k=200, seed=4)
    together = assistant.answer(asked, drawn)
    assert together == [assistant.answer([request], drawn)[0] for request in asked]
    assert together[::-1] == assistant.answer(asked[::-1], drawn)
    assert together != assistant.answer(asked, MANY)
    other = assistant.answer(asked, Sampling(max_new_tokens=16, temperature=1.5, seed=5))
    assert all(ours.ids != theirs.ids for ours, theirs in zip(together, other, strict=True))


def test_a_picture_decides_the_draws_too(assistant, pictures):
    prompts = [assistant.prompts.make(Request(["a"], picture)) for picture in pictures[:2]]
    assert prompts[0].ids == prompts[1].ids
    first, second = (torch.rand(4, generator=make_generator(prompt, 0)) for prompt in prompts)
    assert not torch.equal(first, second)


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    logits=st.lists(st.floats(-12, 12, width=32), min_size=2, max_size=40, unique=True),
    temperature=st.floats(0.05, 3),
    top_k=st.integers(1, 45),
    top_p=st.floats(0.05, 1),
)
def test_what_is_drawn_from_is_what_transformers_draws_from(logits, temperature, top_k, top_p):
    ours = filtered(torch.tensor([logits]), Sampling(temperature=temperature, top_p=top_p, top_k=top_k)).softmax(-1)
    theirs = torch.tensor([logits])
    for warper in (TemperatureLogitsWarper(temperature), TopKLogitsWarper(top_k), TopPLogitsWarper(top_p)):
        theirs = warper(None, theirs)
    expected = theirs.softmax(-1)
    # A sum that lies on the limit but for rounding may fall on either side.
    ordered = expected.sort(descending=True).values.cumsum(-1)
    if ((ordered - top_p).abs() > 1e-5).all() or top_p == 1:
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_tokens_are_drawn_as_often_as_they_are_probable():
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    generators = [torch.Generator().manual_seed(number) for number in range(4000)]
    drawn = choose(probabilities.log().expand(4000, 4).clone(), Sampling(temperature=1.0), generators)
    counts = torch.bincount(torch.tensor(drawn), minlength=4) / 4000
    torch.testing.assert_close(counts, probabilities, rtol=0, atol=0.03)
    assert counts[1] == 0


def test_a_tiny_temperature_is_the_likeliest_token_and_no_number_is_refused():
    logits = torch.tensor([[1.0, 3.0, 2.0], [5.0, 4.0, 4.9]])
    generators = [torch.Generator().manual_seed(0) for _ in range(2)]
    assert choose(logits, Sampling(temperature=1e-30), generators) == choose(logits, Sampling(), []) == [1, 0]
    for broken in (float("nan"), float("inf")):
        logits[1, 2] = broken
        with pytest.raises(IntegrityError, match="the model's output is no number"):
            choose(logits, Sampling(), [])


@pytest.mark.parametrize(
    ("name", "value"), [("max_new_tokens", 0), ("temperature", -1.0), ("top_p", 0.0), ("top_p", 1.1), ("top_k", 0)]
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"{name}: "):
        Sampling(**{name: value})


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_model_computes_in_the_dtype_that_is_asked_for(checkpoint, pictures, dtype):
    assistant = open_assistant(checkpoint, device="cpu", dtype=dtype)
    assert {str(p.dtype) for p in assistant.model.parameters()} == {f"torch.{dtype}"}
    assert len(assistant.answer(requests(pictures), MANY)) == 5


def test_no_request_is_no_answer(assistant):
    assert assistant.answer([]) == []
