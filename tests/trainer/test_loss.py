"""The loss is a sum over trained tokens."""

import torch

from trainer.loss import loss_sum


def test_the_sum_is_minus_the_log_probabilities_of_the_labels():
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(5, 7, generator=generator), torch.randint(0, 7, (5,), generator=generator)
    expected = sum(-logits[i].softmax(0)[labels[i]].log() for i in range(5))
    torch.testing.assert_close(loss_sum(logits, labels), expected)


def test_parts_add_up_to_the_whole():
    logits, labels = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)), torch.arange(6) % 4
    parts = loss_sum(logits[:1], labels[:1]) + loss_sum(logits[1:], labels[1:])
    torch.testing.assert_close(parts, loss_sum(logits, labels))


def test_no_token_gives_no_loss_and_gradients_of_zero():
    weights = torch.ones(3, 4, requires_grad=True)
    loss = loss_sum(torch.zeros(0, 3) @ weights, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss == 0
    assert weights.grad is not None
    assert not weights.grad.any()


def test_half_precision_logits_are_summed_in_full_precision():
    assert loss_sum(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1])).dtype == torch.float32
