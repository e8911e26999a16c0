"""Names to data sets and to augmentations; listing them imports nothing."""

from __future__ import annotations

from collections.abc import Mapping

from ..registry import Entry, Range, Registry

_AT_LEAST_ONE = Range(low=1)
_SHARE = Range(low=0, high=1, high_open=True)
_SPLIT = {"val_share": _SHARE, "seed": Range(low=0)}
_PICTURES = {"size": _AT_LEAST_ONE, "channels": Range(low=1, high=3), **_SPLIT}
_PROBABILITY = {"p": Range(low=0, high=1)}

_ROWS = {"samples": "the rows", "input": "(columns,)", "classes": "the target's values, or none"}
_GARMENTS = {"input": "(1, 28, 28)", "classes": "10"}


def _data(
    name: str, module: str, summary: str, limits: Mapping[str, Range], facts: Mapping[str, str], *provided: str
) -> Entry:
    return Entry(name, f"surefoot.data.{module}:{name}", summary, provided, limits, facts)


def _augmentation(name: str, summary: str, limits: Mapping[str, Range] | None = None) -> Entry:
    return Entry(name, f"surefoot.data.augment:{name}", summary, limits=limits or {})


# fmt: off
DATA = Registry(
    "data set",
    "data",
    [
        _data(
            "garments", "garments", "ten kinds of garments drawn by Surefoot itself; no download",
            {"train_size": _AT_LEAST_ONE, "val_size": _AT_LEAST_ONE}, {"samples": "12,000 + 2,000", **_GARMENTS},
        ),
        _data(
            "fashion_mnist", "fashion_mnist", "Fashion-MNIST from its four files, downloaded when absent",
            {"train_size": Range(low=1, high=60_000), "val_size": Range(low=1, high=10_000)},
            {"samples": "60,000 + 10,000", **_GARMENTS}, "progress",
        ),
        _data(
            "image_folder", "image_folder", "PNG and JPEG files in folders, one folder a class", _PICTURES,
            {"samples": "those in the folders", "input": "(channels, height, width)", "classes": "the folders"},
        ),
        _data(
            "image_masks", "image_masks", "two folders: pictures, and masks with the class of each pixel", _PICTURES,
            {"samples": "the pairs", "input": "(channels, height, width)", "classes": "the masks' values"},
        ),
        _data(
            "text", "text", "a text file as characters or bytes, to predict the next one",
            {"length": _AT_LEAST_ONE, "stride": _AT_LEAST_ONE, "val_share": _SHARE},
            {"samples": "windows of the text", "input": "(length,)", "classes": "the tokens"},
        ),
        _data(
            "csv", "tables", "a CSV file: columns of numbers and categories, one or several of them the target",
            _SPLIT, _ROWS, "weights",
        ),
        _data("parquet", "tables", "a Parquet file, read as a CSV is", _SPLIT, _ROWS, "weights"),
        _data(
            "npz", "array_files", "arrays of an .npz file, inputs and targets by name", _SPLIT,
            {"samples": "the arrays' rows", "input": "(...)", "classes": "whole numbers, or none"}, "numbers",
        ),
        _data(
            "safetensors", "array_files", "tensors of a .safetensors file, inputs and targets by name", _SPLIT,
            {"samples": "the tensors' rows", "input": "(...)", "classes": "whole numbers, or none"}, "numbers",
        ),
        _data(
            "hugging_face", "hugging_face", "a data set of Hugging Face's library datasets, from disk or by name",
            _PICTURES, {"samples": "the rows", "input": "the columns named", "classes": "the target's, or none"},
        ),
    ],
)
# fmt: on

AUGMENTATIONS = Registry(
    "augmentation",
    "augmentations",
    [
        _augmentation("RandomHorizontalFlip", "mirrors left and right", _PROBABILITY),
        _augmentation("RandomVerticalFlip", "mirrors top and bottom", _PROBABILITY),
        _augmentation("RandomCrop", "a window at a random place, after padding"),
        _augmentation("RandomErasing", "paints over a random rectangle", _PROBABILITY),
        _augmentation("RandomAffine", "turns, shifts, scales and shears"),
    ],
)
