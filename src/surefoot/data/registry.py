"""Names to data sets and to augmentations; listing them imports nothing."""

from __future__ import annotations

from ..registry import Entry, Range, Registry

_AT_LEAST_ONE = Range(low=1)
_SHARE = Range(low=0, high=1, high_open=True)
_SPLIT = {"val_share": _SHARE, "seed": Range(low=0)}
_PICTURES = {"size": _AT_LEAST_ONE, "channels": Range(low=1, high=3), **_SPLIT}
_PROBABILITY = {"p": Range(low=0, high=1)}

DATA = Registry(
    "data set",
    "data",
    [
        Entry(
            "garments",
            "surefoot.data.garments:garments",
            "ten kinds of garments drawn by Surefoot itself; no download",
            limits={"train_size": _AT_LEAST_ONE, "val_size": _AT_LEAST_ONE},
            facts={"samples": "12,000 + 2,000", "input": "(1, 28, 28)", "classes": "10"},
        ),
        Entry(
            "fashion_mnist",
            "surefoot.data.fashion_mnist:fashion_mnist",
            "Fashion-MNIST from its four files, downloaded when absent",
            provided=("progress",),
            limits={"train_size": Range(low=1, high=60_000), "val_size": Range(low=1, high=10_000)},
            facts={"samples": "60,000 + 10,000", "input": "(1, 28, 28)", "classes": "10"},
        ),
        Entry(
            "image_folder",
            "surefoot.data.image_folder:image_folder",
            "PNG and JPEG files in folders, one folder a class",
            limits=_PICTURES,
            facts={"samples": "those in the folders", "input": "(channels, height, width)", "classes": "the folders"},
        ),
        Entry(
            "image_masks",
            "surefoot.data.image_masks:image_masks",
            "two folders: pictures, and masks with the class of each pixel",
            limits=_PICTURES,
            facts={"samples": "the pairs", "input": "(channels, height, width)", "classes": "the masks' values"},
        ),
        Entry(
            "text",
            "surefoot.data.text:text",
            "a text file as characters or bytes, to predict the next one",
            limits={"length": _AT_LEAST_ONE, "stride": _AT_LEAST_ONE, "val_share": _SHARE},
            facts={"samples": "windows of the text", "input": "(length,)", "classes": "the tokens"},
        ),
        Entry(
            "csv",
            "surefoot.data.tables:csv",
            "a CSV file: columns of numbers and categories, one or several of them the target",
            provided=("weights",),
            limits=_SPLIT,
            facts={"samples": "the rows", "input": "(columns,)", "classes": "the target's values, or none"},
        ),
        Entry(
            "parquet",
            "surefoot.data.tables:parquet",
            "a Parquet file, read as a CSV is",
            provided=("weights",),
            limits=_SPLIT,
            facts={"samples": "the rows", "input": "(columns,)", "classes": "the target's values, or none"},
        ),
        Entry(
            "npz",
            "surefoot.data.array_files:npz",
            "arrays of an .npz file, inputs and targets by name",
            limits=_SPLIT,
            facts={"samples": "the arrays' rows", "input": "(...)", "classes": "whole numbers, or none"},
        ),
        Entry(
            "safetensors",
            "surefoot.data.array_files:safetensors",
            "tensors of a .safetensors file, inputs and targets by name",
            limits=_SPLIT,
            facts={"samples": "the tensors' rows", "input": "(...)", "classes": "whole numbers, or none"},
        ),
        Entry(
            "hugging_face",
            "surefoot.data.hugging_face:hugging_face",
            "a data set of Hugging Face's library datasets, from disk or by name",
            limits=_PICTURES,
            facts={"samples": "the rows", "input": "the columns named", "classes": "the target's, or none"},
        ),
    ],
)

AUGMENTATIONS = Registry(
    "augmentation",
    "augmentations",
    [
        Entry(
            "RandomHorizontalFlip",
            "surefoot.data.augment:RandomHorizontalFlip",
            "mirrors left and right",
            limits=_PROBABILITY,
        ),
        Entry(
            "RandomVerticalFlip",
            "surefoot.data.augment:RandomVerticalFlip",
            "mirrors top and bottom",
            limits=_PROBABILITY,
        ),
        Entry(
            "RandomCrop",
            "surefoot.data.augment:RandomCrop",
            "a window at a random place, after padding",
        ),
        Entry(
            "RandomErasing",
            "surefoot.data.augment:RandomErasing",
            "paints over a random rectangle",
            limits=_PROBABILITY,
        ),
        Entry(
            "RandomAffine",
            "surefoot.data.augment:RandomAffine",
            "turns, shifts, scales and shears",
        ),
    ],
)
