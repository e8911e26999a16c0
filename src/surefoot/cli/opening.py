"""What every verb that takes a model has in common: how the file is opened."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError
from ..text import note
from .recipes import add_trust_argument, named_recipe

if TYPE_CHECKING:
    from ..artifacts import LoadedModel
    from ..data import DataSplits
    from ..recipe import Recipe


def add_opening_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --key, --trust-code."""
    parser.add_argument("--model", metavar="NAME", help="the registered model that bare weights (.pth) are for")
    parser.add_argument("--key", metavar="KEY", help="the entry of a checkpoint dictionary that holds the weights")
    add_trust_argument(parser)


def add_data_argument(parser: argparse.ArgumentParser) -> None:
    """--data, for weights without their preprocessing."""
    parser.add_argument(
        "--data",
        metavar="NAME|RECIPE",
        help="for weights from elsewhere: the data set or recipe whose preprocessing and classes are theirs",
    )


def opened(
    path: Path, arguments: argparse.Namespace, data: Callable[[], tuple[DataSplits, object, Any]] | None = None
) -> LoadedModel:
    """The model at `path`. Raises UsageError for anything that is none, before any of it is used.

    `data` gives the data, their loss and metrics (else those of --data), for the preprocessing, classes and loss of
    weights that have none; a line says so. A file that holds its own keeps it.
    """
    from dataclasses import replace

    from ..artifacts import open_model

    settings = {"key": arguments.key, "trust_code": arguments.trust_code}
    model = open_model(path, arguments.model, **settings)
    if model.info.preprocessing_known:
        return model
    if data is None and arguments.data is not None:
        data = functools.partial(data_of, arguments.data, trust_code=arguments.trust_code)
    if data is None:
        raise UsageError(
            f"{path}: does not say how raw data are prepared for this model (weights from elsewhere do not); give "
            "--data with the data set or recipe that it was trained on, e.g. --data fashion_mnist",
            code="data-preprocessing",
        )
    splits, loss, _ = data()
    prepared = splits.preprocessing
    values = "data as they are" if prepared is None else f"mean {_short(prepared.mean)}, std {_short(prepared.std)}"
    note(f"{path} does not say its preprocessing; taken from the data set: {values}")
    if prepared is not None:
        model = open_model(path, arguments.model, preprocessing=prepared, **settings)
    about = about_of(splits, loss)
    lacking = {name: value for name, value in about.items() if getattr(model.info, name) is None}
    return replace(model, info=replace(model.info, **lacking, preprocessing_known=True))


def about_of(splits: DataSplits, loss: object) -> dict[str, Any]:
    """What the data say about a model for them: classes, preprocessing, loss, the raw sample's form.

    Where a data set of classes has no recipe that has a loss, it is cross-entropy.
    """
    from ..data import TensorSource
    from ..losses import Objective

    usual = "CrossEntropyLoss" if splits.classes else None
    about: dict[str, Any] = {"classes": splits.classes, "preprocessing": splits.preprocessing}
    about["loss"] = usual if loss is None else None if isinstance(loss, Objective) else type(loss).__name__
    if isinstance(splits.train, TensorSource) and not splits.train.names:
        raw = splits.train[:1][0]
        about |= {"input_shape": tuple(raw.shape[1:]), "input_dtype": str(raw.dtype).removeprefix("torch.")}
    return about


def data_of(name: str, *, trust_code: bool) -> tuple[DataSplits, object, Any]:
    """The data set that the registry or a recipe names, and the recipe's loss and metrics where there is one."""
    from .. import recipe
    from ..data import DATA

    if name in DATA and name not in recipe.packaged_names():
        return DATA.build(name, {}, **dict.fromkeys(DATA[name].provided)), None, "auto"
    return recipe_data(named_recipe(name, (), trust_code=trust_code))


def recipe_data(loaded: Recipe) -> tuple[DataSplits, object, Any]:
    """The data of a recipe, its loss and its metrics."""
    from ..build import build_data, build_loss, build_metrics

    splits = build_data(loaded, say=note)
    return splits, build_loss(loaded, splits), build_metrics(loaded)


def _short(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{n:.4g}" for n in numbers)
