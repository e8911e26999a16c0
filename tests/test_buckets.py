"""Batches of samples of like length: every sample once, a function of seed and epoch, at most so many tokens."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.utils.rnn import pad_sequence

from surefoot.data import DatasetSource, Loader
from surefoot.errors import UsageError

LENGTHS = [1 + (7 * k) % 60 for k in range(500)]


def padded(samples):
    sequences, labels = zip(*samples, strict=True)
    return pad_sequence(list(sequences), batch_first=True), torch.tensor(labels)


def pairs(samples):
    return samples


class Sequences:
    def __init__(self, lengths=LENGTHS):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)

    def __getitem__(self, index):
        return torch.full((self.lengths[index], 2), float(index)), index


def source(lengths=LENGTHS) -> DatasetSource:
    return DatasetSource(Sequences(lengths), collate=padded)


def drawn(loader: Loader) -> list[list[int]]:
    return [labels.tolist() for _, labels in loader]


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=80), st.integers(1, 9), st.none() | st.integers(40, 90),
    st.booleans(), st.booleans(),
)  # fmt: skip
def test_every_sample_comes_once_in_batches_within_the_budget(lengths, size, most, shuffle, drop):
    size = min(size, len(lengths))
    data = (torch.zeros(len(lengths), 1), torch.arange(len(lengths)))
    loader = Loader(data, size, lengths=lengths, max_tokens=most, seed=3, shuffle=shuffle, drop_last=drop)
    for _ in range(2):
        sizes = (len(loader), loader.samples)
        batches = drawn(loader)
        flat = sum(batches, [])
        assert (len(batches), len(flat)) == sizes and len(set(flat)) == len(flat)
        assert drop or len(flat) == len(lengths)
        for batch in batches:
            assert 0 < len(batch) <= size
            assert most is None or len(batch) * max(lengths[k] for k in batch) <= most
    if most is None and not drop:
        assert len(loader) == -(-len(lengths) // size)


def test_little_is_padded_and_neighbours_change_from_epoch_to_epoch():
    loader, mixed = Loader(source(), 10, lengths=LENGTHS, seed=1), Loader(source(), 10, seed=1)

    def padding(loader):
        return sum(10 * max(LENGTHS[k] for k in batch) - sum(LENGTHS[k] for k in batch) for batch in drawn(loader))

    assert 5 * padding(loader) < padding(mixed)
    first, second = (Loader(source(), 10, lengths=LENGTHS, seed=1) for _ in range(2))
    second.seek(1)
    assert {frozenset(batch) for batch in drawn(first)} != {frozenset(batch) for batch in drawn(second)}
    longest = [max(LENGTHS[k] for k in batch) for batch in drawn(first)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_bucketed_loader_goes_on_anywhere(workers):
    def made():
        return Loader(source(), 16, lengths="auto", max_tokens=200, seed=4, workers=workers)

    whole = made()
    expected = [*drawn(whole), *drawn(whole)]
    stopped, resumed = made(), made()
    stopped.seek(0, 30)
    assert next(iter(stopped))[1].tolist() == expected[30]
    resumed.load_state_dict(stopped.state_dict())
    assert [*drawn(resumed), *drawn(resumed)] == expected[31:]
    for loader in (whole, stopped, resumed):
        loader.close()


def test_lengths_are_read_from_wherever_they_are():
    orders = [Loader(source(), 10, lengths=given).order(0).tolist() for given in (LENGTHS, "auto", "0")]
    orders.append(Loader(source(), 10, lengths=lambda sample: len(sample[0])).order(0).tolist())
    rows = [{"ids": list(range(length)), "label": 0} for length in LENGTHS]
    orders.append(Loader(DatasetSource(rows, collate=pairs), 10, lengths="ids").order(0).tolist())
    columns = {"x": torch.zeros(500), "n": torch.tensor(LENGTHS)}
    orders.append(Loader(columns, 10, lengths="n").order(0).tolist())
    orders.append(Loader(columns, 10, lengths=numpy.array(LENGTHS)).order(0).tolist())
    orders.append(
        Loader(DatasetSource([[1] * n for n in LENGTHS], collate=pairs), 10, lengths="auto").order(0).tolist()
    )
    assert all(order == orders[0] for order in orders)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [1, 2]}, r"lengths: \(2,\) were given for 500 samples"),
        ({"lengths": [1.5] * 500}, "lengths: number 0 is 1.5; give whole numbers"),
        ({"lengths": [-1] * 500}, "lengths: number 0 is -1"),
        ({"lengths": "ids"}, "a sample has no part 'ids'; it has 0, 1"),
        ({"lengths": LENGTHS, "max_tokens": 50}, r"max_tokens: sample \d+ has a length of 60, above 50"),
        ({"max_tokens": 50}, "max_tokens: a batch's tokens are counted by lengths"),
        ({"lengths": LENGTHS, "weights": "balanced"}, "lengths: says by itself what is read"),
    ],
)
def test_lengths_that_cannot_be_are_told(arguments, message):
    with pytest.raises(UsageError, match=message):
        Loader(source(), 10, **arguments)


def test_a_state_of_other_lengths_is_refused():
    saved = Loader(source(), 10, lengths=LENGTHS).state_dict()
    for other in ({}, {"lengths": LENGTHS, "max_tokens": 90}, {"lengths": LENGTHS[::-1]}):
        with pytest.raises(UsageError, match="the saved run has"):
            Loader(source(), 10, **other).load_state_dict(saved)
