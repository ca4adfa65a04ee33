"""Keys and values of the tokens that were read, so that a new token costs one token and not the whole text again.

Samples of a batch are of unequal lengths. Each one's tokens lie from 0 on; what lies behind them is never read, so a
sample's answer does not depend on how long its neighbours are.

Shapes: S samples, T new tokens of all samples end to end, C capacity, H query heads, K key/value heads (K divides H).
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from trainer.model import LanguageConfig

#: Tokens that room is made for at a time, at least: growing copies everything.
MIN_GROWTH = 128


class KeyValueCache:
    """The keys and values of every decoder layer, for S samples.

    Attributes:
        lengths: tokens of each sample that are kept.
    """

    def __init__(self, config: LanguageConfig, num_samples: int, device: torch.device, dtype: torch.dtype) -> None:
        self.lengths = [0] * num_samples
        self._window = config.sliding_window
        shape = (num_samples, config.num_kv_heads, 0, config.head_dim)
        self._keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self._values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.num_layers)]
        self._device = device

    def keep(self, samples: Sequence[int]) -> None:
        """Drop all samples but these."""
        chosen = torch.tensor(samples, device=self._device)
        self._keys = [keys.index_select(0, chosen) for keys in self._keys]
        self._values = [values.index_select(0, chosen) for values in self._values]
        self.lengths = [self.lengths[sample] for sample in samples]

    def reserve(self, num_tokens: int) -> None:
        """Make room for samples of so many tokens."""
        capacity = self._keys[0].shape[2]
        if num_tokens > capacity:
            # Zeros and not whatever lies in the memory: a NaN would spoil a sum even where it counts for nothing.
            more = (0, 0, 0, max(num_tokens, capacity + max(MIN_GROWTH, capacity // 2)) - capacity)
            self._keys = [F.pad(keys, more) for keys in self._keys]
            self._values = [F.pad(values, more) for values in self._values]

    def advance(self, counts: Sequence[int]) -> None:
        """Count the tokens that all layers have read as kept."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def prompts(self, counts: Sequence[int]) -> "Prompts":
        """Return what reads `counts[s]` new tokens of each sample s, all at least 1."""
        self.reserve(max(length + count for length, count in zip(self.lengths, counts, strict=True)))
        return Prompts(self, counts)

    def next_tokens(self) -> "NextTokens":
        """Return what reads one new token of every sample."""
        self.reserve(max(self.lengths) + 1)
        return NextTokens(self)


class Prompts:
    """Reads several tokens of each sample, sample by sample: nothing is padded."""

    def __init__(self, cache: KeyValueCache, counts: Sequence[int]) -> None:
        self._cache, self._counts = cache, list(counts)
        self._masks = [self._mask(start, count) for start, count in zip(cache.lengths, counts, strict=True)]

    def _mask(self, start: int, count: int) -> Bool[Tensor, "new end"] | None:
        """Return which kept tokens (columns) each new one (rows) reads; None: all up to itself, none kept before."""
        cache, end = self._cache, start + count
        if start == 0 and (cache._window is None or end <= cache._window):
            return None
        rows = torch.arange(start, end, device=cache._device)[:, None]
        return _visible(torch.arange(end, device=cache._device), rows, cache._window)

    def attend(
        self, layer: int, q: Float[Tensor, "T H head"], k: Float[Tensor, "T K head"], v: Float[Tensor, "T K head"]
    ) -> Float[Tensor, "T H head"]:
        """Keep keys and values; return what each query read from its own sample."""
        keys, values = self._cache._keys[layer], self._cache._values[layer]
        parts = zip(q.split(self._counts), k.split(self._counts), v.split(self._counts), strict=True)
        read = []
        for sample, (queries, new_keys, new_values) in enumerate(parts):
            start, mask = self._cache.lengths[sample], self._masks[sample]
            end = start + len(queries)
            keys[sample, :, start:end] = new_keys.transpose(0, 1)
            values[sample, :, start:end] = new_values.transpose(0, 1)
            out = F.scaled_dot_product_attention(
                queries.transpose(0, 1)[None],
                keys[sample : sample + 1, :, :end],
                values[sample : sample + 1, :, :end],
                attn_mask=mask,
                is_causal=mask is None,
                enable_gqa=k.shape[1] < q.shape[1],
            )
            read.append(out[0].transpose(0, 1))
        return torch.cat(read)


class NextTokens:
    """Reads one token of every sample in one call (T = S)."""

    def __init__(self, cache: KeyValueCache) -> None:
        self._cache = cache
        self._longest = max(cache.lengths) + 1
        self._samples = torch.arange(len(cache.lengths), device=cache._device)
        self._places = torch.tensor(cache.lengths, device=cache._device)
        columns = torch.arange(self._longest, device=cache._device)
        self._mask = _visible(columns, self._places[:, None], cache._window)[:, None, None]

    def attend(
        self, layer: int, q: Float[Tensor, "S H head"], k: Float[Tensor, "S K head"], v: Float[Tensor, "S K head"]
    ) -> Float[Tensor, "S H head"]:
        """Keep keys and values; return what each query read from its own sample."""
        keys, values = self._cache._keys[layer], self._cache._values[layer]
        keys[self._samples, :, self._places] = k
        values[self._samples, :, self._places] = v
        # Query heads that share a key head are queries of that head: no key is copied for each of them.
        out = F.scaled_dot_product_attention(
            q.unflatten(1, (k.shape[1], -1)),
            keys[:, :, : self._longest],
            values[:, :, : self._longest],
            attn_mask=self._mask,
        )
        return out.flatten(1, 2)


def _visible(
    columns: Int64[Tensor, " columns"], rows: Int64[Tensor, "rows 1"], window: int | None
) -> Bool[Tensor, "rows columns"]:
    """Return where the token of a row reads that of a column: up to itself, `window` tokens back with itself."""
    seen = columns <= rows
    return seen if window is None else seen & (columns > rows - window)
