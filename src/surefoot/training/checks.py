"""What fit looks at before anything is spent: its arguments, the metrics it watches, the first and the last batch."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.lazy import LazyModuleMixin
from torch.optim.lr_scheduler import ReduceLROnPlateau

from .. import batches
from ..arguments import Arguments
from ..closure import wants_closure
from ..data import Loader
from ..errors import Problems, UsageError, first_line
from ..limits import MOST
from ..losses import Objective, apply, lint, metric_options
from ..losses.checks.lint import check_validation
from ..losses.scoring import families
from ..metrics import RunningMetrics
from ..metrics.sums import require_indices
from ..modes import enter_training, evaluating
from ..monitor import settled
from ..registry import did_you_mean
from ..schedules import Schedule
from ..schedules.accept import check_optimizer
from ..schedules.composite import leaves
from ..step import StepOptions
from ..text import counted
from ..tracking import Progress
from ..untouched import is_lazy, untouched
from ..world import World
from ..wrapping import unwrap
from .options import RunOptions
from .state import Checkpoints, EarlyStopping


def checked(model: Any, loss: Any, optimizer: Any, step: Any, run: Any, **arguments: Any) -> list[Any]:
    """Epochs, batch size, seed and resume of fit's `arguments`, as plain Python has them.

    Raises Problems with all mistakes in fit's arguments, as a recipe would.
    """
    check = Arguments()
    check.instance("model", model, nn.Module, "the model itself")
    check_loss(check, loss)
    check_optimizer(check, optimizer)
    if isinstance(optimizer, torch.optim.Optimizer) and not isinstance(optimizer, torch.optim.LBFGS):
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            check.refuse("optimizer", wants_closure(optimizer))
    check.instance("step", step, StepOptions, "StepOptions(max_grad_norm=1.0)")
    check.instance("run", run, RunOptions, "RunOptions(log_every=10)")
    run_dir = check.path("run_dir", arguments["run_dir"], none=True)
    if arguments["resume"] is True and run_dir is None:
        check.refuse("resume", "there is no run_dir to go on in; name one")
    values = [
        check.whole("epochs", arguments["epochs"], low=1, high=MOST),
        check.whole("batch_size", arguments["batch_size"], low=1, none=True),
        check.whole("seed", arguments["seed"], low=0, high=MOST),
        check.flag("resume", arguments["resume"]),
    ]
    begun = run.start_epoch if isinstance(run, RunOptions) else None
    if begun is not None and not check.problems and begun >= values[0]:
        check.refuse(
            "epochs",
            f"{values[0]} is not above the {counted(begun, 'epoch')} that are done already (start_epoch, or those of "
            "the file that training starts from: --epochs-done 0 counts anew); give more",
        )
    check.done()
    return values


def check_loss(check: Arguments, loss: Any) -> None:
    """A loss, an objective, or None for the loss that the model returns."""
    if loss is None:
        return
    names = list(getattr(getattr(loss, "__code__", None), "co_varnames", ()))[:2]
    if names == ["model", "batch"]:
        check.refuse(
            "loss", f"{loss.__name__}(model, batch) is an objective; give it as surefoot.objective({loss.__name__})"
        )
    check.function("loss", loss, "torch.nn.CrossEntropyLoss()")


def measuring(
    model: nn.Module,
    loss: Any,
    loader: Loader,
    val_loader: Loader | None,
    metrics: Any,
    schedule: Schedule,
    checkpoints: Checkpoints | None,
    early_stopping: EarlyStopping | None,
    world: World | None = None,
) -> tuple[RunningMetrics, Checkpoints, EarlyStopping | None]:
    """What measures a run, and `checkpoints` and `early_stopping` with the mode that their metric says.

    Raises Problems for a monitored metric that this run will never have, and for a mode that is the wrong way round.
    """
    options = metric_options(loss, metrics)
    names, own, numbers = measured(model, loss, loader, options)
    running = RunningMetrics(**options | {"own": own, "world": world})
    checkpoints = Checkpoints(every=None) if checkpoints is None else checkpoints
    available = [f"train/{name}" for name in names]
    if val_loader is not None:
        val_loader.require_undivided(1 if world is None else world.size)
        others = [name for name in names if name not in numbers]
        available += [f"val/{name}" for name in [*others, *numbers_in_validation(model, loss, val_loader)]]
    problems: list[str] = []

    def mode_of(where: str, metric: str | None, mode: str, later: bool = False) -> str:
        if metric is not None and metric not in available:
            meant = did_you_mean(metric, available) or ";"
            problems.append(
                f"{where}: {metric!r} is not measured in this run{meant} measured are: {', '.join(available)}"
            )
            return mode
        try:
            return settled(mode, metric, where, metric and running.better(metric.partition("/")[2]), later=later)
        except UsageError as error:
            problems.append(str(error))
            return mode

    mode = mode_of("checkpoint.keep_best", checkpoints.keep_best, checkpoints.mode)
    checkpoints = replace(checkpoints, mode=mode)
    if early_stopping is not None:
        mode = mode_of("early_stopping.monitor", early_stopping.monitor, early_stopping.mode)
        early_stopping = replace(early_stopping, mode=mode)
    if schedule.needs_metric:
        modes = [part.mode for part in leaves(schedule.scheduler) if isinstance(part, ReduceLROnPlateau)]
        for mode in modes or ["auto"]:  # what a user's own class does with the metric nobody knows
            mode_of("scheduler.monitor", schedule.monitor, mode, later=True)
    if problems:
        raise Problems(problems)
    return running, checkpoints, early_stopping


def measured(
    model: nn.Module, loss: Any, loader: Loader, options: Mapping[str, Any]
) -> tuple[list[str], Sequence[str], Sequence[str]]:
    """The names of all that an epoch measures, of our own among them, and of an objective's numbers.

    Objects, objectives and losses of one's own tell theirs on one batch, which goes through the model without a trace.
    """
    batch, own = loader.peek(), options["own"]
    asks = callable(own) and None in families(loss)
    if "objects" not in options and not isinstance(loss, Objective) and not asks:
        pair = batches.pair(batch)
        own = own(None, pair and pair[1]) if callable(own) else own
        if pair is not None and "perplexity" in own and not options["from_loss"]:
            require_indices(pair[1])
        return ["loss", *own], own, ()
    running = RunningMetrics(**options)
    with untouched(model, loss), torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a metric of a single batch may warn
        enter_training(model)
        value = apply(loss, unwrap(model), batch)
        running.add(*value[:3], batches.size(batch), value.weight, value.numbers)
        return list(running.result()), running.own_names, tuple(value.numbers)


def numbers_in_validation(model: nn.Module, loss: Any, val_loader: Loader) -> Sequence[str]:
    """The names of the numbers that an objective returns in evaluation mode, where it may return others."""
    if not isinstance(loss, Objective):
        return ()
    with untouched(model, loss), evaluating(model), torch.no_grad():
        return tuple(apply(loss, unwrap(model), val_loader.apart().peek(most=4)).numbers)


def give_shapes(model: nn.Module, loss: Any, loader: Loader) -> None:
    """Give the parameters of lazy modules their shapes and first values, as the first forward pass would.

    Nothing else in the model changes: the batch goes through it without a trace, and then each lazy module alone
    is run on the inputs that it had. Raises UsageError for one that the batch did not reach.
    """
    lazy = [part for part in model.modules() if isinstance(part, LazyModuleMixin) and part.has_uninitialized_params()]
    if not lazy:
        return
    calls: list[tuple[Any, tuple[Any, ...], dict[str, Any]]] = []
    handles = [
        part.register_forward_pre_hook(lambda *call, calls=calls: calls.append(call), prepend=True, with_kwargs=True)
        for part in lazy
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, about lazy modules
        try:
            with untouched(model, loss), torch.no_grad():
                apply(loss, unwrap(model), loader.peek())
                calls = calls.copy()  # `untouched` empties the list that the hooks fill
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise UsageError(
                f"model: its lazy modules get no shape: the first batch cannot go through: {first_line(error)}",
                code="model-lazy",
            ) from error
        finally:
            for handle in handles:
                handle.remove()
        for part, inputs, keywords in calls:
            if part.has_uninitialized_params():
                with evaluating(part), torch.no_grad():  # a batch normalization counts nothing
                    part(*inputs, **keywords)
    if names := [name for name, parameter in model.named_parameters() if is_lazy(parameter)]:
        raise UsageError(
            f"model: {', '.join(names)}: no shape yet, since the first batch does not reach this module; give it its "
            "size where it is made",
            code="model-lazy",
        )


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
        *(model, loss, optimizer, loader.peek()),
        classes=classes and len(classes),
        off=off,
        last=loader.short_batch(),
        parts=loader.parts,
    )
    fatal = [finding for finding in findings if strict or finding.severity == "error"]
    if fatal:
        raise Problems(fatal)
    for finding in findings:
        progress.message(str(finding))
    if val_loader is not None:
        try_validation(model, loss, val_loader)


def try_validation(model: nn.Module, loss: Any, val_loader: Loader) -> None:
    """Raise UsageError where model and loss cannot be run on a few samples of the validation data."""
    check_validation(model, loss, val_loader.apart().peek(most=4))  # samples may be slow to read
