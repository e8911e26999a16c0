"""torch's private names: what takes their place gives the same."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from surefoot import torch_compat
from surefoot.execution.direct import DirectUpdate
from surefoot.step import TrainStep


@pytest.fixture
def without(monkeypatch):
    """A torch without its private kernels."""
    for name in (
        "_amp_foreach_non_finite_check_and_unscale_",
        "_foreach_lerp_",
        "_foreach_add_",
        "_fused_sgd_",
        "_fused_adam_",
        "_fused_adamw_",
    ):
        monkeypatch.delattr(torch, name)
    monkeypatch.setattr(torch.autograd.Variable, "_execution_engine", None)
    for cached in (torch_compat._fused_check, torch_compat._fused_as_expected, torch_compat.run_backward):
        cached.cache_clear()
    yield
    for cached in (torch_compat._fused_check, torch_compat._fused_as_expected, torch_compat.run_backward):
        cached.cache_clear()


def test_without_them_everything_is_done_by_public_ones(without):
    assert torch_compat.all_finite([torch.ones(3)], scratch=True)
    assert not torch_compat.all_finite([torch.tensor([torch.nan])], scratch=True)
    one, two = torch.zeros(2), torch.ones(2)
    torch_compat.lerp_all([one], [two], 0.25)
    torch_compat.add_to_all([one], 1)
    assert one.tolist() == [1.25, 1.25]
    assert torch_compat.fused("sgd") is None and torch_compat.fused("adamw") is None
    assert torch_compat.run_backward() is torch.autograd.backward


def test_here_they_are_as_expected():
    assert torch_compat._fused_check() is not None
    assert all(torch_compat.fused(name) for name in ("sgd", "adam", "adamw"))
    assert torch_compat.run_backward() is not torch.autograd.backward


def test_an_optimizer_whose_hooks_cannot_be_seen_is_stepped_by_itself(monkeypatch):
    monkeypatch.setattr(torch_compat, "step_hooks", lambda optimizer: None)
    model = nn.Linear(2, 1)
    other = copy.deepcopy(model)
    batch = torch.ones(4, 2), torch.zeros(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    nn.functional.mse_loss(model(batch[0]), batch[1]).backward()
    DirectUpdate(optimizer)()
    TrainStep(other, nn.MSELoss(), torch.optim.SGD(other.parameters(), lr=0.1))([batch])
    assert torch.equal(model.weight, other.weight)
