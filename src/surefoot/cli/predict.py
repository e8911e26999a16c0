"""`surefoot predict MODEL FILE...`: which class each picture is, and how sure the model is."""

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
    parser.add_argument("--top", type=int, default=3, metavar="N", help="how many classes to tell (default: 3)")
    parser.add_argument("--json", action="store_true", help="one JSON list for machines")
    add_opening_arguments(parser)
    add_data_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Classify every sample of every file, in order."""
    from ..artifacts import read_images
    from ..errors import UsageError

    model = opened(Path(arguments.path), arguments)
    if model.input_shape is None:
        raise UsageError(f"{model.path}: does not tell the shape of its input, so files cannot be fitted to it")
    images = read_images(arguments.files, model.input_shape, model.info.input_dtype)
    for note in images.notes:
        say(note, error=True)
    outputs = model.predict(images.batch)
    if outputs.dim() != 2:
        raise UsageError(f"{model.path}: gives {list(outputs.shape)} for {len(images.batch)} samples, not classes")
    names = list(model.classes or map(str, range(outputs.shape[1])))
    values, indices = outputs.topk(max(1, min(arguments.top, outputs.shape[1])))
    rows = [
        {
            "file": name,
            "predictions": [
                {"class": names[i], "index": i, "probability": v}
                for v, i in zip(value.tolist(), index.tolist(), strict=True)
            ],
        }
        for name, value, index in zip(images.names, values, indices, strict=True)
    ]
    if arguments.json:
        say(json.dumps(rows, indent=2))
        return 0
    for row in rows:
        told = "  ".join(f"{printable(p['class'])} {100 * p['probability']:.1f} %" for p in row["predictions"])
        say(f"{printable(row['file'])}: {told}")
    return 0
