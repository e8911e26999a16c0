"""The grid: whatever a run is made of, interrupted and resumed it ends as the run that was never touched.

Each case trains once untouched and once with a crash at a chosen place, resumed by objects built anew; then all
that a run leaves is compared as bytes: parameters, optimizer state, random number generators, the journal but for
`wall_s`, the saved model.
"""

from __future__ import annotations

import itertools
import json
import math
from itertools import product
from pathlib import Path

import pytest
import torch
from fit_arguments import fit_arguments
from torch import nn

from surefoot.data import Loader
from surefoot.rng import seed_all
from surefoot.schedules import SchedulerSpec, WarmupSpec, build_schedule
from surefoot.training import Checkpoints, EarlyStopping, fit

SAMPLES, BATCH, EPOCHS = 40, 4, 3
STEPS_AN_EPOCH = SAMPLES // BATCH


class Crash(Exception):
    """Stands for SIGKILL: nothing may run on its way out that a killed process would not have done."""


class CrashingLoss(nn.CrossEntropyLoss):
    """Ends the run at its n-th call, in training or in validation; may have a temperature that it learns."""

    def __init__(self, at: int | None, learns: bool = False):
        super().__init__()
        self._calls, self._at = itertools.count(1), at  # of this sitting: a number would be put back by a resume
        self.temperature = nn.Parameter(torch.ones(())) if learns else None

    def forward(self, outputs, targets):
        if next(self._calls) == self._at:
            raise Crash
        if self.temperature is not None:
            outputs = outputs * self.temperature
        return super().forward(outputs, targets)


def jitter(inputs, draws):
    return inputs + draws.uniform(-0.1, 0.1).float()[:, None]


jitter.batched = True


class OneByOne(torch.utils.data.Dataset):
    """A data set whose augmentation draws from the global generators, as users write them."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index] + torch.randn(8) * 0.1, self.targets[index]


class Stream(torch.utils.data.IterableDataset):
    """The same, one after the other: only the end tells how many there are."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __iter__(self):
        return zip(self.inputs, self.targets, strict=True)


def samples():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(SAMPLES, 8, generator=generator), torch.randint(3, (SAMPLES,), generator=generator)


def settings(**changed):
    """What one case is made of; the defaults are the plainest run."""
    known = {
        "optimizer": ("SGD", {"lr": 0.05, "momentum": 0.9}),
        "scheduler": None,
        "warmup": None,
        "model": (),
        "workers": 0,
        "augment": False,
        "data": "tensors",
        "fit": {},
        "every": "3 steps",
        "loss_learns": False,
    }
    assert set(changed) <= set(known)
    return known | changed


def train(run: Path, made, *, crash_at: int | None = None) -> None:
    """One sitting: everything built anew, then as far as it gets."""
    seed_all(0)
    layers = [nn.Linear(8, 10), *[layer() for layer in made["model"]], nn.ReLU(), nn.Linear(10, 3)]
    model = nn.Sequential(*layers)
    name, arguments = made["optimizer"]
    if made["fit"].get("unfreeze"):
        model[0].requires_grad_(False)
    loss = CrashingLoss(crash_at, made["loss_learns"])
    parameters = [p for p in (*model.parameters(), *loss.parameters()) if p.requires_grad]
    optimizer = getattr(torch.optim, name)(parameters, **arguments)
    accumulated = made["fit"].get("grad_accum_steps", 1)
    steps = math.ceil(STEPS_AN_EPOCH / accumulated)
    schedule = build_schedule(optimizer, made["scheduler"], made["warmup"], steps, EPOCHS)
    inputs, targets = samples()
    source = {"tensors": lambda *both: both, "dataset": OneByOne, "stream": Stream}[made["data"]](inputs, targets)
    augment = [jitter] if made["augment"] else []
    loader = Loader(source, BATCH, seed=7, workers=made["workers"], augment=augment)
    fit(
        model,
        loss,
        optimizer,
        loader,
        **fit_arguments(
            val=Loader((inputs, targets), 8, shuffle=False),
            schedule=schedule,
            epochs=EPOCHS,
            log_every=2,
            run_dir=run,
            resume=True,
            checkpoints=Checkpoints(made["every"], keep_last=2, keep_best="val/loss"),
            tensorboard=False,
            lint_off=["all"],
            **made["fit"],
        ),
    )


def left_behind(run: Path) -> dict[str, object]:
    """All that must be equal, by name."""
    newest = sorted((run / "checkpoints").iterdir())[-1]
    state = json.loads((newest / "state.json").read_text())
    state["objects"]["progress"].pop("wall_s")
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for record in records:
        record.pop("wall_s")
    described = json.loads((run / "model" / "model.json").read_text())
    # The journal's offset in bytes and its checksums depend on wall_s.
    state.pop("marks", None)
    assert state.pop("journal") == (run / "metrics.jsonl").stat().st_size
    return {
        "records": records,
        "state": state,
        "parameters": (newest / "model.safetensors").read_bytes(),
        "optimizer and generators": (newest / "optimizer.safetensors").read_bytes(),
        "model": (run / "model" / "model.safetensors").read_bytes(),
        "best model": (run / "model" / "best" / "model.safetensors").read_bytes(),
        "model.json": {k: v for k, v in described.items() if k != "seal"},  # which is of this directory
    }


# Calls of the loss in one epoch: 10 for training, 5 for validation. One crash in mid-epoch, one at the edge between
# two epochs, one in validation; each sitting of a case is crashed at the next of these places.
PLACES = (7, 14, 3)


def check_resumed_equals_untouched(tmp_path: Path, made, places=PLACES) -> None:
    train(tmp_path / "untouched", made)
    for place in places:
        with pytest.raises(Crash):
            train(tmp_path / "resumed", made, crash_at=place)
    train(tmp_path / "resumed", made)
    untouched, resumed = left_behind(tmp_path / "untouched"), left_behind(tmp_path / "resumed")
    for name in untouched:
        assert resumed[name] == untouched[name], name


SCHEDULERS = {
    "StepLR": {"step_size": 2, "gamma": 0.5},
    "MultiStepLR": {"milestones": [1, 2], "gamma": 0.5},
    "ExponentialLR": {"gamma": 0.9},
    "ReduceLROnPlateau": {"patience": 0, "threshold": 0.9},
    "CosineAnnealingLR": {},
    "CyclicLR": {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 4},
    "OneCycleLR": {"max_lr": 0.1},
    "ConstantLR": {"total_iters": 2},
    "LinearLR": {"total_iters": 5},
    "PolynomialLR": {"total_iters": 6},
    "CosineAnnealingWarmRestarts": {"T_0": 2},
}


# A plateau watches the validation, which is once an epoch.
BY = [(name, by) for name in SCHEDULERS for by in ("step", "epoch") if (name, by) != ("ReduceLROnPlateau", "step")]


# A warmup by epochs is its own counter, whatever the scheduler beside it: it stands beside one of each kind.
WARMED = [*product(BY, [None, "step"]), *product([("StepLR", "step"), ("ReduceLROnPlateau", "epoch")], ["epoch"])]


@pytest.mark.parametrize(("name", "by", "warmup"), [(*scheduler, warmup) for scheduler, warmup in WARMED])
def test_each_scheduler(tmp_path, name, by, warmup):
    period = {"step": 8, "epoch": 2}.get(warmup)
    made = settings(
        scheduler=SchedulerSpec(name, SCHEDULERS[name], by=by),
        warmup=WarmupSpec("LinearWarmup", {"warmup_period": period}, by=warmup) if warmup else None,
    )
    check_resumed_equals_untouched(tmp_path, made, PLACES[:2])


def test_a_sequence_with_a_plateau_in_it(tmp_path):
    parts = (
        SchedulerSpec("LinearLR", {"total_iters": 1}),
        SchedulerSpec("ReduceLROnPlateau", {"patience": 0, "threshold": 0.9}),
    )
    made = settings(scheduler=SchedulerSpec("SequentialLR", {"milestones": [1]}, children=parts))
    check_resumed_equals_untouched(tmp_path, made)


OPTIMIZERS = ["Adadelta", "Adagrad", "Adam", "AdamW", "Adamax", "ASGD", "NAdam", "RAdam", "RMSprop", "Rprop", "SGD"]


@pytest.mark.parametrize("name", [*OPTIMIZERS, "LBFGS", "Adafactor"])
def test_each_optimizer(tmp_path, name):
    check_resumed_equals_untouched(tmp_path, settings(optimizer=(name, {"lr": 0.01})), PLACES[:2])


PARTS = {
    "batch norm": settings(model=(lambda: nn.BatchNorm1d(10),)),
    "dropout": settings(model=(lambda: nn.Dropout(0.3),)),
    "augmentation": settings(augment=True),
    "a data set of its own": settings(data="dataset"),
    "workers": settings(data="dataset", workers=2),
    "accumulation": settings(fit={"grad_accum_steps": 3}),
    "moving average": settings(fit={"ema_decay": 0.9}),
    "bf16": settings(fit={"precision": "bf16"}),
    "fp16": settings(fit={"precision": "fp16"}),
    "clipping": settings(fit={"max_grad_norm": 0.5}),
    "early stopping": settings(fit={"early_stopping": EarlyStopping(patience=1, min_delta=10.0)}),
    "unfreezing": settings(fit={"unfreeze": [(1, "0.*")]}, warmup=WarmupSpec("LinearWarmup", {"warmup_period": 6})),
    "a loss that learns": settings(loss_learns=True),
    "everything": settings(
        model=(lambda: nn.BatchNorm1d(10), lambda: nn.Dropout(0.3)),
        optimizer=("AdamW", {"lr": 0.01, "amsgrad": True}),
        scheduler=SchedulerSpec("OneCycleLR", {"max_lr": 0.1}),
        warmup=WarmupSpec("RAdamWarmup"),
        augment=True,
        fit={"grad_accum_steps": 2, "ema_decay": 0.9, "precision": "bf16", "max_grad_norm": 0.5},
    ),
}


@pytest.mark.parametrize("part", PARTS)
def test_each_part(tmp_path, part):
    made = PARTS[part]
    places = PLACES[:1] if part == "early stopping" else PLACES
    check_resumed_equals_untouched(tmp_path, made, places)


@pytest.mark.parametrize("every", ["1 epoch", "1 steps", "4 steps", "10 steps", None])
@pytest.mark.parametrize("place", [1, 10, 11, 13, 15, 16, 31])
def test_each_place(tmp_path, place, every):
    """First step, last step, first and later validation batch, edge of the epoch, a later epoch; saved or not."""
    check_resumed_equals_untouched(tmp_path, settings(every=every), [place])


@pytest.mark.parametrize("data", ["tensors", "stream"])
@pytest.mark.parametrize("place", [8, 11, 16, 26])
def test_each_place_of_updates_made_of_several_batches(tmp_path, place, data):
    """Also after the last update of an epoch, which is made of fewer batches than the others."""
    made = settings(every="1 steps", fit={"grad_accum_steps": 3}, data=data)
    check_resumed_equals_untouched(tmp_path, made, [place])
