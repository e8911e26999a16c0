"""What predict and eval give to machines: JSON, or CSV with a header, printed or in a file."""

from __future__ import annotations

import argparse
import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..files import write_durably
from ..text import say
from ..tracking.journal import encode


def add_output_arguments(parser: argparse.ArgumentParser) -> None:
    """--json, --csv, --out."""
    parser.add_argument("--json", action="store_true", help="JSON for machines")
    parser.add_argument("--csv", action="store_true", help="CSV with a header")
    parser.add_argument("--out", metavar="FILE", help="write it to FILE, .json or .csv, as a whole or not at all")


def output_form(arguments: argparse.Namespace) -> str:
    """``"json"``, ``"csv"`` or ``"text"``, before any work. Raises UsageError for what cannot be."""
    forms = [form for form in ("json", "csv") if getattr(arguments, form)]
    if len(forms) > 1:
        raise UsageError("--json and --csv: give one of them")
    if arguments.out is None:
        return forms[0] if forms else "text"
    out = Path(arguments.out)
    form = forms[0] if forms else out.suffix.lower().removeprefix(".")
    if form not in ("json", "csv"):
        raise UsageError(f"--out {out}: say --json or --csv, or give a name that ends in .json or .csv")
    if (out.exists() and not out.is_file()) or not out.parent.is_dir():
        there = "is a directory" if out.is_dir() else "is no regular file"
        reason = there if out.exists() else f"there is no directory {out.parent}"
        raise UsageError(f"--out {out}: {reason}; name a file in a directory that exists")
    return form


def give(form: str, out: str | None, value: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """`value` as JSON or `rows` as CSV, on standard output or in the file `out`.

    JSON has no NaN and no infinity: they stand there as texts, as in a journal. The
    columns are the rows' keys, in the order in which they are met.
    """
    if form == "json":
        text = json.dumps(json.loads(encode(value)), indent=2)
    else:
        columns = list(dict.fromkeys(name for row in rows for name in row))
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        text = file.getvalue().removesuffix("\n")
    if out is None:
        say(text)
    else:
        write_durably(out, f"{text}\n".encode(errors="backslashreplace"))
