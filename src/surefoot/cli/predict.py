"""`surefoot predict MODEL FILE...`: the model's answer for each sample: its classes, labels, numbers or masks."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Problems, UsageError
from ..files import write_new
from ..text import printable, say
from .for_machines import add_output_arguments, give, output_form
from .opening import add_data_argument, add_opening_arguments, opened

if TYPE_CHECKING:
    import torch

    from ..artifacts import LoadedModel
    from ..artifacts.images import Images
    from ..artifacts.info import ModelInfo

# So many files are read at once: pictures of a folder take no more memory than these.
FILES_AT_ONCE = 64


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """MODEL, FILE..., --top, --masks, the forms of output and what opening a model needs."""
    parser.add_argument("path", metavar="MODEL", help="a run, a model directory, .safetensors, .pth, .pt2 or .onnx")
    parser.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="PNG, JPEG, .npy, .npz or idx (.gz) files, folders of such, CSV or Parquet files for a model of tables, "
        "a text for a model of texts, or - for a list of paths on standard input",
    )
    parser.add_argument("--top", type=int, metavar="N", help="how many classes (default: 3, and 1 in CSV)")
    parser.add_argument("--masks", metavar="DIR", help="write the class of each pixel as PNG files to a new folder")
    add_output_arguments(parser)
    add_opening_arguments(parser)
    add_data_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """One line a sample (and output, where a model has several), for every sample of every file, in order."""
    from ..artifacts import describe_outputs, shown
    from ..artifacts.answers import flat

    form = output_form(arguments)
    model = opened(Path(arguments.path), arguments)
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    with _masks(arguments.masks) as write_masks:
        for images in _batches(arguments.files, model):
            outputs = model.predict(images.batch)
            answers = describe_outputs(model.info, outputs, arguments.top, classes=1 if form == "csv" else 3)
            write_masks(model.info, outputs, images)
            for path, row, name, answer in zip(images.paths, images.rows, images.names, answers, strict=True):
                rows.append({"path": path, "row": row, **answer})
                texts += [f"{printable(name)}: {printable(line)}" for line in shown(answer)]
    if form == "text":
        say("\n".join(texts))
    else:
        give(form, arguments.out, rows, [line for row in rows for line in flat(row)] if form == "csv" else [])
    return 0


def _batches(files: Sequence[str], model: LoadedModel) -> Iterator[Images]:
    """The samples of all files. Raises Problems, after the last, with every file that cannot be used."""
    from ..artifacts.images import Images, files_in, read_images, takes_pixels
    from ..data.table_files import ENDINGS, is_table
    from ..data.table_rows import rows

    columns = model.info.columns
    by_one = columns is not None or model.info.reads_text
    at_once = 1 if by_one else FILES_AT_ONCE
    listed = sys.stdin.read().splitlines() if "-" in files else []
    paths: list[Path] = []
    problems: list[str] = []
    for name in files:
        for each in listed if name == "-" else [name]:
            try:
                paths += files_in(each, ENDINGS if columns is not None else ())
            except Problems as error:
                problems += error.problems
    if columns is None and (tables := [path for path in paths if is_table(path)]):
        problems += [f"{path}: is a table, and the model was not trained on one; give arrays (.npy)" for path in tables]
        paths = [path for path in paths if not is_table(path)]
    for first in range(0, len(paths) or not problems, at_once):
        some = paths[first : first + at_once]
        try:
            if columns is not None and some and is_table(some[0]):
                batch = rows(some[0], columns)
                images = Images(batch, (str(some[0]),) * len(batch), tuple(range(len(batch))), ())
            elif model.info.reads_text and some and some[0].suffix not in (".npy", ".npz"):
                images = Images(_end_of_text(some[0], model), (str(some[0]),), (0,), ())
            else:
                images = read_images(some, model.input_shape, model.info.input_dtype, pixels=takes_pixels(model.info))
        except UsageError as error:
            problems += error.problems if isinstance(error, Problems) else [str(error)]
            continue
        for note in images.notes:
            say(note, error=True)
        if not problems:
            yield images
    if problems:
        raise Problems(problems)


def _end_of_text(path: Path, model: LoadedModel) -> torch.Tensor:
    """The last window of a text, (1, length), in the model's tokens."""
    from ..data.text import encoded

    (length,) = model.input_shape or (0,)
    tokens = encoded(path, model.classes or ())
    if len(tokens) < length:
        raise UsageError(
            f"{path}: has {len(tokens)} tokens, and the model takes windows of {length}; give a longer text"
        )
    return tokens[None, -length:].long()


@contextlib.contextmanager
def _masks(directory: str | None) -> Iterator[Any]:
    """Gives a function that writes the masks of a batch; the folder is there when the block ends without an error."""
    from ..artifacts.answers import classes_of_positions
    from ..artifacts.swap import new_directory
    from ..pictures import png

    if directory is None:
        yield lambda *_: None
        return
    if Path(directory).exists():
        raise UsageError(f"--masks {directory}: is there already; give a name that is free", code="output-file")

    def write(info: ModelInfo, outputs: Any, images: Images) -> None:
        positions = classes_of_positions(info, outputs)
        if positions is None:
            raise UsageError("--masks: the model gives no class to each pixel, (N, C, H, W) of at most 256 classes")
        for path, name, mask in zip(images.paths, images.names, positions, strict=True):
            file = new / f"{Path(path).stem}{name[len(path) :]}.png"
            if file.exists():
                raise UsageError(f"--masks: two samples would be {file.name}; give the files of one folder at a time")
            write_new(file, [png(mask.numpy())])

    with new_directory(Path(directory)) as new:
        yield write
