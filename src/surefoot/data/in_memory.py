"""Batches of data in memory: read, augmented and preprocessed in chunks of many, on the device where they fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from .. import batches
from ..preprocessing import Preprocessing
from .sources import TensorSource

# Batches are made many at a time: one indexed read and one conversion for about this many bytes of input. Less would
# come with a cold cache too often, more would no longer be in the processor's when the last of them is used.
CHUNK_BYTES = 1 << 21
CHUNKS_AHEAD = 64
# Data are normalised once, instead of at each use, where the result is at most this large.
NORMALIZED_BYTES = 1 << 29


class InMemory:
    """The `tensors` (N, ...) of a source where they are best kept: on the device, preprocessed, or as they are.

    `normalized` says whether the first of them, the inputs, is preprocessed already. `settings`: ``"auto"``, True or
    False, as the Loader's `normalize_once`.
    """

    def __init__(
        self,
        source: TensorSource,
        preprocessing: Preprocessing | None,
        device: torch.device,
        *,
        augmented: bool,
        normalize_once: bool | str,
    ):
        tensors = source.tensors
        self.normalized = preprocessing is not None and not augmented and _worthwhile(tensors[0], normalize_once)
        if self.normalized:
            tensors = (_preprocessed(tensors[0], preprocessing), *tensors[1:])
        # On a device where they take at most a quarter of its free memory.
        if device.type == "cuda" and sum(t.nbytes for t in tensors) <= torch.cuda.mem_get_info(device)[0] // 4:
            tensors = tuple(tensor.to(device) for tensor in tensors)
        self.tensors = tensors
        self._widened, self._device = source.widened, device
        # Whether what is read needs no augmentation and preprocessing, and whether it is where it is needed besides.
        self.finished = not augmented and (self.normalized or preprocessing is None)
        self.ready = device.type == "cpu" and self.finished and source.batch_dtype is None

    def gather(self, indices: Tensor) -> tuple[Tensor, ...]:
        """The samples at `indices` (n,) on the device: one indexed read of each tensor."""
        there = batches.moved(indices, self.tensors[0].device)
        read = self._widened(tuple([tensor.index_select(0, there) for tensor in self.tensors]))
        return read if self._device.type == "cpu" else tuple([batches.moved(tensor, self._device) for tensor in read])

    def chunks(self, order: Tensor, size: int, gather: Callable[[Tensor], Any]) -> Iterator[Any]:
        """The batches of `size` of an order, as iterables of many; what is not `ready` is made by `gather`."""
        step = size * self.batches_in_chunk(size)
        select, tensors = torch.index_select, self.tensors
        # Between two steps every call comes with a cold cache: indices are cut up for many chunks at once.
        for first in range(0, len(order), step * CHUNKS_AHEAD):
            for indices in torch.unsafe_split(order[first : first + step * CHUNKS_AHEAD], step):
                chunk = tuple([select(tensor, 0, indices) for tensor in tensors]) if self.ready else gather(indices)
                if step == size:
                    yield (chunk,)
                    continue
                # Not `split`: its views would share one version counter, so that an in-place change of one batch
                # would spoil the backward pass of another; it costs more, too.
                yield zip(*(torch.unsafe_split(tensor, size) for tensor in chunk), strict=True)

    def batches_in_chunk(self, size: int) -> int:
        """How many batches of `size` are made at a time."""
        numbers = sum(tensor[0].numel() for tensor in self.tensors)
        return max(1, CHUNK_BYTES // (4 * numbers * size))


def _worthwhile(inputs: Tensor, normalize_once: bool | str) -> bool:
    if normalize_once != "auto":
        return bool(normalize_once)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return inputs.numel() * 4 <= min(NORMALIZED_BYTES, memory // 8)


def _preprocessed(inputs: Tensor, preprocessing: Any) -> Tensor:
    """All inputs preprocessed, a block at a time: no second copy of the whole is ever needed."""
    out = torch.empty(inputs.shape, dtype=torch.float32, device="cpu")
    block = max(1, (1 << 22) // max(1, inputs[0].numel()))
    for first in range(0, len(inputs), block):
        out[first : first + block] = preprocessing(inputs[first : first + block])
    return out
