"""Every optimizer of `torch.optim` by its name; listing them imports nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..registry import ArgumentProblem, Entry, Range, Registry, describe, type_violation

_LR = Range(low=0, high_open=True, hint="give a rate of 0 or more, e.g. 0.001")
_AT_LEAST_0 = Range(low=0, high_open=True)
_FRACTION = Range(low=0, high=1, high_open=True)
_LIMITS = {
    "lr": _LR,
    "momentum": _AT_LEAST_0,
    "weight_decay": _AT_LEAST_0,
    "eps": _AT_LEAST_0,
    "rho": Range(low=0, high=1),
    "alpha": _AT_LEAST_0,
    "lr_decay": _AT_LEAST_0,
    "initial_accumulator_value": _AT_LEAST_0,
    "momentum_decay": _AT_LEAST_0,
    "max_iter": Range(low=1),
    "max_eval": Range(low=1),
    "history_size": Range(low=1),
    "ns_steps": Range(low=1),
    "d": Range(low=1),
}


@dataclass(frozen=True)
class _OptimizerEntry(Entry):
    """An entry with the one check that a signature cannot make: the numbers inside of `betas`."""

    def problems(self, arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
        return super().problems(arguments) + beta_problems(arguments)


def _entry(name: str, summary: str, state: str, paper: str) -> Entry:
    return _OptimizerEntry(
        name,
        f"torch.optim:{name}",
        summary,
        provided=("params",),
        limits=_LIMITS,
        facts={"state per parameter": state, "source": paper},
    )


def beta_problems(arguments: Mapping[str, Any]) -> list[ArgumentProblem]:
    """What is wrong with `betas`: two numbers, each in [0, 1).

    >>> [p.message for p in beta_problems({"betas": [0.9, 1.5]})]
    ['betas[1]: 1.5 is above 1']
    """
    betas = arguments.get("betas")
    if not isinstance(betas, list | tuple):
        return []
    problems = []
    if len(betas) == 2:
        for index, beta in enumerate(betas):
            if type_violation(beta, float) is None and (wrong := _FRACTION.violation(beta)):
                problems.append(ArgumentProblem("betas", f"betas[{index}]: {wrong}"))
    else:
        problems.append(ArgumentProblem("betas", f"{describe(betas)} is not a list of 2 numbers"))
    return problems


OPTIMIZERS = Registry(
    "optimizer",
    "optimizers",
    [
        _entry("SGD", "Gradient descent, with momentum or Nesterov's", "0 or 1", "Robbins & Monro 1951"),
        _entry("Adam", "Adaptive moments", "2", "arxiv.org/abs/1412.6980"),
        _entry("AdamW", "Adam with decoupled weight decay", "2", "arxiv.org/abs/1711.05101"),
        _entry("RMSprop", "Rates divided by a running root mean square", "1 to 3", "Hinton, lecture 6"),
        _entry("Adadelta", "Adaptive rates without a base rate", "2", "arxiv.org/abs/1212.5701"),
        _entry("Adafactor", "Factored second moments: little memory", "under 1", "arxiv.org/abs/1804.04235"),
        _entry("Adagrad", "Rates shrink with the sum of squares", "1", "jmlr.org/papers/v12/duchi11a"),
        _entry("Adamax", "Adam with the infinity norm", "2", "arxiv.org/abs/1412.6980"),
        _entry("ASGD", "Averaged gradient descent", "1", "Polyak & Juditsky 1992"),
        _entry("LBFGS", "Quasi-Newton; evaluates its closure many times", "2 x history", "Nocedal 1980"),
        _entry("Muon", "Orthogonalised momentum, for matrices only", "1", "kellerjordan.github.io/posts/muon"),
        _entry("NAdam", "Adam with Nesterov momentum", "2", "Dozat 2016"),
        _entry("RAdam", "Adam with its own warmup", "2", "arxiv.org/abs/1908.03265"),
        _entry("Rprop", "The gradient's sign only; full batches", "2", "Riedmiller & Braun 1993"),
        _entry("SparseAdam", "Adam for sparse gradients only", "2", "arxiv.org/abs/1412.6980"),
    ],
)
