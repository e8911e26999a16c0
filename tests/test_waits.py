"""Nothing in a stretch of steps waits for the device: on `meta`, whatever reads a number back raises.

On a GPU `torch.cuda.set_sync_debug_mode("error")` would do; here tensors without numbers stand in, and what fp16 reads
back is counted.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from surefoot.execution.eager import EagerStep
from surefoot.losses.scoring import metric_options
from surefoot.metrics import RunningMetrics
from surefoot.scaler import Scaler
from surefoot.step import StepOptions, TrainStep


class Reads(TorchDispatchMode):
    """Counts the numbers that are read back."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def trained(steps, step, device, backend=None):
    step.backend = backend
    running = RunningMetrics(**metric_options(step.loss))
    for _ in range(steps):
        inputs, targets = torch.ones(4, 1, 8, 8, device=device), torch.ones(4, dtype=torch.long, device=device)
        result = step([(inputs, targets)] * step.options.grad_accum_steps)
        assert result.updated
        running.add(*result[:4], result.weight, result.numbers)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [{}, {"max_grad_norm": 1.0, "clip_value": 0.1}, {"ema_decay": 0.9}, {"grad_accum_steps": 3}],
    ids=["plain", "clipped", "averaged", "accumulated"],
)
@pytest.mark.parametrize("weight", [None, torch.ones(3, device="meta")], ids=["", "class weights"])
def test_no_step_reads_a_number_back(name, options, weight):
    model = network().to("meta")
    loss = nn.CrossEntropyLoss(weight=weight)
    step = TrainStep(model, loss, OPTIMIZERS[name](model.parameters()), StepOptions(**options))
    trained(3, step, "meta")
    trained(3, step, "meta", EagerStep(step))


def counted(bytes_held, device, batches=6, loss=None):
    """What six batches of outputs that pass the bound again and again come to."""
    loss = nn.CrossEntropyLoss(ignore_index=2) if loss is None else loss
    running = RunningMetrics(**metric_options(loss), hold_bytes=bytes_held)
    draws = torch.Generator().manual_seed(0)
    for _ in range(batches):
        outputs, targets = torch.randn(50, 100, generator=draws), torch.randint(0, 3, (50,), generator=draws)
        running.add(torch.rand((), generator=draws).to(device), outputs.to(device), targets.to(device), 50)
    return running


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(ignore_index=2), nn.NLLLoss()])
def test_outputs_that_pass_the_bound_are_counted_and_let_go_without_a_wait(loss):
    """A language model's pass it every few steps."""
    held = counted(50_000, "meta", loss=loss)
    assert sum(outputs is not None for _, outputs, *_ in held._held) < 6 and held._held_bytes < 50_000
    # When they are read, they have the same sums, window by window.
    few, many = counted(50_000, "cpu", loss=loss), counted(1 << 20, "cpu", loss=loss)
    assert few.window() == many.window() and few.result() == many.result() and few.state_dict() == many.state_dict()


def test_what_looks_at_numbers_would_be_noticed():
    model = network().to("meta")
    step = TrainStep(
        model, nn.CrossEntropyLoss(), OPTIMIZERS["SGD"](model.parameters()), StepOptions(on_nonfinite="skip")
    )
    with pytest.raises(RuntimeError, match=r"item\(\).*meta"):
        trained(1, step, "meta")


@pytest.mark.parametrize("fused", [False, True])
def test_fp16_reads_one_number_a_step(fused):
    model = network()
    step = TrainStep(
        model,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(model.parameters(), lr=0.01, fused=fused, foreach=False),
        StepOptions(precision="fp16"),
    )
    step.checks = False  # as on a GPU
    step.scaler = Scaler("cpu", init_scale=4.0)
    trained(1, step, "cpu")
    with Reads() as reads:
        trained(5, step, "cpu")
    assert reads.count == 5
