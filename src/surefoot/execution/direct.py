"""The update that `optimizer.step()` makes, to the bit, without the wrappers around it.

Around one update of ten small tensors torch spends more on hooks, profiler records and looking up its lists than on
the arithmetic (of a LeNet-5 step at batch 4: 130 of 720 microseconds). Whatever this file does not know as its own
goes through `optimizer.step()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks


class DirectUpdate:
    """Called after the gradients are there; leaves parameters and state as `optimizer.step()` would.

    Parameters without a gradient are left alone, as torch does. State is made by the optimizer itself and looked
    up anew each time, so that a `load_state_dict`, an added group or a parameter unfrozen later are seen.
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self.optimizer = optimizer
        kind = type(optimizer)
        self._raw = inspect.unwrap(kind.step) if plain_step(optimizer) else None
        # What a group's kernel is given beside parameters and gradients, and the kernel.
        self._lists: Callable[[dict, list[Tensor]], tuple | None] | None = None
        if kind is torch.optim.SGD:
            self._lists, self._kernel = self._sgd_state, _sgd
        elif kind in (torch.optim.Adam, torch.optim.AdamW):
            self._lists, self._kernel = self._adam_state, _adam
        self._count = -1
        self._uniform = False

    def __call__(self) -> None:
        optimizer = self.optimizer
        own = optimizer.__dict__.get("step")
        if self._raw is None or (own is not None and not hasattr(own, "_wrapped_by_lr_sched")):
            optimizer.step()
            return
        plain = ((optimizer,), {})
        arguments = before_step(optimizer, plain)
        was = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            if arguments is not plain or not self._fused():
                self._raw(*arguments[0], **arguments[1])
        finally:
            torch._C._set_grad_enabled(was)
        after_step(optimizer, arguments)

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
            if grads[0].layout is not torch.strided:
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

    def _sgd_state(self, group: dict, params: list[Tensor]) -> tuple | None:
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

    def _adam_state(self, group: dict, params: list[Tensor]) -> tuple | None:
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


def _sgd(group: dict, params: list[Tensor], grads: list[Tensor], state: tuple) -> None:
    torch._fused_sgd_(
        params,
        grads,
        *state,
        weight_decay=group["weight_decay"],
        momentum=group["momentum"],
        lr=group["lr"],
        dampening=group["dampening"],
        nesterov=group["nesterov"],
        maximize=group["maximize"],
        is_first_step=False,
    )


def _adam(group: dict, params: list[Tensor], grads: list[Tensor], state: tuple) -> None:
    torch._foreach_add_(state[-1], 1)
    kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_
    beta1, beta2 = group["betas"]
    kernel(
        params,
        grads,
        *state,
        amsgrad=group["amsgrad"],
        lr=group["lr"],
        beta1=beta1,
        beta2=beta2,
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=group["maximize"],
    )


def before_step(optimizer: torch.optim.Optimizer, arguments: tuple[tuple, dict]) -> tuple[tuple, dict]:
    """What `optimizer.step()` calls first: the hooks, which may give other arguments."""
    # A torch scheduler looks at this to warn of being stepped before the optimizer.
    optimizer._opt_called = True
    for hooks in (_global_optimizer_pre_hooks, optimizer._optimizer_step_pre_hooks):
        for hook in hooks.values():
            arguments = hook(optimizer, *arguments) or arguments
    return arguments


def after_step(optimizer: torch.optim.Optimizer, arguments: tuple[tuple, dict]) -> None:
    """What `optimizer.step()` calls last: the hooks."""
    for hooks in (optimizer._optimizer_step_post_hooks, _global_optimizer_post_hooks):
        for hook in hooks.values():
            hook(optimizer, *arguments)


def plain_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step is torch's own and nothing is to be differentiated through it."""
    return type(optimizer).__module__.startswith("torch.optim.") and not optimizer.defaults.get("differentiable")
