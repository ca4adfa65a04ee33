"""Every backend against attention written out, and the choice of one."""

import importlib.util
import inspect
import math

import pytest
import torch

from trainer.attention import ATTENTION, Backend, Segments, choose, flash, varlen

LENGTHS = (5, 1, 9, 3)


def slow_attention(q, k, v, lengths, padding):
    """One query at a time, over the keys of its own sample up to itself that are not padding."""
    rows, start = [], 0
    group = q.shape[1] // k.shape[1]
    for length in lengths:
        for i in range(start, start + length):
            keys = [j for j in range(start, i + 1) if not padding[j]]
            for head in range(q.shape[1]):
                if not keys:  # padding that nobody reads
                    rows.append(torch.zeros_like(v[0, 0]))
                    continue
                scores = torch.stack([q[i, head] @ k[j, head // group] for j in keys]) / math.sqrt(q.shape[-1])
                weights = scores.softmax(0)
                rows.append(sum(w * v[j, head // group] for w, j in zip(weights, keys, strict=True)))
        start += length
    return torch.stack(rows).unflatten(0, (-1, q.shape[1]))


#: Where each backend is tried: in fp32 and bf16 on a CPU, in bf16 on a GPU.
PLACES = [("cpu", torch.float32), ("cpu", torch.bfloat16), ("cuda", torch.float32), ("cuda", torch.bfloat16)]

#: Against fp64, of values around 1: what rounding in each dtype leaves, TF32's ten bits included.
TOLERANCE = {torch.float32: {"cpu": 2e-6, "cuda": 3e-3}, torch.bfloat16: {"cpu": 3e-2, "cuda": 3e-2}}


def require(name: str, place: str, dtype: torch.dtype) -> None:
    """Skip with the reason where a backend cannot train."""
    if place == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    if reason := ATTENTION[name].why_not(torch.device(place), dtype):
        pytest.skip(reason)


def draw(heads: int, width: int = 16) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    num_tokens = sum(LENGTHS)
    return [
        torch.randn(num_tokens, count, width, generator=generator, dtype=torch.float64) for count in (4, heads, heads)
    ]


@pytest.fixture(params=[4, 2, 1], ids=["equal heads", "grouped heads", "one key head"])
def qkv(request):
    return draw(request.param)


def segments_of(padding=None, place="cpu"):
    bounds = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32, device=place)
    return Segments(bounds, max(LENGTHS), None if padding is None else padding.to(place))


def padding_of(*places: int) -> torch.Tensor:
    padding = torch.zeros(sum(LENGTHS), dtype=torch.bool)
    padding[list(places)] = True
    return padding


@pytest.mark.parametrize("padding", [padding_of(), padding_of(2, 8, 13, 14)], ids=["packed", "with padding"])
@pytest.mark.parametrize(("place", "dtype"), PLACES)
@pytest.mark.parametrize("name", ATTENTION)
def test_a_backend_equals_the_fp64_reference_and_so_do_its_gradients(name, place, dtype, padding, qkv):
    require(name, place, dtype)
    exact = [x.to(dtype).double().requires_grad_() for x in qkv]
    theirs = slow_attention(*exact, LENGTHS, padding)
    mine = [x.to(place, dtype).requires_grad_() for x in qkv]
    out = ATTENTION[name](*mine, segments_of(padding if padding.any() else None, place))
    assert out.dtype == dtype
    tolerance = TOLERANCE[dtype][place]
    torch.testing.assert_close(out[~padding].cpu().double(), theirs[~padding], rtol=tolerance, atol=tolerance)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weights[padding] = 0
    (theirs * weights).sum().backward()
    (out * weights.to(place, dtype)).sum().backward()
    for got, expected in zip(mine, exact, strict=True):
        torch.testing.assert_close(got.grad.cpu().double(), expected.grad, rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.parametrize(("place", "dtype"), PLACES)
@pytest.mark.parametrize("name", ATTENTION)
def test_changing_one_sample_changes_no_bit_of_the_others(name, place, dtype, qkv):
    require(name, place, dtype)
    qkv = [x.to(place, dtype) for x in qkv]
    assert_isolated(ATTENTION[name], qkv, place)


def assert_isolated(attend, qkv, place="cpu"):
    before = attend(*qkv, segments_of(place=place))
    inside = slice(LENGTHS[0] + LENGTHS[1], sum(LENGTHS[:3]))
    changed = [x.clone() for x in qkv]
    for x in changed:
        x[inside] += 1
    after = attend(*changed, segments_of(place=place))
    untouched = torch.ones(sum(LENGTHS), dtype=torch.bool)
    untouched[inside] = False
    assert torch.equal(before[untouched], after[untouched])
    assert not torch.equal(before[inside], after[inside])


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padding", [padding_of(), padding_of(2, 8, 13, 14)], ids=["packed", "with padding"])
def test_flex_masks_as_the_reference_does_wherever_it_runs_forward(padding, qkv):
    with torch.no_grad():
        out = ATTENTION["flex"](*qkv, segments_of(padding if padding.any() else None))
        torch.testing.assert_close(out[~padding], slow_attention(*qkv, LENGTHS, padding)[~padding])
        assert_isolated(ATTENTION["flex"], qkv)


def by_the_reference(q, k, v, bounds_q, bounds_k, max_q, max_k):
    """What every kernel of the flash-attention kind computes."""
    assert torch.equal(bounds_q, bounds_k) and bounds_q.dtype == torch.int32 and max_q == max_k >= bounds_q.diff().max()
    lengths = bounds_q.diff().tolist()
    return slow_attention(q, k, v, lengths, torch.zeros(sum(lengths), dtype=torch.bool))


def varlen_of_torch_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
    assert is_causal is True and key.shape[1] == query.shape[1]
    return by_the_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def varlen_of_torch_2_13(
    query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, window_size=(-1, -1), enable_gqa=False, num_splits=None
):
    assert window_size == (-1, 0) and enable_gqa is (key.shape[1] < query.shape[1])
    return by_the_reference(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k)


def flash_2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, causal=False):
    assert causal is True and dropout_p == 0
    return by_the_reference(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)


def flash_3(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=False):
    return flash_2(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal=causal), None


@pytest.mark.parametrize("padding", [padding_of(), padding_of(0, 2, 5, 8, 13, 14)], ids=["packed", "with padding"])
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        ("varlen", varlen_of_torch_2_10),
        ("varlen", varlen_of_torch_2_13),
        ("flash", flash_2),
        ("flash", flash_3),
    ],
)
def test_what_a_kernel_is_given_is_right_for_each_of_its_signatures(name, kernel, padding, qkv, monkeypatch):
    # No GPU is needed for this: the kernel itself is replaced, by the reference under the same signature.
    monkeypatch.setattr({"varlen": varlen, "flash": flash}[name], "_kernel", lambda: kernel)
    q, k, v = (x.requires_grad_() for x in qkv)
    out = ATTENTION[name](q, k, v, segments_of(padding if padding.any() else None))
    attended = ~padding
    torch.testing.assert_close(out[attended], slow_attention(q, k, v, LENGTHS, padding)[attended])
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_this_torch_has_a_signature_that_is_known():
    kernel = pytest.importorskip("torch.nn.attention.varlen").varlen_attn
    assert varlen._causal(kernel) is not None
    parameters = list(inspect.signature(kernel).parameters)
    assert [name[-1] for name in parameters[:7]] == ["y", "y", "e", "q", "k", "q", "k"]


def test_a_kernel_of_an_unknown_signature_is_not_used(monkeypatch):
    monkeypatch.setattr(varlen, "_kernel", lambda: lambda query, key, value: None)
    monkeypatch.setattr(varlen, "why_no_flash_kernel", lambda device, dtype: None)
    assert "whose signature is not known here" in str(varlen.why_not(torch.device("cuda"), torch.bfloat16))


def test_flash_and_varlen_say_why_they_cannot_run(monkeypatch):
    for name in ("flash", "varlen"):
        assert ATTENTION[name].why_not(torch.device("cpu"), torch.bfloat16) == "it needs a CUDA device"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    device = torch.device("cuda")
    assert ATTENTION["varlen"].why_not(device, torch.float32) == "it computes in bfloat16 or float16, not float32"
    if importlib.util.find_spec("flash_attn") is None:
        assert "flash-attn is not installed" in str(ATTENTION["flash"].why_not(device, torch.bfloat16))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "compute capability 8.0" in str(ATTENTION["varlen"].why_not(device, torch.bfloat16))


def test_sdpa_gives_numbers_where_there_is_nothing_to_attend(qkv):
    q, k, v = (x.requires_grad_() for x in qkv)
    attended = ATTENTION["sdpa"](q, k, v, segments_of(torch.ones(sum(LENGTHS), dtype=torch.bool)))
    attended.sum().backward()
    assert attended.isfinite().all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


def test_auto_names_a_backend_that_runs_on_the_device():
    assert choose("auto", "cpu") == choose("auto", "cpu", torch.bfloat16) == "sdpa"
    assert choose("sdpa", torch.device("cpu")) == "sdpa"


def test_an_unknown_backend_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'falsh' is not a backend; choose auto or one of flash, varlen, sdpa, flex"):
        choose("falsh", "cpu")


def test_a_backend_that_cannot_run_says_why_and_what_to_choose(monkeypatch):
    needs_more = Backend(ATTENTION["sdpa"].attend, why_not=lambda device, dtype: f"it needs more than {device.type}")
    monkeypatch.setitem(ATTENTION, "picky", needs_more)
    with pytest.raises(ValueError, match="picky cannot run on cpu: it needs more than cpu; choose sdpa"):
        choose("picky", "cpu")
