"""The sections of a recipe about how a run is conducted: early stopping, checkpoints, execution settings."""

from __future__ import annotations

from dataclasses import dataclass

from ..limits import MIN_DELTA, MOST_THREADS, WHEN_BUSY
from .kinds import Choice, Flag, Maybe, Monitor, Number, Or, Text, Whole
from .sections import Keyed, key

_BETTER = "as the metric says"
AUTO = ("auto",)


@dataclass(frozen=True, kw_only=True)
class EarlyStoppingSection(Keyed):
    """End the run when a metric no longer gets better."""

    monitor: str = key(Monitor(), "The metric.", "val/loss")
    mode: str = key(Maybe(Choice(("min", "max"))), "Which is better: lower or higher.", None, shown=_BETTER)
    patience: int = key(Whole(1, "give at least one epoch"), "Epochs without improvement before the end.", 5)
    min_delta: float = key(Number(MIN_DELTA), "An improvement of at most this much does not count.", 0.0)


@dataclass(frozen=True, kw_only=True)
class CheckpointSection(Keyed):
    """When the run is saved, so that it can go on after any end, and which saves are kept."""

    every: str | None = key(
        Maybe(
            Text(
                "a count and its unit",
                r"0*[1-9][0-9]{0,11} (epochs?|steps?|s|min|h)",
                "; write for example 1 epoch, 500 steps, 10 min or 30 s",
            )
        ),
        "How often: `N epochs`, `N steps`, `N s`, `N min` or `N h`; null saves only when the run ends or is stopped.",
        "1 epoch",
    )
    keep_last: int | None = key(
        Maybe(Whole(1, "one is needed to go on from")), "How many of the newest are kept; null keeps all.", 3
    )
    keep_best: str | None = key(
        Maybe(Monitor()), "The metric whose best model is kept as `model/best`; null keeps none.", None
    )
    mode: str = key(Maybe(Choice(("min", "max"))), "Which is better: lower or higher.", None, shown=_BETTER)
    when_busy: str = key(
        Choice(WHEN_BUSY),
        "A save that is due while the one before is still being written: wait for that, or skip this one.",
        "wait",
    )


@dataclass(frozen=True, kw_only=True)
class ExecutionSection(Keyed):
    """How a step runs on this machine; what is auto is measured."""

    threads: int | str = key(
        Or(AUTO, Whole(1, "give at least one", MOST_THREADS)), "Threads of one operation on the CPU.", "auto"
    )
    onednn: bool | str = key(Or(AUTO, Flag()), "Whether convolutions use oneDNN.", "auto")
    memory_format: str = key(Choice(("auto", "contiguous", "channels_last")), "How images lie in memory.", "auto")
    optimizer_impl: str = key(
        Choice(("auto", "default", "for_loop", "foreach", "fused")), "Which of torch's implementations updates.", "auto"
    )
    compile: bool | str = key(
        Or(("auto", "none", "gradients", "module"), Flag()),
        "What is compiled, once its gradients are checked; true is the form that suits.",
        "auto",
    )


@dataclass(frozen=True, kw_only=True)
class TensorBoardSection(Keyed):
    """What TensorBoard's event files hold beside the metrics."""

    histograms: str | None = key(
        Maybe(
            Text(
                "a count of epochs or steps",
                r"0*[1-9][0-9]{0,11} (epochs?|steps?)",
                "; write for example 1 epoch or 500 steps",
            )
        ),
        "How often histograms of weights and gradients are written: `N epochs` or `N steps`; null for never.",
        None,
    )
    together: bool = key(Flag(), "Both losses in one chart of the Scalars tab too.", False)
