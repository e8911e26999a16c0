"""`surefoot unpack FILE`: a packed run as a directory again, verified to the last byte."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..text import counted, say, typed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """FILE and --to."""
    parser.add_argument("file", metavar="FILE", help="what `surefoot pack` wrote")
    parser.add_argument("--to", metavar="DIR", help="the directory to make (default: the file's name without ending)")


def run(arguments: argparse.Namespace) -> int:
    """Unpack, and tell how to go on."""
    from ..runs.packing import ENDINGS, unpack
    from ..runs.record import recipe_settings

    path = Path(arguments.file)
    stem = next((path.name.removesuffix(end) for end in ENDINGS if path.name.endswith(end)), "")
    to = Path(arguments.to) if arguments.to else Path(stem or f"{path.name}.run")
    manifest = unpack(path, to)
    say(f"{to}: {counted(len(manifest['files']), 'file')}, every one verified")
    imports = any(key.rpartition(".")[2] == "import" for key in recipe_settings(to))
    trust = ["--trust-code"] if imports else []
    say(f"next: {typed('surefoot', 'resume', to, *trust)}")
    if imports:
        say("the recipe imports code: look at it first; --trust-code runs it as your own")
    return 0
