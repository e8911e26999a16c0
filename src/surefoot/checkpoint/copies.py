"""Copies of tensors in memory that is used again: what a background save reads while training goes on."""

from __future__ import annotations

from collections.abc import Mapping

import torch


class HostCopies:
    """Buffers in host memory, one for each name; a second copy costs no allocation.

    Pages that were touched before make the copy run at the speed of memory. Buffers for tensors on a GPU are
    pinned, and all their copies are in flight together. The result of `copy` is good until the next call.

    >>> copies = HostCopies()
    >>> weight = torch.ones(2)
    >>> kept = copies.copy({"w": weight})
    >>> _ = weight.zero_()
    >>> kept["w"]
    tensor([1., 1.])
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    def copy(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A copy of each tensor, complete when this returns; names no longer given free their memory."""
        kept: dict[str, torch.Tensor] = {}
        accelerated = False
        with torch.no_grad():
            for name, tensor in tensors.items():
                buffer = self._buffers.get(name)
                if buffer is None or not _fits(buffer, tensor):
                    buffer = _buffer_like(tensor)
                buffer.copy_(tensor, non_blocking=True)
                accelerated = accelerated or tensor.device.type != "cpu"
                kept[name] = buffer
        if accelerated:
            torch.accelerator.synchronize()
        self._buffers = kept
        return dict(kept)


def _fits(buffer: torch.Tensor, tensor: torch.Tensor) -> bool:
    return buffer.dtype == tensor.dtype and buffer.shape == tensor.shape and buffer.stride() == tensor.stride()


def _buffer_like(tensor: torch.Tensor) -> torch.Tensor:
    pin = tensor.device.type == "cuda"
    return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=pin)
