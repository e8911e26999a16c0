"""`surefoot lr-find RECIPE`: the range test (Smith 2015), on a copy of the state."""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import sys
from pathlib import Path

from ..text import draw, say, typed
from .recipes import add_picture_argument, add_trust_argument, named_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, overrides, --start, --end, --steps, --svg, --json."""
    parser.add_argument("recipe", metavar="RECIPE", help="a recipe's file or packaged name")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides such as data.batch_size=128")
    parser.add_argument("--start", type=float, default=1e-7, metavar="LR", help="the lowest rate (default: 1e-7)")
    parser.add_argument("--end", type=float, default=10.0, metavar="LR", help="the highest rate (default: 10)")
    parser.add_argument("--steps", type=int, default=100, metavar="N", help="updates in between (default: 100)")
    add_picture_argument(parser)
    parser.add_argument("--json", action="store_true", help="rates and losses as one JSON object for machines")
    add_trust_argument(parser)


def run(arguments: argparse.Namespace) -> int:
    """Raise the rate step by step, print the chart and a suggestion. Nothing is kept of the training."""
    from ..build import build
    from ..execution import as_torch_would, prepare
    from ..planning import lr_find, picture_path

    loaded = named_recipe(arguments.recipe, arguments.overrides, trust_code=arguments.trust_code)
    chart = picture_path(arguments.svg) if arguments.svg else None
    built = build(loaded, say=functools.partial(say, error=True))
    with prepare(as_torch_would(built.train.device.type)):
        found = lr_find(
            built.model,
            built.loss,
            built.optimizer,
            built.train,
            start=arguments.start,
            end=arguments.end,
            steps=arguments.steps,
            options=built.step_options(),
        )
    if chart is not None:
        found.save_svg(chart)
    if arguments.json:
        say(json.dumps(found.to_json(), indent=2))
        return 0
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    unicode = "utf" in (sys.stdout.encoding or "").lower()
    draw(found.render_terminal(width, unicode, sys.stdout.isatty() and "NO_COLOR" not in os.environ))
    if found.suggestion is not None:
        rate = f"optimizer.lr={found.suggestion:.2g}"
        say(f"\ntry: {typed('surefoot', 'train', Path(arguments.recipe), *arguments.overrides, rate)}")
    if chart is not None:
        say(f"drawn: {chart}")
    return 0
