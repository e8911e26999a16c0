"""The rows of a table as tensors, by the columns of a model: in training, evaluation and prediction alike."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from ..errors import Problems, UsageError
from ..table_columns import CSV, TableColumns
from ..text import counted
from .sources import TensorSource
from .table_files import PARQUET_ENDINGS, arrow, is_number, line_of, nearest, read_table

# How a message calls a row: "houses.csv: line 7".
Place = Callable[[int], str]

_THOUSANDS = re.compile(r"[-+]?\d{1,3}([,.' \u00a0]\d{3})+([.,]\d+)?")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_POINT_ZERO = re.compile(r"^(?:-(?=0+\.0+$))?(-?\d+)\.0+$")
_LARGEST = float(numpy.finfo(numpy.float32).max)


def rows(path: str | Path, columns: TableColumns) -> Tensor:
    """The rows of a file as a model with these `columns` takes them, float32 (N, F + K).

    Parquet by its ending, else CSV as the training data were. Columns of other names are left out.
    Raises Problems for a column that is not there and for values that cannot be.
    """
    table, place = _read(path, columns, columns.names, ())
    return inputs_of(table, columns, place)


def labelled_rows(path: str | Path, columns: TableColumns, classes: Sequence[str] | None) -> TensorSource:
    """The rows of a file with their targets, for a model that was trained with these `columns` and `classes`."""
    # Classes of numbers were read as numbers, "01" as 1; others as texts, whatever those of this file are.
    numbers = all(name in ("false", "true") or name.removeprefix("-").isdecimal() for name in classes or ("0",))
    texts = () if numbers else columns.targets
    table, place = _read(path, columns, [*columns.names, *columns.targets], texts)
    targets = targets_of(table, columns, classes, place)
    return TensorSource(inputs_of(table, columns, place), targets, classes=classes, columns=columns)


def _read(path: str | Path, columns: TableColumns, names: Sequence[str], texts: Sequence[str]) -> tuple[Any, Place]:
    is_parquet = str(path).lower().endswith(PARQUET_ENDINGS)
    form = None if is_parquet else {**CSV, **columns.csv}
    table = read_table(path, form, [*columns.categories, *texts])
    lacking = [name for name in names if name not in table.column_names]
    if lacking:
        raise Problems([f"{path}: there is no column {n!r}{nearest(n, table.column_names)}" for n in lacking])
    return table, place_in(path, form)


def place_in(where: str | Path, form: Mapping[str, Any] | None) -> Place:
    """How a row is called: by its line in a text file of that `form`; else, where it is None, counted from 1."""
    return lambda row: f"{where}: row {row + 1}" if form is None else f"{where}: line {line_of(where, form, row)}"


def inputs_of(table: Any, columns: TableColumns, place: Place) -> Tensor:
    """float32 (N, F + K): the numbers as they are, then the index of each category's value.

    Raises Problems for missing values, unless `columns` say what becomes of them, and for numbers that are none.
    """
    encoded = numpy.empty((table.num_rows, columns.width), dtype=numpy.float32)
    problems = []
    for position, name in enumerate(columns.names):
        try:
            if name in columns.numbers:
                values, missing = numbers_in(table[name], name, place), columns.numbers[name]
            else:
                values, missing = _indices(table[name], columns.categories[name], name, place), 0.0
            gaps = numpy.isnan(values)
            if gaps.any():
                if columns.missing != "mean":
                    raise UsageError(_gaps(name, gaps, place))
                values[gaps] = missing
        except UsageError as error:
            problems.append(str(error))
            continue
        encoded[:, position] = values
    if problems:
        raise Problems(problems)
    return torch.from_numpy(encoded)


def targets_of(table: Any, columns: TableColumns, classes: Sequence[str] | None, place: Place) -> Tensor:
    """Classes int64 (N,), or numbers float32 (N, T). Raises Problems for missing values and unknown classes."""
    problems, parts = [], []
    for name in columns.targets:
        column = table[name]
        values = numbers_in(column, name, place) if classes is None else _indices(column, classes, name, place) - 1
        gaps = numpy.isnan(values)
        if gaps.any():
            problems.append(_gaps(name, gaps, place, "missing: drop leaves such rows out"))
        elif classes is not None and (values < 0).any():
            first = int((values < 0).argmax())
            problems.append(f"{place(first)}: {name!r} is {table[name][first].as_py()!r}, which is none of the classes")
        parts.append(values)
    if problems:
        raise Problems(problems)
    if classes is not None:
        return torch.from_numpy(parts[0].astype(numpy.int64))
    return torch.from_numpy(numpy.stack(parts, axis=1).astype(numpy.float32))


def numbers_in(column: Any, name: str, place: Place) -> Any:
    """A column as float64 (N,), NaN where a value is missing. Raises UsageError for what is no number."""
    pyarrow = arrow()
    if (kind := kind_of(column.type)) not in ("numbers", "null"):
        wrong = column.is_valid().to_numpy()
        if kind == "texts":
            codes, values = coded(column)
            others = [code for code, value in enumerate(values) if not is_number(value)]
            wrong = numpy.isin(codes, others) if others else wrong
        first = int(wrong.argmax())
        value = column[first].as_py()
        shown = repr(value) if isinstance(value, str) else value
        raise UsageError(f"{place(first)}: {name!r} is {shown}, which is no number")
    numbers = _decoded(column).combine_chunks().cast(pyarrow.float64(), safe=False).to_numpy(zero_copy_only=False)
    numbers = numbers if numbers.flags.writeable else numbers.copy()
    over = numpy.abs(numbers) > _LARGEST
    if over.any():
        first = int(over.argmax())
        raise UsageError(f"{place(first)}: {name!r} is {column[first].as_py()}, which is no float32")
    return numbers


def coded(column: Any) -> tuple[Any, list[str]]:
    """A column as texts: the code of each row's, int64 (N,) with -1 where it is missing, and the texts by code."""
    pyarrow = arrow()
    column = _decoded(column)
    floating = pyarrow.types.is_floating(column.type)
    if floating:
        column = column.cast(pyarrow.float32()) if pyarrow.types.is_float16(column.type) else column
        column = pyarrow.compute.if_else(pyarrow.compute.is_nan(column), None, column)
    else:
        column = column.cast(pyarrow.string())
    encoded = column.combine_chunks().dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(numpy.int64)
    texts = encoded.dictionary.cast(pyarrow.string()).to_pylist()
    if floating:  # whole numbers beside missing values, as pandas has them; and one text for 0.0 and -0.0
        values = encoded.dictionary.to_pylist()
        pairs = zip(texts, values, strict=True)
        texts = [str(int(v)) if abs(v) < 2**63 and v.is_integer() else text for text, v in pairs]
    # Spaces around a text are no part of it, so two codes may stand for one.
    position: dict[str, int] = {}
    merged = [position.setdefault(text.strip(), len(position)) for text in texts]
    return numpy.array([*merged, -1])[codes], list(position)


def _decoded(column: Any) -> Any:
    """A column of a dictionary's codes (a categorical of pandas) as its values."""
    pyarrow = arrow()
    if not pyarrow.types.is_dictionary(column.type):
        return column
    return pyarrow.chunked_array([c.dictionary_decode() for c in column.chunks], type=column.type.value_type)


def _indices(column: Any, values: Sequence[str], name: str, place: Place) -> Any:
    """The place of each row's text among `values`, from 1; 0 where it is none of them, NaN where it is missing.

    Raises UsageError for numbers that are infinite, and for what is neither numbers nor texts.
    """
    if (kind := kind_of(column.type)) not in ("numbers", "texts", "null"):
        raise UsageError(f"{place(0)}: {name!r} holds {kind}; expected texts or whole numbers, as it was trained with")
    codes, texts = coded(column)
    infinite = [code for code, text in enumerate(texts) if text in ("inf", "-inf")]
    if infinite and kind_of(column.type) == "numbers":
        first = int(numpy.isin(codes, infinite).argmax())
        raise UsageError(
            f"{place(first)}: {name!r} is {texts[codes[first]]}, which is no class or category; mend it, or leave the "
            "row out"
        )
    exactly = {value: index for index, value in enumerate(values, 1)}
    position = {_alike(value): index for value, index in exactly.items()} | exactly
    places = (position.get(text, position.get(_alike(text), 0.0)) for text in texts)
    return numpy.array([*places, numpy.nan])[codes]


def _alike(text: str) -> str:
    """What is the same value in every file: 1 is written 1.0 beside missing values, and pandas writes true as True."""
    return text.lower() if text.lower() in ("true", "false") else _POINT_ZERO.sub(r"\1", text)


def _gaps(name: str, gaps: Any, place: Place, advice: str = "") -> str:
    count = f"{counted(int(gaps.sum()), 'value')} missing"
    advice = advice or "give missing: mean or missing: drop, or leave the column out"
    return f"{place(int(gaps.argmax()))}: {name!r} has no value ({count} in this column); {advice}"


def kind_of(kind: Any) -> str:
    """``"numbers"``, ``"texts"``, or the name of another type of pyarrow's."""
    types = arrow().types
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind):
        return "numbers"
    return "texts" if types.is_string(kind) or types.is_large_string(kind) else str(kind)


def disguised(column: Any, name: str, place: Place) -> str | None:
    """What is wrong with a column of texts that nobody called a category: numbers in disguise, or no vocabulary."""
    codes, texts = coded(column)

    def first(which: Callable[[str], Any]) -> str:
        code = next(code for code, text in enumerate(texts) if which(text))
        return f"{place(int((codes == code).argmax()))}: {name!r} is {texts[code]!r}"

    numbers = [text for text in texts if is_number(text)]
    thousands = [text for text in texts if _THOUSANDS.fullmatch(text)]
    commas = [text for text in texts if _DECIMAL_COMMA.fullmatch(text)]
    if set(commas) - set(thousands) and len(commas) + len(numbers) == len(texts):
        return f"{first(commas.__contains__)}, with a decimal comma; give decimal: ','"
    if thousands and len(thousands) + len(numbers) == len(texts):
        return f"{first(thousands.__contains__)}, a number with thousands separators; write it without them"
    if numbers and len(numbers) == len(texts):
        return (
            f"{first(is_number)}, a text that is written as a number; give numbers (of a frame: astype(float)), or say "
            "that the column holds texts (categories, of a target task: classes)"
        )
    if numbers and 2 * len(numbers) >= len(texts):
        return (
            f"{first(lambda text: not is_number(text))}, in a column of numbers; mend it, call it missing (nulls: "
            "[...]), leave the column out (drop), or say that it holds texts (categories, of a target task: classes)"
        )
    if len(texts) > max(50, len(codes) // 2):
        return (
            f"column {name!r} holds {len(texts):,} texts in {len(codes):,} rows, which are no categories; leave it out "
            f"(drop: [{name}]), or name it in categories"
        )
    return None
