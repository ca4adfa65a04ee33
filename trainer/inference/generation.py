"""Prompts to answers, a token a step, with keys and values kept.

The layers are the lean model's own; only attention is done here, over what the cache holds.

Shapes: S samples, T new tokens of all samples end to end, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from trainer.attention import Segments
from trainer.inference.asking import Sampling
from trainer.inference.cache import KeyValueCache, NextTokens, Prompts
from trainer.inference.drafts import Draft
from trainer.inference.prompts import Prompt
from trainer.inference.sampling import choose, make_generator
from trainer.model import LlavaModel, ModelInput
from trainer.model.language import DecoderLayer, rotary


def new_cache(model: LlavaModel, num_samples: int) -> KeyValueCache:
    """Return an empty cache where the model is, in its dtype."""
    weight = model.language.embed.weight
    return KeyValueCache(model.config.language, num_samples, weight.device, weight.dtype)


def generate(
    model: LlavaModel, prompts: Sequence[Prompt], drafts: Sequence[Draft], sampling: Sampling, cache: KeyValueCache
) -> Iterator[None]:
    """Write the drafts, a token of each a step; yield after every step.

    A draft that is over is not read any more, and once it is so for half of them they leave the cache. Of each prompt
    the cache may hold a beginning already, but not all of it.
    """
    generators = [make_generator(prompt, sampling.seed) for prompt in prompts]
    logits = read_prompts(model, prompts, cache)
    # The samples of the cache, in its order, and of them those that go on.
    held, going = list(range(len(prompts))), set(range(len(prompts)))
    while True:
        tokens = choose(logits, sampling, [generators[sample] for sample in held])
        for sample, token in zip(held, tokens, strict=True):
            if sample in going and not drafts[sample].take(token):
                going.remove(sample)
        yield
        if not going:
            return
        if 2 * len(going) <= len(held):
            rows = [row for row, sample in enumerate(held) if sample in going]
            cache.keep(rows)
            held, tokens = [held[row] for row in rows], [tokens[row] for row in rows]
        logits = read_next(model, tokens, [int(sample in going) for sample in held], cache)


@torch.inference_mode()
def read_prompts(model: LlavaModel, prompts: Sequence[Prompt], cache: KeyValueCache) -> Float[Tensor, "S V"]:
    """Read what of the prompts is not in the cache; return the logits behind their last tokens."""
    counts = [len(prompt.ids) - length for prompt, length in zip(prompts, cache.lengths, strict=True)]
    assert min(counts) > 0, "a prompt must have a token that was not read yet"
    batch = _lay_out(prompts, cache.lengths, counts).to(model.language.embed.weight.device)
    ends = batch.segments.cu_seqlens[1:].long() - 1
    logits = _decode(model, model.embed(batch), batch.positions, cache.prompts(counts), ends)
    cache.advance(counts)
    return logits


@torch.inference_mode()
def read_next(
    model: LlavaModel, tokens: Sequence[int], counts: Sequence[int], cache: KeyValueCache
) -> Float[Tensor, "S V"]:
    """Read one token of every sample; return the logits behind it. Those with a count of 0 are not kept."""
    device = model.language.embed.weight.device
    embedded = model.language.embed(torch.tensor(tokens, device=device))
    positions = torch.tensor(cache.lengths, device=device)
    logits = _decode(model, embedded, positions, cache.next_tokens(), None)
    cache.advance(counts)
    return logits


def _lay_out(prompts: Sequence[Prompt], starts: Sequence[int], counts: Sequence[int]) -> ModelInput:
    """Lay the unread ends of prompts end to end; a picture is read whole or not at all."""
    bounds = [0, *accumulate(counts)]
    slots, pixels = [], []
    for prompt, start, bound in zip(prompts, starts, bounds, strict=False):
        if len(prompt.image_slots) and start <= prompt.image_slots.start:
            slots += [slot - start + bound for slot in prompt.image_slots]
            pixels.append(prompt.pixels)
    rests = [prompt.ids[start:] for prompt, start in zip(prompts, starts, strict=True)]
    return ModelInput(
        input_ids=torch.tensor([token for rest in rests for token in rest]),
        positions=torch.cat([torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]),
        segments=Segments(torch.tensor(bounds, dtype=torch.int32), max(counts)),
        image_slots=torch.tensor(slots, dtype=torch.int64),
        pixels=torch.cat(pixels) if pixels else prompts[0].pixels[:0],
    )


def _decode(
    model: LlavaModel,
    hidden: Float[Tensor, "T D"],
    positions: Int64[Tensor, " T"],
    reader: Prompts | NextTokens,
    at: Int64[Tensor, " S"] | None,
) -> Float[Tensor, "S V"]:
    """Return the logits of the tokens `at` (all by default), after keys and values of all layers were kept."""
    language = model.language
    rotation = rotary(positions, language.config, hidden.dtype)
    for number, layer in enumerate(language.layers):
        assert isinstance(layer, DecoderLayer)
        read = reader.attend(number, *layer.before_attention(hidden, rotation))
        hidden = hidden + layer.attention.o(read.flatten(1))
        hidden = hidden + layer.mlp.down(layer.before_down(hidden))
    return language.output_layer().project(language.norm(hidden if at is None else hidden[at]))
