"""Recipe to live objects: the only place where a name becomes an object."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .catalog import Catalog, argument_problems, did_you_mean
from .errors import Problems, UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .data import DataSplits, Loader
    from .recipe import Part, Recipe, SchedulerSection
    from .schedules import Schedule, SchedulerSpec, WarmupSpec
    from .training import About


def catalogues() -> dict[str, Catalog]:
    """Every catalogue by the name that `surefoot list` uses."""
    from .data import AUGMENTATIONS, DATA
    from .losses import LOSSES
    from .models import MODELS
    from .optimizers import OPTIMIZERS
    from .schedules import SCHEDULERS, WARMUPS

    found = (LOSSES, OPTIMIZERS, SCHEDULERS, WARMUPS, MODELS, DATA, AUGMENTATIONS)
    return {catalogue.plural: catalogue for catalogue in found}


@dataclass(frozen=True)
class Built:
    """What a recipe stands for, ready to be trained: everything that `training.fit` takes."""

    recipe: Recipe
    model: nn.Module
    loss: Callable[..., Any]
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    train: Loader
    val: Loader | None
    about: About

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch."""
        return -(-len(self.train) // self.recipe.grad_accum_steps)

    def joining_groups(self) -> list[tuple[int, dict[str, Any]]]:
        """The param groups that join while training, each with its epoch (0-based), by the recipe's `unfreeze`."""
        groups = []
        taken: set[str] = set()
        for item in sorted(self.recipe.unfreeze, key=lambda item: item.epoch):
            for pattern in item.match:
                found = {
                    name: p
                    for name, p in self.model.named_parameters()
                    if not p.requires_grad and name not in taken and fnmatchcase(name, pattern)
                }
                taken |= set(found)
                defaults = {**self.optimizer.defaults, "name": pattern, "params": list(found.values())}
                groups.append((item.epoch, defaults))
        return groups

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `training.fit` that the recipe decides."""
        from .training import Checkpoints, EarlyStopping

        recipe = self.recipe
        stopping, checkpoint = recipe.early_stopping, recipe.checkpoint
        return {
            "epochs": recipe.epochs,
            "val": self.val,
            "schedule": self.schedule,
            "seed": recipe.seed,
            "grad_accum_steps": recipe.grad_accum_steps,
            "max_grad_norm": recipe.max_grad_norm,
            "clip_value": recipe.clip_value,
            "precision": recipe.precision,
            "ema_decay": recipe.ema.decay if recipe.ema else None,
            "early_stopping": None
            if stopping is None
            else EarlyStopping(stopping.monitor, stopping.mode, stopping.patience, stopping.min_delta),
            "on_nonfinite": recipe.on_nonfinite,
            "unfreeze": [(item.epoch, pattern) for item in recipe.unfreeze for pattern in item.match],
            "metrics": recipe.metrics,
            "log_every": recipe.log_every,
            "strict": recipe.strict,
            "lint_off": recipe.lint_off,
            "execution": recipe.execution if recipe.execution == "auto" else recipe.execution.plain(),
            "tensorboard": recipe.tensorboard,
            "checkpoints": None
            if checkpoint is None
            else Checkpoints(checkpoint.every, checkpoint.keep_last, checkpoint.keep_best, checkpoint.mode),
            "about": self.about,
        }


def build(recipe: Recipe, *, say: Callable[[str], None] = lambda text: None) -> Built:
    """The live objects of `recipe`. Draws from the random number generators only after seeding them.

    `say` is told what takes long (a download). Raises UsageError, with the place in the recipe, for whatever
    cannot be made; an exception in a user's own imported code comes through as it is.
    """
    import torch

    from . import rng
    from .data import Loader
    from .training import About

    device = _device(recipe)
    torch.use_deterministic_algorithms(recipe.deterministic)
    rng.seed_all(recipe.seed)
    splits = build_data(recipe, say=say)
    rng.seed_all(recipe.seed)
    model = build_model(recipe, splits).to(device)
    _freeze(recipe, model)
    loss = build_loss_of(recipe, splits)
    if hasattr(loss, "to"):
        loss = loss.to(device)
    optimizer = _build_optimizer(recipe, model)
    with _at(recipe, "data"):
        train = Loader(
            splits.train,
            recipe.data.batch_size,
            shuffle=recipe.data.shuffle,
            seed=recipe.seed,
            drop_last=recipe.data.drop_last,
            preprocessing=splits.preprocessing,
            augment=_augmentations(recipe),
            workers=recipe.data.workers,
            device=device,
        )
        val = None if splits.val is None else evaluation_loader(recipe, splits, device)
    steps_per_epoch = -(-len(train) // recipe.grad_accum_steps)
    schedule = _build_schedule(recipe, optimizer, steps_per_epoch)
    about = About(
        name=recipe.name,
        files={"recipe.yaml": recipe.to_yaml()},
        conditions=conditions(recipe, model, loss, splits),
        classes=splits.classes,
        preprocessing=splits.preprocessing,
        loss_name=[term.plain() for term in recipe.loss] if len(recipe.loss) > 1 else recipe.loss[0].part.plain(),
        recipe_digest=recipe.digest(),
        source=_source(recipe.model),
        input_shape=_input_shape(splits),
        input_dtype=_input_dtype(splits),
    )
    return Built(recipe, model, loss, optimizer, schedule, train, val, about)


def build_data(recipe: Recipe, *, say: Callable[[str], None] = lambda text: None) -> DataSplits:
    """The training and validation data, with the preprocessing that the recipe asks for."""
    from .data import DATA, DataSplits, TensorSource, as_source
    from .preprocessing import Preprocessing

    part = recipe.data.part
    with _at(recipe, "data"):
        provided = () if part.imported else DATA[part.name].provided
        made = _make(part, DATA, **({"progress": _quarters(say)} if "progress" in provided else {}))
        if not isinstance(made, DataSplits):
            pair = isinstance(made, tuple) and len(made) == 2 and not _is_tensor(made[0])
            train, val = made if pair else (made, None)
            source = as_source(train)
            made = DataSplits(source, None if val is None else as_source(val), source.classes, None)
    normalize = recipe.data.normalize
    if normalize == "auto":
        return made
    if normalize is None:
        return replace(made, preprocessing=None)
    pixels = isinstance(made.train, TensorSource) and not made.train.tensors[0].is_floating_point()
    with _at(recipe, "data.normalize"):
        scale = 1 / 255 if pixels else None
        return replace(made, preprocessing=Preprocessing(scale=scale, mean=normalize.mean, std=normalize.std))


def build_model(recipe: Recipe, splits: DataSplits | None = None) -> nn.Module:
    """The model, its initial weights drawn from torch's generator."""
    from torch import nn

    from .models import MODELS

    with _at(recipe, "model"):
        part = recipe.model
        given = part.arguments()
        fitting = {}
        if not part.imported and splits is not None:
            takes = MODELS[part.name].parameters()
            if splits.classes and "classes" in takes and "classes" not in given:
                fitting["classes"] = len(splits.classes)
        model = _make(part, MODELS, fitting)
        if not isinstance(model, nn.Module):
            raise UsageError(f"{part.name} made a {type(model).__name__}, not a torch.nn.Module")
    return model


def evaluation_loader(recipe: Recipe, splits: DataSplits, device: Any = None) -> Loader:
    """The validation data in large batches, in their own order."""
    from .data import Loader
    from .training import EVAL_BATCH

    size = recipe.data.eval_batch_size or max(EVAL_BATCH, recipe.data.batch_size)
    return Loader(
        splits.val,
        min(size, len(splits.val)),
        shuffle=False,
        preprocessing=splits.preprocessing,
        workers=recipe.data.workers,
        device=device,
    )


# What may differ between two sittings of one run without a bit of the result being another. `execution` and `device`
# are compared as what they came to; on_nonfinite only counts where a loss is not finite, and then the run stops.
_HARMLESS = (
    "name",
    "epochs",
    "checkpoint",
    "checkpoint.every",
    "checkpoint.keep_last",
    "data.dir",
    "data.download",
    "data.workers",
    "execution",
    "device",
    "lint_off",
    "on_nonfinite",
    "strict",
    "tensorboard",
)


def conditions(recipe: Recipe, model: nn.Module, loss: Any, splits: DataSplits) -> dict[str, Any]:
    """What a resume must find unchanged: the recipe, key by key, the data and the user's own code."""
    from .checkpoint.contract import code_of, flatten

    found = flatten("recipe", recipe.plain())
    for name in list(found):
        key = name.removeprefix("recipe.")
        if key in _HARMLESS or key.startswith("execution."):
            del found[name]
    found["data.train"] = splits.train.fingerprint()
    if splits.val is not None:
        found["data.val"] = splits.val.fingerprint()
    own = [import_object(part.name) for part in _parts(recipe) if part.imported]
    return found | code_of([model, loss, *own])


def import_object(path: str) -> Any:
    """The object that ``module:Name`` stands for; the current directory is looked in too, as `python` would.

    Raises UsageError for a module or name that is not there; what a user's module itself raises comes through.
    """
    module_name, _, attribute = path.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and module_name.split(".")[: error.name.count(".") + 1] == error.name.split("."):
            raise UsageError(
                f"import: no module {error.name!r} in {here} or among the installed packages; "
                "give it as package.module:Name and run where it can be found"
            ) from error
        raise
    for name in attribute.split("."):
        if not hasattr(found, name):
            public = [n for n in vars(found) if not n.startswith("_")] if hasattr(found, "__dict__") else []
            raise UsageError(f"import: {module_name} has no {name!r}{did_you_mean(name, public)}")
        found = getattr(found, name)
    return found


def build_loss_of(recipe: Recipe, splits: DataSplits) -> Any:
    """The loss, or the weighted sum of losses; balanced weights come from the training targets."""
    from .losses import WeightedSum, build_loss, needs_targets

    terms = []
    for index, term in enumerate(recipe.loss):
        path = "loss" if len(recipe.loss) == 1 else f"loss.{index}"
        with _at(recipe, path):
            part = term.part
            if part.imported:
                terms.append((term.factor, _make_loss(part)))
                continue
            args = part.arguments()
            targets = splits.train.targets() if needs_targets(args) else None
            classes = len(splits.classes) if splits.classes else None
            terms.append((term.factor, build_loss(part.name, args, targets=targets, classes=classes)))
    if len(terms) == 1 and terms[0][0] == 1.0:
        return terms[0][1]
    with _at(recipe, "loss"):
        return WeightedSum(terms)


def _make_loss(part: Part) -> Any:
    """A user's own loss: a class or factory is called with its arguments, a function of two is the loss itself."""
    import inspect

    found = import_object(part.name)
    if inspect.isclass(found):
        return _call(found, part.name, part.arguments())
    if part.args:
        import functools

        return functools.partial(found, **part.arguments())
    return found


def _build_optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    from .optimizers import build_optimizer

    section = recipe.optimizer
    with _at(recipe, "optimizer"):
        return build_optimizer(
            _named(section.part),
            section.part.arguments(),
            model,
            groups=[group.options() for group in section.groups],
            no_decay=section.no_decay,
            layer_decay=section.layer_decay,
        )


def _build_schedule(recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> Schedule:
    from .schedules import build_schedule

    with _at(recipe, "scheduler" if recipe.scheduler else "warmup"):
        return build_schedule(optimizer, *schedule_specs(recipe), steps_per_epoch, recipe.epochs)


def schedule_specs(recipe: Recipe) -> tuple[SchedulerSpec | None, WarmupSpec | None]:
    """The recipe's scheduler and warmup as the schedules know them, imported classes in place of their paths."""
    from .schedules import WarmupSpec

    warmup = recipe.warmup
    return (
        None if recipe.scheduler is None else _scheduler_spec(recipe.scheduler),
        None if warmup is None else WarmupSpec(_named(warmup.part), _resolved(warmup.part), warmup.by),
    )


def _scheduler_spec(section: SchedulerSection) -> SchedulerSpec:
    from .schedules import SchedulerSpec

    children = tuple(_scheduler_spec(child) for child in section.children)
    monitor = section.monitor or "val/loss"
    return SchedulerSpec(_named(section.part), _resolved(section.part), section.by, monitor, children)


def _named(part: Part) -> Any:
    return import_object(part.name) if part.imported else part.name


def _resolved(part: Part) -> dict[str, Any]:
    """A part's arguments, a user's own functions (``{import: module:name}``) in place of their paths."""

    def resolve(value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"import"}:
            return import_object(value["import"])
        if isinstance(value, list):
            return [resolve(item) for item in value]
        return value

    return {name: resolve(value) for name, value in part.arguments().items()}


def _augmentations(recipe: Recipe) -> list[Any]:
    from .data import AUGMENTATIONS

    made = []
    for index, part in enumerate(recipe.data.augment):
        with _at(recipe, f"data.augment.{index}"):
            made.append(_make(part, AUGMENTATIONS))
    return made


def _freeze(recipe: Recipe, model: nn.Module) -> None:
    names = [name for name, _ in model.named_parameters()]
    problems = []
    for pattern in recipe.freeze:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        if not matched:
            message = f"{pattern!r} matches no parameter{did_you_mean(pattern, names)}"
            problems.append(recipe.problem("freeze", message))
        for name in matched:
            model.get_parameter(name).requires_grad_(False)
    if problems:
        raise Problems(problems)


def _device(recipe: Recipe) -> torch.device:
    import torch

    name = recipe.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available[name.partition(":")[0]]:
        raise UsageError(recipe.problem("device", f"{name} is not available here; give auto or cpu"))
    index = name.partition(":")[2]
    if index and int(index) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(recipe.problem("device", f"{name}: there are {count} CUDA devices here, counted from 0"))
    return torch.device(name)


def _make(part: Part, catalogue: Catalog, fitting: Mapping[str, Any] | None = None, /, **provided: Any) -> Any:
    """The object of a part: from the catalogue, or imported and called with its arguments.

    `fitting` are arguments that the data decide unless the recipe does, `provided` those that are the house's own.
    """
    if not part.imported:
        return catalogue.build(part.name, {**(fitting or {}), **part.arguments()}, **provided)
    found = import_object(part.name)
    return _call(found, part.name, part.arguments()) if callable(found) else found


def _call(target: Callable[..., Any], name: str, arguments: Mapping[str, Any]) -> Any:
    """A user's own class or function, called; the arguments are checked by its signature first."""
    problems = argument_problems(name, target, arguments)
    if problems:
        raise Problems([p.message for p in problems])
    return target(**arguments)


@contextmanager
def _at(recipe: Recipe, path: str) -> Iterator[None]:
    """Give every UsageError from within the place in the recipe that it is about."""
    try:
        yield
    except Problems as error:
        raise Problems([recipe.problem(path, text.removeprefix(f"{path}: ")) for text in error.problems]) from error
    except UsageError as error:
        raise UsageError(recipe.problem(path, str(error).removeprefix(f"{path}: "))) from error


def _parts(recipe: Recipe) -> Iterator[Part]:
    yield recipe.model
    yield recipe.data.part
    yield from (term.part for term in recipe.loss)
    yield recipe.optimizer.part
    yield from recipe.data.augment
    if recipe.scheduler is not None:
        yield recipe.scheduler.part


def _source(part: Part) -> tuple[str, Mapping[str, Any]] | None:
    return (part.name, part.arguments()) if part.imported else None


def _quarters(say: Callable[[str], None]) -> Callable[[str, int, int], None]:
    """What a download is told by: a line at its begin and at each quarter, for a terminal and a log alike."""
    told: dict[str, int] = {}

    def progress(name: str, done: int, total: int) -> None:
        quarter = 4 * done // max(1, total)
        if told.get(name) != quarter:
            told[name] = quarter
            say(f"downloading {name}: {25 * quarter} % of {total / 1e6:.1f} MB")

    return progress


def _is_tensor(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) or type(value).__module__ == "numpy"


def _first_input(splits: DataSplits) -> Any:
    from .data import TensorSource

    source = splits.train
    return source.tensors[0][0] if isinstance(source, TensorSource) else None


def _input_shape(splits: DataSplits) -> tuple[int, ...] | None:
    first = _first_input(splits)
    return None if first is None else tuple(first.shape)


def _input_dtype(splits: DataSplits) -> str | None:
    first = _first_input(splits)
    return None if first is None else str(first.dtype).removeprefix("torch.")
