"""Random number generators: captured and restored as one, bit for bit."""

from __future__ import annotations

import random
from collections.abc import Mapping

import numpy
import pytest
import torch

from surefoot import rng
from surefoot.errors import UsageError
from surefoot.generators import MAX_ITEMS, held_by


def draws() -> tuple:
    return (
        random.random(),
        random.gauss(0, 1),
        numpy.random.rand(3).tolist(),
        float(numpy.random.randn()),
        torch.rand(3).tolist(),
    )


def test_restored_generators_draw_the_same_numbers():
    rng.seed_all(7)
    draws()  # an odd number of Gaussian draws leaves a cached one behind in two of the generators
    state = rng.get_state()
    first = draws()
    draws()
    rng.set_state(state)
    assert draws() == first


def test_the_same_seed_gives_the_same_numbers_and_another_seed_others():
    rng.seed_all(1)
    first = draws()
    rng.seed_all(1)
    assert draws() == first
    rng.seed_all(2)
    assert draws() != first


@pytest.mark.parametrize("missing", ["python", "numpy", "torch", "cuda"])
def test_a_missing_generator_is_an_error_and_changes_nothing(missing):
    state = rng.get_state()
    del state[missing]
    before = torch.get_rng_state()
    with pytest.raises(UsageError, match=missing):
        rng.set_state(state)
    assert torch.equal(torch.get_rng_state(), before)


def test_fold_separates_order_sign_and_size():
    seeds = {rng.fold(*v) for v in [(0,), (1,), (0, 0), (0, 1), (1, 0), (-1,), (2**63,)]}
    assert len(seeds) == 7
    assert all(0 <= s < 2**63 for s in seeds)


def test_gpus_that_drew_nothing_need_not_be_there(monkeypatch):
    seeded, drawn = torch.zeros(16, dtype=torch.uint8), torch.arange(16, dtype=torch.uint8)
    here = {"count": 8}
    done = {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: here["count"])
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [seeded, drawn, *[seeded] * 6])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: done.update({device: state}))
    state = rng.get_state()
    here["count"] = 2
    rng.set_state(state)
    assert list(done) == [0, 1] and torch.equal(done[1], drawn)
    here["count"] = 1
    with pytest.raises(UsageError, match="saved for 2 CUDA devices; this machine has 1"):
        rng.set_state(state)


def _shadowing(first, second):
    holder = type("Holder", (), {"draw": first})()
    holder.draw = second
    return holder


def _overriding(first, second):
    return type("Sub", (type("Base", (), {"draw": first}),), {"draw": second})()


def _defaults(first, second):
    def objective(model, batch, one=first, other=second):
        return one, other

    return objective


def _keywords(first, second):
    def objective(model, batch, *, one=first, other=second):
        return one, other

    return objective


@pytest.mark.parametrize("hold", [_shadowing, _overriding, _defaults, _keywords])
def test_of_two_generators_with_one_place_both_are_kept(hold):
    first, second = random.Random(1), random.Random(2)
    held = held_by(part=hold(first, second))
    assert {id(generator) for generator in held.values()} == {id(first), id(second)}
    assert [f"{place}-2" for place in held][0] in held


def test_of_a_mapping_that_reads_its_values_from_somewhere_no_more_are_read_than_looked_at():
    class Files(Mapping):
        read = 0

        def __len__(self):
            return 1000

        def __iter__(self):
            return iter(range(1000))

        def __getitem__(self, key):
            Files.read += 1
            return [key]

    held_by(data=Files())
    assert Files.read <= MAX_ITEMS + 1
