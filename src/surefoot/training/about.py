"""What is written about a run beside its numbers, and the model that it saves with it."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..arguments import Arguments
from ..artifacts import read_info, remove_directory, save_model
from ..artifacts.arguments import checked
from ..artifacts.info import DTYPES, is_shape
from ..artifacts.pretrained import pretrained_spec
from ..artifacts.weights import plain
from ..data import Loader, Source, StreamSource, TensorSource
from ..errors import UsageError
from ..losses import LOSSES, Objective, WeightedSum
from ..losses.conventions import describe
from ..losses.objectives import models_own
from ..losses.torch_losses import family, option
from ..preprocessing import Preprocessing
from ..table_columns import TableColumns
from ..tracking.validation import FILE, read_validation
from .records import Recorder
from .state import RunState

# In a saved loss: its arguments that no file can hold, as a function is one.
NOT_KEPT = "not_kept"
_MOST_WEIGHTS = 100_000


@dataclass(frozen=True)
class About:
    """What is written about a run beside its numbers, for those who use its model later. All of it can be left out.

    `name` is the run's, `details` are shown in its first line, `files` are further files of its directory
    (``recipe.yaml``), `conditions` what a resume must find unchanged beside versions, device, threads and data.

    The rest is saved with the model, so that it can be evaluated, exported and used on raw data: `classes` (names),
    `preprocessing` (what raw inputs need), `input_shape` (of one sample, without N), `input_dtype`, `columns` (of a
    table) and `loss_name`.
    What is None is taken from the data (their `classes`, the Loader's preprocessing, the first sample) and the loss.
    `dataset` names the data; `source` is ``("module:Name", its arguments)`` of a model class of one's own,
    `recipe_digest` the recipe's, and `brief` what of it differs from its defaults, for the report.
    """

    name: str = "run"
    files: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    preprocessing: Preprocessing | None = None
    loss_name: Any = None
    recipe_digest: str | None = None
    source: tuple[str, Mapping[str, Any]] | None = None
    input_shape: Sequence[int] | None = None
    input_dtype: str | None = None
    columns: TableColumns | None = None
    dataset: str | None = None
    brief: str = ""

    def __post_init__(self) -> None:
        check = Arguments()
        check.text("name", self.name)
        for name in ("files", "conditions", "details"):
            check.mapping(name, getattr(self, name))
        check.done()
        checked(vars(self))

    def of_model(self) -> dict[str, Any]:
        """What is saved with the model, by the names of `save_model`."""
        same = ("preprocessing", "classes", "input_shape", "input_dtype", "recipe_digest", "dataset", "columns")
        arguments = {name: getattr(self, name) for name in (*same, "source")}
        return {**arguments, "loss": self.loss_name, "title": self.name}


def completed(about: About, model: nn.Module, loader: Loader, loss: Any) -> About:
    """`about` with what data and loss tell: classes, preprocessing, the shape and dtype of a raw sample, the loss."""
    if about.classes is not None:
        about = replace(about, classes=tuple(map(str, about.classes)))
    # Now, since forward() of transformers changes it: a run that only saves again would write another one.
    if (spec := pretrained_spec(plain(model)[0], about.classes or loader.source.classes)) is not None:
        about = replace(about, source=(spec["class"], spec["args"]))
    details = about_data(loader.source) | {"preprocessing": loader.preprocessing, "loss_name": loss_name(loss)}
    return replace(about, **{name: value for name, value in details.items() if getattr(about, name) is None})


def about_data(source: Source) -> dict[str, Any]:
    """What data say about a model for them: classes, a table's columns, the shape and dtype of a raw sample."""
    shape, dtype = _raw_sample(source)
    return {"classes": source.classes, "columns": source.columns, "input_shape": shape, "input_dtype": dtype}


def loss_name(loss: Any) -> Any:
    """What a saved model says that it was trained with: a loss's name, the names of a sum's parts, or an objective."""
    if isinstance(loss, Objective):
        return {"objective": "model" if loss.function is models_own else describe(loss)}
    if isinstance(loss, WeightedSum):
        parts = [_term(part) or {"import": describe(part)} for part in loss.parts]
        return [part | {"factor": factor} for part, factor in zip(parts, loss.factors, strict=True)]
    term = _term(loss)
    return family(loss) if term is None or len(term) == 1 else term


def _term(loss: Any) -> dict[str, Any] | None:
    """A loss of torch's by name, with what of its arguments differs from the defaults, as a recipe has it.

    Tensors (class weights) are lists; the names of what is no plain value are under `NOT_KEPT`.
    """
    if (name := family(loss)) is None:
        return None
    term: dict[str, Any] = {"name": name}
    if name not in LOSSES or (isinstance(loss, nn.Module) and next(loss.parameters(), None) is not None):
        return term  # a last layer inside of the loss is not in the model's file
    not_kept = []
    for argument, parameter in inspect.signature(getattr(nn, name)).parameters.items():
        if argument in ("size_average", "reduce"):
            continue
        value = option(loss, argument, parameter.default)
        if isinstance(value, Tensor):
            value = value.tolist() if value.numel() <= _MOST_WEIGHTS else value
        if value is parameter.default or isinstance(value, nn.PairwiseDistance):
            continue
        if isinstance(value, bool | int | float | str | list):
            term |= {argument: value} if value != parameter.default else {}
        else:
            not_kept.append(argument)
    return term | ({NOT_KEPT: not_kept} if not_kept else {})


def _raw_sample(source: Source) -> tuple[tuple[int, ...] | None, str | None]:
    """The shape and dtype of one input as the data hold it; None for several parts, unequal or empty shapes."""
    if isinstance(source, TensorSource) and not source.names:
        samples = [source[:1][0]]
    elif isinstance(source, StreamSource):
        samples = [next(iter(batch)) for batch in Loader(source, 1).first_batches(2)]
    else:
        each = Loader(source, 1, shuffle=False)
        # A user's function may need more samples than one to make a batch.
        alone = contextlib.nullcontext() if getattr(source, "collate", None) is None else contextlib.suppress(Exception)
        samples = []
        with alone:
            samples = [each.batch_at(0, place)[0] for place in sorted({0, len(source) - 1})]
    if not samples or not all(isinstance(sample, Tensor) for sample in samples):
        return None, None
    dtype = str(samples[0].dtype).removeprefix("torch.")
    same = len({sample.shape for sample in samples}) == 1
    shape = tuple(samples[0].shape[1:])
    return shape if same and is_shape(shape) else None, dtype if dtype in DTYPES else None


def save_model_of(
    about: About,
    averaged: bool,
    run_dir: Path,
    recorder: Recorder,
    where: str,
    model: nn.Module,
    metrics: Mapping[str, float],
) -> None:
    """Write the model, with all that is needed to use it, to a directory below the run's."""
    assert recorder.journal is not None, "a model is saved in a run directory, which has a journal"
    recorder.journal.sync()
    history = recorder.journal.history()
    save_model(model, run_dir / where, **about.of_model(), metrics=dict(metrics), averaged=averaged, history=history)


def cut_back(run_dir: Path, state: RunState, metrics: Mapping[str, Any], say: Callable[[str], None]) -> bool:
    """Take away validation.json and model/best where they are of what came after the checkpoint that was restored.

    `metrics` are that checkpoint's. Returns whether its model is the best, for the caller to write; else the best of
    the epochs before is in a checkpoint of its own.
    """
    if read_validation(run_dir).get("step", 0) > state.step:
        (run_dir / FILE).unlink()
    best, directory = state.best, run_dir / "model" / "best"
    try:
        value = read_info(directory).metrics.get(best.metric or "")
    except (UsageError, OSError):  # none, or one that tells nothing
        return False
    if best.value is None or best.epoch is None or value is None or value == best.value:
        return False
    again = bool(metrics.get(best.metric or "") == best.value)
    what = (
        f"is of epoch {best.epoch + 1} again"
        if again
        else f"is removed; that of epoch {best.epoch + 1} is a checkpoint"
    )
    say(f"model/best was of an epoch that the newest checkpoint does not have: it {what}")
    if not again:
        remove_directory(directory)
    return again
