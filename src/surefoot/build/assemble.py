"""Recipe to live objects: the only place where a name becomes an object."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .conditions import STARTED, conditions
from .imports import at
from .parts import (
    augmentations,
    build_data,
    build_loss,
    build_metrics,
    build_model,
    build_optimizer,
    build_schedule,
    device_of,
    evaluation_loader,
    freeze,
    load_weights,
    takes_weights,
)

if TYPE_CHECKING:
    import torch
    from torch import nn

    from ..data import Loader
    from ..recipe import Recipe
    from ..schedules import Schedule
    from ..step import StepOptions
    from ..training import About, Unfreezing
    from ..world import World


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
    metrics: Any = "auto"

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one epoch."""
        return -(-len(self.train) // self.recipe.grad_accum_steps)

    @functools.cached_property
    def unfreezing(self) -> Unfreezing | None:
        """What the recipe's `unfreeze` does, in the groups that the optimizer's section makes."""
        from ..training import Unfreezing

        recipe = self.recipe
        epochs = [(item.epoch, pattern) for item in recipe.unfreeze for pattern in item.match]
        if not epochs:
            return None
        lr = self.optimizer.defaults.get("lr")
        with at(recipe, "unfreeze"):
            return Unfreezing(self.model, self.optimizer, epochs, lr=lr, **recipe.optimizer.grouping())

    def step_options(self) -> StepOptions:
        """How the recipe wants an update to be made."""
        from ..step import StepOptions

        ema = self.recipe.ema
        names = ("grad_accum_steps", "max_grad_norm", "clip_value", "precision", "on_nonfinite", "set_to_none")
        return StepOptions(**_fields(self.recipe, *names), ema_decay=ema.decay if ema else None)

    @property
    def execution(self) -> Any:
        """What the recipe fixes of how a step runs, as `fit` takes it."""
        return self.recipe.execution if isinstance(self.recipe.execution, str) else self.recipe.execution.plain()

    def settings(self) -> dict[str, Any]:
        """The keyword arguments of `training.fit` that the recipe decides."""
        from ..training import Checkpoints, EarlyStopping, RunOptions

        recipe = self.recipe
        stopping, checkpoint, board = recipe.early_stopping, recipe.checkpoint, recipe.tensorboard
        run = RunOptions(
            early_stopping=None if stopping is None else EarlyStopping(**vars(stopping)),
            unfreeze=self.unfreezing or (),
            execution=self.execution,
            tensorboard=board if isinstance(board, bool | str) else board.plain(),
            **_fields(recipe, "log_every", "strict", "lint_off", "parallel", "micro_batches", "trackers"),
            checkpoints=None if checkpoint is None else Checkpoints(**vars(checkpoint)),
            about=self.about,
        )
        return {
            "epochs": recipe.epochs,
            "val": self.val,
            "schedule": self.schedule,
            "seed": recipe.seed,
            "metrics": self.metrics,
            "step": self.step_options(),
            "run": run,
        }


def _fields(section: Any, *names: str) -> dict[str, Any]:
    """The settings of these names, which are called alike where they are handed on to."""
    return {name: getattr(section, name) for name in names}


def _loss_name(recipe: Recipe) -> Any:
    """What a saved model says that it was trained with."""
    if recipe.objective is not None:
        return {"objective": recipe.objective.plain()}
    assert recipe.loss is not None, "one of the two is there"
    only = recipe.loss[0] if len(recipe.loss) == 1 else None
    return only.part.plain() if only and only.factor == 1.0 else [term.plain() for term in recipe.loss]


def build(
    recipe: Recipe,
    *,
    say: Callable[[str], None] = lambda text: None,
    started: str | None = None,
    world: World | None = None,
) -> Built:
    """The live objects of `recipe`. Draws from the random number generators only after seeding them.

    `say` receives messages about what takes long (a download). `started` is the fingerprint of the weights that a run
    began with which goes on from a checkpoint: they are not read again. Each rank of a `world` has a GPU of its own.
    Raises UsageError, with the place in the recipe, for whatever cannot be made; an exception in a user's own imported
    code comes through as it is.
    """
    import torch

    from .. import rng
    from ..data import Loader
    from ..training import About
    from ..training.checks import give_shapes
    from ..training.evaluation import narrowed

    device = device_of(recipe, world)
    if recipe.deterministic:
        # Read by cuBLAS when CUDA is first used; without it torch refuses matrix products in deterministic mode.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # No result depends on it, and it costs a write.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(recipe.deterministic)
    rng.seed_all(recipe.seed)
    splits = build_data(recipe, say=say)
    rng.seed_all(recipe.seed)
    model = build_model(recipe, splits)
    if recipe.model.weights is not None and started is None and not takes_weights(recipe):
        started = load_weights(recipe, model, say)
    model = model.to(device)
    freeze(recipe, model)
    loss, metrics = build_loss(recipe, splits), build_metrics(recipe)
    if hasattr(loss, "to"):
        loss = loss.to(device)
    with at(recipe, "data"):
        train = Loader(
            splits.train,
            **_fields(recipe.data, "batch_size", "shuffle", "drop_last", "weights", "num_samples", "workers"),
            **_fields(recipe.data, "lengths", "max_tokens"),
            seed=recipe.seed,
            preprocessing=splits.preprocessing,
            augment=augmentations(recipe),
            device=device,
        )
        narrowed(train, model, say)
        steps_per_epoch = -(-len(train) // recipe.grad_accum_steps)
    with at(recipe, "model"):
        give_shapes(model, loss, train)
    optimizer = build_optimizer(recipe, model, loss)
    with at(recipe, "data"):
        val = None if splits.val is None else narrowed(evaluation_loader(recipe, splits, model, device), model)
    schedule = build_schedule(recipe, optimizer, steps_per_epoch)
    about = About(
        name=recipe.name,
        files={"recipe.yaml": recipe.to_yaml()},
        conditions=conditions(recipe, model, loss, splits) | ({STARTED: started} if started else {}),
        classes=splits.classes,
        preprocessing=splits.preprocessing,
        loss_name=_loss_name(recipe),
        recipe_digest=recipe.digest(),
        dataset=recipe.data.part.name,
        brief=recipe.brief_yaml(),
        source=(recipe.model.part.name, recipe.model.part.arguments()) if recipe.model.part.imported else None,
    )
    return Built(recipe, model, loss, optimizer, schedule, train, val, about, metrics)
