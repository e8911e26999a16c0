"""`surefoot eval RUN|MODEL`: loss, accuracy, figures by class and the confusion matrix, on validation data."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..text import counted, figure, printable, say
from ..tracking.confusion import most_mistaken
from .opening import add_opening_arguments, data_of, opened, recipe_data
from .recipes import FILE, recipe_of_run

if TYPE_CHECKING:
    import torch

    from ..artifacts import LoadedModel
    from ..data import DataSplits, Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, --data, --split, --best, --json and what opening a model needs."""
    parser.add_argument("path", metavar="RUN|MODEL", help="a run, a model directory, .safetensors, .pth, .pt2 or .onnx")
    parser.add_argument(
        "--data",
        metavar="NAME|RECIPE|TABLE",
        help="a data set (garments, fashion_mnist), the recipe that has it (default: the run's own recipe), or, for a "
        "model of tables, a CSV or Parquet file",
    )
    parser.add_argument("--split", choices=("val", "train"), default="val", help="which samples (default: val)")
    parser.add_argument("--best", action="store_true", help="the run's best model instead of its last")
    parser.add_argument("--json", action="store_true", help="one JSON object for machines")
    add_opening_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and print."""
    report = figures(arguments)
    if arguments.json:
        say(json.dumps(report, indent=2))
    else:
        show(report)
    return 0


def figures(arguments: argparse.Namespace) -> dict[str, Any]:
    """All figures of the model on that data, as plain values."""
    from ..data import Loader
    from ..data.table_files import is_table
    from ..errors import UsageError
    from ..losses import Objective
    from ..training import EVAL_BATCH, evaluate

    path = Path(arguments.path)
    table = arguments.data if is_table(arguments.data or "") else None
    data = functools.cache(lambda: _data(arguments.data, path, arguments.trust_code))
    # A bad file ends it before any data are made.
    model = opened(path / "model" / "best" if arguments.best else path, arguments, None if table else data)
    source, loss = (_rows(table, model), None) if table else _samples(model, *data(), arguments.split)
    loss = _loss_of(model) if loss is None else loss
    names = source.classes if table else data()[0].classes
    classes = len(names) if names else None
    if isinstance(loss, Objective):  # it calls the module as it did in training, on batches that are prepared
        if model.module is None:
            raise UsageError(f"{path}: is a program, which no objective can call; give the run or its model directory")
        size = min(EVAL_BATCH, len(source))
        loader = Loader(source, size, shuffle=False, preprocessing=model.preprocessing)
        result = evaluate(model.module, loss, loader, confusion=classes)
    else:  # the model maps raw samples itself, its preprocessing included, so the loader gives them raw
        result = evaluate(_as_module(model, names), loss, source, confusion=classes)
    report: dict[str, Any] = {"model": str(model.path), "format": model.format, "split": table or arguments.split}
    report |= {"samples": result.samples, **result.metrics}
    if result.confusion is not None:
        report["classes"] = list(map(str, model.classes or names or range(len(result.confusion))))
        report["confusion"] = result.confusion.tolist()
        report["by_class"] = _by_class(report["classes"], result.confusion)
    return report


def _samples(model: LoadedModel, splits: DataSplits, loss: Any, split: str) -> tuple[Source, Any]:
    """The samples and the loss; of a table only as the model was trained on it."""
    from ..errors import UsageError

    source: Source | None = getattr(splits, split)
    if source is None:
        raise UsageError(f"--split {split}: this data set has no samples to validate on")
    columns = model.info.columns
    same = source.columns is None or columns is None or source.columns.encode_as(columns)
    if not same or (columns is not None and source.classes != model.classes):
        raise UsageError(
            f"{model.path}: the data's columns or their vocabularies are others than those that it was trained on; "
            "give --data with a CSV or Parquet file, whose rows are then read by the model's own"
        )
    return source, loss


def _rows(path: str, model: LoadedModel) -> Source:
    """The rows of a file as the model takes them."""
    from ..data.table_rows import labelled_rows
    from ..errors import UsageError

    if model.info.columns is None:
        raise UsageError(f"{model.path}: was not trained on a table, so {path} means nothing to it")
    return labelled_rows(path, model.info.columns, model.classes)


def _as_module(model: LoadedModel, classes: Sequence[str] | None) -> torch.nn.Module:
    """A loaded model behind the face of a module: programs and onnx sessions are functions.

    Its outputs are compared with the `classes` of the data before a loss or a matrix is computed.
    """
    import torch

    from ..artifacts.answers import check_classes
    from ..errors import UsageError

    class Loaded(torch.nn.Module):
        def forward(self, raw: Any) -> Any:
            outputs = model(raw)
            if isinstance(outputs, torch.Tensor) and outputs.dim() >= 2:
                check_classes(model.info, outputs, model.path)
                if classes and model.info.classes and len(classes) != len(model.info.classes):
                    raise UsageError(
                        f"{model.path}: has {counted(len(model.info.classes), 'class')} and the data have "
                        f"{len(classes)}; give --data with data of the classes that the model was trained on"
                    )
            return outputs

    return Loaded()


def _data(data: str | None, home: Path, trust_code: bool) -> tuple[DataSplits, Any]:
    """The data to evaluate on, and the loss where a recipe has one."""
    from ..data import DATA
    from ..errors import UsageError

    if data is not None:
        return data_of(data, trust_code=trust_code)
    if not os.path.lexists(home / FILE):  # nowhere else: what lies around a model need not be its owner's
        names = ", ".join(DATA.names())
        raise UsageError(f"{home}: which data? give --data with a data set ({names}) or a recipe (RUN/{FILE})")
    return recipe_data(recipe_of_run(home, trust_code=trust_code))


def _loss_of(model: LoadedModel) -> Any:
    """The loss that the file names; the usual one of classes where it names none."""
    from ..errors import UsageError
    from ..losses import OBJECTIVES, build_loss, objective

    loss = model.info.loss
    if isinstance(loss, dict) and "objective" in loss:
        if loss["objective"] in OBJECTIVES.names():
            return objective(OBJECTIVES[loss["objective"]].load())
        raise UsageError(
            f"{model.path}: was trained with an objective of its own; give --data with the recipe that has it"
        )
    if isinstance(loss, dict) and "name" in loss:
        # Weights that were computed from the training data are not in the file.
        args = {key: value for key, value in loss.items() if key != "name" and value != "balanced"}
        return build_loss(loss["name"], args)
    return build_loss(loss if isinstance(loss, str) else "CrossEntropyLoss")


def _by_class(names: Sequence[str], confusion: torch.Tensor) -> list[dict[str, Any]]:
    rows = []
    for index, name in enumerate(names):
        right, truth = int(confusion[index, index]), int(confusion[index].sum())
        taken = int(confusion[:, index].sum())
        others = confusion[index].clone()
        others[index] = 0
        rows.append(
            {
                "class": name,
                "samples": truth,
                "recall": right / truth if truth else None,
                "precision": right / taken if taken else None,
                "mistaken_for": names[int(others.argmax())] if int(others.sum()) else None,
            }
        )
    return rows


def show(report: dict[str, Any]) -> None:
    """The figures for people: a line of totals, a row for each class."""
    say(f"{report['model']} on {counted(report['samples'], 'sample')} ({report['split']})")
    for name in ("loss", "accuracy"):
        if name in report:
            say(f"  {name:<9} {figure(name, report[name])}")
    rows = report.get("by_class", [])
    if rows:
        width = max(len("class"), *(len(printable(row["class"])) for row in rows))
        say(f"\n  {'class':<{width}}  samples  recall  precision  mostly mistaken for")
        for row in rows:
            recall, precision = (
                f"{100 * row[name]:6.1f} %" if row[name] is not None else "     -  " for name in ("recall", "precision")
            )
            say(
                f"  {printable(row['class']):<{width}}  {row['samples']:>7,} {recall} {precision}   "
                f"{printable(row['mistaken_for'] or '-')}"
            )
        columns = shutil.get_terminal_size((100, 24)).columns
        for line in matrix_lines([printable(name) for name in report["classes"]], report["confusion"], columns):
            say(line)


def matrix_lines(names: Sequence[str], matrix: Sequence[Sequence[int]], width: int) -> list[str]:
    """The confusion matrix as text; the most frequent confusions instead where it is wider than `width`.

    >>> print("\\n".join(matrix_lines(["cat", "dog"], [[9, 1], [0, 10]], 60)).lstrip())
    confusion matrix (rows: true class, columns: predicted)
              0   1
      0 cat   9   1
      1 dog   .  10
    """
    labels = [f"{i} {name}" for i, name in enumerate(names)]
    cell = 2 + max(len(str(value)) for row in [*matrix, [len(names) - 1]] for value in row)
    label = max(map(len, labels))
    if 2 + label + cell * len(names) <= width:
        lines = ["", "  confusion matrix (rows: true class, columns: predicted)"]
        lines.append("  " + " " * label + "".join(f"{i:>{cell}}" for i in range(len(names))))
        for text, row in zip(labels, matrix, strict=True):
            lines.append(f"  {text:<{label}}" + "".join(f"{value or '.':>{cell}}" for value in row))
        return lines
    pairs = most_mistaken(matrix)
    if not pairs:
        return []
    lines = ["", f"  most frequent confusions (of {len(pairs)}; the whole matrix: --json)"]
    return lines + [f"  {n:>7,}  {names[i]} predicted as {names[j]}" for n, i, j in pairs[:10]]
