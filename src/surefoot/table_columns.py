"""How a table's columns become what a model takes: their names, vocabularies and targets, saved with the model."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from .errors import UsageError

# How a text file is read where nothing else is said.
CSV = {"separator": ",", "decimal": ".", "encoding": "utf-8", "nulls": ()}
MISSING = ("refuse", "mean", "drop")


@dataclass(frozen=True)
class TableColumns:
    """The columns that a model was trained on. A row becomes float32 (F + K,): F numbers, then K indices of categories.

    `numbers` names the F columns of numbers, with the training rows' mean of each; `categories` the K others, each with
    its values: the first has index 1, and 0 stands for a value that training has not seen. `targets` names the target
    columns, `classes` says that theirs are classes. `missing` says what becomes of a missing value: ``"refuse"``,
    ``"mean"`` (of the column; 0 for a category) or ``"drop"`` (the row is left out). `csv` is how text files were read:
    their separator, decimal point, encoding and further words for a missing value.

    >>> columns = TableColumns({"area": 80.5}, {"city": ("Bonn", "Ulm")}, ("price",), False)
    >>> TableColumns.from_json(columns.to_json()) == columns, columns.width, columns.cardinalities
    (True, 2, [3])
    """

    numbers: Mapping[str, float]
    categories: Mapping[str, tuple[str, ...]]
    targets: tuple[str, ...]
    classes: bool
    missing: str = "refuse"
    csv: Mapping[str, Any] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """The input columns in the order in which the model takes them."""
        return [*self.numbers, *self.categories]

    @property
    def width(self) -> int:
        """Numbers a row."""
        return len(self.numbers) + len(self.categories)

    @property
    def cardinalities(self) -> list[int]:
        """The number of indices of each category, that for unseen values included."""
        return [len(values) + 1 for values in self.categories.values()]

    def encode_as(self, other: TableColumns) -> bool:
        """Whether a row becomes the same numbers, and the same target, under both."""
        return all(
            getattr(self, name) == getattr(other, name) for name in ("names", "categories", "targets", "classes")
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data that `from_json` takes. Columns are lists, so that their order stays."""
        plain = asdict(self)
        plain["numbers"] = [{"name": name, "mean": mean} for name, mean in self.numbers.items()]
        plain["categories"] = [{"name": name, "values": list(values)} for name, values in self.categories.items()]
        return plain | {"targets": list(self.targets), "csv": dict(self.csv)}

    @classmethod
    def from_json(cls, data: Any) -> TableColumns:
        """The columns that `to_json` wrote. Raises UsageError for anything else."""
        if not isinstance(data, Mapping) or set(data) != {f.name for f in fields(cls)}:
            raise UsageError("columns: not the description of a table")
        targets = tuple(_items(data["targets"], str, "targets"))
        if not isinstance(data["csv"], Mapping) or not set(data["csv"]) <= CSV.keys():
            raise UsageError("columns.csv: not how a text file is read")
        for name, value in data["csv"].items():
            _items(value if name == "nulls" else [value], str, "csv")
        numbers = {c["name"]: c.get("mean") for c in _items(data["numbers"], Mapping, "numbers")}
        categories = {
            c["name"]: tuple(_items(c.get("values"), str, "categories"))
            for c in _items(data["categories"], Mapping, "categories")
        }
        whole = len(numbers) == len(data["numbers"]) and len(categories) == len(data["categories"])
        means = all(type(m) in (int, float) and abs(m) <= sys.float_info.max for m in numbers.values())
        if not (whole and means) or numbers.keys() & categories:
            raise UsageError("columns: a mean is missing, or a name stands twice")
        if type(data["classes"]) is not bool or data["missing"] not in MISSING:
            raise UsageError("columns: classes or missing is none of what they may be")
        return cls(numbers, categories, targets, data["classes"], data["missing"], dict(data["csv"]))


def _items(value: Any, kind: type, where: str) -> list[Any]:
    """A list of texts, or of mappings that each have a name."""
    if (
        not isinstance(value, list)
        or not all(isinstance(item, kind) for item in value)
        or (kind is Mapping and not all(isinstance(item.get("name"), str) for item in value))
    ):
        raise UsageError(f"columns.{where}: not a list of what belongs there")
    return value
