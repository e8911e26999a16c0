"""`surefoot export RUN|MODEL --to FILE`: the model in another format, loaded again and compared before it is kept."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SurefootError
from ..text import say
from .opening import add_data_argument, add_opening_arguments, opened
from .recipes import FILE, recipe_of_run

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN|MODEL, --to, --best and what opening a model needs."""
    parser.add_argument("path", metavar="RUN|MODEL", help="a run, a model directory, .safetensors or .pth")
    parser.add_argument("--to", required=True, metavar="FILE", help="ends in .safetensors, .pth, .pt2 or .onnx")
    parser.add_argument("--best", action="store_true", help="the run's best model instead of its last")
    add_opening_arguments(parser)
    add_data_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Export, compare on real samples where the run's data are there, print the largest difference."""
    from ..artifacts import export

    path = Path(arguments.path)
    model = opened(path / "model" / "best" if arguments.best else path, arguments)
    # Weights are compared bit by bit, which needs no samples.
    program = Path(arguments.to).suffix in (".pt2", ".onnx")
    say(export(model, arguments.to, batch=_real_samples(path, arguments.trust_code) if program else None))
    return 0


def _real_samples(path: Path, trust_code: bool) -> Tensor | None:
    """The first validation samples of the run at `path`, raw; None where there is no such data."""
    from ..build import build_data
    from ..data import TensorSource

    if not os.path.lexists(path / FILE):
        return None
    try:
        splits = build_data(recipe_of_run(path, trust_code=trust_code))
    except SurefootError as error:
        say(f"the run's data are not here ({error}); comparing on random samples", error=True)
        return None
    source = splits.val or splits.train
    return source[:SAMPLES][0] if isinstance(source, TensorSource) else None
