"""Each part of a recipe as a live object: data, model, loss, optimizer, schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from ..errors import Problems, UsageError
from ..registry import did_you_mean, parameters_of
from ..text import counted
from ..wrapping import named_parameters
from .imports import at, function_of, make, named, resolved

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..data import DataSplits, Loader
    from ..recipe import Recipe, SchedulerSection
    from ..schedules import Schedule, SchedulerSpec, WarmupSpec
    from ..world import World


def build_data(recipe: Recipe, *, say: Callable[[str], None] = lambda text: None) -> DataSplits:
    """The training and validation data, with the preprocessing that the recipe asks for."""
    from ..data import DATA, DataSplits, as_source
    from ..data.splits import pixel_scale
    from ..preprocessing import Preprocessing

    part = recipe.data.part
    with at(recipe, "data"):
        provided = () if part.imported else DATA[part.name].provided
        weights = recipe.data.weights
        fillings = {
            "progress": _quarters(say),
            "weights": weights if isinstance(weights, str) and weights != "balanced" else None,
            "numbers": _compares_numbers(recipe),
        }
        splits = make(part, DATA, **{name: fillings[name] for name in provided})
        if not isinstance(splits, DataSplits):
            train, val = splits if _is_pair(splits) else (splits, None)
            source = as_source(train)
            splits = DataSplits(source, None if val is None else as_source(val), source.classes, None)
        # A column to draw by is no input, of samples to validate and to evaluate on either.
        named = {key: part for key in ("train", "val") if _has_column(part := getattr(splits, key), weights)}
        splits = replace(splits, **{key: part.without(weights) for key, part in named.items()})
    normalize = recipe.data.normalize
    if isinstance(normalize, str):  # auto
        return splits
    if normalize is None:
        return replace(splits, preprocessing=None)
    with at(recipe, "data.normalize"):
        if splits.train.columns is not None:
            raise UsageError(
                "a table's columns are normalised by their own mean and std; give auto, or null for none",
                code="data-preprocessing",
            )
        scale = pixel_scale(splits.train)
        return replace(splits, preprocessing=Preprocessing(scale=scale, mean=normalize.mean, std=normalize.std))


def build_model(recipe: Recipe, splits: DataSplits | None = None) -> nn.Module:
    """The model, its initial weights drawn from torch's generator."""
    from torch import nn

    from ..models import MODELS

    with at(recipe, "model"):
        part = recipe.model.part
        defaults: dict[str, Any] = {"weights": recipe.model.weights} if takes_weights(recipe) else {}
        if not part.imported and splits is not None:
            columns = splits.train.columns
            defaults = splits.sizes_for(MODELS[part.name].load())
            if columns is not None and columns.categories and "cardinalities" not in defaults:
                raise UsageError(
                    f"{part.name} would take categories for numbers ({', '.join(columns.categories)}); "
                    "give TabularMLP, or leave these columns out (data.drop)",
                    code="data-table",
                )
        model = make(part, MODELS, defaults)
        if not isinstance(model, nn.Module):
            raise UsageError(f"{part.name} made a {type(model).__name__}, not a torch.nn.Module", code="own-import")
    return model


def takes_weights(recipe: Recipe) -> bool:
    """Whether the recipe's `weights` are an argument of what it imports, as torchvision's models have one."""
    part = recipe.model.part
    return part.imported and recipe.model.weights is not None and "weights" in parameters_of(named(part))


def load_weights(recipe: Recipe, model: nn.Module, say: Callable[[str], None]) -> str:
    """Put the weights that the recipe begins with into `model`; returns the fingerprint of what the file holds.

    `say` receives what was taken and, where the recipe is not strict, what was not.
    """
    from ..artifacts.importing import start_weights

    assert recipe.model.weights is not None, "the recipe names weights"
    with at(recipe, "model.weights"):
        started = start_weights(recipe.model.weights, model, strict=recipe.model.strict)
    for line in started.lines:
        say(line)
    return started.fingerprint


def build_loss(recipe: Recipe, splits: DataSplits | None) -> Any:
    """The loss, the weighted sum of losses, or the objective.

    Balanced weights come from the training targets, and are left out without `splits`.
    """
    from .. import losses

    if recipe.objective is not None:
        with at(recipe, "objective"):
            return losses.objective(function_of(recipe.objective, losses.OBJECTIVES, 2))
    assert recipe.loss is not None, "one of the two is there"
    terms = []
    for index, term in enumerate(recipe.loss):
        path = "loss" if len(recipe.loss) == 1 else f"loss.{index}"
        with at(recipe, path):
            part = term.part
            if part.imported:
                terms.append((term.factor, function_of(part, losses.LOSSES, 2)))
                continue
            args = resolved(part)
            if splits is None:
                args = {key: value for key, value in args.items() if not losses.needs_targets({key: value})}
            targets = splits.train.targets() if splits is not None and losses.needs_targets(args) else None
            classes = len(splits.classes) if splits is not None and splits.classes else None
            terms.append((term.factor, losses.build_loss(part.name, args, targets=targets, classes=classes)))
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    with at(recipe, "loss"):
        return losses.WeightedSum(terms)


def build_metrics(recipe: Recipe) -> Any:
    """What is measured, as `fit` takes it: ``"auto"``, or the metrics by the names that records have."""
    from ..metrics.objects import is_metric, name_of
    from ..metrics.registry import METRICS, OWN

    if isinstance(recipe.metrics, str):
        return recipe.metrics
    metrics: dict[str, Any] = {}
    for index, term in enumerate(recipe.metrics):
        part = term.part
        with at(recipe, f"metrics.{index}"):
            if not part.imported:
                metric = part.name if part.name in OWN else METRICS.build(part.name, resolved(part))
            elif not is_metric(metric := function_of(part, METRICS, 2)):
                raise UsageError(
                    f"{part.name} is no metric; give a class or object with update, compute, reset, state_dict and "
                    "load_state_dict, or a function of (outputs, targets)",
                    code="metric",
                )
            name = term.label or (name_of(metric) if part.imported else part.name)
            if name in metrics:
                raise UsageError(f"{name}: another metric is called so; give this one a name: as: NAME", code="metric")
            metrics[name] = metric
    return metrics


def build_optimizer(recipe: Recipe, model: nn.Module, loss: Any = None) -> torch.optim.Optimizer:
    """The optimizer over the trainable parameters of `model`, in the recipe's groups.

    Where the loss has parameters of its own, they are trained too; names are then ``model.*`` and ``loss.*``.
    """
    from torch import nn

    from .. import optimizers
    from ..losses.hidden import learns

    learning = nn.ModuleDict({"model": model, "loss": loss}) if learns(loss) else model
    section = recipe.optimizer
    with at(recipe, "optimizer"):
        return optimizers.build_optimizer(named(section.part), resolved(section.part), learning, **section.grouping())


def build_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Schedule:
    """The scheduler under its warmup, its length filled in from the run's."""
    from .. import schedules

    with at(recipe, "scheduler" if recipe.scheduler else "warmup"):
        return schedules.build_schedule(optimizer, *schedule_specs(recipe), steps_per_epoch, recipe.epochs)


def schedule_specs(recipe: Recipe) -> tuple[SchedulerSpec | None, WarmupSpec | None]:
    """The recipe's scheduler and warmup as the schedules know them, imported classes in place of their paths."""
    from ..schedules import WarmupSpec

    warmup = recipe.warmup
    return (
        None if recipe.scheduler is None else _scheduler_spec(recipe.scheduler),
        None if warmup is None else WarmupSpec(named(warmup.part), resolved(warmup.part), warmup.by, warmup.then),
    )


def _scheduler_spec(section: SchedulerSection) -> SchedulerSpec:
    from ..schedules import SchedulerSpec

    children = tuple(_scheduler_spec(child) for child in section.children)
    monitor = section.monitor or "val/loss"
    return SchedulerSpec(named(section.part), resolved(section.part), section.by, monitor, children)


def augmentations(recipe: Recipe) -> list[Any]:
    """The random changes to training batches, in order."""
    from ..data import AUGMENTATIONS

    if recipe.data.augment and recipe.data.part.name == "image_masks":
        message = "these change the pictures and would leave their masks as they are; change both in data of your own"
        raise UsageError(recipe.problem("data.augment", message), code="data-augment")
    transforms = []
    for index, part in enumerate(recipe.data.augment):
        with at(recipe, f"data.augment.{index}"):
            transforms.append(make(part, AUGMENTATIONS))
    return transforms


def evaluation_loader(recipe: Recipe, splits: DataSplits, model: nn.Module, device: torch.device) -> Loader:
    """The validation data in their own order, in batches as large as this machine takes well."""
    from ..data import Loader, StreamSource
    from ..execution import evaluation_batch
    from ..training import EVAL_BATCH

    assert splits.val is not None
    settings = {
        "shuffle": False,
        "preprocessing": splits.preprocessing,
        "workers": recipe.data.workers,
        "device": device,
    }
    size = recipe.data.eval_batch_size
    if size is None:
        size = EVAL_BATCH
        # A model that cannot run on these data is reported by the check of the first batch, which knows more.
        with contextlib.suppress(Exception):
            size = evaluation_batch(model, Loader(splits.val, 1, **settings).peek()[0])
    return Loader(splits.val, size if isinstance(splits.val, StreamSource) else min(size, len(splits.val)), **settings)


def freeze(recipe: Recipe, model: nn.Module) -> None:
    """Take the parameters that the recipe freezes out of training."""
    parameters = dict(named_parameters(model))
    problems = []
    for pattern in recipe.freeze:
        matched = [name for name in parameters if fnmatchcase(name, pattern)]
        if not matched:
            message = f"{pattern!r} matches no parameter{did_you_mean(pattern, parameters)}"
            problems.append(recipe.problem("freeze", message))
        for name in matched:
            parameters[name].requires_grad_(False)
    if problems:
        raise Problems(problems, code="recipe-value")


def device_of(recipe: Recipe, world: World | None = None) -> torch.device:
    """The device that the recipe names, or the best there is; of several ranks, each has its own GPU."""
    import torch

    name = recipe.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name.partition(":")[0]]:
        raise UsageError(recipe.problem("device", f"{name} is not available here; give auto or cpu"), code="device")
    index = name.partition(":")[2]
    if world is not None and world.size > 1 and name.startswith("cuda"):
        if index:
            raise UsageError(
                recipe.problem("device", f"{name}: {world.size} ranks cannot share one GPU; give cuda"), code="device"
            )
        return world.device
    if index and int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(
            recipe.problem("device", f"{name}: this machine has {counted(count, 'CUDA device')}, counted from 0"),
            code="device",
        )
    return torch.device(name)


def _quarters(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """Messages about a download: a line at its start and at each quarter, for a terminal and a log alike."""
    last: dict[str, int] = {}

    def progress(name: str, done: int, total: int) -> None:
        quarter = 4 * done // max(1, total)
        if last.get(name) != quarter:
            last[name] = quarter
            say(f"downloading {name}: {25 * quarter} % of {total / 1e6:.1f} MB")

    return progress


def _compares_numbers(recipe: Recipe) -> bool:
    """Whether the losses of torch's in a recipe, one at least, all compare outputs with targets that are floats."""
    from ..losses import LOSSES

    facts = [LOSSES[term.part.name].facts for term in recipe.loss or () if not term.part.imported]
    return bool(facts) and all("as float" in fact["target"] for fact in facts)


def _has_column(source: Any, name: Any) -> bool:
    from ..data import TensorSource

    return isinstance(source, TensorSource) and isinstance(name, str) and name in source.names


def _is_pair(data: Any) -> bool:
    """Whether a function for data gave (train, val); a list of two data sets, as random_split's, is one too."""
    from torch.utils.data import Dataset

    from ..data import Source
    from ..data.arrays import is_array

    if not isinstance(data, tuple | list) or len(data) != 2:
        return False
    if isinstance(data, list):
        return all(isinstance(part, Dataset | Source) for part in data)
    return not is_array(data[0]) and not (isinstance(data[0], list) and is_array(data[1]))
