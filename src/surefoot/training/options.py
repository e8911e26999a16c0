"""RunOptions: what a run keeps, says and allows, beside the objects that it trains."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..arguments import Arguments
from ..checkpoint import Every
from ..errors import UsageError
from ..limits import PARALLEL
from ..tracking import TOGETHER, Progress
from ..tracking.trackers import INSTALL
from ..world import World
from .about import About
from .state import Checkpoints, EarlyStopping
from .unfreezing import Unfreezing


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How `fit` conducts a run: when it stops, what it records, shows and accepts. All of it can be left out.

    `early_stopping` (an EarlyStopping) ends the run before its last epoch. `unfreeze` holds ``(epoch, pattern)`` pairs:
    frozen parameters whose names match join the optimizer at that epoch (0-based). `checkpoints` (a Checkpoints) says
    when the run is saved; None only when it ends or is stopped. `log_every` counts steps between two records (default:
    about 50 an epoch). `tensorboard` is True, False, ``"together"``, or a mapping with ``"histograms"`` (how often,
    ``"1 epoch"``) and ``"together"``. `progress` is shown on standard output: a live bar on a terminal, plain lines off
    it. `strict` makes an error of every finding about the first batch; those named in `lint_off` are not looked for.
    `about` (an About) holds what is saved with the model and the data cannot say.

    How a step runs (threads, oneDNN, memory layout, compilation) is measured and checked where `execution` is
    ``"auto"``, recorded, and on resume taken as it was; a mapping fixes some of it, and ``"plain"`` runs the step as it
    stands in ``step.py``. Where a compiled form that was asked for cannot be made, a message says so and the eager one
    runs.

    `parallel` says how several processes train: ``"ddp"``, each with the whole model and its part of every batch,
    ``"fsdp2"``, each with its rows of every parameter, or ``"none"``, which refuses more than one. Each batch is cut
    into `micro_batches` (default: one for each process, or as the run was begun with); where each process has 1, 2, 4,
    8 ... of them, a run goes on with any number of them. `world` are these processes; by default those that torchrun
    started.

    `allow` names what may differ from the saved run when it resumes, no longer to the bit. `start_epoch` is for weights
    that were trained elsewhere for so many epochs: epochs are counted on from there.

    `trackers` names where the run's metrics are logged besides: ``"mlflow"``, ``"wandb"``.

    Raises Problems (a UsageError) with all mistakes at once.
    """

    early_stopping: EarlyStopping | None = None
    unfreeze: Sequence[tuple[int, str]] | Unfreezing = ()
    execution: str | Mapping[str, Any] = "auto"
    checkpoints: Checkpoints | None = Checkpoints()
    log_every: int | None = None
    tensorboard: bool | str | Mapping[str, Any] = True
    trackers: Sequence[str] = ()
    progress: Progress | bool = True
    strict: bool = False
    lint_off: Sequence[str] = ()
    about: About = About()
    allow: Sequence[str] = ()
    start_epoch: int | None = None
    parallel: str = "ddp"
    micro_batches: int | None = None
    world: World | None = None

    def __post_init__(self) -> None:
        check = Arguments()
        instance = check.instance
        stopping = instance(
            "early_stopping", self.early_stopping, EarlyStopping, "EarlyStopping(patience=5)", none=True
        )
        checkpoints = instance("checkpoints", self.checkpoints, Checkpoints, 'Checkpoints(every="1 epoch")', none=True)
        values = {
            "early_stopping": stopping,
            "checkpoints": checkpoints,
            "log_every": check.whole("log_every", self.log_every, low=1, none=True),
            "tensorboard": _tensorboard(check, self.tensorboard),
            "trackers": check.texts("trackers", self.trackers),
            "progress": instance("progress", self.progress, (bool, Progress), "True or False"),
            "strict": check.flag("strict", self.strict),
            "lint_off": check.texts("lint_off", self.lint_off),
            "about": instance("about", self.about, About, 'About(classes=["cat", "dog"])'),
            "allow": check.texts("allow", self.allow),
            "start_epoch": check.whole("start_epoch", self.start_epoch, low=0, none=True),
            "parallel": check.choice("parallel", self.parallel, PARALLEL),
            "world": instance("world", self.world, World, "surefoot.World.join()", none=True),
            "micro_batches": check.whole("micro_batches", self.micro_batches, low=1, none=True),
        }
        for name in values["trackers"] or ():
            check.choice("trackers", name, INSTALL)
        check.done()
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def events(self) -> bool | str:
        """Whether TensorBoard's events are written, or how: ``"together"``."""
        if not isinstance(self.tensorboard, Mapping):
            return self.tensorboard
        return TOGETHER if self.tensorboard.get(TOGETHER) else True

    @property
    def histograms(self) -> Every | None:
        """How often histograms are written; None for never."""
        text = self.tensorboard.get("histograms") if isinstance(self.tensorboard, Mapping) else None
        return None if text is None else Every.parse(text)


def _tensorboard(check: Arguments, value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value if value == TOGETHER else check.flag("tensorboard", value)
    for name in value:
        check.choice("tensorboard", name, ("histograms", TOGETHER))
    check.flag("tensorboard.together", value.get(TOGETHER, False))
    with contextlib.suppress(UsageError):
        if value.get("histograms") is None or Every.parse(value["histograms"]).unit != "seconds":
            return dict(value)
    check.refuse("tensorboard.histograms", f"{value['histograms']!r} is no interval; give '1 epoch' or '500 steps'")
    return value
