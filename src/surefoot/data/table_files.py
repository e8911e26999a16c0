"""CSV and Parquet files, and frames of pandas and polars, as one table of pyarrow's with a name for each column."""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import UsageError, first_line
from ..registry import did_you_mean, not_there, package

PARQUET_ENDINGS = (".parquet", ".pq")
ENDINGS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", *PARQUET_ENDINGS)
_LATIN = "give its encoding, e.g. encoding: latin-1"


def arrow() -> Any:
    """The module pyarrow. Raises UsageError with what to install where it is missing."""
    missing = 'tables are read by pyarrow, which is missing; pip install "surefoot[tables]"'
    package("pyarrow.compute", missing)  # no attribute of pyarrow before it is imported
    return package("pyarrow", missing)


def is_table(path: str | Path) -> bool:
    """Whether a file is a table by its ending."""
    return str(path).lower().endswith(ENDINGS)


def read_table(path: str | Path, form: Mapping[str, Any] | None, texts: Sequence[str] = ()) -> Any:
    """The table in a file: a CSV of that `form` (its columns `texts` read as texts), or Parquet where it is None.

    Raises UsageError for a file that cannot be read, rows that are no rows of the table, and names that stand twice.
    """
    pyarrow = arrow()
    path = ordinary_file(path)
    if form is not None:
        return _checked(_read_csv(path, form, texts), str(path))
    from pyarrow import parquet

    try:
        return _checked(parquet.read_table(path), str(path))
    except (pyarrow.ArrowException, OSError) as error:
        raise UsageError(f"path: {path} is no Parquet file: {first_line(error)}") from error


def as_table(data: Any) -> Any:
    """A table of pyarrow's, a frame of pandas or polars, or a mapping of columns, as a table of pyarrow's."""
    pyarrow = arrow()
    try:
        # By its own way polars gives types that pyarrow can compute with.
        data = data.to_arrow() if hasattr(data, "to_arrow") else data
        if isinstance(data, Mapping):
            data = {name: c.detach().cpu().numpy() if isinstance(c, Tensor) else c for name, c in data.items()}
        table = data if isinstance(data, pyarrow.Table) else pyarrow.table(data)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise UsageError(f"data: {type(data).__name__} is no table: {first_line(error)}") from error
    # What pandas calls rows by is no column.
    return _checked(table.drop_columns([n for n in table.column_names if n.startswith("__index_level_")]), "data")


def nearest(name: str, names: Sequence[str], what: str = "columns") -> str:
    """What a message says beside a column that is not there: the column meant, or those that there are."""
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return did_you_mean(name, names) or f"; the {what} are {shown}"


def is_number(text: str) -> bool:
    """Whether `text` is written as a number is."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def ordinary_file(path: str | Path) -> Path:
    """The path of a file that is there, `~` resolved. Raises UsageError for anything else."""
    path = Path(os.path.expanduser(path))
    if path.is_dir():
        raise UsageError(f"path: {path} is a directory; give a file in it")
    if path.is_file():
        return path
    if os.path.lexists(path):
        raise UsageError(f"path: {path} is no ordinary file")
    raise UsageError(f"path: {path} {not_there(path)}")


def line_of(path: str | Path, form: Mapping[str, Any], row: int) -> int:
    """The line of a text file at which a row begins, from 1: quoted texts may have several, empty ones are no rows."""
    count, begins = -1, 1  # the first holds the names
    with arrow().input_stream(str(ordinary_file(path))) as stream:
        records = csv.reader(io.TextIOWrapper(stream, form["encoding"], newline=""), delimiter=form["separator"])
        try:
            for record in records:
                if record and count == row:
                    break
                count += bool(record)
                begins = records.line_num + 1
        except csv.Error:  # a text that is too long for it
            return row + 2
    return begins


def _checked(table: Any, where: str) -> Any:
    table = table.rename_columns([str(name).strip() for name in table.column_names])
    if twice := [repr(name) for name, count in Counter(table.column_names).items() if count > 1]:
        raise UsageError(f"{where}: {', '.join(twice[:6])} stands twice among the columns' names; give each its own")
    if not table.num_rows:
        raise UsageError(f"{where}: has no rows")
    return table


def _read_csv(path: Path, form: Mapping[str, Any], texts: Sequence[str]) -> Any:
    import pyarrow
    from pyarrow import csv as reader

    names = _header(path, form)
    nulls = [*reader.ConvertOptions().null_values, *form["nulls"]]
    converting = {name: pyarrow.string() for name in names if name.strip() in texts}

    def read(threads: bool) -> Any:
        return reader.read_csv(
            path,
            read_options=reader.ReadOptions(use_threads=threads, encoding=form["encoding"]),
            parse_options=reader.ParseOptions(delimiter=form["separator"], newlines_in_values=True),
            convert_options=reader.ConvertOptions(
                strings_can_be_null=True, null_values=nulls, decimal_point=form["decimal"], column_types=converting
            ),
        )

    try:
        try:
            table = read(True)
        except pyarrow.ArrowInvalid:
            table = read(False)  # which names the row
    except (pyarrow.ArrowException, OSError, UnicodeError) as error:
        message = first_line(error).removeprefix("CSV parse error: ").replace("Row #", "line ")
        raise UsageError(f"{path}: {message}; each line needs the columns that the first one names") from error
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        if pyarrow.types.is_binary(kind):
            raise UsageError(f"{path}: column {name!r} is not {form['encoding']}; {_LATIN}")
    return table


def _header(path: Path, form: Mapping[str, Any]) -> list[str]:
    """The names in the first line. Raises UsageError where these are no names of several columns."""
    import pyarrow

    for name in ("separator", "decimal"):
        if len(form[name]) != 1:
            raise UsageError(f"{name}: {form[name]!r} is not one character")
    try:
        with pyarrow.input_stream(str(path)) as stream:  # which unpacks a .gz
            start = stream.read(1 << 16)
    except OSError as error:
        raise UsageError(f"path: {path} cannot be read: {first_line(error)}") from error
    if start[:2] in (b"\xff\xfe", b"\xfe\xff") and "16" not in form["encoding"]:
        raise UsageError(f"{path}: is UTF-16; save it as UTF-8, or give encoding: utf-16")
    try:
        text = start.decode(form["encoding"], errors="strict" if len(start) < 1 << 16 else "ignore")
    except (UnicodeError, LookupError) as error:
        raise UsageError(f"{path}: is not {form['encoding']} ({first_line(error)}); {_LATIN}") from error
    lines = [line for line in text.lstrip("\ufeff").splitlines() if line.strip()]
    if not lines:
        raise UsageError(f"{path}: is empty; a table begins with a line of its columns' names")
    # Not of the first line: a quoted name may hold a line's end.
    names = next(filter(None, csv.reader(io.StringIO(text.lstrip("\ufeff"), newline=""), delimiter=form["separator"])))
    sign = max(",;\t|", key=lines[0].count)
    if len(names) == 1 and sign in lines[0]:
        shown = repr(sign).replace("'", '"')
        raise UsageError(f"{path}: its columns are separated by {shown}; give separator: {shown}")
    if all(map(is_number, names)):
        raise UsageError(f"{path}: its first line holds numbers; put a line of the columns' names before it")
    return names
