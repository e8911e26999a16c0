"""Copies of a moment of a run as the file that will hold them: at once, or set aside on the device first."""

from __future__ import annotations

import pytest
import torch

from surefoot import safe_tensors
from surefoot.checkpoint import file_image
from surefoot.checkpoint.file_image import FileCopies


def table() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(3, 4, 5, 6, generator=draws).to(memory_format=torch.channels_last),
        "steps": torch.tensor(7),
        "none": torch.empty(0, 2),
        "half": torch.randn(9, generator=draws).to(torch.bfloat16),
        "turned": torch.randn(4, 3, generator=draws).T,
    }


def written(image) -> bytes:
    return b"".join(map(bytes, image.chunks()))


@pytest.fixture(params=["at once", "set aside", "no room"])
def way(request, monkeypatch) -> str:
    """Tensors of the CPU stand in for those of a GPU."""
    if request.param != "at once":
        monkeypatch.setattr(file_image, "on_gpu", lambda tensor: True)
        monkeypatch.setattr(file_image, "_have_room", lambda tensors: request.param == "set aside")
    return request.param


def test_what_training_does_next_is_not_in_the_file(way):
    copies, tensors = FileCopies({"format": "pt"}), table()
    for _ in range(3):  # the same memory again
        expected = safe_tensors.dumps({k: v.contiguous() for k, v in tensors.items()}, metadata={"format": "pt"})
        image = copies.copy(tensors)
        assert (image._aside is not None) == (way == "set aside")
        for tensor in tensors.values():
            tensor.add_(1)
        assert written(image) == expected
        assert image._aside is None  # the device has its room again


def test_copies_that_are_set_aside_are_fetched_by_the_thread_that_writes(way):
    """Where the pause is short, nothing of the file's own memory is touched, or allocated, in it."""
    image = FileCopies().copy(table())
    assert ("_block" in vars(image)) == (way != "set aside")
    written(image)
    assert "_block" in vars(image)


def test_a_device_that_is_full_is_no_error(monkeypatch):
    monkeypatch.setattr(file_image, "on_gpu", lambda tensor: True)

    def full(tensors):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(file_image.Aside, "__init__", lambda self, tensors: full(tensors))
    tensors = table()
    expected = safe_tensors.dumps({name: tensor.contiguous() for name, tensor in tensors.items()})
    assert written(FileCopies().copy(tensors)) == expected
