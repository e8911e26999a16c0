"""Right set-ups, broken in one way each: the lint names what was broken, whatever the model and the data."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from right_setups import right_setup
from torch import nn
from wrong_setups import Then

from surefoot.losses import lint
from surefoot.losses.torch_losses import formula_of, ignored

VALUES = ("MSELoss", "L1Loss", "SmoothL1Loss", "HuberLoss")
LOGITS = ("BCEWithLogitsLoss", "MultiLabelSoftMarginLoss")


def indices(setup) -> bool:
    return not setup.batch[1].is_floating_point()


def scaled_by_the_data(setup) -> bool:
    """Whether the model relies on the scale of its inputs."""
    inputs = setup.batch[0]
    if not inputs.is_floating_point() or inputs.numel() < 16 or inputs.std() < 0.2:
        return False
    return "normalised inside" not in setup.about and "norm first" not in setup.about and inputs.unique().numel() > 2


def without_first_parameter(setup):
    held = [p for group in setup.optimizer.param_groups for p in group["params"]]
    return setup._replace(optimizer=torch.optim.SGD(held[1:] or [nn.Parameter(torch.ones(1))], lr=0.1))


def detached(outputs):
    return tuple(map(detached, outputs)) if isinstance(outputs, tuple) else outputs.detach()


def with_nan(inputs):
    inputs = inputs.clone()
    inputs.view(-1)[-1] = float("nan")
    return inputs


def ending(function):
    return lambda setup: setup._replace(model=Then(setup.model, function))


def inputs(function):
    return lambda setup: setup._replace(batch=(function(setup.batch[0]), *setup.batch[1:]))


def targets(function):
    return lambda setup: setup._replace(batch=(setup.batch[0], function(setup.batch[1])))


# What is broken: (where it can be, how, the findings that name it).
MUTATIONS = {
    "softmax": (("CrossEntropyLoss",), ending(lambda o: o.softmax(1)), "softmax-before-cross-entropy"),
    "log-softmax": (("CrossEntropyLoss",), ending(lambda o: o.log_softmax(1)), "log-softmax-before-cross-entropy"),
    "other loss": (
        lambda s: formula_of(s.loss) == "CrossEntropyLoss" and indices(s),
        lambda s: s._replace(loss=nn.NLLLoss(ignore_index=ignored(s.loss))),
        "raw-logits-to-nll",
    ),
    "indices too high": (
        lambda s: formula_of(s.loss) in ("CrossEntropyLoss", "NLLLoss") and indices(s),
        targets(lambda t: t + 5000),
        "target-out-of-range",
    ),
    "float indices": (
        lambda s: formula_of(s.loss) in ("CrossEntropyLoss", "NLLLoss") and indices(s),
        targets(torch.Tensor.float),
        "target-dtype",
    ),
    "pixels not scaled": (
        lambda s: formula_of(s.loss) == "CrossEntropyLoss" and scaled_by_the_data(s),
        inputs(lambda i: i * 255),
        "inputs-not-normalised",
    ),
    "probabilities": (("NLLLoss",), ending(torch.exp), "probabilities-to-nll"),
    "sigmoid": (LOGITS, ending(torch.sigmoid), "probabilities-to-bce-with-logits"),
    "relu": (LOGITS, ending(torch.relu), "relu-before-loss"),
    "no sigmoid": (("BCELoss",), lambda s: s._replace(model=s.model[:-1]), "raw-logits-to-bce"),
    "further dimension": (VALUES, targets(lambda t: t[..., None]), "broadcast shape-mismatch"),
    "divergence of probabilities": (("KLDivLoss",), ending(torch.exp), "kl-given-probabilities"),
    "parameter left out": (lambda s: True, without_first_parameter, "not-in-optimizer"),
    "graph cut": (lambda s: True, ending(detached), "no-gradient"),
    "nan": (lambda s: s.batch[0].is_floating_point(), inputs(with_nan), "nan-in-data"),
}


def missed(seeds) -> tuple[list[str], Counter]:
    """The mutations that were not named, and how many of each there were."""
    silent, counts = [], Counter()
    for seed in seeds:
        for name, (where, mutate, findings) in MUTATIONS.items():
            setup = right_setup(seed)
            if not (where(setup) if callable(where) else formula_of(setup.loss) in where):
                continue
            counts[name] += 1
            broken = mutate(setup)
            found = lint(broken.model, broken.loss, broken.optimizer, broken.batch, classes=broken.classes)
            if not {finding.name for finding in found} & set(findings.split()):
                silent.append(f"{name} in {setup.about}: {[finding.name for finding in found]}")
    return silent, counts


def test_every_mutation_of_40_right_set_ups_is_named():
    silent, counts = missed(range(80, 120))
    assert silent == []
    assert set(counts) == set(MUTATIONS)


@pytest.mark.slow
def test_every_mutation_of_1000_right_set_ups_is_named():
    silent, counts = missed(range(1000, 2000))
    assert silent == [] and counts.total() > 4000
