"""`surefoot import FILE --model NAME`: weights made elsewhere become a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..text import say, typed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --model, --to, --data, --key, --cast."""
    parser.add_argument("file", metavar="FILE", help=".pth, .pt or .safetensors")
    parser.add_argument("--model", required=True, metavar="NAME", help="the catalogue model that they are for")
    parser.add_argument("--to", metavar="DIR", help="the model directory to write (default: FILE without its ending)")
    parser.add_argument("--data", metavar="NAME", help="a data set whose classes and preprocessing go with the model")
    parser.add_argument("--key", metavar="KEY", help="the entry of a checkpoint dictionary that holds the weights")
    parser.add_argument("--cast", action="store_true", help="take weights of another dtype, converted")


def run(arguments: argparse.Namespace) -> int:
    """Read with weights_only, match names, shapes and dtypes, write; nothing is written unless all fits."""
    from ..artifacts import import_weights, save_model
    from ..data import DATA
    from ..errors import UsageError

    source = Path(arguments.file)
    to = Path(arguments.to) if arguments.to else source.with_suffix("")
    if to.exists():
        raise UsageError(f"{to}: is there already; name another directory with --to")
    if not to.parent.is_dir():
        raise UsageError(f"{to}: the directory {to.parent} does not exist")
    about = {}
    if arguments.data:
        from ..data import TensorSource

        entry = DATA[arguments.data]
        splits = DATA.build(arguments.data, {}, **({"progress": None} if entry.provided else {}))
        about = {"classes": splits.classes, "preprocessing": splits.preprocessing}
        if isinstance(splits.train, TensorSource):
            raw = splits.train.tensors[0]
            about |= {"input_shape": tuple(raw.shape[1:]), "input_dtype": raw.dtype}
    imported = import_weights(source, arguments.model, key=arguments.key, cast=arguments.cast)
    save_model(imported.model, to, title=source.stem, **about)
    taken = f"{imported.tensors} tensors of {arguments.model}"
    if imported.key:
        taken += f", from its entry {imported.key!r}"
    if imported.prefix:
        taken += f", without the prefix {imported.prefix!r}"
    say(f"{source}: {taken}, in {to}")
    if imported.others:
        say(f"left aside: {', '.join(imported.others)}")
    say(f"next: {typed('surefoot', 'eval', to)} --data NAME, {typed('surefoot', 'predict', to)} IMAGE...")
    return 0
