"""`surefoot predict MODEL FILE...`: the model's answer for each sample: its classes, or its numbers."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..text import printable, say
from .opening import add_data_argument, add_opening_arguments, opened


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, FILE..., --top, --json and what opening a model needs."""
    parser.add_argument("path", metavar="MODEL", help="a run, a model directory, .safetensors, .pth, .pt2 or .onnx")
    parser.add_argument("files", nargs="+", metavar="FILE", help="PNG, JPEG, .npy or idx (.gz) files")
    parser.add_argument("--top", type=int, default=3, metavar="N", help="how many classes to print (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON list for machines")
    add_opening_arguments(parser)
    add_data_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """One line a sample, for every sample of every file, in order."""
    from ..artifacts import describe_outputs, read_images, shown
    from ..artifacts.images import takes_pixels

    model = opened(Path(arguments.path), arguments)
    form = (model.input_shape, model.info.input_dtype)
    images = read_images(arguments.files, *form, pixels=takes_pixels(model.info))
    for note in images.notes:
        say(note, error=True)
    answers = describe_outputs(model.info, model.predict(images.batch), arguments.top)
    rows = [{"file": name, **answer} for name, answer in zip(images.names, answers, strict=True)]
    if arguments.json:
        say(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        say(f"{printable(row['file'])}: {printable(shown(row))}")
    return 0
