"""The update that `optimizer.step()` makes, to the bit, without the wrappers around it.

Around one update of ten small tensors torch spends more on hooks, profiler records and looking up its lists than on
the arithmetic (of a LeNet-5 step at batch 4: 130 of 720 microseconds). Whatever this file does not know as its own
goes through `optimizer.step()`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from itertools import chain

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
        self._kernel: Callable[[dict], bool] | None = None
        if kind is torch.optim.SGD:
            self._kernel = self._sgd
        elif kind in (torch.optim.Adam, torch.optim.AdamW):
            self._kernel = self._adam
        self._count = -1
        self._uniform = False

    def __call__(self) -> None:
        optimizer = self.optimizer
        own = optimizer.__dict__.get("step")
        if self._raw is None or (own is not None and not hasattr(own, "_wrapped_by_lr_sched")):
            optimizer.step()
            return
        # What a torch scheduler looks at to warn of being stepped before the optimizer.
        optimizer._opt_called = True
        arguments: tuple[tuple, dict] = ((optimizer,), {})
        plain = arguments
        for hook in chain(_global_optimizer_pre_hooks.values(), optimizer._optimizer_step_pre_hooks.values()):
            arguments = hook(optimizer, *arguments) or arguments
        was = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)
        try:
            if arguments is not plain or self._kernel is None or not self._fusable() or not self._kernels():
                self._raw(*arguments[0], **arguments[1])
        finally:
            torch._C._set_grad_enabled(was)
        for hook in chain(optimizer._optimizer_step_post_hooks.values(), _global_optimizer_post_hooks.values()):
            hook(optimizer, *arguments)

    def _fusable(self) -> bool:
        groups = self.optimizer.param_groups
        count = sum(len(group["params"]) for group in groups)
        if count != self._count:
            self._count = count
            parameters = [p for group in groups for p in group["params"]]
            self._uniform = len({(p.device, p.dtype) for p in parameters}) == 1 and parameters[0].is_floating_point()
        return self._uniform

    def _kernels(self) -> bool:
        """Run torch's fused kernel on every group; False where one of them is not a case for it (nothing was done)."""
        calls = []
        for group in self.optimizer.param_groups:
            if not group["fused"] or type(group["lr"]) is not float:
                return False
            call = self._kernel(group)
            if call is None:
                return False
            calls.append(call)
        for call in calls:
            call()
        return True

    def _sgd(self, group: dict) -> Callable[[], None] | None:
        params, grads = _with_gradients(group["params"])
        if not params:
            return _nothing
        if grads[0].layout is not torch.strided:
            return None
        momentum = group["momentum"]
        buffers: list[Tensor] = []
        if momentum:
            state = self.optimizer.state
            try:
                buffers = [state[p]["momentum_buffer"] for p in params]
            except KeyError:  # the first step, or a parameter that came later: torch makes its state
                return None
            if any(buffer is None for buffer in buffers):
                return None
        return lambda: torch._fused_sgd_(
            params,
            grads,
            buffers,
            weight_decay=group["weight_decay"],
            momentum=momentum,
            lr=group["lr"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
        )

    def _adam(self, group: dict) -> Callable[[], None] | None:
        params, grads = _with_gradients(group["params"])
        if not params:
            return _nothing
        if grads[0].layout is not torch.strided:
            return None
        state, amsgrad = self.optimizer.state, group["amsgrad"]
        try:
            steps = [state[p]["step"] for p in params]
            means = [state[p]["exp_avg"] for p in params]
            squares = [state[p]["exp_avg_sq"] for p in params]
            largest = [state[p]["max_exp_avg_sq"] for p in params] if amsgrad else []
        except KeyError:
            return None
        beta1, beta2 = group["betas"]
        if type(beta1) is not float or type(beta2) is not float:
            return None
        kernel = torch._fused_adamw_ if group["decoupled_weight_decay"] else torch._fused_adam_

        def call() -> None:
            torch._foreach_add_(steps, 1)
            kernel(
                params,
                grads,
                means,
                squares,
                largest,
                steps,
                amsgrad=amsgrad,
                lr=group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=group["maximize"],
            )

        return call


def plain_step(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's step is torch's own and nothing is to be differentiated through it."""
    return type(optimizer).__module__.startswith("torch.optim.") and not optimizer.defaults.get("differentiable")


def _with_gradients(parameters: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    grads = [p.grad for p in parameters]
    for grad in grads:
        if grad is None:
            kept = [p for p in parameters if p.grad is not None]
            return kept, [p.grad for p in kept]
    return parameters, grads


def _nothing() -> None:
    return None
