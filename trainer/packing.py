"""Which samples make up an optimizer step, and how they are dealt out to ranks and micro-batches.

The two questions are kept apart. The first is answered by the seed, the step and the rows' lengths alone
(`SampleOrder`); how many ranks there are and how many tokens fit a micro-batch only decides the second (`deal`). So a
packed run takes the same optimizer steps as an unpacked one, on any number of GPUs, and the whole state of the loader
is the step it stands at.
"""

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

#: Indices of samples; int64 unless said otherwise.
Indices = NDArray[np.integer]

#: The micro-batches of a step: `[micro_step][rank]` are the samples (positions in the step) of one micro-batch.
Deal = list[list[Indices]]


def epoch_order(num_rows: int, seed: int, epoch: int) -> Indices:
    """Return the order of an epoch, a permutation of `range(num_rows)`, which depends on the arguments alone."""
    dtype = np.int32 if num_rows <= np.iinfo(np.int32).max else np.int64
    return np.random.default_rng([seed, epoch]).permutation(np.arange(num_rows, dtype=dtype))


def cut_by_samples(num_rows: int, samples_per_step: int) -> Indices:
    """Return where the steps of an epoch begin, then `num_rows`: the last step holds what is left."""
    return np.append(np.arange(0, num_rows, samples_per_step), num_rows)


def cut_by_tokens(lengths: NDArray[np.integer], tokens_per_step: int) -> Indices:
    """Return where the steps of an epoch begin, then the number of rows: each step at most `tokens_per_step` tokens.

    `lengths` are those of the epoch's samples, in its order. A sample longer than a step is a step of its own.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    cuts = [0]
    while cuts[-1] < len(lengths):
        tokens_before = int(ends[cuts[-1] - 1]) if cuts[-1] else 0
        fitting = int(np.searchsorted(ends, tokens_before + tokens_per_step, side="right"))
        cuts.append(max(fitting, cuts[-1] + 1))
    return np.array(cuts)


@dataclass(frozen=True, slots=True)
class _Epoch:
    number: int
    first_step: int
    order: Indices
    cuts: Indices

    @property
    def num_steps(self) -> int:
        return len(self.cuts) - 1


class SampleOrder:
    """The samples of every optimizer step of a run, each sample once an epoch.

    `lengths` (num_rows,) are the rows' tokens. Exactly one of `samples_per_step` and `tokens_per_step` is given.
    """

    def __init__(
        self,
        lengths: NDArray[np.integer],
        seed: int,
        samples_per_step: int | None = None,
        tokens_per_step: int | None = None,
    ) -> None:
        if len(lengths) == 0:
            raise ValueError("the shards hold no rows")
        if (samples_per_step is None) == (tokens_per_step is None):
            raise ValueError("a step is measured either in samples or in tokens: give exactly one of the two")
        self._lengths = lengths
        self._seed = seed
        self._samples_per_step = samples_per_step
        self._tokens_per_step = tokens_per_step
        self._first_steps = [0]
        self._current: _Epoch | None = None

    def num_steps(self, epochs: int) -> int:
        """Return how many optimizer steps that many epochs take."""
        return self._first_step(epochs)

    def epoch_of(self, step: int) -> int:
        """Return the epoch that a step, counted from 0 over the whole run, belongs to."""
        if self._samples_per_step is not None:
            return step // self._first_step(1)
        epoch = 0
        while self._first_step(epoch + 1) <= step:
            epoch += 1
        return epoch

    def samples(self, step: int) -> Indices:
        """Return the rows of a step, in the epoch's order."""
        epoch = self._epoch(self.epoch_of(step))
        begin, end = epoch.cuts[step - epoch.first_step : step - epoch.first_step + 2]
        return epoch.order[begin:end]

    def _first_step(self, epoch: int) -> int:
        """Return the run's step at which an epoch begins; by tokens, it depends on the epochs before."""
        if self._samples_per_step is not None:
            return epoch * -(-len(self._lengths) // self._samples_per_step)
        while len(self._first_steps) <= epoch:
            cuts = self._cut(epoch_order(len(self._lengths), self._seed, len(self._first_steps) - 1))
            self._first_steps.append(self._first_steps[-1] + len(cuts) - 1)
        return self._first_steps[epoch]

    def _epoch(self, number: int) -> _Epoch:
        if self._current is None or self._current.number != number:
            order = epoch_order(len(self._lengths), self._seed, number)
            self._current = _Epoch(number, self._first_step(number), order, self._cut(order))
        return self._current

    def _cut(self, order: Indices) -> Indices:
        if self._samples_per_step is not None:
            return cut_by_samples(len(order), self._samples_per_step)
        assert self._tokens_per_step is not None
        return cut_by_tokens(self._lengths[order], self._tokens_per_step)


def deal(lengths: NDArray[np.integer], num_ranks: int, max_tokens: int) -> Deal:
    """Deal out a step's samples to ranks and micro-batches of at most `max_tokens` tokens.

    `lengths` (num_samples,) are what each sample costs. There are as few micro-steps as the samples were found to fit;
    the loads of the ranks in one micro-step are alike, since the slowest rank is waited for. With fewer samples than
    ranks some micro-batches are empty. The same arguments give the same deal.

    Raises `ValueError` where a sample alone is over `max_tokens`.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    _check_lengths(lengths, max_tokens)
    num_micro_steps = max(1, -(-int(lengths.sum()) // (num_ranks * max_tokens)))
    while (owners := _fill(lengths, num_micro_steps * num_ranks, max_tokens)) is None:
        num_micro_steps += 1
    return _group_alike(lengths, owners, num_micro_steps, num_ranks)


def computed_tokens(lengths: NDArray[np.integer], dealt: Deal, multiple: int = 1) -> int:
    """Return what a step costs: ranks x the sum over micro-steps of the heaviest rank's tokens.

    Each rank's tokens are counted as padded to `multiple`.
    """
    heaviest = (max(int(lengths[samples].sum()) for samples in ranks) for ranks in dealt)
    return sum(len(ranks) * -(-load // multiple) * multiple for ranks, load in zip(dealt, heaviest, strict=True))


def _check_lengths(lengths: NDArray[np.int64], max_tokens: int) -> None:
    if len(lengths) and lengths.max() > max_tokens:
        raise ValueError(
            f"a sample of {lengths.max()} tokens does not fit a micro-batch: raise max_tokens, which is {max_tokens}"
        )


def _fill(lengths: NDArray[np.int64], num_bins: int, max_tokens: int) -> Indices | None:
    """Return each sample's bin, no bin over `max_tokens`, or None if no way was found."""
    owners = _largest_first(lengths, num_bins)
    if _loads(lengths, owners, num_bins).max() <= max_tokens:
        return owners
    owners = _level(lengths, owners, num_bins)
    if _loads(lengths, owners, num_bins).max() <= max_tokens:
        return owners
    return _best_fit(lengths, num_bins, max_tokens)


def _loads(lengths: NDArray[np.int64], owners: Indices, num_bins: int) -> NDArray[np.int64]:
    return np.bincount(owners, weights=lengths, minlength=num_bins).astype(np.int64)


def _largest_first(lengths: NDArray[np.int64], num_bins: int) -> Indices:
    """Give each sample, the longest first, to the bin that holds least."""
    owners = np.zeros(len(lengths), dtype=np.int64)
    heap = [(0, number) for number in range(num_bins)]
    for sample in np.argsort(-lengths, kind="stable").tolist():
        load, number = heap[0]
        owners[sample] = number
        heapq.heapreplace(heap, (load + int(lengths[sample]), number))
    return owners


def _best_fit(lengths: NDArray[np.int64], num_bins: int, max_tokens: int) -> Indices | None:
    """Give each sample, the longest first, to the fullest bin that still takes it; None if one does not fit."""
    owners = np.zeros(len(lengths), dtype=np.int64)
    room = np.full(num_bins, max_tokens, dtype=np.int64)
    for sample in np.argsort(-lengths, kind="stable").tolist():
        left = room - lengths[sample]
        number = int(np.argmin(np.where(left < 0, max_tokens + 1, left)))
        if left[number] < 0:
            return None
        owners[sample] = number
        room[number] = left[number]
    return owners


def _level(lengths: NDArray[np.int64], owners: Indices, num_bins: int) -> Indices:
    """Lower the heaviest bin by moves and swaps until none lowers it any more."""
    owners = owners.copy()
    loads = _loads(lengths, owners, num_bins)
    # Every bin also holds a "nothing" that never leaves it: taking it in exchange makes a swap a move.
    sizes = np.append(lengths, np.zeros(num_bins, dtype=np.int64))
    homes = np.append(owners, np.arange(num_bins))
    least = -(-int(loads.sum()) // num_bins)
    while loads.max() > least:
        heaviest = int(np.argmax(loads))
        here = np.flatnonzero(homes[: len(lengths)] == heaviest)
        there = np.flatnonzero(homes != heaviest)
        shift = sizes[here][:, None] - sizes[there][None, :]
        worst = np.maximum(loads[heaviest] - shift, loads[homes[there]] + shift)
        best = int(np.argmin(worst))
        if worst.flat[best] >= loads[heaviest]:
            break
        given, taken = here[best // len(there)], there[best % len(there)]
        loads[homes[taken]] += shift.flat[best]
        loads[heaviest] -= shift.flat[best]
        homes[given] = homes[taken]
        if taken < len(lengths):
            homes[taken] = heaviest
    return homes[: len(lengths)]


def _group_alike(lengths: NDArray[np.int64], owners: Indices, num_micro_steps: int, num_ranks: int) -> Deal:
    """Make micro-steps of bins of like load, the heaviest first, then level the ranks within each."""
    heaviest_first = np.argsort(-_loads(lengths, owners, num_micro_steps * num_ranks), kind="stable")
    dealt = []
    for bins in heaviest_first.reshape(num_micro_steps, num_ranks):
        rank_of_bin = {int(number): rank for rank, number in enumerate(bins)}
        members = np.flatnonzero(np.isin(owners, bins))
        ranks = np.array([rank_of_bin[int(number)] for number in owners[members]], dtype=np.int64)
        ranks = _level(lengths[members], ranks, num_ranks)
        dealt.append([members[ranks == rank] for rank in range(num_ranks)])
    return dealt
