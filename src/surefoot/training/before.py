"""What fit looks at before anything is spent: its arguments, the metrics it watches, the first and the last batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..arguments import Arguments
from ..data import Loader
from ..errors import Problems
from ..losses import lint
from ..losses.checks.lint import check_validation
from ..metrics import RunningMetrics
from ..registry import Range
from ..schedules import Schedule
from ..schedules.accept import check_optimizer
from ..step import ON_NONFINITE, PRECISIONS
from ..tracking import Progress
from .about import About
from .state import Checkpoints, EarlyStopping

_ABOVE_0 = Range(low=0, low_open=True, hint="give None for no limit")


def checked(model: Any, loss: Any, optimizer: Any, given: dict[str, Any]) -> list[Any]:
    """The values of `given`, the arguments of fit by name, in their order and as plain Python has them.

    Raises Problems with everything that cannot be, as a recipe would.
    """
    check = Arguments()
    check.instance("model", model, nn.Module, "the model itself")
    check.function("loss", loss, "torch.nn.CrossEntropyLoss()")
    check_optimizer(check, optimizer)
    above_0 = lambda name, value: check.number(name, value, _ABOVE_0, none=True)  # noqa: E731
    decay = Range(low=0, high=1, high_open=True, hint="give a decay such as 0.999")
    kinds = {
        "epochs": lambda name, value: check.whole(name, value, low=1),
        "batch_size": lambda name, value: check.whole(name, value, low=1, none=True),
        "seed": lambda name, value: check.whole(name, value, low=0, high=2**63 - 1),
        "grad_accum_steps": lambda name, value: check.whole(name, value, low=1),
        "max_grad_norm": above_0,
        "clip_value": above_0,
        "precision": lambda name, value: check.choice(name, value, PRECISIONS),
        "ema_decay": lambda name, value: check.number(name, value, decay, none=True),
        "early_stopping": lambda name, value: check.instance(
            name, value, EarlyStopping, "EarlyStopping(patience=5)", none=True
        ),
        "on_nonfinite": lambda name, value: check.choice(name, value, ON_NONFINITE),
        "log_every": lambda name, value: check.whole(name, value, low=1, none=True),
        "strict": check.flag,
        "lint_off": check.texts,
        "run_dir": lambda name, value: check.path(name, value, none=True),
        "resume": check.flag,
        "allow": check.texts,
        "checkpoints": lambda name, value: check.instance(
            name, value, Checkpoints, 'Checkpoints(every="1 epoch")', none=True
        ),
        "tensorboard": lambda name, value: value if value == "together" else check.flag(name, value),
        "about": lambda name, value: check.instance(name, value, About, 'About(classes=["cat", "dog"])'),
        "progress": lambda name, value: check.instance(name, value, (bool, Progress), "True or False"),
    }
    if given["resume"] is True and given["run_dir"] is None:
        check.refuse("resume", "there is no run_dir to go on in; name one")
    values = [kinds[name](name, value) for name, value in given.items()]
    check.done()
    return values


def check_monitors(
    running: RunningMetrics,
    val_loader: Loader | None,
    keep_best: str | None,
    early_stopping: EarlyStopping | None,
    schedule: Schedule,
) -> None:
    """Raise Problems for a monitored metric that this run will never have."""
    measured = ["loss"] + (["accuracy"] if running.accuracy is not None else [])
    splits = ["train"] + (["val"] if val_loader is not None else [])
    names = [f"{split}/{name}" for split in splits for name in measured]
    monitored = {
        "checkpoint.keep_best": keep_best,
        "early_stopping.monitor": early_stopping.monitor if early_stopping else None,
        "scheduler.monitor": schedule.monitor if schedule.needs_metric else None,
    }
    problems = [
        f"{where}: {name!r} is not measured in this run; measured are: {', '.join(names)}"
        for where, name in monitored.items()
        if name is not None and name not in names
    ]
    if problems:
        raise Problems(problems)


def look_over_first_batch(
    model: nn.Module,
    loss: Any,
    optimizer: torch.optim.Optimizer,
    loader: Loader,
    classes: Sequence[str] | None,
    off: Sequence[str],
    strict: bool,
    progress: Progress,
    val_loader: Loader | None,
) -> None:
    """Tell what the lint finds; raise Problems where training cannot begin, or with `strict` for any finding.

    Validation is tried on one batch: a run must not end where its first epoch does.
    """
    findings = lint(
        model, loss, optimizer, loader.peek(), classes=classes and len(classes), off=off, last=loader.short_batch()
    )
    fatal = [str(finding) for finding in findings if strict or finding.severity == "error"]
    if fatal:
        raise Problems(fatal)
    for finding in findings:
        progress.message(str(finding))
    if val_loader is not None:
        try_validation(model, loss, val_loader)


def try_validation(model: nn.Module, loss: Any, val_loader: Loader) -> None:
    """Raise UsageError where model and loss cannot be run on a few samples of the validation data."""
    few = val_loader.apart()
    few.batch_size = min(4, few.batch_size)  # samples may be slow to read
    check_validation(model, loss, few.peek())
