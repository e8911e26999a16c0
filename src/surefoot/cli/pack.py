"""`surefoot pack RUN --to FILE`: a run as one file, with what is needed to go on elsewhere."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..text import counted, printable, say, typed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN and --to."""
    parser.add_argument("run_dir", metavar="RUN", help="the run directory; it must not be in use")
    parser.add_argument("--to", metavar="FILE", required=True, help="a name that ends in .tar.zst, .tar.gz or .tar")


def run(arguments: argparse.Namespace) -> int:
    """Pack; tell what is in it and what is not."""
    from ..runs.packing import pack
    from ..runs.record import recipe_settings

    run_dir, to = Path(arguments.run_dir), Path(arguments.to)
    manifest = pack(run_dir, to)
    size = to.stat().st_size / 1e6
    what = "no checkpoint" if manifest["step"] is None else f"the checkpoint of step {manifest['step']:,}"
    say(f"{to}: {size:,.1f} MB, {counted(len(manifest['files']), 'file')}, {what}; verified on `surefoot unpack`")
    imported = sorted({str(v) for k, v in recipe_settings(run_dir).items() if k.rpartition(".")[2] == "import"})
    if imported:
        say(f"not in it: your own code, which the recipe imports: {', '.join(map(printable, imported))}")
    say(f"next: {typed('surefoot', 'unpack', to)}")
    return 0
