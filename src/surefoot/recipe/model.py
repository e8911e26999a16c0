"""The recipe as a frozen, typed value: one dataclass for each mapping of the file, one field for each key.

A field's metadata holds the kind of its value and what it means; reading, writing, the JSON Schema and
docs/recipe.md all come from there, so that they cannot disagree.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..limits import CLIPPING, EMA_DECAY, LAYER_DECAY, ON_NONFINITE, PARALLEL, PRECISIONS
from ..metrics.registry import NAME
from ..registry import Range
from .data_section import DataSection
from .frozen import Frozen, thaw
from .kinds import Choice, Flag, Maybe, Monitor, Number, Or, Several, Text, Whole
from .mappings import PartKind, Section
from .run_sections import AUTO, CheckpointSection, EarlyStoppingSection, ExecutionSection, TensorBoardSection
from .sections import Keyed, Part, key

_PATTERN = Text("a pattern of parameter names such as '*.bias'")
_PATTERNS = Several(_PATTERN, least=1, one=True)
# What torch, other trainers and papers call the precisions.
_PRECISIONS = {
    **dict.fromkeys(("fp32", "f32", "float", "32", "full"), "float32"),
    **dict.fromkeys(("bfloat16", "bf16-mixed"), "bf16"),
    **dict.fromkeys(("float16", "half", "16", "16-mixed", "amp"), "fp16"),
}


@dataclass(frozen=True, kw_only=True)
class ModelSection(Keyed):
    """A model with its arguments, and the weights that it begins with."""

    registry = "model"

    part: Part
    weights: str | None = key(
        Maybe(Text("a file or directory of weights")),
        "What it begins with: a file or directory of weights, or a run; null: weights drawn from the seed.",
        None,
    )
    strict: bool = key(
        Flag(),
        "Whether all of `weights` must fit; with false, what does not is named and the model keeps its own.",
        True,
    )

    def plain(self) -> Any:
        """As the recipe would hold it: the bare name where there is nothing else."""
        if self.weights is None:
            return self.part.plain()
        return {**self.part.mapping(), "weights": self.weights, "strict": self.strict}


@dataclass(frozen=True, kw_only=True)
class LossTerm(Keyed):
    """One loss, and what it counts in the sum."""

    registry = "loss"

    part: Part
    factor: float = key(Number(Range(), "give a finite number"), "What this loss is multiplied by in a sum.", 1.0)


@dataclass(frozen=True, kw_only=True)
class MetricTerm(Keyed):
    """One metric, and what it is called in records."""

    registry = "metric"

    part: Part
    label: str | None = key(
        Maybe(Text("a name without slash, blank and dot", NAME)),
        "What it is called in records; null: by its name.",
        None,
        name="as",
    )

    def plain(self) -> Any:
        return self.part.plain() if self.label is None else {**self.part.mapping(), "as": self.label}


@dataclass(frozen=True, kw_only=True)
class Group(Keyed):
    """Parameters with hyperparameters of their own: `args` are arguments of the optimizer."""

    match: tuple[str, ...] = key(_PATTERNS, "Which parameters: a shell pattern over their names, or several.")
    name: str | None = key(Maybe(Text()), "How the group is called in records; null: by its pattern.", None)
    args: Frozen = Frozen()

    open_ended = True

    def options(self) -> dict[str, Any]:
        """The group as `surefoot.optimizers.param_groups` takes it."""
        named = {} if self.name is None else {"name": self.name}
        return {"match": list(self.match), **named, **thaw(self.args)}


@dataclass(frozen=True, kw_only=True)
class OptimizerSection(Keyed):
    """An optimizer of torch.optim with its arguments, and its parameter groups."""

    registry = "optimizer"

    part: Part
    groups: tuple[Group, ...] = key(
        Several(Section(lambda: Group)), "Parameters with their own hyperparameters; the first match counts.", ()
    )
    no_decay: str | tuple[str, ...] | None = key(
        Maybe(Or(("norm_and_bias",), _PATTERNS)), "Which parameters weight decay spares.", None
    )
    layer_decay: float | None = key(
        Maybe(Number(LAYER_DECAY)), "The rate of each layer over that of the layer after it.", None
    )

    def grouping(self) -> dict[str, Any]:
        """How the parameters are grouped, as `surefoot.optimizers.param_groups` takes it."""
        groups = [group.options() for group in self.groups]
        return {"groups": groups, "no_decay": self.no_decay, "layer_decay": self.layer_decay}


@dataclass(frozen=True, kw_only=True)
class SchedulerSection(Keyed):
    """A scheduler of torch.optim.lr_scheduler with its arguments."""

    registry = "scheduler"

    part: Part
    by: str = key(
        Maybe(Choice(("step", "epoch"))),
        "What its counts are in.",
        None,
        shown="step for OneCycleLR and CyclicLR, else epoch",
    )
    monitor: str | None = key(
        Maybe(Monitor()), "What ReduceLROnPlateau watches.", None, shown="val/loss where it watches"
    )
    children: tuple[SchedulerSection, ...] = key(
        Several(Section(lambda: SchedulerSection)),
        "The parts of a SequentialLR or ChainedScheduler.",
        (),
        name="schedulers",
    )

    def walk(self, path: str = "scheduler") -> Iterator[tuple[str, SchedulerSection]]:
        """This section and all parts below it, each with its dotted key."""
        yield path, self
        for index, child in enumerate(self.children):
            yield from child.walk(f"{path}.schedulers.{index}")

    def leaves(self) -> list[Part]:
        """The parts that set a rate themselves: those without parts of their own."""
        return [section.part for _, section in self.walk() if not section.children and section.part is not None]


@dataclass(frozen=True, kw_only=True)
class WarmupSection(Keyed):
    """A warmup, which dampens whatever the scheduler gives."""

    registry = "warmup"

    part: Part
    by: str = key(Choice(("step", "epoch")), "What its period is counted in.", "step")
    then: str | None = key(
        Maybe(Choice(("scheduler",))),
        "scheduler: the scheduler waits until the warmup's period is over; null: it runs from the first step.",
        None,
    )


@dataclass(frozen=True, kw_only=True)
class Ema(Keyed):
    """A running average of the weights, used for validation and saved as the model."""

    decay: float = key(Number(EMA_DECAY), "How much of the average stays at each step.", 0.999)


@dataclass(frozen=True, kw_only=True)
class Unfreeze(Keyed):
    """Frozen parameters that begin to learn."""

    epoch: int = key(Whole(0, "epochs are counted from 0"), "The epoch, counted from 0, at whose start this happens.")
    match: tuple[str, ...] = key(_PATTERNS, "Which parameters: a shell pattern over their names, or several.")


@dataclass(frozen=True, kw_only=True)
class Recipe(Keyed):
    """Everything that a run is made from. Made by `load_recipe` and `parse_recipe`, which check it.

    `source` is the file it was read from (None for a text), `places` where each of its keys stands.
    """

    one_of = ("loss", "objective")

    name: str = key(
        Text(
            "a name for a directory: at most 100 characters, no slash, not beginning with a dot",
            r"(?!\.)[^/\\\x00-\x1f\x7f\ud800-\udfff]{1,100}",
        ),
        "What the run's directory is called: `runs/NAME/TIMESTAMP`.",
        shown="the file's name",
    )
    seed: int = key(Whole(0, "give 0 or more"), "Where every random draw starts: weights, order, dropout.", 0)
    epochs: int = key(Whole(1, "give at least one epoch"), "Passes over the training data.")
    model: ModelSection = key(Section(lambda: ModelSection), "The model, its arguments and the weights it begins with.")
    data: DataSection = key(Section(lambda: DataSection), "The data and how it is served.")
    loss: tuple[LossTerm, ...] | None = key(
        Maybe(Several(Section(lambda: LossTerm), least=1, one=True)),
        "The loss and its arguments, or a list: a weighted sum.",
        None,
        shown="this or `objective`",
    )
    objective: Part | None = key(
        Maybe(PartKind("objective")),
        "What is minimised in place of a loss: your own function of model and batch, or `model`, whose output has it.",
        None,
        shown="this or `loss`",
    )
    optimizer: OptimizerSection = key(Section(lambda: OptimizerSection), "The optimizer and its arguments.")
    scheduler: SchedulerSection | None = key(
        Maybe(Section(lambda: SchedulerSection)), "What the learning rate does after warmup.", None
    )
    warmup: WarmupSection | None = key(
        Maybe(Section(lambda: WarmupSection)), "How the learning rate begins, over any scheduler.", None
    )
    grad_accum_steps: int = key(
        Whole(1, "1 accumulates nothing"), "Micro-batches in one step; the mean is over all their samples.", 1
    )
    max_grad_norm: float | None = key(
        Maybe(Number(CLIPPING, "give a norm above 0, or null for no clipping")),
        "Gradients are scaled down to this norm, which is recorded; 1e30 only records it.",
        None,
    )
    clip_value: float | None = key(
        Maybe(Number(CLIPPING, "give a value above 0, or null for no clipping")),
        "Each gradient is cut to this size.",
        None,
    )
    precision: str = key(
        Choice(PRECISIONS, _PRECISIONS), "float32, or autocast to bf16 or (with a GradScaler) fp16.", "float32"
    )
    ema: Ema | None = key(Maybe(Section(lambda: Ema)), "A running average of the weights.", None)
    freeze: tuple[str, ...] = key(Several(_PATTERN, one=True), "Parameters that do not learn, by patterns.", ())
    unfreeze: tuple[Unfreeze, ...] = key(
        Several(Section(lambda: Unfreeze)), "Frozen parameters that learn from an epoch on.", ()
    )
    early_stopping: EarlyStoppingSection | None = key(
        Maybe(Section(lambda: EarlyStoppingSection)), "When to end before `epochs`.", None
    )
    on_nonfinite: str = key(
        Choice(ON_NONFINITE), "What a NaN or infinite loss or gradient does: end the run, or skip the step.", "stop"
    )
    set_to_none: bool = key(
        Flag(), "zero_grad's: gradients are dropped between steps; false zeroes them in place.", True
    )
    deterministic: bool = key(Flag(), "Only torch's deterministic algorithms.", False)
    strict: bool = key(Flag(), "What the first batch's check finds ends the run.", False)
    lint_off: tuple[str, ...] = key(
        Several(Text("the name of a check"), one=True), "Checks of the first batch that are not made.", ()
    )
    metrics: str | tuple[MetricTerm, ...] = key(
        Or(AUTO, Several(Section(lambda: MetricTerm), one=True, as_list=True)),
        "What is measured beside the loss; auto is what suits the loss: accuracy and macro F1 for classes, say.",
        "auto",
    )
    log_every: int | None = key(
        Maybe(Whole(1, "1 records every step")), "Steps between two records; null: about 50 records an epoch.", None
    )
    tensorboard: bool | str | TensorBoardSection = key(
        Or(("together",), Section(lambda: TensorBoardSection), flag=True),
        "Write TensorBoard's event files; `together` draws both losses in one chart of the Scalars tab too.",
        True,
    )
    trackers: tuple[str, ...] = key(
        Several(Choice(("mlflow", "wandb")), one=True, as_list=True), "Where the run's metrics are logged besides.", ()
    )
    on_end: str | None = key(
        Maybe(Text("a command of a shell")),
        "Run once a training has ended; it finds SUREFOOT_RUN and SUREFOOT_STATUS (done, failed, interrupted) set.",
        None,
    )
    device: str = key(
        Text("auto, cpu, cuda, cuda:N or mps", r"auto|cpu|mps|cuda(:(0|[1-9][0-9]{0,3}))?", "; a GPU is cuda"),
        "Where it runs; auto takes a CUDA GPU where there is one.",
        "auto",
    )
    parallel: str = key(
        Choice(PARALLEL),
        "How several processes train: ddp, each with the whole model and its part of every batch; fsdp2, each with its "
        "rows of every parameter; none: refused.",
        "ddp",
    )
    micro_batches: int | None = key(
        Maybe(Whole(1, "1 cuts nothing")),
        "Parts that each batch is cut into, for any number of processes; null: one for each process.",
        None,
    )
    execution: ExecutionSection | str = key(
        Or(("auto", "plain"), Section(lambda: ExecutionSection)),
        "How a step runs here; auto measures and chooses, plain runs it as it is read in step.py.",
        "auto",
    )
    checkpoint: CheckpointSection | None = key(
        Maybe(Section(lambda: CheckpointSection)),
        "When the run is saved; null: only when it ends or is stopped, and no best model.",
        CheckpointSection(mode="min"),
        shown="its defaults",
    )
    source: str | None = field(default=None, compare=False, repr=False)
    places: Mapping[str, str] = field(default=Frozen(), compare=False, repr=False)

    def parts(self) -> Iterator[tuple[str, Part | None, type[Keyed] | None]]:
        """Every part: its registry, itself (None where it could not be read), and the section that it stands in."""
        for kind in ("model", "data", "optimizer", "warmup"):
            section = getattr(self, kind)
            if section is not None:
                yield kind, section.part, type(section)
        for part in self.data.augment if self.data else ():
            yield "augmentation", part, None
        for term in self.loss or ():
            yield "loss", term.part, type(term)
        if self.objective is not None:
            yield "objective", self.objective, None
        for metric in () if isinstance(self.metrics, str) else self.metrics:
            yield "metric", metric.part, type(metric)
        if self.scheduler is not None:
            for _, scheduler in self.scheduler.walk():
                yield "scheduler", scheduler.part, type(scheduler)

    def where(self, path: str) -> str:
        """Where the value of a dotted key stands, or what is nearest around it; "" for a recipe without a text.

        >>> from surefoot.recipe import parse_recipe
        >>> text = "epochs: 1\\nmodel: M\\ndata: D\\nloss: L\\noptimizer: {name: O, lr: 1}"
        >>> parse_recipe(text, "r.yaml", registries={}).where("optimizer.lr")
        'r.yaml:5:26'
        """
        while path and path not in self.places:
            path = path.rpartition(".")[0]
        return self.places.get(path, "")

    def problem(self, path: str, message: str) -> str:
        """A message about the dotted key `path`, with its place: ``recipe.yaml:7:8: optimizer.lr: ...``."""
        where = self.where(path)
        return f"{where}: {path}: {message}" if where else f"{path}: {message}"

    def to_yaml(self) -> str:
        """The recipe as YAML with every default filled in; it loads back as an equal recipe."""
        from .dump import to_yaml

        return to_yaml(self.plain())

    def brief_yaml(self) -> str:
        """What the recipe says beyond its defaults, as YAML; it loads back as an equal recipe."""
        from .dump import to_yaml

        return to_yaml(self.brief())

    def digest(self) -> str:
        """SHA-256 (hex) of everything that the recipe says, defaults included; of no comment and no order."""
        canonical = json.dumps(self.plain(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
