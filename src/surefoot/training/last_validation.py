"""validation.json as training writes it: figures of the last validation, and the samples to look at."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import batches
from ..data import Loader, StreamSource, TensorSource
from ..data.text import TokenWindows
from ..data.workers import fetch
from ..metrics.hardest import Answers
from ..pictures import thumbnail
from ..tracking.validation import MOST_CLASSES, write_validation
from .about import About
from .evaluation import Evaluation

_MOST_COLUMNS, _MOST_CELL, _MOST_TEXT = 40, 60, 600
# A picture has at least so many pixels a side; what is narrower is a table.
_LEAST_SIDE = 8
# Of all pictures together, as base64: a page that is mailed holds them.
_MOST_PICTURES = 500_000


class LastValidation:
    """Writes validation.json of `run_dir` after each pass over `loader`, with the names that `about` has."""

    def __init__(self, run_dir: Path, loader: Loader, about: About):
        self.run_dir, self.loader = run_dir, loader
        names = about.classes or ()
        self.classes = [name[:200] for name in names] if 0 < len(names) <= MOST_CLASSES else None
        self.targets = () if about.columns is None else about.columns.targets
        # The same samples stay hard: each is read and drawn once.
        self._drawn: dict[int, dict[str, Any]] = {}

    def write(self, epoch: int, step: int, result: Evaluation) -> None:
        """Write what the pass of `epoch` (from 0), after `step` updates, has found. Raises OSError."""
        content: dict[str, Any] = {"epoch": epoch, "step": step, "samples": result.samples}
        content["classes"] = self.classes
        if result.confusion is not None:
            content["confusion"] = result.confusion.tolist()
        if result.reliability is not None:
            content["reliability"] = result.reliability
        if result.answers is not None:
            lists = listed(result.answers, self._index)
            content |= lists
            content["shown"] = self._shown([entry["index"] for entries in lists.values() for entry in entries])
            content["residuals"] = [
                {"target": name, **each}
                for name, each in zip(self._names(result.answers), result.answers.residuals, strict=True)
            ]
        write_validation(self.run_dir, content)

    def _index(self, batch: int, row: int) -> int:
        if isinstance(self.loader.source, StreamSource):
            return batch * int(self.loader.batch_size) + row
        return int(self.loader.indices_at(self.loader.epoch, batch)[row])

    def _names(self, answers: Answers) -> Sequence[str]:
        count = len(answers.residuals)
        return self.targets if len(self.targets) == count else [f"target {i}" for i in range(count)]

    def _shown(self, indices: Sequence[int]) -> dict[str, dict[str, Any]]:
        self._drawn = {index: self._drawn[index] if index in self._drawn else self._read(index) for index in indices}
        shown, left = {}, _MOST_PICTURES
        for index, sample in self._drawn.items():
            left -= len(sample.get("picture", ""))
            if sample and left > 0:
                shown[str(index)] = sample
        return shown

    def _read(self, index: int) -> dict[str, Any]:
        try:
            return shown_sample(self.loader.source, index)
        except Exception:  # a user's own data set, which need not be able to read a sample again
            return {}


def listed(answers: Answers, index: Callable[[int, int], int]) -> dict[str, list[dict[str, Any]]]:
    """The answers that are most wrong and least sure, each with its sample's ``index``, which batch and row give."""
    return {
        name: [
            {"index": index(*entry["sample"])} | {key: value for key, value in entry.items() if key != "sample"}
            for entry in entries
        ]
        for name, entries in (("wrong", answers.wrong), ("unsure", answers.unsure))
    }


def shown_sample(source: Any, index: int) -> dict[str, Any]:
    """The inputs of one sample for people: {"picture": ...}, {"text": ...} or {"row": ...}; {} where there is no such.

    It is read under random numbers of its own; those of the process stay as they are.
    """
    if isinstance(source, StreamSource):
        return {}
    if isinstance(source, TensorSource):
        sample = source.formed(source[index])
    else:
        (read,) = fetch(source.dataset, [index], 0, 0)
        sample = tuple(read) if isinstance(read, tuple | list) else (read,)
    pair = batches.pair(sample)
    inputs = batches.whole(sample) if pair is None else pair[0]
    if isinstance(inputs, batches.Rest) and len(inputs) == 1:
        inputs = next(iter(inputs.values()))
    if isinstance(inputs, str):
        return {"text": inputs[:_MOST_TEXT]}
    if isinstance(source, TokenWindows) and source.classes is not None:
        return {"text": "".join(source.classes[int(token)] for token in inputs)[:_MOST_TEXT]}
    tensors = [leaf for leaf in batches.tensors(inputs)] if isinstance(inputs, dict | tuple | list) else [inputs]
    for tensor in tensors:
        if isinstance(tensor, Tensor) and (pixels := _pixels(tensor)) is not None:
            return {"picture": base64.b64encode(thumbnail(pixels.numpy())).decode()}
    row = _cells(source, inputs)
    return {"row": row} if row else {}


def _pixels(tensor: Tensor) -> Tensor | None:
    """uint8 (H, W) or (H, W, 3) of what looks like a picture; None for anything else."""
    tensor = tensor.detach().cpu()
    if tensor.dim() == 3 and tensor.shape[-1] in (1, 3) and tensor.dtype == torch.uint8:
        tensor = tensor.movedim(-1, 0) if tensor.shape[0] not in (1, 3) else tensor
    if tensor.dim() == 2 and tensor.dtype == torch.uint8:
        tensor = tensor[None]
    if tensor.dim() != 3 or tensor.shape[0] not in (1, 3) or min(tensor.shape[1:]) < _LEAST_SIDE:
        return None
    if tensor.dtype != torch.uint8:
        tensor = tensor.float().nan_to_num()
        low, high = (float(value) for value in torch.aminmax(tensor))
        if low < 0 or high > 1:  # normalised: its own range
            tensor = (tensor - low) / ((high - low) or 1.0)
        tensor = (tensor * 255).round().to(torch.uint8)
    return tensor[0] if tensor.shape[0] == 1 else tensor.movedim(0, -1).contiguous()


def _cells(source: Any, inputs: Any) -> list[list[str]]:
    """Names and values of a row, of a table's columns as they were in the table."""
    if source.columns is not None and isinstance(inputs, Tensor) and inputs.dim() == 1:
        values = inputs.tolist()
        texts = [f"{value:.6g}" for value in values[: len(source.columns.numbers)]]
        for value, names in zip(values[len(texts) :], source.columns.categories.values(), strict=False):
            texts.append(names[int(value) - 1] if 0 < value <= len(names) else "")
        cells = list(zip(source.columns.names, texts, strict=False))
    elif isinstance(inputs, Tensor) and inputs.dim() <= 1:
        cells = [(str(number), f"{value:.6g}") for number, value in enumerate(inputs.reshape(-1).tolist())]
    else:
        cells = [
            (
                name,
                (f"{leaf.item():.6g}" if leaf.numel() == 1 else batches.form(leaf))
                if isinstance(leaf, Tensor)
                else str(leaf),
            )
            for name, leaf in batches.leaves(inputs)
            if isinstance(leaf, Tensor | str | int | float)
        ]
    return [[name[:_MOST_CELL], text[:_MOST_CELL]] for name, text in cells[:_MOST_COLUMNS]]
