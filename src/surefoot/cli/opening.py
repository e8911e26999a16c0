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
    from ..artifacts import LoadedModel, ModelInfo
    from ..data import DataSplits
    from ..recipe import Recipe

    # A data set, the loss and the metrics that a recipe names for it, and its name.
    NamedData = tuple[DataSplits, object, Any, str]


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


def opened(path: Path, arguments: argparse.Namespace, data: Callable[[], NamedData] | None = None) -> LoadedModel:
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
    named = data()
    prepared = named[0].preprocessing
    values = "data as they are" if prepared is None else f"mean {_short(prepared.mean)}, std {_short(prepared.std)}"
    note(f"{path} does not say its preprocessing; taken from the data set: {values}")
    if prepared is not None:
        model = open_model(path, arguments.model, preprocessing=prepared, **settings)
    about = about_of(named)
    lacking = {name: value for name, value in about.items() if getattr(model.info, name) is None}
    return replace(model, info=replace(model.info, **lacking, preprocessing_known=True))


def about_of(named: NamedData) -> dict[str, Any]:
    """What data say about a model for them, as a training would save it.

    Where a data set of classes has no recipe that has a loss, it is cross-entropy.
    """
    from ..training.about import about_data, loss_name

    splits, loss, _, name = named
    usual = "CrossEntropyLoss" if splits.classes else None
    about = about_data(splits.train) | {"classes": splits.classes, "preprocessing": splits.preprocessing}
    return about | {"loss": usual if loss is None else loss_name(loss), "dataset": name}


def data_of(name: str, *, trust_code: bool) -> NamedData:
    """The data set that the registry or a recipe names, and the recipe's loss and metrics where there is one."""
    from .. import recipe
    from ..data import DATA

    if name in DATA and name not in recipe.packaged_names():
        return DATA.build(name, {}, **dict.fromkeys(DATA[name].provided)), None, "auto", name
    return recipe_data(named_recipe(name, (), trust_code=trust_code))


def recipe_data(loaded: Recipe) -> NamedData:
    """The data of a recipe, its loss, its metrics, and what the data set is called."""
    from ..build import build_data, build_loss, build_metrics

    splits = build_data(loaded, say=note)
    return splits, build_loss(loaded, splits), build_metrics(loaded), loaded.data.part.name


def files_for(info: ModelInfo) -> tuple[str, str] | None:
    """What `predict` takes for a model, as its usage names it, and what that is; None for no single array."""
    from ..artifacts.images import takes_pictures

    if info.input_dtype is None:
        return None
    if info.columns is not None:
        return "FILE.csv", "the rows of a table"
    if info.reads_text:
        return "FILE.txt", "the next token of a text"
    return ("IMAGE...", "pictures") if takes_pictures(info) else ("FILE.npy", "the samples of an array")


def _short(numbers: tuple[float, ...]) -> str:
    return ", ".join(f"{n:.4g}" for n in numbers)
