"""The random number generators of a process: their state is read and set as a whole.

Python's, NumPy's global one, torch's CPU generator and that of every CUDA device. A missing one raises UsageError: a
run resumed without it would draw other numbers and not be exact.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .errors import UsageError
from .text import counted

if TYPE_CHECKING:
    import torch

_MASK = (1 << 64) - 1


def fold(*values: int) -> int:
    """One 63-bit seed from several integers; every change of any value, or of their order, gives another.

    SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) over a running state.

    >>> fold(0, 1) != fold(1, 0)
    True
    """
    state = 0x9E3779B97F4A7C15
    for value in values:
        state = (state ^ (value & _MASK)) & _MASK
        state = (state + 0x9E3779B97F4A7C15) & _MASK
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK
        state ^= state >> 31
    return state >> 1


def seed_all(seed: int) -> None:
    """Seed every generator of this process from one integer."""
    import numpy
    import torch

    random.seed(seed)
    numpy.random.seed(fold(seed) & 0xFFFFFFFF)
    # torch.manual_seed reaches CUDA's generators too, lazily where CUDA is not yet in use.
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Within it torch draws from `seed`, on the CPU and on `device`; afterwards its generators are as before."""
    import torch

    generators = [torch.default_generator]
    if device.type == "cuda":
        torch.cuda.init()  # type: ignore[no-untyped-call]
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in generators]
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)


def get_state() -> dict[str, Any]:
    """The state of every generator, as plain values and tensors (uint8 and int64, on the CPU)."""
    import numpy
    import torch

    version, internal, gauss = random.getstate()
    legacy: Any = numpy.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = legacy
    state: dict[str, Any] = {
        "python": {
            "version": version,
            "state": torch.tensor(internal, dtype=torch.int64, device="cpu"),
            "gauss": gauss,
        },
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(keys.astype(numpy.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
        "cuda": [],
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = [generator.clone() for generator in torch.cuda.get_rng_state_all()]
        # Seed and offset, 8 bytes each. Devices that drew nothing need not be there when the run goes on.
        while len(state["cuda"]) > 1 and not state["cuda"][-1][8:].any():
            state["cuda"].pop()
    return state


def set_state(state: Mapping[str, Any]) -> None:
    """Set every generator to a `state` that `get_state` returned.

    Raises UsageError where the state lacks a generator, or has one of a CUDA device that is not here.
    """
    import numpy
    import torch

    missing = [name for name in ("python", "numpy", "torch", "cuda") if name not in state]
    if missing:
        raise UsageError(f"random state: {', '.join(missing)} missing; the run cannot go on exactly without it")
    # CUDA is checked first so that a refusal leaves every generator as it was.
    cuda = state["cuda"]
    if cuda and (not torch.cuda.is_available() or torch.cuda.device_count() < len(cuda)):
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        raise UsageError(f"random state: saved for {counted(len(cuda), 'CUDA device')}; this machine has {here}")
    python, np = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["state"].tolist()), python["gauss"]))
    keys = np["keys"].numpy().astype(numpy.uint32)
    numpy.random.set_state((np["name"], keys, np["position"], np["has_gauss"], np["cached"]))
    torch.set_rng_state(state["torch"])
    if cuda:
        for index, generator in enumerate(cuda):
            torch.cuda.set_rng_state(generator, index)


def to_plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """A `state` of `get_state` as values that JSON holds."""
    python, np = state["python"], state["numpy"]
    return {
        "python": {**python, "state": python["state"].tolist()},
        "numpy": {**np, "keys": np["keys"].tolist()},
        "torch": state["torch"].tolist(),
        "cuda": [generator.tolist() for generator in state["cuda"]],
    }


def from_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    """The state that `to_plain` made plain."""
    import torch

    python, np = plain["python"], plain["numpy"]
    return {
        "python": {**python, "state": torch.tensor(python["state"], dtype=torch.int64, device="cpu")},
        "numpy": {**np, "keys": torch.tensor(np["keys"], dtype=torch.int64, device="cpu")},
        "torch": torch.tensor(plain["torch"], dtype=torch.uint8, device="cpu"),
        "cuda": [torch.tensor(generator, dtype=torch.uint8, device="cpu") for generator in plain["cuda"]],
    }
