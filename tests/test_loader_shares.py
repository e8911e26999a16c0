"""Batches divided among ranks: no row left out, none twice, and the same micro-batches however many ranks there are."""

from __future__ import annotations

import functools
import os
import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from test_streams import Plain, Stateful

from surefoot import batches
from surefoot.data import Loader, StreamSource
from surefoot.data.augment import RandomCrop, RandomHorizontalFlip
from surefoot.data.sources import DatasetSource, TensorSource
from surefoot.errors import UsageError
from surefoot.micro_batches import Division, MicroBatches
from surefoot.preprocessing import Preprocessing

PARTS = 4


@given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 3))
def test_every_row_is_in_one_micro_batch_and_every_micro_batch_is_one_ranks(n, size, each):
    parts = size * each
    cuts = [cut for rank in range(size) for cut in Division(parts, rank, size).cut(n)]
    assert cuts == Division(parts).cut(n)
    assert [row for rows, count in cuts for row in (range(n)[rows] if count else ())] == list(range(n))
    assert all(len(range(n)[rows]) == max(count, 1) for rows, count in cuts)
    # A rank's rows are those of `World.share`, whatever the number of micro-batches.
    for rank in range(size):
        own = sum(count for _, count in Division(parts, rank, size).cut(n))
        assert own == (rank + 1) * n // size - rank * n // size


@pytest.mark.parametrize(("parts", "rank", "size"), [(4, 0, 3), (0, 0, 1), (2, 2, 2), (2, -1, 2)])
def test_a_division_that_cannot_be_is_told(parts, rank, size):
    with pytest.raises(UsageError, match=r"^data: .*ranks?"):
        Division(parts, rank, size)


def test_the_micro_batches_of_several_batches_are_added_without_a_gap_in_a_ranks_own():
    def group(rank, size, name):
        made = Division(PARTS, rank, size)
        return made.given([f"{name}{number}" for number in made.own], 10)

    whole = MicroBatches.joined([group(0, 1, name) for name in "ab"])
    assert list(whole) == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"] and whole.numbers == list(range(8))
    for size in (2, 4):
        ranks = [MicroBatches.joined([group(rank, size, name) for name in "ab"]) for rank in range(size)]
        assert sum(ranks, []) == whole
        assert [number for one in ranks for number in one.numbers] == whole.numbers
        assert [rows for one in ranks for rows in one.rows] == whole.rows
        assert {(one.samples, one.parts) for one in ranks} == {(20, 8)}


# --- whatever the source --------------------------------------------------------------------------------------------


class Noisy:
    """Samples with noise of their own, of several lengths."""

    def __len__(self):
        return 23

    def __getitem__(self, index):
        return torch.full((1 + index % 5,), float(index)) + torch.rand(1), index


def padded(samples):
    """A batch with noise of its own, as long as its longest sample."""
    inputs = torch.nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True)
    return inputs + torch.rand(1), torch.tensor([y for _, y in samples])


def pictures(**arguments):
    pixels = torch.randint(0, 256, (23, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    augment = (RandomHorizontalFlip(), RandomCrop(6, padding=1), noise_on_each)
    prepared = Preprocessing(mean=[0.5], std=[0.25])
    return Loader(TensorSource(pixels, torch.arange(23)), 5, augment=augment, preprocessing=prepared, **arguments)


def noise_on_each(image):
    return image ^ torch.randint(0, 4, image.shape, dtype=torch.uint8)


def mapping(**arguments):
    return Loader(
        {"x": torch.randn(23, 2, generator=torch.Generator().manual_seed(0)), "y": torch.arange(23)}, 5, **arguments
    )


def dataset(**arguments):
    return Loader(DatasetSource(Noisy(), collate=padded), 5, **arguments)


def buckets(**arguments):
    return Loader(DatasetSource(Noisy(), collate=padded), 5, lengths="auto", max_tokens=14, **arguments)


def weighted(**arguments):
    return Loader(DatasetSource(Noisy(), collate=padded), 5, weights=torch.arange(23.0), **arguments)


def stream(kind=Plain, **arguments):
    return Loader(StreamSource(kind(), collate=padded), 5, **arguments)


SOURCES = {
    "tensors": functools.partial(Loader, (torch.randn(23, 3), torch.arange(23)), 5),
    "fewer rows than ranks": functools.partial(Loader, (torch.randn(7, 3), torch.arange(7)), 3),
    "augmented pictures": pictures,
    "columns by name": mapping,
    "data set": dataset,
    "data set read by workers": functools.partial(dataset, workers=2),
    "buckets": buckets,
    "with replacement": weighted,
    "stream": stream,
    "stream with a state": functools.partial(stream, Stateful),
}


def micro_batches(loader: Loader, epochs: int = 2) -> list[MicroBatches]:
    with_epochs = [batch for _ in range(epochs) for batch in loader]
    loader.close()
    return with_epochs


def same(a, b) -> bool:
    one, two = list(batches.leaves(a)), list(batches.leaves(b))
    return len(one) == len(two) and all(p == q and torch.equal(x, y) for (p, x), (q, y) in zip(one, two, strict=True))


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_any_number_of_ranks_reads_the_micro_batches_of_one_process(source):
    alone = source(seed=3)
    alone.divide(PARTS)
    expected = micro_batches(alone)
    for size in (2, 4):
        ranks = []
        for rank in range(size):
            loader = source(seed=3)
            loader.divide(PARTS, rank, size)
            ranks.append(micro_batches(loader))
        for whole, *parts in zip(expected, *ranks, strict=True):
            assert same(sum(parts, []), list(whole))
            assert [row for one in parts for row in one.rows] == whole.rows
            assert [number for one in parts for number in one.numbers] == list(range(PARTS))
            assert sum(whole.rows) == whole.samples and {one.samples for one in parts} == {whole.samples}


@pytest.mark.parametrize("source", ["tensors", "augmented pictures", "columns by name", "fewer rows than ranks"])
def test_micro_batches_together_are_the_batch(source):
    whole, divided = SOURCES[source](seed=3), SOURCES[source](seed=3)
    divided.divide(3)
    for one, parts in zip(whole, divided, strict=True):
        counted = [part for part, rows in zip(parts, parts.rows, strict=True) if rows]
        assert same(batches.joined(counted), one)


def test_the_workers_of_a_rank_read_its_rows_only():
    read = []

    class Watched(Noisy):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    loader = Loader(DatasetSource(Watched(), collate=padded), 6)
    loader.divide(2, 1, 2)
    read.clear()
    own = [index for parts in loader for _, targets in parts for index in targets.tolist()]
    assert read == own and len(own) == 3 * 3 + 3


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_place_is_gone_on_with_by_another_number_of_ranks(source):
    alone = source(seed=3)
    alone.divide(PARTS)
    expected = micro_batches(alone)
    begun = source(seed=3)
    begun.divide(PARTS, 1, 4)
    iterator = iter(begun)
    next(iterator), next(iterator)
    state = begun.state_dict()
    begun.close()
    for rank in range(2):
        resumed = source(seed=3)
        resumed.divide(PARTS, rank, 2)
        resumed.load_state_dict(state)
        rest = micro_batches(resumed)
        assert all(
            same(list(part), whole[2 * rank : 2 * rank + 2]) for part, whole in zip(rest, expected[2:], strict=True)
        )


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_whole_batches_by_turns_are_those_of_one_process(source, size):
    expected = list(source(seed=3))
    loaders = [source(seed=3) for _ in range(size)]
    turns = [list(loader.turns(rank, size)) for rank, loader in enumerate(loaders)]
    for loader in loaders:
        loader.close()
    assert {len(one) for one in turns} == {-(-len(expected) // size)}
    own = [batch for each in zip(*turns, strict=True) for batch, is_own in each if is_own]
    assert len(own) == len(expected) and all(map(same, own, expected))


# --- in a loop of one's own ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7])
def test_a_loop_by_hand_is_given_its_rows_and_what_they_count(size):
    x = torch.randn(23, 3)
    whole = [batch[0].mean(0) for batch in Loader((x, x), 5)]
    loaders = [Loader((x, x), 5, share=(rank, size)) for rank in range(size)]
    assert loaders[0].peek()[0].shape == (5, 3) and loaders[0].batch_at(0, 0)[0].shape == (max(1, 5 // size), 3)
    for mean, *given_out in zip(whole, *loaders, strict=True):
        # DDP takes the mean over ranks.
        each = [batch[0].mean(0) * loader.weight for loader, batch in zip(loaders, given_out, strict=True)]
        assert torch.allclose(sum(each) / size, mean, atol=1e-6)
    assert sum(loader.weight for loader in loaders) == pytest.approx(size)


def by_hand(world, place):
    """The parameters after the loops that the page prints, whose files come to lie in `place`."""
    os.chdir(place)
    text = (Path(__file__).parents[1] / "docs" / "distributed.md").read_text()
    namespace: dict = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, namespace)
    return [p.tolist() for p in namespace["net"].parameters()], namespace["result"].metrics


def test_the_loops_of_the_page_train_and_measure_on_several_ranks_as_in_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # and back again
    for name in ("one", "three"):
        (tmp_path / name).mkdir()
    (parameters, metrics), ranks = by_hand(None, tmp_path / "one"), run_ranks(3, by_hand, tmp_path / "three")
    for others, measured in ranks:
        for mine, theirs in zip(parameters, others, strict=True):
            assert torch.tensor(theirs).allclose(torch.tensor(mine), atol=1e-5)
        assert measured == ranks[0][1] and measured == pytest.approx(metrics, rel=1e-5)
