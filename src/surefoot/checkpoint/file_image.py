"""Copies of tensors laid out as the file that will hold them, in memory that is used again.

What a background save reads while training goes on. The copy is the file: no tensor is touched a second time
from Python, which would hold up the training thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch

from .. import safe_tensors


class FileCopies:
    """Copies tables of tensors into the image of a safetensors file; the same layout uses the same memory.

    Pages that were touched before make the copy run at the speed of memory. Memory for tensors on a GPU is
    pinned, and all their copies are in flight together. What `copy` returned is good until the next call.

    >>> copies = FileCopies()
    >>> weight = torch.ones(2)
    >>> image = copies.copy({"w": weight})
    >>> _ = weight.zero_()
    >>> image.tensors["w"]
    tensor([1., 1.])
    """

    def __init__(self, metadata: Mapping[str, str] | None = None) -> None:
        self._metadata = metadata
        self._image: FileImage | None = None

    def copy(self, tensors: Mapping[str, torch.Tensor]) -> FileImage:
        """A copy of each tensor, complete when this returns. Raises `UsageError` for more than a file can hold."""
        if self._image is None or not self._image.fits(tensors):
            self._image = FileImage(tensors, self._metadata)
        self._image.fill(tensors)
        return self._image


class FileImage:
    """The bytes of one safetensors file: its head, and one block of memory with a view for each tensor."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None):
        self._head, ordered = safe_tensors.layout(tensors, metadata=metadata)
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in ordered)
        on_gpu = any(tensor.is_cuda for _, tensor in ordered)
        self._block = torch.empty(size, dtype=torch.uint8, pin_memory=on_gpu)
        self.tensors: dict[str, torch.Tensor] = {}
        offset = 0
        for name, tensor in ordered:
            end = offset + tensor.numel() * tensor.element_size()
            self.tensors[name] = self._block[offset:end].view(tensor.dtype).view(tensor.shape)
            offset = end
        # A tensor in another order of memory (channels_last) is copied as it lies, and put in order by `settle`.
        self._as_they_lie: dict[str, torch.Tensor] = {}

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether these tensors have this file's names, dtypes and shapes."""
        if len(tensors) != len(self.tensors):
            return False
        for name, tensor in tensors.items():
            mine = self.tensors.get(name)
            if mine is None or mine.dtype != tensor.dtype or mine.shape != tensor.shape:
                return False
        return True

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors in; nothing of them is referred to afterwards."""
        on_gpu = False
        lying: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for name, tensor in tensors.items():
                target = self.tensors[name]
                if not tensor.is_contiguous():
                    kept = self._as_they_lie.get(name)
                    if kept is None or kept.stride() != tensor.stride():
                        kept = torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=tensor.is_cuda)
                    lying[name] = target = kept
                target.copy_(tensor, non_blocking=True)
                on_gpu = on_gpu or tensor.device.type != "cpu"
        if on_gpu:
            torch.accelerator.synchronize()
        self._as_they_lie = lying

    def settle(self) -> None:
        """Put in order what was copied as it lay; in the thread that writes, once for each `fill`."""
        with torch.no_grad():
            for name, tensor in self._as_they_lie.items():
                self.tensors[name].copy_(tensor)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file's bytes."""
        self.settle()
        yield self._head
        if self._block.numel():
            yield self._block.numpy().data
