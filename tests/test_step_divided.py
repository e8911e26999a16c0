"""Updates in micro-batches of all ranks: the gradient of the whole batch, whatever the loss is a mean over."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from test_losses_shares import CASES
from torch import nn

from surefoot import losses
from surefoot.data import Loader
from surefoot.step import StepOptions, TrainStep
from surefoot.training.loop import grouped
from surefoot.world import World


class Scaled(nn.Module):
    """Outputs of the inputs' own shape."""

    def __init__(self):
        super().__init__()
        self.factor, self.shift = nn.Parameter(torch.tensor(0.7)), nn.Parameter(torch.tensor(0.1))

    def forward(self, x):
        return x * self.factor + self.shift * x.abs()


def stated(model, batch):
    outputs, truth = model(batch[0]), batch[1]
    counted = truth > 0.1
    return {"loss": ((outputs - truth).abs() * counted).sum() / counted.sum().clamp(min=1), "weight": counted.sum()}


MORE = {"an objective that says what it is a mean over": (losses.objective(stated), CASES["elements"][1], True)}


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("case", [name for name in {**CASES, **MORE} if "several shapes" not in name])
def test_an_update_in_micro_batches_is_that_of_the_batch(case, accumulated):
    loss, data, _ = {**CASES, **MORE}[case]
    models = Scaled(), Scaled()
    options = StepOptions(grad_accum_steps=accumulated)
    steps = [TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1), options) for model in models]
    whole, divided = Loader(data, 9, seed=1), Loader(data, 9, seed=1)
    divided.divide(12)
    batches, parts = list(whole), list(divided)
    for first in range(0, len(batches), accumulated):
        steps[0](batches[first : first + accumulated])
        update = parts[first : first + accumulated]
        result = steps[1](update)
        assert len(result.parts) == 12 * len(update) and result.samples == sum(one.samples for one in update)
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_parameter_that_no_batch_reaches_has_no_gradient_in_micro_batches_either():
    after = []
    for parts in (0, 2):
        model = nn.ModuleDict({"used": nn.Linear(3, 1), "unused": nn.Linear(1, 1)})
        objective = losses.objective(lambda model, batch: model["used"](batch[0]).square().mean())
        optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.5)
        nn.init.ones_(model["unused"].weight)
        step = TrainStep(model, objective, optimizer, StepOptions(set_to_none=False))
        loader = Loader((torch.ones(8, 3), torch.ones(8)), 4)
        if parts:
            loader.divide(parts)
        for batch in loader:
            step([batch])
        after.append((model["unused"].weight.item(), model["unused"].weight.grad))
    assert after == [(1.0, None)] * 2


class Counting(nn.Module):
    """Whose outputs depend on a buffer that each forward pass in training changes, as spectral normalization does."""

    def __init__(self):
        super().__init__()
        self.norm, self.last = nn.BatchNorm1d(3), nn.utils.parametrizations.spectral_norm(nn.Linear(3, 4))

    def forward(self, x):
        return self.last(self.norm(x))


def normalized(world, accumulated):
    """Parameters and buffers after some updates of a model that each rank has begun otherwise."""
    torch.manual_seed(world.rank)
    model, loss = Counting(), nn.CrossEntropyLoss()
    options = StepOptions(grad_accum_steps=accumulated, ema_decay=0.5)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), 0.1), options, world=world)
    loader = Loader((torch.linspace(-1, 1, 63).reshape(21, 3).cos(), torch.arange(21) % 4), 9, seed=1, drop_last=True)
    loader.divide(4, world.rank, world.size)
    for _ in range(3):
        for group in grouped(loader, accumulated):
            step(group)
    assert int(model.norm.num_batches_tracked) == 6  # one a batch
    return [[tensor.tolist() for tensor in part.state_dict().values()] for part in (model, step.ema)]


@pytest.mark.parametrize("accumulated", [1, 2])
def test_buffers_are_those_of_the_first_micro_batch_on_any_number_of_ranks(accumulated):
    alone = normalized(World.alone(), accumulated)
    assert run_ranks(2, normalized, accumulated) == [alone] * 2
    assert run_ranks(4, normalized, accumulated) == [alone] * 4
