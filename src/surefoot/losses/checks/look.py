"""The lint: one batch, run once and without a trace, against how the loss is meant to be used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ...catalog import did_you_mean
from ...errors import UsageError, first_line
from ...untouched import untouched
from ..calling import convention_of, describe
from .evidence import Evidence, Watch, plain_module, run_loss, tensors_in
from .findings import FINDINGS, Finding, error
from .inputs import check_data, check_inputs
from .learning import check_learning, check_optimizer
from .outputs import check_outputs
from .refusal import look, refused_by_model
from .targets import check_targets

# What a mistaken shape, type or value raises in torch; anything else is a fault in the user's code and stays as it is.
_REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)


def lint(
    model: nn.Module,
    loss: Any,
    optimizer: torch.optim.Optimizer | None,
    batch: Sequence[Any],
    *,
    classes: int | Sequence[str] | None = None,
    off: Collection[str] = (),
) -> list[Finding]:
    """Look for likely mistakes in how model, loss, optimizer and data fit together.

    `batch` is what training gives to `losses.apply` (on the model's device); `classes` is the number of classes of
    the data, or their names; findings named in `off` are not told, and with ``"all"`` nothing is looked at. One
    forward and backward pass in training mode; parameters, buffers, gradients, optimizer and random number
    generators are afterwards as they were. Run it under `torch.autocast` where training is.

    Raises UsageError, from the original error, where the model cannot run on the batch, and for an unknown name in
    `off`.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batch = (torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    >>> [finding.name for finding in lint(model, nn.CrossEntropyLoss(), optimizer, batch)]
    ['softmax-before-cross-entropy']
    """
    if "all" in off:
        return []
    for name in off:
        if name not in FINDINGS:
            raise UsageError(
                f"lint_off: unknown finding {name!r}{did_you_mean(name, FINDINGS) or ';'} see docs/lint.md"
            )
    model = plain_module(model)
    seen = Evidence(
        model, loss, batch, optimizer, classes if classes is None or isinstance(classes, int) else len(classes)
    )
    seen.parameters = dict(model.named_parameters())
    if isinstance(loss, nn.Module):
        seen.parameters |= {f"loss.{n}": p for n, p in loss.named_parameters()}
    with untouched(model, loss), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # torch's own
        found = _look(seen)
    return [finding for finding in _once(found) if finding.name not in off]


def _look(seen: Evidence) -> list[Finding]:
    found = list(check_optimizer(seen))
    _run_model(seen)
    found += check_data(seen)
    if _stops(found, "nan-in-data"):
        return found
    found += check_inputs(seen)
    before = [*check_targets(seen), *check_outputs(seen)]
    found += before
    if any(finding.severity == "error" and finding.name != "too-few-outputs" for finding in before):
        return found
    try:
        run_loss(seen)
    except torch.OutOfMemoryError:
        raise
    except _REFUSALS as refusal:
        return [*found, _refused_by_loss(seen, refusal)]
    found += _without_echoes(list(check_learning(seen)), found)
    return found


def _run_model(seen: Evidence) -> None:
    seen.model.train()
    for module in seen.model.modules():
        if "_compiled_call_impl" in module.__dict__:
            # Compiled in place: its plain code is looked at, and `untouched` puts the compiled one back.
            module.__dict__["_compiled_call_impl"] = None
    watch = Watch(seen.model)
    try:
        seen.outputs, seen.targets = convention_of(seen.loss).forward(seen.model, seen.batch)
    except (UsageError, torch.OutOfMemoryError):
        raise
    except _REFUSALS as refusal:
        raise refused_by_model(refusal, watch.stack, seen.batch) from refusal
    finally:
        watch.off()
    seen.layers = watch.layers


def _refused_by_loss(seen: Evidence, refusal: Exception) -> Finding:
    text = first_line(refusal).rstrip(".")
    outputs = ", ".join(map(look, tensors_in(seen.outputs)))
    targets = seen.targets_given()
    told = f"{describe(seen.loss)} refuses outputs {outputs}" + (
        f" with targets {', '.join(map(look, targets))}" if targets else ""
    )
    if all(name is not None for name, _ in seen.parts) and "weight" not in text:
        if _TYPES.search(text) and targets:
            wanted = "long" if "Long" in text and "found Float" in text else "float"
            return error("target-dtype", f"{told}: {text}", f"give `targets.{wanted}()`")
        if _SHAPES.search(text):
            fix = "give outputs and targets the shapes that docs/losses.md names"
            return error("shape-mismatch", f"{told}: {text}", fix)
    fix = "docs/losses.md says what each loss is given"
    if "not implemented for" in text:
        fix = "compute the loss in float32: `outputs.float()`"
    return error("loss-refused", f"{told}: {text}", fix)


# How torch words a refusal of a type, and of a shape.
_TYPES = re.compile(r"\b(dtype|scalar type|result type|bool tensors?|Integral inputs)\b")
_SHAPES = re.compile(r"\b(sizes?|shapes?|dimensions?|[01]D or [12]D|broadcast\w*)\b", re.I)

# What another finding already explains is not told beside it: a zero gradient because of dead units, a loss far off
# because of the inputs' scale or the outputs' kind.
_BY_THEMSELVES = {"constant-target", "kl-reduction-mean", "not-in-optimizer", "no-gradient"}
_ECHOES = {"loss-far-from-chance", "zero-gradient", "dead-outputs"}


def _without_echoes(after: list[Finding], before: list[Finding]) -> list[Finding]:
    causes = {finding.name for finding in before} - _BY_THEMSELVES
    names = {finding.name for finding in after}
    hidden = set(_ECHOES) if causes or "nan-at-start" in names else set()
    if "dead-outputs" in names:
        hidden |= {"zero-gradient", "loss-far-from-chance"}
    return [finding for finding in after if finding.name not in hidden]


def _stops(found: Iterable[Finding], name: str) -> bool:
    return any(finding.name == name for finding in found)


def _once(found: Iterable[Finding]) -> list[Finding]:
    """The parts of a sum of losses may tell the same thing; it is told once."""
    return list(dict.fromkeys(found))
