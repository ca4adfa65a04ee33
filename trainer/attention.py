"""Causal attention over samples that lie end to end, behind one table of backends.

What arrives: queries, keys and values of all tokens of a batch, and where each sample starts and ends (`Segments`).
What leaves: for every token, what it read from its own sample. No token ever sees another sample.

Every backend of `ATTENTION` has the same signature and returns what `sdpa` returns. A backend that cannot run on a
device says why; nothing is replaced silently.

Shapes: T tokens of all samples, S samples, H query heads, K key/value heads (K divides H), D width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int32
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Where each sample starts and ends in the tokens of a batch.

    Sample s holds the tokens `cu_seqlens[s] : cu_seqlens[s + 1]`; `cu_seqlens` has one entry more than there
    are samples, starts at 0 and ends at T.
    `key_padding` is True where a token must not be attended by any other (rows trained as they are stored,
    `packing: none`); None when every token is attended, as in a packed batch.
    """

    cu_seqlens: Int32[Tensor, " bounds"]
    max_seqlen: int
    key_padding: Bool[Tensor, " T"] | None = None


@dataclass(frozen=True, slots=True)
class Backend:
    """One way to compute attention; calling it computes.

    `why_not` returns the reason why the backend cannot run on a device, None where it can.
    """

    attend: Callable[[Tensor, Tensor, Tensor, Segments], Tensor]
    why_not: Callable[[torch.device], str | None]

    def __call__(
        self,
        q: Float[Tensor, "T H D"],
        k: Float[Tensor, "T K D"],
        v: Float[Tensor, "T K D"],
        segments: Segments,
    ) -> Float[Tensor, "T H D"]:
        """Return what each token read from its own sample, up to itself."""
        return self.attend(q, k, v, segments)


def sdpa(
    q: Float[Tensor, "T H D"],
    k: Float[Tensor, "T K D"],
    v: Float[Tensor, "T K D"],
    segments: Segments,
) -> Float[Tensor, "T H D"]:
    """Attend sample by sample with PyTorch's scaled dot product attention: the reference, runs anywhere."""
    # One call a sample: a sample's result cannot depend on what lies beside it, not even in the last bit.
    bounds = segments.cu_seqlens.tolist()
    parts = [
        _attend_one(q[start:end], k[start:end], v[start:end], _mask(segments, start, end))
        for start, end in zip(bounds, bounds[1:], strict=False)
    ]
    return torch.cat(parts)


def _attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    grouped = k.shape[1] < q.shape[1]
    out = F.scaled_dot_product_attention(*heads_first, attn_mask=mask, is_causal=mask is None, enable_gqa=grouped)
    return out.squeeze(0).transpose(0, 1)


def _mask(segments: Segments, start: int, end: int) -> Bool[Tensor, "N N"] | None:
    """Return which keys (columns) each query (row) of one sample may read; None: all up to itself."""
    if segments.key_padding is None:
        return None
    attended = ~segments.key_padding[start:end]
    itself = torch.eye(end - start, dtype=torch.bool, device=attended.device)
    # A masked token reads at least itself, or its softmax over nothing would be NaN; nobody reads it.
    return (attended | itself).tril()


def _runs_anywhere(device: torch.device) -> None:
    return None


#: Every backend by the name that a config gives it.
ATTENTION: dict[str, Backend] = {
    "sdpa": Backend(sdpa, why_not=_runs_anywhere),
}

#: What `auto` tries, best first.
_PREFERENCE = ("sdpa",)


def choose(name: str, device: torch.device | str) -> str:
    """Return the name of the backend to use on a device; `auto` takes the fastest that can run there.

    Raises `ValueError` when `name` is unknown or cannot run on the device, with the reason and the choices.
    """
    device = torch.device(device)
    reasons = {known: backend.why_not(device) for known, backend in ATTENTION.items()}
    usable = [known for known in _PREFERENCE if reasons[known] is None]
    if name == "auto":
        return usable[0]
    if name not in ATTENTION:
        raise ValueError(f"attention: {name!r} is not a backend; choose auto or one of {', '.join(ATTENTION)}")
    if reasons[name] is not None:
        raise ValueError(f"attention: {name} cannot run on {device}: {reasons[name]}; choose {' or '.join(usable)}")
    return name
