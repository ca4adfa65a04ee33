"""Useful over computed tokens: told by the trainer's own code, and what a plain count says of the other ways."""

import numpy as np
import pytest

from dataprep.report.efficiency import COMPARED, dealt_efficiency, other_ways
from trainer.packing import SampleOrder, computed_tokens, deal


@pytest.fixture
def lengths():
    return np.random.default_rng(3).integers(100, 2000, 1500).astype(np.int32)


def test_the_share_is_what_the_trainer_computes(lengths):
    dealt = dealt_efficiency(lengths, 128, gpus=(1, 8), budgets=(4096, 16384))
    order = SampleOrder(lengths, seed=0, samples_per_step=128)
    assert dealt.num_steps == order.num_steps(1) == 12
    steps = [lengths[order.samples(step)] for step in range(12)]
    for line, ranks in zip(dealt.shares, (1, 8), strict=True):
        for share, budget in zip(line, (4096, 16384), strict=True):
            computed = sum(computed_tokens(step, deal(step, ranks, budget)) for step in steps)
            assert share == lengths.sum() / computed
    assert 0.9 < dealt.shares[1][1] < 1 and dealt.shares[0][1] == 1


def test_a_budget_smaller_than_a_row_has_no_share(lengths):
    assert dealt_efficiency(lengths, 128, gpus=(1, 2), budgets=(1000, 4096)).shares[0][0] is None


def test_of_a_long_epoch_some_steps_are_dealt():
    lengths = np.full(128 * 100, 600, np.int32)
    dealt = dealt_efficiency(lengths, 128, gpus=(8,), budgets=(16384,))
    assert dealt.num_steps == 24 and dealt.shares == [[1.0]]


def test_the_other_ways_are_counted():
    lengths = np.array([10, 20, 30, 40] * 8, np.int32)
    ways = dict(other_ways(lengths, 50))
    assert ways["rows padded to their full width"] == 0.5
    assert ways["batches of 16 padded to their longest row"] == 25 / 40
    assert ways["first-fit bins of 32,768 tokens"] == lengths.sum() / 32768
    assert 0.75 < ways["first-fit bins of 50 tokens"] <= 1


def test_the_other_ways_are_counted_on_so_many_rows_at_most():
    lengths = np.full(COMPARED * 50, 100, np.int32)
    assert dict(other_ways(lengths, 200))["rows padded to their full width"] == 0.5
