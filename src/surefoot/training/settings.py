"""The execution settings of a run: chosen once, recorded, taken up again on resume, put under the step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..data import Loader
from ..errors import UsageError
from ..execution import (
    CannotCompile,
    Execution,
    asked_for,
    asked_in_pieces,
    choose_execution,
    require_in_pieces,
    verified_backend,
    verified_part,
    with_asked,
)
from ..step import TrainStep
from ..text import typed
from ..world import World
from .options import RunOptions

# Enough real batches to time on without measuring one lucky shape of data.
BATCHES_TO_MEASURE = 4


@dataclass(frozen=True)
class Asked:
    """The settings that a run was begun with, None where there are none yet; and what `execution` fixes of new ones."""

    recorded: Execution | None
    spec: Any

    @property
    def fused(self) -> bool:
        """Whether it is sure that updates are made by a fused kernel; others may be measured."""
        recorded = self.recorded
        impl = asked_for(self.spec).get("optimizer_impl") if recorded is None else recorded.optimizer_impl
        return bool(impl == "fused")


def asked_settings(
    run: RunOptions,
    run_dir: Path | str | None,
    about: Mapping[str, Any],
    optimizer: torch.optim.Optimizer,
    world: World,
) -> Asked:
    """What `run.execution` says, and `about`, which is read from the run directory's run.json.

    What it fixes otherwise than the run was begun with is taken over: a changed condition, which the resume then
    refuses or allows. Raises UsageError for what cannot be.
    """
    spec = run.execution
    if run.parallel == "fsdp2":  # also of one process, whose run several may go on with
        spec = asked_in_pieces(spec, optimizer)
    if run_dir is None or "execution" not in about:
        return Asked(None, spec)
    try:
        recorded = Execution.from_json(about["execution"])
    except UsageError as error:
        raise UsageError(
            f"{Path(run_dir) / 'run.json'}: {error}; another version of surefoot began this run: go on with that one, "
            "or begin a new run"
        ) from error
    recorded = with_asked(recorded, run.execution)
    if run.parallel == "fsdp2" and world.size > 1:
        require_in_pieces(recorded, optimizer)
    return Asked(recorded, spec)


def choose_settings(
    execution: Any, step: TrainStep, loader: Loader, steps_expected: int, say: Callable[[str], None]
) -> Execution:
    """What `execution` (``"auto"``, ``"plain"`` or a mapping) fixes, and the fastest of the rest on this machine."""
    batches = loader.first_batches(BATCHES_TO_MEASURE)
    return choose_execution(execution, step, batches, steps_expected=steps_expected, say=say)


def use_settings(
    execution: Execution, step: TrainStep, loader: Loader, say: Callable[[str], None], *, begun: Path | None = None
) -> Execution:
    """Give `step` the backend that `execution` says; call it within `prepare`, after a resume has loaded its state.

    Returns the settings that the run has: where the compiled form cannot be made, those of the eager one, with a
    message to `say`. Raises UsageError, with the way to go on, where the run directory `begun` has a form that cannot
    be made again.
    """
    if step.options.grad_accum_steps > 1 and loader.parts == 1:  # of these there is the plain step alone
        return execution

    positions = range(min(BATCHES_TO_MEASURE, loader.length or BATCHES_TO_MEASURE))

    def use(settings: Execution) -> None:
        if loader.parts == 1:
            step.backend = verified_backend(settings, step, (loader.batch_at(0, at) for at in positions), say)
        elif not settings.plain:
            step.divided.use(verified_part(settings, step, map(loader.first_parts, positions)))

    try:
        use(execution)
    except CannotCompile as error:
        if begun is not None:
            raise UsageError(
                f"execution: this run was begun with {execution.describe()}, which cannot be made again here: {error}; "
                f"go on without it, no longer to the bit: {_without_compiling(begun)}"
            ) from error
        say(f"the step is not compiled: {error}")
        execution = replace(execution, compile="none", cuda_graph=False)
        use(execution)
    return execution


def _without_compiling(run_dir: Path) -> str:
    if (run_dir / "recipe.yaml").exists():
        words = [word for name in ("execution.compile", "recipe.execution") for word in ("--allow", name)]
        return typed("surefoot", "resume", run_dir, "execution.compile=false", *words)
    return "fit(..., resume=True, run=RunOptions(execution={'compile': False}, allow=['execution.compile']))"
