"""Logits to the next token: the likeliest, or a draw.

The order is transformers': temperature, then the `top_k` likeliest, then the likeliest that reach `top_p`
(`TemperatureLogitsWarper`, `TopKLogitsWarper`, `TopPLogitsWarper`). One uniform number is drawn for each token, from a
generator of the sample's own.

Shapes: S samples, V vocabulary.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from trainer.errors import IntegrityError
from trainer.inference.asking import Sampling
from trainer.inference.prompts import Prompt


def make_generator(prompt: Prompt, seed: int) -> torch.Generator:
    """Return a sample's own source of draws; it follows from seed and prompt, whatever else is in the batch."""
    digest = hashlib.blake2b(repr((seed, prompt.ids)).encode() + prompt.picture_digest(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def choose(logits: Float[Tensor, "S V"], sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """Return the next token of each sample.

    Raises:
        IntegrityError: logits that are no numbers.
    """
    logits = logits.float()
    largest, likeliest = logits.max(dim=-1)
    if not bool(torch.isfinite(largest).all()):
        raise IntegrityError(
            "the model's output is no number: its weights are damaged, or too large for float16 (choose --dtype"
            " bfloat16 or float32)"
        )
    if sampling.temperature == 0:
        return likeliest.tolist()
    probabilities = filtered(logits, sampling).softmax(dim=-1)
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    return _inverse(probabilities, draws.to(logits.device)).tolist()


def filtered(logits: Float[Tensor, "S V"], sampling: Sampling) -> Float[Tensor, "S V"]:
    """Return the logits at the temperature, -inf where a token is not drawn from."""
    # The largest logit becomes 0 first: divided by a tiny temperature it would be infinite.
    logits = (logits - logits.max(dim=-1, keepdim=True).values) / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, float("-inf"))
    if sampling.top_p < 1:
        ordered, places = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        # What stands before a token already reaches top_p: it is not needed. The first one always is.
        surplus = probabilities.cumsum(dim=-1) - probabilities >= sampling.top_p
        surplus[..., 0] = False
        logits = logits.masked_fill(torch.zeros_like(surplus).scatter(-1, places, surplus), float("-inf"))
    return logits


def _inverse(probabilities: Float[Tensor, "S V"], draws: Float64[Tensor, " S"]) -> Int64[Tensor, " S"]:
    """Return for each uniform draw the token at which the sum of the probabilities passes it."""
    sums = probabilities.double().cumsum(dim=-1)
    # Against the sum that there is: rounding may keep it below 1, and a draw must never fall behind the last token.
    passed = torch.searchsorted(sums, (draws * sums[:, -1])[:, None], right=True)[:, 0]
    last = (probabilities > 0).double().cumsum(dim=-1).argmax(dim=-1)
    return torch.minimum(passed, last)
