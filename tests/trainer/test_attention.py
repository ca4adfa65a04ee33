"""Every backend against attention written out, and the choice of one."""

import math

import pytest
import torch

from trainer.attention import ATTENTION, Backend, Segments, choose

LENGTHS = (5, 1, 9, 3)


def slow_attention(q, k, v, lengths, padding):
    """One query at a time, over the keys of its own sample up to itself that are not padding."""
    rows, start = [], 0
    group = q.shape[1] // k.shape[1]
    for length in lengths:
        for i in range(start, start + length):
            keys = [j for j in range(start, i + 1) if not padding[j]]
            for head in range(q.shape[1]):
                scores = torch.stack([q[i, head] @ k[j, head // group] for j in keys]) / math.sqrt(q.shape[-1])
                weights = scores.softmax(0)
                rows.append(sum(w * v[j, head // group] for w, j in zip(weights, keys, strict=True)))
        start += length
    return torch.stack(rows).unflatten(0, (-1, q.shape[1]))


@pytest.fixture(params=[4, 2, 1], ids=["equal heads", "grouped heads", "one key head"])
def qkv(request):
    generator = torch.Generator().manual_seed(3)
    num_tokens = sum(LENGTHS)
    return [torch.randn(num_tokens, heads, 6, generator=generator) for heads in (4, request.param, request.param)]


def segments_of(padding=None):
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    return Segments(bounds, max(LENGTHS), padding)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_backend_computes_causal_attention_inside_each_sample(name, qkv):
    if reason := ATTENTION[name].why_not(torch.device("cpu")):
        pytest.skip(reason)
    expected = slow_attention(*qkv, LENGTHS, torch.zeros(sum(LENGTHS), dtype=torch.bool))
    torch.testing.assert_close(ATTENTION[name](*qkv, segments_of()), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ATTENTION)
def test_changing_one_sample_changes_no_bit_of_the_others(name, qkv):
    if reason := ATTENTION[name].why_not(torch.device("cpu")):
        pytest.skip(reason)
    before = ATTENTION[name](*qkv, segments_of())
    inside = slice(LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3]))
    changed = [x.clone() for x in qkv]
    for x in changed:
        x[inside] += 1
    after = ATTENTION[name](*changed, segments_of())
    untouched = torch.ones(sum(LENGTHS), dtype=torch.bool)
    untouched[inside] = False
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[inside], after[inside])


def test_sdpa_does_not_attend_padding(qkv):
    padding = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    padding[[2, 8, 13, 14]] = True
    attended = ATTENTION["sdpa"](*qkv, segments_of(padding))
    expected = slow_attention(*qkv, LENGTHS, padding)
    torch.testing.assert_close(attended[~padding], expected[~padding], rtol=0, atol=1e-6)


def test_sdpa_gives_numbers_where_there_is_nothing_to_attend(qkv):
    q, k, v = (x.requires_grad_() for x in qkv)
    attended = ATTENTION["sdpa"](q, k, v, segments_of(torch.ones(sum(LENGTHS), dtype=torch.bool)))
    attended.sum().backward()
    assert attended.isfinite().all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_auto_names_a_backend_that_runs_on_the_device():
    assert ATTENTION[choose("auto", "cpu")].why_not(torch.device("cpu")) is None
    assert choose("sdpa", torch.device("cpu")) == "sdpa"


def test_an_unknown_backend_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'falsh' is not a backend; choose auto or one of sdpa"):
        choose("falsh", "cpu")


def test_a_backend_that_cannot_run_says_why_and_what_to_choose(monkeypatch):
    needs_more = Backend(ATTENTION["sdpa"].attend, why_not=lambda device: f"it needs more than {device.type}")
    monkeypatch.setitem(ATTENTION, "picky", needs_more)
    with pytest.raises(ValueError, match="picky cannot run on cpu: it needs more than cpu; choose sdpa"):
        choose("picky", "cpu")
