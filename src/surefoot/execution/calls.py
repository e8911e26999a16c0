"""Modules called without `nn.Module`'s wrapper, for the time of one forward pass.

Calling a layer goes through two functions of `nn.Module`, eight look-ups of hooks, the layer's own `forward` and a
function of `torch.nn.functional` before anything is computed, and each of its parameters is looked up the slow way: of
an eager LeNet-5 step at batch 4 that is a twelfth. What is called here in their place is what they call in the end,
with the same arguments, so no bit changes. A module that somebody hooked, patched or compiled is left as it is; that
is looked at before every pass, and after it every module is as it was. Where torch.compile has a part in the model,
nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

# torch's own place for a function that is called instead of `forward`; `Module.compile` puts it there.
_INSTEAD = "_compiled_call_impl"


class _Callee(NamedTuple):
    module: nn.Module
    own: dict[str, Any]
    kind: type
    call: Callable[..., Any] | None  # None: the module's own `forward`


class DirectCalls:
    """A context for forward passes of `roots` (modules, or other functions, which are left alone).

    Enter it once for every pass: what changed since the last one (hooks, other weights, other classes) is seen.
    Not for passes that are traced.
    """

    def __init__(self, *roots: Any):
        modules = {id(m): m for root in roots if isinstance(root, nn.Module) for m in root.modules()}
        if any("_orig_mod" in m._modules for m in modules.values()):  # made by torch.compile
            modules = {}
        self._callees = [
            _Callee(m, m.__dict__, type(m), _direct(m)) for m in modules.values() if _has_torchs_call(type(m))
        ]
        self._changed: list[dict[str, Any]] = []

    def __enter__(self) -> None:
        if _has_any_global_hook():
            return
        changed = self._changed
        for module, own, kind, call in self._callees:
            if _INSTEAD in own:  # by Module.compile: what is compiled must find the modules as they were
                self.__exit__()
                return
            if (
                own["_forward_hooks"]
                or own["_forward_pre_hooks"]
                or own["_backward_hooks"]
                or own["_backward_pre_hooks"]
                or "forward" in own
                or type(module) is not kind
            ):
                continue
            if call is None:
                own[_INSTEAD] = module.forward
                own.update(module._modules)
            else:
                own[_INSTEAD] = call
            changed.append(module)

    def __exit__(self, *_: object) -> None:
        for module in self._changed:
            own = module.__dict__
            own.pop(_INSTEAD, None)
            for name in module._modules:
                own.pop(name, None)
        self._changed.clear()


def _has_torchs_call(kind: type) -> bool:
    """Whether modules of this class are called by nothing but `nn.Module`'s own code."""
    if issubclass(kind, torch.jit.ScriptModule):
        return False
    names = ("__call__", "_wrapped_call_impl", "_call_impl")
    return all(getattr(kind, name) is getattr(nn.Module, name) for name in names)


def _direct(module: nn.Module) -> Callable[..., Any] | None:
    """The function that this very module's `forward` ends in; None where that is not known."""
    make = _MAKERS.get(type(module))
    return None if make is None else make(module)


def _conv2d(module: nn.Conv2d) -> Callable[[Tensor], Tensor] | None:
    if module.padding_mode != "zeros":
        return None
    weights, conv = module._parameters, torch.conv2d

    def call(input: Tensor) -> Tensor:
        try:
            weight, bias = weights["weight"], weights["bias"]
        except KeyError:  # they are plain attributes now
            return module.forward(input)
        return conv(input, weight, bias, module.stride, module.padding, module.dilation, module.groups)

    return call


def _linear(module: nn.Linear) -> Callable[[Tensor], Tensor]:
    weights, linear = module._parameters, nn.functional.linear

    def call(input: Tensor) -> Tensor:
        try:
            weight, bias = weights["weight"], weights["bias"]
        except KeyError:
            return module.forward(input)
        return linear(input, weight, bias)

    return call


def _max_pool2d(module: nn.MaxPool2d) -> Callable[[Tensor], Tensor] | None:
    if module.return_indices:
        return None
    pool = torch.max_pool2d

    def call(input: Tensor) -> Tensor:
        return pool(input, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode)

    return call


def _relu(module: nn.ReLU) -> Callable[[Tensor], Tensor] | None:
    return None if module.inplace else torch.relu


def _cross_entropy(module: nn.CrossEntropyLoss) -> Callable[[Tensor, Tensor], Tensor]:
    buffers, cross_entropy = module._buffers, torch._C._nn.cross_entropy_loss
    reduction = {"none": 0, "mean": 1, "sum": 2}  # as torch.nn.functional numbers them

    def call(input: Tensor, target: Tensor) -> Tensor:
        number = reduction[module.reduction]
        return cross_entropy(
            input, target, buffers["weight"], number, module.ignore_index, module.label_smoothing
        )

    return call


_MAKERS: dict[type, Callable[[Any], Callable[..., Any] | None]] = {
    nn.Conv2d: _conv2d,
    nn.Linear: _linear,
    nn.MaxPool2d: _max_pool2d,
    nn.ReLU: _relu,
    nn.CrossEntropyLoss: _cross_entropy,
}
