"""The update that `optimizer.step()` makes, to the bit, without the wrappers around it.

Around one update of ten small tensors torch spends more on hooks, profiler records and looking up its lists than on
the arithmetic (of a LeNet-5 step at batch 4: 130 of 720 microseconds). Whatever this file does not know as its own
goes through `optimizer.step()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import torch_compat
from ..closure import update_without

Group = dict[str, Any]
Tensors = list[Tensor]
State = tuple[Tensors, ...]
Kernel = Callable[..., None]
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class DirectUpdate:
    """Called after the gradients are there; leaves parameters and state as `optimizer.step()` would.

    Parameters without a gradient are left alone, as torch does. State is made by the optimizer itself and looked
    up anew each time, so that a `load_state_dict`, an added group or a parameter unfrozen later are seen.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        kind = type(optimizer)
        self._raw = inspect.unwrap(kind.step) if _is_plain(optimizer) else None
        # What a group's kernel is given beside parameters and gradients, and the kernel.
        self._lists: Callable[[Group, Tensors], State | None] | None = None
        self._kernel: Callable[[Group, Tensors, Tensors, State], None]
        if kind is torch.optim.SGD and (sgd := torch_compat.fused("sgd")):
            self._lists, self._kernel = self._sgd_state, lambda *each: _run_sgd(sgd, *each)
        elif kind in (torch.optim.Adam, torch.optim.AdamW):
            adam, adamw = torch_compat.fused("adam"), torch_compat.fused("adamw")
            if adam and adamw:
                self._lists = self._adam_state
                self._kernel = lambda group, *rest: _run_adam(
                    adamw if group["decoupled_weight_decay"] else adam, group, *rest
                )
        self._count = -1
        self._uniform = False

    def __call__(self) -> None:
        optimizer = self.optimizer
        hooks = torch_compat.step_hooks(optimizer)
        if self._raw is None or hooks is None or _is_patched(optimizer):
            update_without(optimizer)
            return
        before, after = hooks
        plain: Arguments = ((optimizer,), {})
        arguments = plain
        # A torch scheduler looks at this to warn of being stepped before the optimizer.
        optimizer._opt_called = True  # type: ignore[attr-defined]
        for hook in before:  # which may give other arguments
            arguments = hook(optimizer, *arguments) or arguments
        with torch.no_grad():
            if arguments is not plain or not self._fused():
                self._raw(*arguments[0], **arguments[1])
        for hook in after:
            hook(optimizer, *arguments)

    def _fused(self) -> bool:
        """Run torch's fused kernel on every group; False where one of them is not a case for it (nothing was done)."""
        if self._lists is None or not self._alike():
            return False
        ready = []
        for group in self.optimizer.param_groups:
            if not group["fused"] or type(group["lr"]) is not float:
                return False
            params = group["params"]
            grads = [p.grad for p in params]
            for grad in grads:
                if grad is None:
                    params = [p for p in params if p.grad is not None]
                    grads = [p.grad for p in params]
                    break
            if not grads:
                continue
            if any([grad.layout is not torch.strided for grad in grads]):
                return False
            state = self._lists(group, params)
            if state is None:
                return False
            ready.append((group, params, grads, state))
        for each in ready:
            self._kernel(*each)
        return True

    def _alike(self) -> bool:
        """Whether all parameters are of one type and on one device."""
        groups = self.optimizer.param_groups
        count = sum([len(group["params"]) for group in groups])
        if count != self._count:
            self._count = count
            parameters = [p for group in groups for p in group["params"]]
            self._uniform = len({(p.device, p.dtype) for p in parameters}) == 1 and parameters[0].is_floating_point()
        return self._uniform

    def _sgd_state(self, group: Group, params: Tensors) -> State | None:
        if not group["momentum"]:
            return ([],)
        state = self.optimizer.state
        try:
            buffers = [state[p]["momentum_buffer"] for p in params]
        except KeyError:  # the first step, or a parameter that came later: torch makes its state
            return None
        for buffer in buffers:
            if buffer is None:
                return None
        return (buffers,)

    def _adam_state(self, group: Group, params: Tensors) -> State | None:
        state = self.optimizer.state
        beta1, beta2 = group["betas"]
        if type(beta1) is not float or type(beta2) is not float:
            return None
        try:
            return (
                [state[p]["exp_avg"] for p in params],
                [state[p]["exp_avg_sq"] for p in params],
                [state[p]["max_exp_avg_sq"] for p in params] if group["amsgrad"] else [],
                [state[p]["step"] for p in params],
            )
        except KeyError:
            return None


def _run_sgd(kernel: Kernel, group: Group, params: Tensors, grads: Tensors, state: State) -> None:
    """torch's fused SGD on one group; `state` holds the momentum buffers."""
    numbers = {name: group[name] for name in ("lr", "momentum", "dampening", "nesterov", "weight_decay", "maximize")}
    kernel(params, grads, *state, is_first_step=False, **numbers)


def _run_adam(kernel: Kernel, group: Group, params: Tensors, grads: Tensors, state: State) -> None:
    """torch's fused Adam or AdamW on one group; `state` holds averages, squares, their maxima and the step counts."""
    torch_compat.add_to_all(state[-1], 1)
    numbers = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
    beta1, beta2 = group["betas"]
    kernel(params, grads, *state, beta1=beta1, beta2=beta2, **numbers)


def _is_plain(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step is torch's own and nothing is to be differentiated through it."""
    return type(optimizer).__module__.startswith("torch.optim.") and not optimizer.defaults.get("differentiable")


def drops_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its `zero_grad` is torch's own, which does no more than that."""
    return type(optimizer).zero_grad is torch.optim.Optimizer.zero_grad and "zero_grad" not in vars(optimizer)


def _is_patched(optimizer: torch.optim.Optimizer) -> bool:
    """Whether somebody put another `step` on the optimizer; a torch scheduler's wrapper of the class's own is none."""
    own = vars(optimizer).get("step")
    if own is None:
        return False
    return not hasattr(own, "_wrapped_by_lr_sched") or getattr(own, "__wrapped__", None) is not type(optimizer).step
