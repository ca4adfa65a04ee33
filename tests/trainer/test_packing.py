"""Which samples make up a step, and how they are dealt out."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.packing import SampleOrder, computed_tokens, cut_by_tokens, deal, epoch_order

MAX_TOKENS = 100
LENGTHS = st.lists(st.integers(1, MAX_TOKENS), min_size=1, max_size=60).map(np.array)
RANKS = st.integers(1, 9)


@given(LENGTHS, RANKS)
def test_a_deal_holds_every_sample_once_within_the_budget(lengths, num_ranks):
    dealt = deal(lengths, num_ranks, MAX_TOKENS)
    everything = np.concatenate([samples for ranks in dealt for samples in ranks])
    assert sorted(everything.tolist()) == list(range(len(lengths)))
    assert all(len(ranks) == num_ranks for ranks in dealt)
    assert all(lengths[samples].sum() <= MAX_TOKENS for ranks in dealt for samples in ranks)


@given(LENGTHS, RANKS)
def test_the_same_step_is_always_dealt_the_same(lengths, num_ranks):
    first, second = (deal(lengths.copy(), num_ranks, MAX_TOKENS) for _ in range(2))
    assert [[list(samples) for samples in ranks] for ranks in first] == [
        [list(samples) for samples in ranks] for ranks in second
    ]


def first_fit_decreasing(lengths):
    bins = []
    for length in sorted(lengths.tolist(), reverse=True):
        fitting = next((i for i, load in enumerate(bins) if load + length <= MAX_TOKENS), None)
        if fitting is None:
            bins.append(length)
        else:
            bins[fitting] += length
    return len(bins)


def fewest_bins(lengths):
    """The true least number of bins, by trying every way."""

    def place(index, loads):
        if index == len(lengths):
            return len(loads)
        tried = [loads[:i] + [load + lengths[index]] + loads[i + 1 :] for i, load in enumerate(loads)]
        return min(place(index + 1, each) for each in [*tried, [*loads, lengths[index]]] if max(each) <= MAX_TOKENS)

    return place(0, [])


@given(LENGTHS, RANKS)
def test_there_are_no_more_micro_steps_than_first_fit_would_need(lengths, num_ranks):
    assert len(deal(lengths, num_ranks, MAX_TOKENS)) <= -(-first_fit_decreasing(lengths) // num_ranks)


@settings(max_examples=30)
@given(st.lists(st.integers(20, MAX_TOKENS), min_size=1, max_size=7).map(np.array))
def test_a_few_samples_take_the_least_number_of_micro_batches(lengths):
    assert len(deal(lengths, 1, MAX_TOKENS)) == fewest_bins(lengths.tolist())


def test_ranks_of_one_micro_step_have_like_loads():
    lengths = np.random.default_rng(0).integers(600, 2048, 128)
    dealt = deal(lengths, 8, 8192)
    assert len(dealt) > 1
    assert lengths.sum() / computed_tokens(lengths, dealt) > 0.995


def test_fewer_samples_than_ranks_leave_some_ranks_without():
    dealt = deal(np.array([5, 7]), 4, 10)
    assert sorted(len(samples) for samples in dealt[0]) == [0, 0, 1, 1]
    assert computed_tokens(np.array([5, 7]), dealt) == 4 * 7


def test_computed_tokens_are_counted_as_padded():
    dealt = deal(np.array([5, 9]), 2, 16)
    assert computed_tokens(np.array([5, 9]), dealt, multiple=8) == 2 * 16


def test_a_sample_over_the_budget_names_the_setting():
    with pytest.raises(ValueError, match="sample of 101 tokens .* raise max_tokens, which is 100"):
        deal(np.array([3, 101]), 1, 100)


@given(st.integers(1, 200), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_holds_every_row_once(num_rows, seed, epoch):
    order = epoch_order(num_rows, seed, epoch)
    assert sorted(order.tolist()) == list(range(num_rows))
    assert np.array_equal(order, epoch_order(num_rows, seed, epoch))


def test_seed_and_epoch_both_change_the_order():
    orders = [epoch_order(100, seed, epoch).tolist() for seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


@given(LENGTHS, st.integers(1, 12))
def test_steps_by_samples_are_full_but_for_an_epochs_last(lengths, size):
    order = SampleOrder(lengths, seed=3, samples_per_step=size)
    steps = [order.samples(step) for step in range(order.num_steps(2))]
    per_epoch = order.num_steps(1)
    for epoch in range(2):
        mine = steps[epoch * per_epoch : (epoch + 1) * per_epoch]
        assert sorted(np.concatenate(mine).tolist()) == list(range(len(lengths)))
        assert all(len(samples) == size for samples in mine[:-1])
        assert np.array_equal(np.concatenate(mine), epoch_order(len(lengths), 3, epoch))
    assert [order.epoch_of(step) for step in (0, per_epoch - 1, per_epoch)] == [0, 0, 1]


@given(LENGTHS, st.integers(1, 400))
def test_steps_by_tokens_cut_the_same_order_as_late_as_they_can(lengths, tokens):
    order = SampleOrder(lengths, seed=3, tokens_per_step=tokens)
    for epoch in range(2):
        steps = [order.samples(step) for step in range(order.num_steps(epoch), order.num_steps(epoch + 1))]
        assert np.array_equal(np.concatenate(steps), epoch_order(len(lengths), 3, epoch))
        for samples, following in zip(steps, [*steps[1:], None], strict=True):
            assert lengths[samples].sum() <= tokens or len(samples) == 1
            if following is not None:
                assert lengths[samples].sum() + lengths[following[0]] > tokens
        assert {order.epoch_of(step) for step in range(order.num_steps(epoch), order.num_steps(epoch + 1))} == {epoch}


def test_a_step_is_found_without_the_steps_before_it():
    lengths = np.random.default_rng(1).integers(1, 50, 500)
    walked, jumped = (SampleOrder(lengths, seed=0, tokens_per_step=300) for _ in range(2))
    last = walked.num_steps(2) - 1
    everything = [walked.samples(step).tolist() for step in range(last + 1)]
    assert jumped.samples(last).tolist() == everything[last]
    assert jumped.samples(3).tolist() == everything[3]


def test_cuts_start_at_the_first_row_and_end_behind_the_last():
    assert cut_by_tokens(np.array([5, 5, 20, 1]), 10).tolist() == [0, 2, 3, 4]


@pytest.mark.parametrize("measures", [{}, {"samples_per_step": 2, "tokens_per_step": 5}])
def test_a_step_has_exactly_one_measure(measures):
    with pytest.raises(ValueError, match="exactly one"):
        SampleOrder(np.array([1, 2]), seed=0, **measures)


def test_no_rows_are_an_error():
    with pytest.raises(ValueError, match="no rows"):
        SampleOrder(np.array([], dtype=np.int32), seed=0, samples_per_step=1)
