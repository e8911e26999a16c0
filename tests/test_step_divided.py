"""Updates in micro-batches of all ranks: the gradient of the whole batch, whatever the loss is a mean over."""

from __future__ import annotations

import pytest
import torch
from test_losses_shares import CASES
from torch import nn

from surefoot import losses
from surefoot.data import Loader
from surefoot.micro_batches import MicroBatches
from surefoot.step import StepOptions, TrainStep


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
        update = MicroBatches.joined(parts[first : first + accumulated])
        result = steps[1](update)
        assert len(result.parts) == len(update) and result.samples == update.samples
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
