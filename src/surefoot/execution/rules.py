"""Clipping and the update rules of SGD, Adam and AdamW as plain tensor arithmetic, for graphs.

Every number that a schedule may move (lr, momentum, betas, weight decay) is read from a tensor. The rules are those
of torch.optim, `foreach=False`, step for step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .direct import Group, plain_step

RULES = ("SGD", "Adam", "AdamW")


def rules_for(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> UpdateRules:
    """The update of `parameters` as `optimizer` would make it. Raises ValueError where it is none of `RULES`."""
    return UpdateRules(optimizer, parameters)


def in_graph(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a graph can hold this optimizer's update; its state is left as it is."""
    if not plain_step(optimizer) or type(optimizer).__name__ not in RULES:
        return False
    return not any(
        isinstance(group["lr"], Tensor) or group.get("amsgrad") or (group.get("momentum") and group.get("dampening"))
        for group in optimizer.param_groups
    )


class UpdateRules:
    """An optimizer's update over tensors that are handed in; its state is the optimizer's own.

    `tensors()` are the state's tensors and one vector of numbers a group; `read()` fills the vectors from the
    groups; `apply` changes parameters and state in place.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]):
        self.kind = type(optimizer).__name__
        if not plain_step(optimizer) or self.kind not in RULES:
            raise ValueError(f"{self.kind}'s update is not one that a graph can hold ({', '.join(RULES)} are)")
        self.optimizer = optimizer
        self.parameters = list(parameters)
        place = {id(p): i for i, p in enumerate(self.parameters)}
        self.groups = [
            (group, [place[id(p)] for p in group["params"] if id(p) in place]) for group in optimizer.param_groups
        ]
        for group, _ in self.groups:
            if isinstance(group["lr"], Tensor) or group.get("amsgrad"):
                raise ValueError("a graph's update takes no lr that is a tensor and no amsgrad")
        device = self.parameters[0].device
        self._numbers = [torch.zeros(5, device=device) for _ in self.groups]
        self._last: list[tuple[float, ...] | None] = [None] * len(self.groups)
        self.make_state()

    def make_state(self) -> None:
        """State as torch makes it before the first update; what is there already stays."""
        for group, indices in self.groups:
            for index in indices:
                parameter = self.parameters[index]
                if self.kind == "SGD" and not group["momentum"]:
                    continue
                state = self.optimizer.state[parameter]
                if self.kind == "SGD":
                    # torch begins with a copy of the first gradient and no dampening; zeros give the same without
                    # dampening only.
                    if state.get("momentum_buffer") is None:
                        if group["dampening"]:
                            raise ValueError("a graph's SGD begins without dampening")
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                elif not state:
                    on = parameter.device if group["fused"] or group["capturable"] else "cpu"
                    state["step"] = torch.zeros((), device=on)
                    state["exp_avg"] = torch.zeros_like(parameter)
                    state["exp_avg_sq"] = torch.zeros_like(parameter)

    def names(self) -> tuple[str, ...]:
        """The tensors of one parameter's state, in order."""
        return ("momentum_buffer",) if self.kind == "SGD" else ("step", "exp_avg", "exp_avg_sq")

    def tensors(self) -> list[Tensor]:
        """The state of every parameter that has one, then the groups' numbers."""
        found = []
        for group, indices in self.groups:
            if self.kind == "SGD" and not group["momentum"]:
                continue
            for index in indices:
                state = self.optimizer.state[self.parameters[index]]
                found += [state[name] for name in self.names()]
        return [*found, *self._numbers]

    def read(self) -> None:
        """Take over the groups' numbers, where they changed since the last time."""
        for place, (group, _) in enumerate(self.groups):
            if self.kind == "SGD":
                now = (group["lr"], group["weight_decay"], group["momentum"], group["dampening"], 0.0)
            else:
                now = (group["lr"], group["weight_decay"], *group["betas"], group["eps"])
            if now != self._last[place]:
                self._last[place] = now
                self._numbers[place].copy_(torch.tensor(now))

    def apply(
        self, parameters: list[Tensor], grads: Sequence[Tensor | None], tensors: list[Tensor], sound: Tensor | None
    ) -> None:
        """Update `parameters` and the state in `tensors` in place; where `sound` is false, to what they were."""
        numbers = tensors[len(tensors) - len(self.groups) :]
        state = iter(tensors)
        for (group, indices), values in zip(self.groups, numbers, strict=True):
            for index in indices:
                has_state = self.kind != "SGD" or group["momentum"]
                own = [next(state) for _ in self.names()] if has_state else []
                grad = grads[index]
                if grad is None:
                    continue
                grad = -grad if group["maximize"] else grad
                rule = _sgd if self.kind == "SGD" else _adam
                new = rule(parameters[index], grad, own, values.unbind(), group)
                for target, value in zip([parameters[index], *own], new, strict=True):
                    target.copy_(value if sound is None else torch.where(sound, value, target))


def _sgd(p: Tensor, grad: Tensor, state: list[Tensor], numbers: Sequence[Tensor], group: Group) -> list[Tensor]:
    lr, weight_decay, momentum, dampening, _ = numbers
    if group["weight_decay"]:
        grad = grad + weight_decay * p
    if not state:
        return [p - lr * grad]
    buffer = momentum * state[0] + (grad if not group["dampening"] else (1 - dampening) * grad)
    moved = grad + momentum * buffer if group["nesterov"] else buffer
    return [p - lr * moved, buffer]


def _adam(p: Tensor, grad: Tensor, state: list[Tensor], numbers: Sequence[Tensor], group: Group) -> list[Tensor]:
    lr, weight_decay, beta1, beta2, eps = numbers
    step, mean, square = state
    step = step + 1
    count = step.to(p.device)
    if group["weight_decay"]:
        if group["decoupled_weight_decay"]:
            p = p * (1 - lr * weight_decay)
        else:
            grad = grad + weight_decay * p
    mean = mean + (1 - beta1) * (grad - mean)
    square = beta2 * square + (1 - beta2) * grad * grad
    correction1 = 1 - beta1**count
    correction2 = (1 - beta2**count).sqrt()
    denominator = square.sqrt() / correction2 + eps
    return [p - (lr / correction1) * (mean / denominator), step, mean, square]


def clip(
    grads: Sequence[Tensor | None], max_grad_norm: float | None, clip_value: float | None, norm: Tensor
) -> tuple[list[Tensor | None], Tensor]:
    """Gradients limited as `clip_grad_norm_` and then `clip_grad_value_` do, and their 2-norm before."""
    if max_grad_norm is not None:
        norm = torch.stack([g.norm() for g in grads if g is not None]).norm()
        factor = (max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        grads = [None if g is None else g * factor for g in grads]
    if clip_value is not None:
        grads = [None if g is None else g.clamp(-clip_value, clip_value) for g in grads]
    return list(grads), norm
