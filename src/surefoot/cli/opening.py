"""What every verb that takes a model has in common: how the file is opened."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..artifacts import LoadedModel
    from ..preprocessing import Preprocessing


def add_opening_arguments(parser: argparse.ArgumentParser) -> None:
    """--model, --key, --trust-code."""
    parser.add_argument("--model", metavar="NAME", help="the catalogue model that bare weights (.pth) are for")
    parser.add_argument("--key", metavar="KEY", help="the entry of a checkpoint dictionary that holds the weights")
    parser.add_argument(
        "--trust-code", action="store_true", help="import and call the model class that the file names"
    )


def opened(path: Path, arguments: argparse.Namespace, preprocessing: Preprocessing | None = None) -> LoadedModel:
    """The model at `path`. Raises UsageError for anything that is none, before any of it is used.

    `preprocessing` is for bare weights, which hold none; a file that holds its own keeps it.
    """
    from ..artifacts import open_model

    settings = {"key": arguments.key, "trust_code": arguments.trust_code}
    model = open_model(path, arguments.model, **settings)
    # Weights that had to be told their model hold no preprocessing either.
    if preprocessing is not None and arguments.model is not None and model.format in ("pth", "safetensors"):
        return open_model(path, arguments.model, preprocessing=preprocessing, **settings)
    return model
