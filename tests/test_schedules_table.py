"""The table of all schedulers and warmups that the other tests run through, and that it misses none."""

from __future__ import annotations

import inspect
import json

import torch
from torch.optim import lr_scheduler, swa_utils

from surefoot.checkpoint.codec import Decoder, Encoder
from surefoot.schedules import SCHEDULERS, WARMUPS, SchedulerSpec, WarmupSpec


def halving(k):
    return 0.5 ** (k // 7)


def creeping(k):
    return 0.999 if k % 2 else 0.9995


_S = SchedulerSpec
SPECS = {
    "StepLR": _S("StepLR", {"step_size": 7, "gamma": 0.7}),
    "MultiStepLR": _S("MultiStepLR", {"milestones": [3, 11, 11, 400], "gamma": 0.3}),
    "ExponentialLR": _S("ExponentialLR", {"gamma": 0.997}),
    "CosineAnnealingLR": _S("CosineAnnealingLR", {"T_max": 37, "eta_min": 1e-3}),
    "CyclicLR": _S("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 13, "mode": "triangular2"}),
    "OneCycleLR": _S("OneCycleLR", {"max_lr": 0.3, "total_steps": 1200}),
    "OneCycleLR three_phase": _S(
        "OneCycleLR", {"max_lr": 0.3, "total_steps": 1100, "three_phase": True, "anneal_strategy": "linear"}
    ),
    "CyclicLR exp_range": _S(
        "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 9, "step_size_down": 4, "mode": "exp_range", "gamma": 0.99},
    ),
    "LambdaLR": _S("LambdaLR", {"lr_lambda": halving}),
    "MultiplicativeLR": _S("MultiplicativeLR", {"lr_lambda": creeping}),
    "ConstantLR": _S("ConstantLR", {"factor": 0.3, "total_iters": 12}),
    "LinearLR": _S("LinearLR", {"start_factor": 0.1, "end_factor": 0.9, "total_iters": 30}),
    "PolynomialLR": _S("PolynomialLR", {"total_iters": 300, "power": 1.7}),
    "CosineAnnealingWarmRestarts": _S("CosineAnnealingWarmRestarts", {"T_0": 11, "T_mult": 2, "eta_min": 1e-4}),
    "SWALR": _S("SWALR", {"swa_lr": 0.02, "anneal_epochs": 25}),
    "SequentialLR": _S(
        "SequentialLR",
        {"milestones": [10, 60, 140, 200]},
        children=(
            _S("LinearLR", {"start_factor": 0.1, "total_iters": 10}),
            _S("CosineAnnealingLR", {"T_max": 40}),
            _S("ExponentialLR", {"gamma": 0.99}),
            _S("CosineAnnealingWarmRestarts", {"T_0": 9}),
            _S("PolynomialLR", {"total_iters": 900}),
        ),
    ),
    "ChainedScheduler": _S(
        "ChainedScheduler",
        {},
        children=(
            _S("ConstantLR", {"factor": 0.1, "total_iters": 20}),
            _S("ExponentialLR", {"gamma": 0.995}),
            _S("MultiStepLR", {"milestones": [50, 90], "gamma": 0.5}),
        ),
    ),
    "ChainedScheduler cosine": _S(
        "ChainedScheduler",
        {},
        children=(_S("CosineAnnealingLR", {"T_max": 50}), _S("StepLR", {"step_size": 30, "gamma": 0.9})),
    ),
    "ReduceLROnPlateau": _S("ReduceLROnPlateau", {"factor": 0.5, "patience": 2, "cooldown": 1}),
    "SequentialLR plateau": _S(
        "SequentialLR",
        {"milestones": [8]},
        children=(
            _S("LinearLR", {"start_factor": 0.2, "total_iters": 8}),
            _S("ReduceLROnPlateau", {"factor": 0.5, "patience": 1}),
        ),
    ),
    "ChainedScheduler plateau": _S(
        "ChainedScheduler",
        {},
        children=(_S("ExponentialLR", {"gamma": 0.99}), _S("ReduceLROnPlateau", {"factor": 0.5, "patience": 1})),
    ),
}
NEEDS_METRIC = [name for name in SPECS if "lateau" in name]
NO_METRIC = [name for name in SPECS if name not in NEEDS_METRIC]

# A plateau of its own by step is told the loss of each step, which the others are not.
UNITS = [(name, by) for name in SPECS for by in ("step", "epoch") if (name, by) != ("ReduceLROnPlateau", "step")]

WARM = {
    "none": None,
    "LinearWarmup": WarmupSpec("LinearWarmup", {"warmup_period": 23}),
    "ExponentialWarmup": WarmupSpec("ExponentialWarmup", {"warmup_period": 17}),
    "UntunedLinearWarmup": WarmupSpec("UntunedLinearWarmup"),
    "UntunedExponentialWarmup": WarmupSpec("UntunedExponentialWarmup"),
    "RAdamWarmup": WarmupSpec("RAdamWarmup"),
}


def adam(rates=(0.1, 0.037), tensor=False, kind=torch.optim.Adam):
    """An optimizer with a group for each rate; the second has a beta2 of its own."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    if tensor:
        for group in groups:
            group["lr"] = torch.tensor(group["lr"])
    if len(groups) > 1 and kind is torch.optim.Adam:
        groups[1]["betas"] = (0.9, 0.99)
    return kind(groups, lr=0.1)


def stored(state):
    """`state` as a checkpoint keeps it and gives it back."""
    encoder = Encoder()
    text = json.dumps(encoder.encode(state, "schedule"), allow_nan=False)
    return Decoder(encoder.tensors).decode(json.loads(text))


def rates_of(optimizer):
    return [float(group["lr"]) for group in optimizer.param_groups]


def metric_at(epoch):
    """A validation loss that falls, stalls and falls again."""
    return 1.0 / (1 + min(epoch, 6)) - 0.01 * (epoch // 20)


def plain_torch(spec, optimizer):
    """The scheduler of `spec`, made by torch alone."""
    kind = getattr(lr_scheduler, spec.name, None) or getattr(swa_utils, spec.name)
    parts = [plain_torch(child, optimizer) for child in spec.children]
    if spec.name == "SequentialLR":
        return kind(optimizer, parts, **spec.args)
    if spec.name == "ChainedScheduler":
        return kind(parts)
    return kind(optimizer, **spec.args)


def test_every_scheduler_of_torch_is_in_the_registry_and_in_the_table():
    of_torch = {n for n in lr_scheduler.__all__ if n != "LRScheduler"} | {"SWALR"}
    assert set(SCHEDULERS.names()) == of_torch
    assert {spec.name for spec in SPECS.values()} == of_torch


def test_every_warmup_of_pytorch_warmup_is_in_the_registry_and_in_the_table():
    import pytorch_warmup

    theirs = {n for n, c in vars(pytorch_warmup).items() if inspect.isclass(c) and n != "BaseWarmup"}
    assert set(WARMUPS.names()) == theirs
    assert {spec.name for spec in WARM.values() if spec} == theirs
