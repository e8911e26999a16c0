"""The learning rate range test (Smith 2015, arxiv.org/abs/1506.01186), on copies: which rates a model can bear."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from ..arguments import Arguments
from ..copying import twins
from ..errors import UsageError
from ..modes import set_mode
from ..nonfinite import NonFinite
from ..schedules.dampening import set_rate
from ..step import Batch, StepOptions, TrainStep
from ..untouched import untouched
from .lr_result import LrFind

START, END, STEPS = 1e-7, 10.0, 100
# The smoothed loss counts as diverged beyond this multiple of its lowest value (as fastai has it).
_DIVERGED = 4.0
_FEWEST = 10
_BELOW_HIGHEST = 4


def lr_find(
    model: nn.Module,
    loss: Callable[..., torch.Tensor],
    optimizer: Optimizer,
    batches: Iterable[Batch],
    *,
    start: float = START,
    end: float = END,
    steps: int = STEPS,
    options: StepOptions | None = None,
) -> LrFind:
    """Raise the rate from `start` to `end` over `steps` updates and watch the loss; everything live stays as it is.

    `batches` gives tuples as training takes them and is begun again when it ends; where it has a state (a Loader), that
    is put back. Groups of `optimizer` keep their proportions: the rate is that of the group with the highest. `options`
    say how an update is made (batches to accumulate, clipping, precision).

    >>> _ = torch.manual_seed(0)
    >>> model, batch = nn.Linear(8, 1), (torch.randn(64, 8), torch.randn(64, 1))
    >>> found = lr_find(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), [batch], start=1e-4)
    >>> 1e-3 < found.suggestion < found.highest < 10
    True
    """
    start, end, steps = _checked(start, end, steps)
    options = replace(options or StepOptions(), ema_decay=None)
    loader: Any = batches if hasattr(batches, "state_dict") else None
    place = loader.state_dict() if loader is not None else None
    with contextlib.ExitStack() as stack:
        stack.enter_context(untouched(model, loss, optimizer))
        if place is not None:
            stack.callback(loader.load_state_dict, place)
        twin, twin_loss, twin_optimizer = twins(model, loss, optimizer)
        twin.train()
        set_mode(twin_optimizer, training=True)
        update = TrainStep(twin, twin_loss, twin_optimizer, options)
        own = [float(group["lr"]) for group in twin_optimizer.param_groups]
        shares = [lr / max(own) if max(own) > 0 else 1.0 for lr in own]
        source = _endless(batches)

        def step(rate: float) -> float:
            for group, share in zip(twin_optimizer.param_groups, shares, strict=True):
                set_rate(group, rate * share)
            try:
                return float(update(list(itertools.islice(source, options.grad_accum_steps))).loss)
            except NonFinite as error:
                return error.value

        return range_test(step, start, end, steps)


def range_test(step: Callable[[float], float], start: float = START, end: float = END, steps: int = STEPS) -> LrFind:
    """The test over `steps` rates from `start` to `end`: ``step(rate)`` makes one update, returns the loss before it.

    Ends early where the loss is not finite or has diverged.
    """
    start, end, steps = _checked(start, end, steps)
    rates: list[float] = []
    losses: list[float] = []
    stopped = None
    beta = 1 - 1 / max(2.0, steps / 20)
    average, best, first = 0.0, math.inf, math.inf
    for index in range(steps):
        rate = start * (end / start) ** (index / (steps - 1))
        loss = step(rate)
        rates.append(rate)
        losses.append(loss)
        if not math.isfinite(loss):
            stopped = f"the loss is {loss} at rate {rate:.3g}"
            break
        average = beta * average + (1 - beta) * loss
        now = average / (1 - beta ** (index + 1))
        first = now if index == 0 else first
        best = min(best, now)
        # Losses below zero (log-likelihoods) diverge by distance, not by a multiple.
        if index >= _FEWEST and now > best + (_DIVERGED - 1) * max(abs(best), 0.1 * abs(first)):
            stopped = f"the loss has diverged at rate {rate:.3g}"
            break
    smoothed = _smoothed(losses, steps)
    suggestion, highest = _suggested(rates, losses, smoothed)
    return LrFind(rates, losses, smoothed.tolist(), suggestion, highest, stopped)


def _smoothed(losses: list[float], steps: int) -> np.ndarray:
    """A bell-shaped average over about a twentieth of the test to either side, which shifts nothing to the right.

    The explosion at the end is cut first, or it would reach back over the lowest losses.
    """
    values = np.array(losses)
    values = values[np.isfinite(values)]
    if not len(values):
        return np.array(losses)
    first = float(np.median(values[:_FEWEST]))
    reach = first - float(values.min())
    values = np.minimum(values, first + max(reach, 0.1 * abs(first)))
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places[None, :]) / max(1.0, steps / 40)) ** 2)
    smooth: np.ndarray = weights @ values / weights.sum(axis=1)
    return smooth


def _suggested(rates: list[float], losses: list[float], smoothed: np.ndarray) -> tuple[float | None, float | None]:
    """The suggested rate and the highest; none where the fall is no more than the noise between batches."""
    if len(smoothed) < _FEWEST:
        return None, None
    lowest = int(smoothed.argmin())
    settled = min(_FEWEST // 2, lowest)
    begin = float(smoothed[: settled + 1].mean())
    noise = float(np.abs(np.array(losses[: lowest + 1]) - smoothed[: lowest + 1]).mean())
    fall = begin - float(smoothed[lowest])
    if lowest < 3 or fall <= max(2 * noise, 1e-3 * abs(begin)):
        return None, None
    slope = np.gradient(smoothed, np.log(rates)[: len(smoothed)])
    # Where rates are too low to change anything, the noise of batches may fall steeper than what is learnt: the fall
    # begins where the loss was last about as high as at the start.
    high = np.flatnonzero(smoothed[:lowest] > begin - fall / 4)
    begun = max(settled, int(high[-1])) if len(high) else settled
    steepest = begun + int(slope[begun : lowest + 1].argmin())
    return min(rates[steepest], rates[lowest] / _BELOW_HIGHEST), rates[lowest]


def _endless(batches: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        some = False
        for batch in batches:
            some = True
            yield batch
        if not some:
            raise UsageError("lr-find: there are no batches; give data with at least one")


def _checked(start: float, end: float, steps: int) -> tuple[float, float, int]:
    check = Arguments("lr-find: ")
    start, end = check.number("start", start), check.number("end", end)
    steps = check.whole("steps", steps)
    check.done()
    if not 0 < start < end:
        raise UsageError(f"lr-find: the rates must rise from start to end, both above 0; found {start:g} to {end:g}")
    if steps < _FEWEST:
        raise UsageError(f"lr-find: steps: {steps} is too few to see a slope; give at least {_FEWEST}")
    return start, end, steps
