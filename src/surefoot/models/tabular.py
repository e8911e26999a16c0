"""A multi-layer perceptron for the rows of a table: numbers as they are, categories through embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from .arguments import keeps_arguments


def embedding_size(cardinality: int) -> int:
    """How many numbers stand for a category of `cardinality` values: 1.6 * cardinality ** 0.56, 2 to 64.

    The rule of fastai's tabular learner.

    >>> [embedding_size(n) for n in (2, 10, 1000, 1_000_000)]
    [2, 6, 64, 64]
    """
    return max(2, min(64, round(1.6 * math.pow(cardinality, 0.56))))


@keeps_arguments
class TabularMLP(nn.Module):
    """Linear layers of `hidden` widths with ReLU and dropout, over `numbers` numbers and an embedding of each category.

    Takes float32 (N, numbers + K), the last K columns whole numbers: the indices of categories, each below its entry
    of `cardinalities`. Returns (N, `outputs`): logits, or, for a regression, numbers that are multiplied by
    `target_std` and added to `target_mean`, so that the layers learn targets of mean 0 and standard deviation 1.

    Each category has a vector of `embedding` numbers (None: by `embedding_size`); that of index 0, which stands for
    values that training has not seen, begins as zeros.

    A recipe with tables (``csv``, ``parquet``) fills in all that these decide: `numbers`, `cardinalities`, `outputs`,
    `target_mean` and `target_std`. Raises ValueError for a table without columns and targets of unequal counts.

    >>> TabularMLP(numbers=3, cardinalities=[5, 9], outputs=2)(torch.zeros(4, 5)).shape
    torch.Size([4, 2])
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(
        self,
        numbers: int = 1,
        cardinalities: Sequence[int] = (),
        outputs: int = 1,
        hidden: Sequence[int] = (128, 64),
        embedding: int | None = None,
        dropout: float = 0.0,
        target_mean: Sequence[float] | None = None,
        target_std: Sequence[float] | None = None,
    ):
        super().__init__()
        mean, std = (
            [unit] * outputs if given is None else [float(number) for number in given]
            for given, unit in ((target_mean, 0.0), (target_std, 1.0))
        )
        if len(mean) != outputs or len(std) != outputs:
            raise ValueError(f"target_mean and target_std need {outputs} numbers, one an output, not {mean} and {std}")
        if min([1, *hidden, *cardinalities]) < 1 or not numbers + len(cardinalities):
            raise ValueError(
                f"at least one column, and layers and cardinalities of 1 or more are needed, not numbers {numbers}, "
                f"cardinalities {list(cardinalities)}, hidden {list(hidden)}"
            )
        self.numbers, self.highest = numbers, max(cardinalities, default=0)
        self.scaled = target_mean is not None or target_std is not None
        self.register_buffer("mean", torch.tensor(mean), persistent=False)
        self.register_buffer("std", torch.tensor(std), persistent=False)
        sizes = [embedding_size(n) if embedding is None else embedding for n in cardinalities]
        self.embeddings = nn.ModuleList(nn.Embedding(n, size) for n, size in zip(cardinalities, sizes, strict=True))
        with torch.no_grad():
            for weight in self.embeddings.parameters():
                weight[0] = 0
        widths = [numbers + sum(sizes), *hidden]
        layers: list[nn.Module] = []
        for inputs, width in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, width), nn.ReLU(), *([nn.Dropout(dropout)] if dropout else [])]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # A bfloat16 counts to 256 only, a float16 to 2048.
        if self.highest * torch.finfo(x.dtype).eps > 2:
            raise ValueError(f"{x.dtype} cannot hold the indices of {self.highest} categories; give float32")
        columns = [x[:, : self.numbers]]
        for place, embedding in enumerate(self.embeddings, self.numbers):
            columns.append(embedding(x[:, place].long()))
        outputs: torch.Tensor = self.layers(torch.cat(columns, dim=1))
        return outputs * self.std + self.mean if self.scaled else outputs
