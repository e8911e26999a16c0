"""The models that Surefoot knows by name: LeNet-5 as the tutorial has it, a perceptron, a small ResNet."""

from __future__ import annotations

from typing import Any

from .registry import MODELS, spec_of

__all__ = ["MODELS", "spec_of", "LeNet5", "MLP", "SmallResNet"]


def __getattr__(name: str) -> Any:
    # The classes need torch, the names do not: `surefoot list models` shows them without importing it.
    if name in MODELS:
        return MODELS[name].load()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
