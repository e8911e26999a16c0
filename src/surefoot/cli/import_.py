"""`surefoot import FILE --model NAME`: weights made elsewhere become a model directory."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Problems, UsageError
from ..text import counted, say, typed
from .opening import about_of, data_of, files_for, recipe_data
from .recipes import add_trust_argument, named_recipe

if TYPE_CHECKING:
    from ..artifacts import Imported
    from ..data import DataSplits
    from ..recipe import Recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE, --model, arguments of the model, --to, --data, --key, --prefix, --except, --cast, --trust-code."""
    parser.add_argument("file", metavar="FILE", help=".pth, .pt, .ckpt, .safetensors, or a folder of weights")
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="key=value",
        help="arguments of the model (n=10), or overrides of the recipe (model.n=10)",
    )
    parser.add_argument(
        "--model",
        required=True,
        metavar="NAME|MODULE:NAME|RECIPE",
        help="what they are for: a registered model, a class or function of your own, or a recipe (to train on from "
        "a checkpoint of your own loop: train RECIPE --from FILE)",
    )
    parser.add_argument("--to", metavar="DIR", help="the model directory to write (default: FILE without its ending)")
    parser.add_argument(
        "--data", metavar="NAME|RECIPE", help="the data whose classes and preprocessing go with the model"
    )
    parser.add_argument("--key", metavar="KEY", help="the entry of a checkpoint that holds the weights, e.g. a.b")
    parser.add_argument("--prefix", metavar="PREFIX", help="only the names that begin so, without it, e.g. net.")
    parser.add_argument(
        "--except",
        dest="except_",
        metavar="PATTERN",
        action="append",
        default=[],
        help='names that are not taken, e.g. "fc.*": the model keeps its own',
    )
    parser.add_argument("--cast", action="store_true", help="take weights of another dtype, converted")
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Read without running anything, match names, shapes and dtypes, write; nothing is written unless all fits."""
    from .. import rng
    from ..artifacts import import_weights, save_model
    from ..build import build_model

    source = Path(arguments.file)
    folder = source.is_dir()
    to = Path(arguments.to or (f"{source.name}_imported" if folder else source.with_suffix("")))
    if to == source:
        to = Path(f"{source}_imported")
    if to.exists():
        raise UsageError(f"{to}: is there already; name another directory with --to", code="output-file")
    if not to.parent.is_dir():
        raise UsageError(f"{to}: the directory {to.parent} does not exist", code="output-file")
    recipe, whole = _recipe(arguments.model, arguments.overrides, arguments.trust_code)
    named = None
    if arguments.data:
        named = data_of(arguments.data, trust_code=arguments.trust_code)
    elif whole:
        named = recipe_data(recipe)
    splits = named and named[0]
    rng.seed_all(0)
    model = build_model(recipe, splits)
    names = ("key", "prefix", "except_", "cast")
    imported = import_weights(source, model, **{name: getattr(arguments, name) for name in names})
    part = recipe.model.part
    own = (part.name, part.arguments()) if part.imported else None
    about = {"preprocessing": "unknown"} if named is None else about_of(named)
    save_model(imported.model, to, title=source.stem, source=own, **about)
    _print_summary(imported, arguments, to, splits, own is not None)
    return 0


def _recipe(model: str, words: list[str], trust_code: bool) -> tuple[Recipe, bool]:
    """The recipe that has the model, and whether it is one that the user named."""
    from .. import recipe

    if model in recipe.packaged_names() or model.endswith((".yaml", ".yml")):
        return named_recipe(model, words, trust_code=trust_code), True
    kind = "import" if ":" in model else "name"
    overrides = [f'model={{{kind}: "{model}"}}', *(f"model.{word}" for word in words)]
    try:
        return recipe.load_recipe("quickstart", overrides), False
    except Problems as error:  # in the words that were typed
        typed_so = [text.replace(f"argument {overrides[0]!r}: ", f"--model {model}: ") for text in error.problems]
        raise Problems(
            [text.replace("argument 'model.", "argument '") for text in typed_so], code="part-arguments"
        ) from None


def _print_summary(
    imported: Imported, arguments: argparse.Namespace, to: Path, splits: DataSplits | None, own: bool
) -> None:
    """What was taken, what was not, and the commands to continue with."""
    from ..artifacts import needs_trust, read_info

    taken = f"{counted(imported.tensors, 'tensor')} of {arguments.model}"
    if imported.key:
        taken += f", from its entry {imported.key!r}"
    if imported.prefix:
        taken += f", without the prefix {imported.prefix!r}"
    say(f"{imported.path}: {taken}, in {to}")
    for line in imported.kept:
        say(f"  {line}")
    if imported.others:
        say(f"left aside: {', '.join(map(repr, imported.others))}")
    if imported.foreign:
        say(f"not made, as nothing from a file is run: {', '.join(map(repr, imported.foreign[:10]))}")
    if any("optim" in name for name in imported.others):
        say(f"to train on from it: {typed('surefoot', 'train', 'RECIPE', '--from', imported.path)}")
    words = [to, *(["--trust-code"] if needs_trust(to) else [])]
    source = arguments.data or (arguments.model if splits else "RECIPE" if own else "fashion_mnist")
    data, known = ["--data", source], splits is not None
    if not known:
        say("preprocessing and classes are not known: tell them with --data (the data set or recipe of its training)")
    say(f"next{'' if known else ', e.g.'}: {typed('surefoot', 'eval', *words, *data)}")
    files = files_for(read_info(to)) if known else ("IMAGE...", "pictures")
    if files is not None:
        say(f"      {typed('surefoot', 'predict', *words, *([] if known else data))} {files[0]}")
