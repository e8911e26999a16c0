"""The execution plan of a run: chosen once, recorded, taken up again on resume, put under the step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..checkpoint import read_about
from ..data import Loader
from ..execution import Execution, choose_execution, make_update, with_asked
from ..step import NonFiniteLoss, StepResult, TrainStep

# Enough real batches to time on without measuring one lucky shape of data.
BATCHES_TO_MEASURE = 4


def recorded_plan(run_dir: Path | str, execution: Any = "auto") -> Execution | None:
    """The plan that a run was begun with, or None where there is none yet.

    What `execution` fixes otherwise is taken over: a changed condition, which the resume then refuses or allows.
    """
    about = read_about(run_dir)
    if not about or "execution" not in about:
        return None
    return with_asked(Execution.from_json(about["execution"]), execution)


def choose_plan(
    execution: Any, step: TrainStep, loader: Loader, steps_expected: int, say: Callable[[str], None]
) -> Execution:
    """What `execution` (``"auto"`` or a mapping) fixes, and the fastest of the rest on this machine."""
    return choose_execution(
        execution,
        model=step.model,
        loss=step.loss,
        optimizer=step.optimizer,
        batches=[loader.batch_at(0, i) for i in range(min(BATCHES_TO_MEASURE, len(loader)))],
        steps_expected=steps_expected,
        precision=step.precision,
        max_grad_norm=step.max_grad_norm,
        clip_value=step.clip_value,
        say=say,
    )


def use_plan(plan: Execution, step: TrainStep, loader: Loader) -> None:
    """Let `step` run as `plan` says; call it inside of `execution.prepare`."""
    step.update = make_update(
        plan,
        step.model,
        step.loss,
        step.optimizer,
        example=loader.batch_at(0, 0),
        plain=step.plain,
        result=StepResult,
        nonfinite=NonFiniteLoss if step.check_finite else None,
        clip=step.clip if step.clips else None,
        max_grad_norm=step.max_grad_norm,
        clip_value=step.clip_value,
    )
