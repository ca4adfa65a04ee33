"""A pack is nothing but its samples: same loss, same gradients, and no sample sees another."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

PACK = [(7, 1), (12, 0), (5, 2), (9, 1)]


def sum_of_losses(model, batch):
    """Sum of next-token losses inside each sample of a batch."""
    ends = batch.segments.cu_seqlens[1:].long() - 1
    scored = torch.ones(len(batch.input_ids), dtype=torch.bool)
    scored[ends] = False
    at = scored.nonzero().flatten()
    return F.cross_entropy(model(batch, at), batch.input_ids[at + 1], reduction="sum")


def gradients_of(model):
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("language", [{}, {"num_kv_heads": 2, "tie_embeddings": True}], ids=["plain", "grouped, tied"])
def test_a_pack_has_the_loss_and_gradients_of_its_samples(make_model, make_batch, split_batch, language):
    model = make_model(**language)
    batch = make_batch(PACK, model.config)
    packed = sum_of_losses(model, batch)
    packed.backward()
    packed_gradients = gradients_of(model)
    model.zero_grad(set_to_none=True)
    parts = split_batch(batch, model.config)
    separate = sum(sum_of_losses(model, part) for part in parts)
    separate.backward()
    assert len(parts) == len(PACK)
    torch.testing.assert_close(packed, separate, rtol=1e-6, atol=0)
    for name, gradient in gradients_of(model).items():
        if name.startswith("vision") and name.endswith("attention.k.bias"):
            continue  # it shifts all scores of a query alike: the true gradient is 0, what is left is rounding
        scale = gradient.abs().max().item()
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale, msg=name)


@pytest.mark.parametrize("changed", range(len(PACK)))
def test_changing_one_sample_changes_no_bit_of_the_others(make_model, make_batch, changed):
    model = make_model(num_kv_heads=2)
    batch = make_batch(PACK, model.config, seed=1)
    other = make_batch(PACK, model.config, seed=2)
    start, end = batch.segments.cu_seqlens[changed : changed + 2].tolist()
    inside = torch.zeros(len(batch.input_ids), dtype=torch.bool)
    inside[start:end] = True
    first_image = sum(images for _, images in PACK[:changed])
    of_sample = slice(first_image, first_image + PACK[changed][1])
    pixels = batch.pixels.clone()
    pixels[of_sample] = other.pixels[of_sample]
    ids = torch.where(inside, other.input_ids, batch.input_ids)
    with torch.no_grad():
        before, after = model(batch), model(replace(batch, input_ids=ids, pixels=pixels))
    assert torch.equal(before[~inside], after[~inside])
    assert not torch.equal(before[inside], after[inside])


def test_a_batch_without_pictures_gives_zeros_and_not_nothing_as_gradients(make_model, make_batch):
    model = make_model()
    sum_of_losses(model, make_batch([(6, 0), (8, 0)], model.config)).backward()
    from_pictures = [*model.projector.parameters(), *model.vision.layers[0].parameters()]
    assert all(p.grad is not None and not p.grad.any() for p in from_pictures)
    assert model.language.embed.weight.grad.any()


def test_the_projector_stays_in_the_graph_when_it_alone_is_trained(make_model, make_batch):
    model = make_model()
    model.vision.requires_grad_(False)
    model.language.requires_grad_(False)
    sum_of_losses(model, make_batch([(6, 0)], model.config)).backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.projector.parameters())


def test_ids_at_image_slots_are_free(make_model, make_batch):
    model = make_model()
    batch = make_batch([(6, 1)], model.config)
    outside = batch.input_ids.index_fill(0, batch.image_slots, 10**6)
    with torch.no_grad():
        assert torch.equal(model(batch), model(replace(batch, input_ids=outside)))


def test_logits_at_chosen_tokens_are_those_of_all_tokens(make_model, make_batch):
    model = make_model()
    batch = make_batch([(6, 1), (4, 0)], model.config)
    at = torch.tensor([3, 0, 17])
    with torch.no_grad():
        torch.testing.assert_close(model(batch, at), model(batch)[at], rtol=0, atol=1e-6)


def test_positions_count_and_not_slots(make_model, make_batch):
    model = make_model()
    batch = make_batch([(20, 0)], model.config)
    with torch.no_grad():
        shifted = model(replace(batch, positions=batch.positions + 5))
        stretched = model(replace(batch, positions=batch.positions * 2))
        logits = model(batch)
    # Rotary positions are relative: a common shift changes rounding alone, other distances change the answer.
    torch.testing.assert_close(shifted, logits, rtol=0, atol=1e-4)
    assert (stretched - logits).abs().max() > 1e-2
