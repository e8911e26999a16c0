"""A look at a model that leaves no trace: everything that a forward pass may change is put back."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ... import rng


@contextlib.contextmanager
def untouched(*modules: Any) -> Iterator[None]:
    """Within it, modules may run in training mode; after it they are as before, to the last bit.

    Put back are all random number generators (those that a module keeps for itself, too), buffers, training flags,
    and every attribute of every module (what a `forward` set, rebound, or changed in a list, dict or set).
    Gradients are left alone by never calling `backward`. Parameters are not copied: a forward pass that writes into
    its own parameters is not undone. torch's own warnings are silenced meanwhile.
    """
    every = {id(m): m for root in modules if isinstance(root, nn.Module) for m in root.modules()}.values()
    generators = rng.capture()
    kept = [_Kept(module) for module in every]
    try:
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one in kept:
            one.put_back()
        rng.restore(generators)


class _Kept:
    """One module as it was."""

    def __init__(self, module: nn.Module):
        self.module = module
        # A TorchScript module keeps its attributes elsewhere; its flag and buffers are reached by the usual methods.
        self.scripted = isinstance(module, torch.jit.ScriptModule)
        self.training = module.training
        self.attributes = {} if self.scripted else dict(module.__dict__)
        self.contents = [(v, v.copy()) for v in self.attributes.values() if type(v) in (list, dict, set)]
        self.generators = [(v, v.get_state()) for v in self.attributes.values() if isinstance(v, torch.Generator)]
        held = [*module.buffers(recurse=False), *self.attributes.values()]
        self.tensors = [(t, t._version, t.detach().clone()) for t in held if isinstance(t, torch.Tensor)]

    def put_back(self) -> None:
        if self.scripted:
            self.module.train(self.training)
        else:
            for name in self.module.__dict__.keys() - self.attributes.keys():
                del self.module.__dict__[name]
            self.module.__dict__.update(self.attributes)
        for container, was in self.contents:
            _refill(container, was)
        for generator, state in self.generators:
            generator.set_state(state)
        with torch.no_grad():
            for tensor, version, value in self.tensors:
                if tensor.shape != value.shape:
                    tensor.set_(value)
                elif tensor._version != version or not torch.equal(tensor, value):
                    tensor.copy_(value)


def _refill(container: Any, was: Any) -> None:
    if type(container) is list:
        container[:] = was
        return
    changed = list(container) != list(was) or (type(was) is dict and any(container[key] is not was[key] for key in was))
    if changed:
        container.clear()
        container.update(was)
