"""`surefoot eval RUN|MODEL`: the run's metrics, figures of each class or target, the confusion matrix."""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError, first_line
from ..text import counted, note
from .evaluation_text import show
from .for_machines import add_output_arguments, give, output_form
from .opening import add_opening_arguments, data_of, opened, recipe_data
from .recipes import FILE, recipe_of_run

if TYPE_CHECKING:
    import torch

    from ..artifacts import LoadedModel
    from ..data import DataSplits, Source
    from ..recipe import Recipe
    from ..world import World
    from .opening import NamedData

TEXT_ENDINGS = (".txt", ".md", ".rst")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --data, --split, --best, --worst, the forms of output and what opening a model needs."""
    parser.add_argument("path", metavar="RUN|MODEL", help="a run, a model directory, .safetensors, .pth, .pt2 or .onnx")
    parser.add_argument(
        "--data",
        metavar="NAME|RECIPE|FOLDER|FILE",
        help="a data set (garments, fashion_mnist), the recipe that has it (default: the run's own recipe), a folder "
        "of pictures whose folders are the classes, or, for a model of such, a CSV, Parquet or .txt file",
    )
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which samples (default: val)")
    parser.add_argument("--best", action="store_true", help="the run's best model instead of its last")
    parser.add_argument(
        "--worst", metavar="N", type=int, help="name the N samples most wrongly and the N least surely answered, too"
    )
    add_output_arguments(parser)
    add_opening_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print; under torchrun each rank has its part of the batches, and rank 0 prints."""
    from ..world import World

    form = output_form(arguments)
    with World.here() as world:
        report = figures(arguments, world)
    if world.rank > 0:
        return 0
    if form == "text":
        show(report)
    else:
        flat = {name: value for name, value in report.items() if name != "metrics"} | report["metrics"]
        give(form, arguments.out, flat, list(_rows_of(report)))
    return 0


def _rows_of(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures as a table of three columns: a metric, what it is of (a class, a target), its value."""
    for name, value in report["metrics"].items():
        yield {"metric": name, "of": None, "value": value}
    for kind in ("class", "target"):
        for row in report.get(f"by_{kind}", ()):
            yield from (
                {"metric": name, "of": row[kind], "value": value}
                for name, value in row.items()
                if name not in (kind, "mistaken_for")
            )


def figures(arguments: argparse.Namespace, world: World) -> dict[str, Any]:
    """All figures of the model on that data, as plain values; ``metrics`` by name."""
    from ..data import Loader
    from ..losses import Objective, accuracy_kind
    from ..metrics.by_class import by_class
    from ..metrics.tables import LabelCounts, TargetErrors
    from ..training import EVAL_BATCH, evaluate
    from ..training.last_validation import listed

    path = Path(arguments.path)
    # Nothing is exchanged in it, so that an error of one rank can be everybody's.
    model, source, splits, loss, metrics = world.agree(lambda: _opened(arguments))
    loss = _loss_of(model) if loss is None else loss
    classes = source.classes if splits is None else splits.classes
    # What counts the figures of each label or each target, by what the loss says of outputs.
    kind = accuracy_kind(loss)
    table = TargetErrors() if kind is None else LabelCounts(0.5 if kind == "probabilities" else 0)
    # The confusion matrix is of those of the loss.
    measured = {"auto": "auto", **({} if isinstance(metrics, str) else metrics), "_table": table}
    settings: dict[str, Any] = {"metrics": measured, "confusion": len(classes) if classes else None}
    settings |= {"world": world, "hardest": arguments.worst}
    if isinstance(loss, Objective):  # it calls the module as it did in training, on batches that are prepared
        if model.module is None:
            raise UsageError(f"{path}: is a program, which no objective can call; give the run or its model directory")
        size = min(EVAL_BATCH, len(source))
        loader = Loader(source, size, shuffle=False, preprocessing=model.preprocessing)
        result = evaluate(model.module, loss, loader, **settings)
    else:  # the model maps raw samples itself, its preprocessing included, so the loader gives them raw
        result = evaluate(_as_module(model, classes), loss, source, **settings)
    report: dict[str, Any] = {"model": str(model.path), "format": model.format}
    report |= {
        "split": arguments.data if splits is None else arguments.split,
        "samples": result.samples,
        "metrics": result.metrics,
    }
    if result.answers is not None:  # read in order, in whole batches
        size = min(EVAL_BATCH, len(source))
        report |= listed(result.answers, lambda batch, row: batch * size + row)
        report.setdefault("classes", list(map(str, model.classes or classes or ())))
    if result.confusion is not None:
        report["classes"] = list(map(str, model.classes or classes or range(len(result.confusion))))
        report["confusion"] = result.confusion.tolist()
        report["by_class"] = by_class(report["classes"], report["confusion"])
    elif rows := table.rows(model.classes or (model.info.columns.targets if model.info.columns else ())):
        report[f"by_{next(iter(rows[0]))}"] = rows
    return report


def _opened(arguments: argparse.Namespace) -> tuple[LoadedModel, Source, DataSplits | None, Any, Any]:
    """The model, the samples, the data set that they are a split of, and what a recipe says: its loss and metrics."""
    from ..build import build_loss, build_metrics
    from ..data import DATA
    from ..data.table_files import is_table

    path, name = Path(arguments.path), arguments.data or ""
    if arguments.worst is not None and arguments.worst < 1:
        raise UsageError(f"--worst {arguments.worst}: give how many, 1 or more", code="command-line")
    files = (
        is_table(name)
        or name.endswith(TEXT_ENDINGS)
        or (name not in DATA and os.path.isdir(name) and not os.path.lexists(Path(name, FILE)))
    )
    data = functools.cache(lambda: _data(arguments.data, path, arguments.trust_code))
    # A bad file ends it before any data are made.
    model = opened(path / "model" / "best" if arguments.best else path, arguments, None if files else data)
    metrics: Any = "auto"
    if files:
        source, splits, loss = _samples_in(name, model, arguments.split), None, None
        if os.path.lexists(path / FILE):
            recipe = recipe_of_run(path, trust_code=arguments.trust_code)
            loss, metrics = build_loss(recipe, _weighing(recipe, path)), build_metrics(recipe)
    else:
        splits, loss, metrics, _ = data()
        source = _samples(model, splits, arguments.split)
    return model, source, splits, loss, metrics


def _weighing(recipe: Recipe, path: Path) -> DataSplits | None:
    """The run's own data, where its loss has weights that are computed from them and they can be read."""
    from ..build import build_data
    from ..losses import needs_targets

    if not any(needs_targets(term.part.arguments()) for term in recipe.loss or () if not term.part.imported):
        return None
    try:
        return build_data(recipe, say=note)
    except UsageError as error:
        note(
            f"{path}: the loss's balanced weights are computed from the training data, which cannot be read; the loss "
            f"shown is without them ({first_line(error)})"
        )
        return None


def _samples(model: LoadedModel, splits: DataSplits, split: str) -> Source:
    """The samples of a split; of a table only as the model was trained on it."""
    source: Source | None = getattr(splits, split)
    if source is None:
        raise UsageError(f"--split {split}: this data set has no samples to validate on", code="data-split")
    columns = model.info.columns
    same = source.columns is None or columns is None or source.columns.encode_as(columns)
    if not same or (columns is not None and source.classes != model.classes):
        raise UsageError(
            f"{model.path}: the data's columns or their vocabularies are others than those that it was trained on; "
            "give --data with a CSV or Parquet file, whose rows are then read by the model's own"
        )
    return source


def _samples_in(path: str, model: LoadedModel, split: str) -> Source:
    """The rows of a table, the windows of a text, or the pictures of a folder, as the model takes them."""
    from ..artifacts.images import takes_pictures
    from ..data.image_folder import labelled_pictures
    from ..data.table_rows import labelled_rows
    from ..data.text import TokenWindows, encoded

    if path.endswith(TEXT_ENDINGS):
        if not model.info.reads_text:
            raise UsageError(f"{model.path}: was not trained on a text, so {path} means nothing to it")
        (length,) = model.input_shape or (0,)
        return TokenWindows(encoded(path, model.classes or ()), length, classes=model.classes)
    if not os.path.isdir(path):
        if model.info.columns is None:
            raise UsageError(f"{model.path}: was not trained on a table, so {path} means nothing to it")
        return labelled_rows(path, model.info.columns, model.classes)
    shape = model.input_shape
    if shape is None or model.classes is None or not takes_pictures(model.info):
        raise UsageError(f"{model.path}: tells no classes of pictures apart, so the folder {path} means nothing to it")
    return labelled_pictures(path, model.classes, shape, split)


def _as_module(model: LoadedModel, classes: Sequence[str] | None) -> torch.nn.Module:
    """A loaded model behind the face of a module: programs and onnx sessions are functions.

    Its outputs are compared with the `classes` of the data before a loss or a matrix is computed.
    """
    import torch

    from .. import batches
    from ..artifacts.answers import check_classes

    class Loaded(torch.nn.Module):
        def forward(self, raw: Any) -> Any:
            if isinstance(raw, torch.Tensor) and raw.dtype == torch.uint8 and "float" in (model.info.input_dtype or ""):
                raw = raw.to(getattr(torch, model.info.input_dtype or ""))  # the pixels of a folder
            live = model.module is not None and not isinstance(raw, torch.Tensor)
            outputs = batches.call(model.module, raw) if live else model(raw)
            if isinstance(outputs, torch.Tensor) and outputs.dim() >= 2:
                check_classes(model.info, outputs, model.path)
                if classes and model.info.classes and len(classes) != len(model.info.classes):
                    raise UsageError(
                        f"{model.path}: has {counted(len(model.info.classes), 'class')} and the data have "
                        f"{len(classes)}; give --data with data of the classes that the model was trained on"
                    )
            return outputs

    return Loaded()


def _data(data: str | None, home: Path, trust_code: bool) -> NamedData:
    """The data to evaluate on, and a recipe's loss and metrics."""
    from ..data import DATA

    if data is not None:
        return data_of(data, trust_code=trust_code)
    if not os.path.lexists(home / FILE):  # nowhere else: what lies around a model need not be its owner's
        names = ", ".join(DATA.names())
        raise UsageError(f"{home}: which data? give --data with a data set ({names}) or a recipe (RUN/{FILE})")
    return recipe_data(recipe_of_run(home, trust_code=trust_code))


def _loss_of(model: LoadedModel) -> Any:
    """The loss that the file names; the usual one of classes or numbers where it names none that can be built."""
    from ..losses import OBJECTIVES, WeightedSum, build_loss, objective
    from ..training.about import NOT_KEPT

    loss = model.info.loss
    if isinstance(loss, dict) and "objective" in loss:
        if loss["objective"] in OBJECTIVES.names():
            return objective(OBJECTIVES[loss["objective"]].load())
        raise UsageError(
            f"{model.path}: was trained with an objective of its own; give --data with the recipe that has it"
        )
    terms: list[Any] = loss if isinstance(loss, list) else [loss]
    terms = [{"name": term} if isinstance(term, str) else term for term in terms]
    if not all(isinstance(term, dict) and isinstance(term.get("name"), str) for term in terms):
        numbers = model.info.columns is not None and not model.info.columns.classes
        usual = "MSELoss" if numbers else "CrossEntropyLoss"
        if loss is not None:
            note(f"{model.path}: its loss is code of its own, which is not in the file; the loss shown is {usual}")
        return build_loss(usual)
    parts = []
    if any(value == "balanced" for term in terms for value in term.values()):
        note(
            f"{model.path}: the loss's balanced weights are computed from the training data, which are not in the "
            "file; the loss shown is without them"
        )
    for term in terms:
        # Weights that were computed from the training data are not in the file.
        args = {
            key: value for key, value in term.items() if key not in ("name", "factor", NOT_KEPT) and value != "balanced"
        }
        if not_kept := term.get(NOT_KEPT):
            what = ", ".join(map(str, not_kept)) if isinstance(not_kept, list) else not_kept
            note(f"{model.path}: {term['name']} was trained with {what} of its own, not in the file; shown without")
        parts.append((term.get("factor", 1.0), build_loss(term["name"], args)))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1.0 else WeightedSum(parts)
