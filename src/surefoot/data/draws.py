"""Random numbers by counter: what a sample draws depends on (seed, epoch, index) and on nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..rng import fold


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


# SplitMix64's constants (Steele, Lea and Flood, OOPSLA 2014) as int64 holds them.
_GAMMA = 0x9E3779B97F4A7C15
_STEP = _signed(_GAMMA)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def shift(x: Any, bits: int) -> Any:
    """A logical right shift of int64, torch's or NumPy's; their own keep the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def mix(x: Any) -> Any:
    """SplitMix64's output function on int64, torch's or NumPy's, element by element; a bijection."""
    x = x + _STEP
    x = (x ^ shift(x, 30)) * _MIX_1
    x = (x ^ shift(x, 27)) * _MIX_2
    return x ^ shift(x, 31)


def bits_of(keys: Any, call: int) -> Any:
    """64 random bits for each of `keys`, as int64: those of the `call`-th call, from 1."""
    return mix(keys + _signed((call * _GAMMA) & ((1 << 64) - 1)))


class Draws:
    """The random numbers of some samples in one epoch: each method gives one number a sample, shape (N,).

    `indices` are int64 data set indices (N,). The k-th call is the k-th number of every sample, so equal calls
    in equal order give a sample the same numbers in whatever batch, chunk or process it is made.

    >>> together = Draws(0, 3, torch.tensor([7, 8])).uniform()
    >>> alone = Draws(0, 3, torch.tensor([8])).uniform()
    >>> bool(together[1] == alone[0])
    True
    """

    def __init__(self, seed: int, epoch: int, indices: Tensor):
        self._keys = mix(mix(indices) ^ fold(seed, epoch))
        self._calls = 0

    def bits(self) -> Tensor:
        """64 random bits a sample, as int64."""
        self._calls += 1
        bits: Tensor = bits_of(self._keys, self._calls)
        return bits

    def uniform(self, low: float = 0.0, high: float = 1.0) -> Tensor:
        """Float64 numbers in [low, high)."""
        uniform: Tensor = shift(self.bits(), 11).to(torch.float64) * ((high - low) * 2.0**-53) + low
        return uniform

    def integers(self, low: int, high: int) -> Tensor:
        """Int64 numbers in [low, high), for high - low below 2**31."""
        assert 0 < high - low < 1 << 31, "an empty or too wide range"
        integers: Tensor = ((shift(self.bits(), 33) * (high - low)) >> 31) + low
        return integers

    def happens(self, p: float) -> Tensor:
        """True with probability `p`."""
        return self.uniform() < p
