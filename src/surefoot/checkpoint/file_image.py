"""Copies of tensors laid out as the file that will hold them, in memory that is used again.

What a background save reads while training goes on. The copy is the file: no tensor is touched a second time
from Python, which would hold up the training thread.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping

import torch

from .. import safe_tensors


class FileCopies:
    """Copies tables of tensors into the image of a safetensors file; the same layout uses the same memory.

    Pages that were touched before make the copy run at the speed of memory. Tensors on a GPU are copied there, which
    training does not wait for, and from there into pinned memory by the thread that writes; where the GPU has no room
    for that, at once. What `copy` returned is good until the next call.

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
        """A copy of each tensor, safe from what follows. Raises `UsageError` for more than a file can hold."""
        if self._image is None or not self._image.fits(tensors):
            self._image = FileImage(tensors, self._metadata)
        self._image.fill(tensors)
        return self._image


class FileImage:
    """The bytes of one safetensors file: its head, and one block of memory with a view for each tensor."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None):
        self._head, self._ordered = safe_tensors.layout(
            {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}, metadata=metadata
        )
        self._on_gpu = any(map(on_gpu, tensors.values()))
        self._aside: Aside | None = None
        # A tensor in another order of memory (channels_last) is copied as it lies, and put in order by `settle`.
        self._as_they_lie: dict[str, torch.Tensor] = {}

    @functools.cached_property
    def _block(self) -> torch.Tensor:
        # Pinning takes its time: where copies are set aside it is done by the thread that writes.
        size = sum(tensor.numel() * tensor.element_size() for _, tensor in self._ordered)
        return torch.empty(size, dtype=torch.uint8, pin_memory=self._on_gpu and torch.cuda.is_available(), device="cpu")

    @functools.cached_property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of the file's bytes, by name."""
        views, offset = {}, 0
        for name, tensor in self._ordered:
            end = offset + tensor.numel() * tensor.element_size()
            views[name] = self._block[offset:end].view(tensor.dtype).view(tensor.shape)
            offset = end
        return views

    def fits(self, tensors: Mapping[str, torch.Tensor]) -> bool:
        """Whether these tensors have this file's names, dtypes and shapes."""
        own = dict(self._ordered)
        if len(tensors) != len(own):
            return False
        for name, tensor in tensors.items():
            mine = own.get(name)
            if mine is None or mine.dtype != tensor.dtype or mine.shape != tensor.shape:
                return False
        return True

    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Copy the tensors in, or aside; nothing of them is referred to afterwards."""
        self._aside = Aside.of(tensors) if self._on_gpu else None
        if self._aside is None:
            self._copy(tensors)
            for device in {tensor.device for tensor in tensors.values()}:
                if device.type != "cpu":
                    torch.accelerator.synchronize(device)

    def _copy(self, tensors: Mapping[str, torch.Tensor]) -> None:
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
        self._as_they_lie = lying

    def settle(self) -> None:
        """Fetch what was set aside, and put in order what was copied as it lay; once for each `fill`, by the writer."""
        if self._aside is not None:
            with self._aside.on_streams():
                self._copy(self._aside.tensors)
            self._aside = None
        with torch.no_grad():
            for name, tensor in self._as_they_lie.items():
                self.tensors[name].copy_(tensor)

    def chunks(self) -> Iterator[bytes | memoryview]:
        """The file's bytes."""
        self.settle()
        yield self._head
        if self._block.numel():
            yield self._block.numpy().data


class Aside:
    """Copies of tensors where they lie, on their devices; making them waits for nothing."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]):
        with torch.no_grad():
            self.tensors = {name: tensor.clone() for name, tensor in tensors.items()}
        self._made = {
            device: torch.cuda.current_stream(device).record_event()
            for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}
        }

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor]) -> Aside | None:
        """None where a device has no room to spare for them."""
        try:
            return cls(tensors) if _have_room(tensors) else None
        except torch.OutOfMemoryError:
            return None

    @contextlib.contextmanager
    def on_streams(self) -> Iterator[None]:
        """Work on streams beside those of training, behind the copies; it is done at the end."""
        streams = [torch.cuda.Stream(device) for device in self._made]
        with contextlib.ExitStack() as stack:
            for stream, made in zip(streams, self._made.values(), strict=True):
                stream.wait_event(made)
                stack.enter_context(torch.cuda.stream(stream))
            yield
            for stream in streams:
                stream.synchronize()


def on_gpu(tensor: torch.Tensor) -> bool:
    """Whether a copy to the CPU makes training wait, and one on its device does not."""
    return tensor.is_cuda


def _have_room(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether each GPU has twice their size free: a step to come needs some too."""
    sizes: dict[torch.device, int] = {}
    for tensor in tensors.values():
        if tensor.is_cuda:
            sizes[tensor.device] = sizes.get(tensor.device, 0) + tensor.nbytes
    for device, size in sizes.items():
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if 2 * size > torch.cuda.mem_get_info(device)[0] + unused:
            return False
    return True
