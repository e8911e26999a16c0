"""Tables: columns of numbers and of categories as inputs, one or several as targets; split, counted, encoded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import numpy
import torch

from ..arguments import Arguments
from ..errors import Problems, UsageError
from ..preprocessing import Preprocessing
from ..registry import Range
from ..table_columns import MISSING, TableColumns
from .orders import held_out
from .sources import TensorSource
from .splits import DataSplits, sizes_of
from .table_files import arrow, as_table, nearest, read_table
from .table_rows import Place, coded, disguised, inputs_of, kind_of, numbers_in, place_in, targets_of

# Whole numbers of at most so many different values are classes, where nothing else is said.
MOST_CLASSES = 20
# More values than that are no vocabulary.
MOST_VALUES = 100_000
_FILL = "give missing: mean"
_TASKS = ("auto", "classes", "numbers")
# Of a column whose standard deviation is a smaller share of its mean, float32 keeps too little.
_SPREAD = 1e-5
_SMALLEST = float(numpy.finfo(numpy.float32).tiny)

Missing = Literal["refuse", "mean", "drop"]
Task = Literal["auto", "classes", "numbers"]


def csv(
    path: str,
    target: str | Sequence[str],
    drop: str | Sequence[str] = (),
    categories: str | Sequence[str] = (),
    val: str | None = None,
    val_share: float = 0.1,
    split: str | None = None,
    seed: int = 0,
    missing: Missing = "refuse",
    task: Task = "auto",
    separator: str = ",",
    decimal: str = ".",
    encoding: str = "utf-8",
    nulls: str | Sequence[str] = (),
    weights: str | None = None,
) -> DataSplits:
    """A CSV file, a line of names first; a `.gz` is unpacked. As `table`, with `val` a second file to validate on.

    `separator`, `decimal` and `encoding` are the file's; `nulls` are further words for a missing value.
    """
    return _from_files(**locals())


def parquet(
    path: str,
    target: str | Sequence[str],
    drop: str | Sequence[str] = (),
    categories: str | Sequence[str] = (),
    val: str | None = None,
    val_share: float = 0.1,
    split: str | None = None,
    seed: int = 0,
    missing: Missing = "refuse",
    task: Task = "auto",
    weights: str | None = None,
) -> DataSplits:
    """A Parquet file. As `table`, with `val` a second file to validate on."""
    return _from_files(**locals())


def table(
    data: Any,
    target: str | Sequence[str],
    *,
    drop: str | Sequence[str] = (),
    categories: str | Sequence[str] = (),
    val: Any = None,
    val_share: float = 0.1,
    split: str | None = None,
    seed: int = 0,
    missing: Missing = "refuse",
    task: Task = "auto",
    weights: str | None = None,
) -> DataSplits:
    """Inputs float32 (N, F + K) and targets of `data`: a frame (pandas, polars), a pyarrow table, a mapping of columns.

    The columns beside `target` and `drop` are inputs: F of numbers, then K of categories, which are those that hold
    texts and those named in `categories`. A category is the index of its value among those of the training rows, in
    order, from 1; a value that is not among them is 0. The preprocessing takes the training rows' mean from the
    numbers and divides by their standard deviation.

    Targets of texts, truth values or whole numbers of at most 20 values are classes, int64 (N,); all else are numbers,
    float32 (N, T) for T targets; `task` says otherwise. A `val_share` of the rows validates, drawn by `seed`; or a
    second table `val`; or, with `split`, the rows that have ``val`` in that column beside those that have ``train``.
    A missing value is refused; with `missing` ``"mean"`` it is the mean of its column, or the index 0; with ``"drop"``
    its row is left out. The column `weights` is no input: ``Loader(splits.train, ..., weights=its name)`` draws by it.

    Raises Problems for what cannot be: each with its column and its first row.

    >>> columns = {"area": [50.0, 70.0, 90.0], "city": ["Ulm", "Bonn", "Ulm"], "price": [1.5, 2.5, 2.5]}
    >>> splits = table(columns, "price", val_share=0)
    >>> splits.train.tensors[0].tolist(), splits.train.columns.categories
    ([[50.0, 2.0], [70.0, 1.0], [90.0, 2.0]], {'city': ('Bonn', 'Ulm')})
    """
    options = locals()
    first, second = as_table(options.pop("data")), options.pop("val")
    return _splits(first, None if second is None else as_table(second), options, None, ("data", "val"))


def _from_files(path: str, val: str | None, **options: Any) -> DataSplits:
    names = ("separator", "decimal", "encoding", "nulls")
    form: dict[str, Any] | None = {name: options.pop(name) for name in names if name in options} or None
    check = Arguments()
    if form is not None:
        form["nulls"] = list(check.texts("nulls", form["nulls"]))
    texts = check.texts("categories", options["categories"])
    check.done()
    first = read_table(path, form, texts)
    # What is a text in the one file is one in the other, though all of that look like numbers.
    texts = tuple(field.name for field in first.schema if kind_of(field.type) == "texts")
    second = None if val is None else read_table(val, form, texts)
    return _splits(first, second, options, form, (path, val or ""))


def _splits(
    first: Any, second: Any, options: dict[str, Any], form: dict[str, Any] | None, where: tuple[str, str]
) -> DataSplits:
    """The tables split, counted and encoded; `where` names them in messages, `form` is that of text files."""
    chosen = _checked(first, second, **options)
    targets, named, missing = chosen["target"], chosen["categories"], chosen["missing"]
    places = [place_in(path, form) for path in where]
    if split := chosen["split"]:  # other rows may lack what they will
        codes, texts = coded(first[split])
        used = numpy.isin(codes, [k for k, text in enumerate(texts) if text in ("train", "val")]).nonzero()[0]
        first, places[0] = first.take(used), _kept(places[0], used)
        if "train" not in texts:
            raise UsageError(
                f"split: {split!r} is {', '.join(texts[:5])}; the rows to learn from have 'train' there",
                code="data-split",
            )
    weights = chosen["weights"]
    inputs = [n for n in first.column_names if n not in {*targets, *chosen["drop"], split, weights}]
    if not inputs:
        raise UsageError(f"{where[0]}: has no column beside its targets; there is nothing to learn from")
    tables = [first] if second is None else [first, second]
    for table, path in zip(tables, where, strict=False):
        if lacking := [name for name in [*inputs, *targets] if name not in table.column_names]:
            raise UsageError(f"{path}: there is no column {lacking[0]!r}{nearest(lacking[0], table.column_names)}")
    free = [*named, *(targets if chosen["task"] == "classes" else ())]
    _check_kinds(first, inputs, targets, free, places[0])
    if missing == "drop":
        kept = [_whole_rows(table, [*inputs, *targets], path) for table, path in zip(tables, where, strict=False)]
        tables = [table.take(rows) for table, rows in zip(tables, kept, strict=True)]
        places = [_kept(place, rows) for place, rows in zip(places, kept, strict=False)]
    parts = _parts(tables, split, chosen["val_share"], chosen["seed"])
    classes = _classes(tables[0], targets, chosen["task"])
    numbers = [name for name in inputs if name not in named and kind_of(first[name].type) == "numbers"]
    statistics = _statistics(tables[0], numbers, parts[0], places[0])
    columns = TableColumns(
        {name: mean for name, (mean, _) in statistics.items()},
        {name: _vocabulary(tables[0][name], name, parts[0]) for name in inputs if name not in numbers},
        targets,
        classes is not None,
        missing,
        form or {},
    )
    encoded = [
        (inputs_of(table, columns, place), targets_of(table, columns, classes, place))
        for table, place in zip(tables, places, strict=False)
    ]
    train, val = (
        TensorSource(*(tensor[rows] for tensor in pair), classes=classes, columns=columns) if len(rows) else None
        for pair, rows in zip((encoded[0], encoded[-1]), map(torch.from_numpy, parts), strict=True)
    )
    assert train is not None
    if weights is not None:
        train.aside[weights] = torch.from_numpy(numbers_in(tables[0][weights], weights, places[0])[parts[0]])
    return DataSplits(train, val, classes, _preprocessing(statistics, columns), _sizes(train, columns))


def _checked(first: Any, second: Any, **options: Any) -> dict[str, Any]:
    """The options of `table`, each checked, the names of columns as tuples."""
    check = Arguments()
    names = {key: check.texts(key, options[key]) for key in ("target", "drop", "categories")}
    chosen = names | {
        "split": check.text("split", options["split"], none=True),
        "val_share": check.number("val_share", options["val_share"], Range(low=0, high=1, high_open=True)),
        "seed": check.whole("seed", options["seed"], low=0),
        "missing": check.choice("missing", options["missing"], MISSING),
        "task": check.choice("task", options["task"], _TASKS),
        "weights": check.text("weights", options["weights"], none=True),
    }
    split, weights = ([chosen[key]] if isinstance(chosen[key], str) else [] for key in ("split", "weights"))
    for key, columns in {**names, "split": split, "weights": weights}.items():
        for name in columns:
            if name not in first.column_names:
                check.refuse(key, f"there is no column {name!r}{nearest(name, first.column_names)}")
    if twice := [name for name, count in Counter(names["target"]).items() if count > 1]:
        check.refuse("target", f"{twice[0]!r} stands twice; name each column once")
    if not names["target"]:
        check.refuse("target", "no column is named; name the one to learn")
    if split and second is not None:
        check.refuse("split", "val is a table of its own; give one of them")
    check.done()
    return chosen


def _check_kinds(table: Any, inputs: Sequence[str], targets: Sequence[str], free: Sequence[str], place: Place) -> None:
    """Raise Problems for columns that are neither numbers nor categories; the texts of `free` may be any."""
    problems = []
    for name in [*inputs, *targets]:
        kind = kind_of(table[name].type)
        if table[name].null_count == table.num_rows:
            advice = f"leave it out (drop: [{name}])" if name in inputs else "name the column to learn"
            problems.append(f"column {name!r} has no value in any row; {advice}")
        elif kind not in ("numbers", "texts"):
            advice = f"give numbers, or leave it out (drop: [{name}])"
            problems.append(f"column {name!r} holds {kind}, which is neither numbers nor texts; {advice}")
        elif not name and name in inputs:
            problems.append("a column has no name (the index that pandas writes?); leave it out (drop: [''])")
        elif kind == "texts" and name not in free and (problem := disguised(table[name], name, place)):
            problems.append(problem)
    if problems:
        raise Problems(problems)


def _whole_rows(table: Any, names: Sequence[str], where: str) -> Any:
    """The rows without a missing value in any of the columns, int64 (n,)."""
    whole = numpy.ones(table.num_rows, dtype=bool)
    for name in names:
        whole &= ~table[name].is_null(nan_is_null=True).to_numpy()
    if not whole.any():
        raise UsageError(f"{where}: each row lacks a value, so missing: drop leaves none; {_FILL}")
    return whole.nonzero()[0]


def _kept(place: Place, rows: Any) -> Place:
    """The places of rows that are left of others."""
    return lambda row: place(int(rows[row]))


def _classes(table: Any, targets: Sequence[str], task: str) -> tuple[str, ...] | None:
    """The names of the classes in order, or None where the targets are numbers."""
    pyarrow = arrow()
    kinds = [table[name].type for name in targets]
    texts = [name for name, kind in zip(targets, kinds, strict=True) if kind_of(kind) == "texts"]
    if len(targets) > 1:
        if texts or task == "classes":
            name = (texts or targets)[0]
            raise UsageError(f"target: of several targets each is a number, and {name!r} holds classes; name it alone")
        return None
    if task == "numbers" or (task == "auto" and pyarrow.types.is_floating(kinds[0])):
        return None
    _, names = coded(table[targets[0]])
    if task == "auto" and not texts and len(names) > MOST_CLASSES:
        return None
    if len(names) < 2:
        raise UsageError(f"target: {targets[0]!r} is {names[0]!r} in every row; there is nothing to tell apart")
    return _ordered(names)


def _ordered(texts: Sequence[str]) -> tuple[str, ...]:
    """Texts in order, whole numbers by size."""
    whole = all(text.removeprefix("-").isdecimal() for text in texts)
    return tuple(sorted(texts, key=int if whole else None))


def _parts(tables: Sequence[Any], split: str | None, share: float, seed: int) -> tuple[Any, Any]:
    """The rows of the first table that train, and those of the last that validate; int64, in order."""
    count = tables[0].num_rows
    if len(tables) > 1:
        return numpy.arange(count), numpy.arange(tables[1].num_rows)
    if split is not None:
        codes, texts = coded(tables[0][split])
        if "train" not in texts:
            raise UsageError(
                f"split: each row that trains lacks a value, so missing: drop leaves none; {_FILL}", code="data-split"
            )
        trains = codes == texts.index("train")
        return trains.nonzero()[0], (~trains).nonzero()[0]
    train, val = held_out(count, share, seed)
    return train.numpy(), val.numpy()


def _vocabulary(column: Any, name: str, rows: Any) -> tuple[str, ...]:
    codes, texts = coded(column)
    present = numpy.unique(codes[rows])
    if len(present) > MOST_VALUES:
        raise UsageError(f"column {name!r} has {len(present):,} values; at most {MOST_VALUES:,} (drop: [{name}])")
    return _ordered([texts[code] for code in present if code >= 0])


def _statistics(table: Any, names: Sequence[str], rows: Any, place: Place) -> dict[str, tuple[float, float]]:
    """Mean and standard deviation of columns over the training rows. Raises Problems for columns without any."""
    statistics, problems = {}, []
    for name in names:
        try:
            values = numbers_in(table[name], name, place)[rows]
        except UsageError as error:
            problems.append(str(error))
            continue
        values = values[~numpy.isnan(values)]
        if not len(values):
            problems.append(f"column {name!r} has no value in the rows that train; leave it out (drop: [{name}])")
            continue
        # Of equal numbers the computed mean may be another by rounding.
        mean, std = float(values.mean()), float(values.std()) if (values != values[0]).any() else 0.0
        if 0 < std < max(_SPREAD * abs(mean), _SMALLEST):
            problems.append(
                f"column {name!r} differs by {std:.3g} around {mean:.6g}, which float32 cannot tell apart; take a "
                f"number away from it, give it in another unit, or leave it out (drop: [{name}])"
            )
        statistics[name] = mean, std or 1.0
    if problems:
        raise Problems(problems)
    return statistics


def _preprocessing(statistics: dict[str, tuple[float, float]], columns: TableColumns) -> Preprocessing | None:
    """Numbers to mean 0 and standard deviation 1; the indices of categories stay."""
    if not statistics:
        return None
    rest = len(columns.categories)
    means, stds = zip(*statistics.values(), strict=True)
    return Preprocessing(scale=None, mean=(*means, *[0.0] * rest), std=(*stds, *[1.0] * rest))


def _sizes(train: TensorSource, columns: TableColumns) -> dict[str, Any]:
    """What the table decides of a packaged model; for a regression, the mean and standard deviation of its targets."""
    sizes = sizes_of(train) | {"numbers": len(columns.numbers), "cardinalities": columns.cardinalities}
    if columns.classes:
        return sizes
    targets = train.targets().double()
    std = targets.std(0, correction=0)
    return sizes | {"target_mean": targets.mean(0).tolist(), "target_std": std.where(std > 0, 1.0).tolist()}
