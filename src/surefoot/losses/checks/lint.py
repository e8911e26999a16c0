"""The lint: one batch, run once and without a trace, against how the loss is meant to be used."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Sequence, Sized
from typing import Any

import torch
from torch import nn

from ... import batches
from ...arguments import Arguments
from ...errors import Problems, UsageError, first_line
from ...finding import Finding
from ...modes import enter_training, evaluating
from ...registry import did_you_mean
from ...text import counted, typed
from ...untouched import untouched
from ...wrapping import unwrap
from ..conventions import LossValue, compared, convention_of, describe, value_of
from .evidence import Evidence, Watch, run_loss
from .findings import FINDINGS, error
from .inputs import check_data, check_inputs
from .learning import check_learning, check_optimizer
from .outputs import check_outputs
from .refusal import refused_by_model
from .targets import check_targets

# What a mistaken shape, type or value raises in torch; anything else is a fault in the user's code and stays as it is.
REFUSALS = (RuntimeError, ValueError, TypeError, IndexError)


def lint(
    model: nn.Module,
    loss: Any,
    optimizer: torch.optim.Optimizer | None,
    batch: Sequence[Any],
    *,
    classes: int | Sequence[str] | None = None,
    off: Collection[str] = (),
    last: Sequence[Any] | None = None,
    parts: int = 1,
) -> list[Finding]:
    """Look for likely mistakes in how model, loss, optimizer and data fit together.

    `batch` is what training gives to `losses.apply` (on the model's device); `classes` is the number of classes of
    the data, or their names; findings named in `off` are left out, and with ``"all"`` nothing is looked at. `last` is
    an epoch's last batch, where it is shorter: whether model and loss can be run on it; with `parts` the smallest of
    the micro-batches that batches are cut into. One forward and backward pass in training mode (parts that are frozen
    in evaluation mode stay so); parameters, buffers, gradients, optimizer and random number generators are afterwards
    as they were. Run it under `torch.autocast` where training is.

    Raises UsageError, from the original error, where the model cannot run on the batch, and for an unknown name in
    `off`.

    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Softmax(dim=1))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> batch = (torch.randn(8, 4), torch.tensor([0, 1, 2, 0, 1, 2, 0, 1]))
    >>> [finding.name for finding in lint(model, nn.CrossEntropyLoss(), optimizer, batch)]
    ['softmax-before-cross-entropy']
    """
    off = _checked(model, loss, optimizer, batch, classes, off)
    if "all" in off:
        return []
    model = unwrap(model)
    evidence = Evidence(model, loss, batch, optimizer, len(classes) if isinstance(classes, Sized) else classes)
    evidence.parameters = dict(model.named_parameters())
    if isinstance(loss, nn.Module):
        evidence.parameters |= {f"loss.{n}": p for n, p in loss.named_parameters()}
    with untouched(model, loss), warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")  # torch's own
        findings = _look(evidence)
        if last is not None and not any(finding.severity == "error" for finding in findings):
            findings += _look_at_last(evidence, last, parts)
    # The parts of a sum of losses may find the same thing; it is reported once.
    return [finding for finding in dict.fromkeys(findings) if finding.name not in off]


def _checked(model: Any, loss: Any, optimizer: Any, batch: Any, classes: Any, off: Any) -> tuple[str, ...]:
    """The names in `off`; raises UsageError for arguments that cannot be."""
    check = Arguments()
    check.instance("model", model, nn.Module, "the model itself")
    check.function("loss", loss, "torch.nn.CrossEntropyLoss()")
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        check.instance("optimizer", optimizer, torch.optim.Optimizer, "torch.optim.SGD(model.parameters(), lr=0.1)")
    if not isinstance(batch, tuple | list | dict):
        check.refuse("batch", f"{type(batch).__name__} is no batch; give (inputs, targets), e.g. loader.peek()")
    if isinstance(classes, str) or not (classes is None or hasattr(classes, "__len__")):
        check.whole("classes", classes, low=1)
    names: tuple[str, ...] = check.texts("lint_off", off)
    for name in names:
        if name != "all" and name not in FINDINGS:
            check.refuse(
                "lint_off",
                f"unknown finding {name!r}{did_you_mean(name, FINDINGS)}; `{typed('surefoot', 'explain')}` lists them",
            )
    check.done()
    return names


def check_validation(model: nn.Module, loss: Any, batch: Sequence[Any]) -> None:
    """Raise UsageError where model or loss cannot be run on a batch of the validation data."""
    model = unwrap(model)
    with untouched(model, loss), evaluating(model), torch.no_grad():
        try:
            value_of(loss, *convention_of(loss).forward(model, batch))
        except torch.OutOfMemoryError:
            raise
        except REFUSALS as refusal:
            if problems := target_problems(model, loss, batch):
                raise Problems([f"val: {problem}" for problem in problems]) from refusal
            shapes = ", ".join(map(batches.form, batches.tensors(list(batch))))
            raise UsageError(
                f"val: model and loss cannot be run on the validation data ({shapes}): {first_line(refusal)}; "
                "give it the form of the training data"
            ) from refusal


def target_problems(model: nn.Module, loss: Any, batch: Sequence[Any]) -> list[Finding]:
    """What is wrong with the targets of a batch that a loss refused; the model, in its present mode, is run again."""
    evidence = Evidence(model, loss, batch, None, None)
    try:
        evidence.outputs, evidence.targets = convention_of(loss).forward(model, batch)
        if isinstance(evidence.outputs, LossValue):
            return []
        evidence.outputs = compared(loss, evidence.outputs, evidence.targets)
        return [finding for finding in check_targets(evidence) if finding.severity == "error"]
    except REFUSALS:  # it was the model, or a GPU that is lost
        return []


def _look_at_last(evidence: Evidence, last: Sequence[Any], parts: int) -> list[Finding]:
    """Whether the epoch's last batch, shorter than the others, or its smallest micro-batch can be trained on."""
    try:
        value_of(evidence.loss, *convention_of(evidence.loss).forward(evidence.model, last))
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as refusal:
        text, samples, whole = first_line(refusal).rstrip("."), batches.size(last), batches.size(evidence.batch)
        what = f"the last batch of each epoch has {samples} of {whole} samples"
        other = "a batch_size that divides the data otherwise"
        if parts > 1:
            what = f"of {parts} micro-batches of a batch the smallest has {counted(samples, 'sample')}"
            other = "fewer micro_batches, or a larger batch_size"
        return [
            error(
                "last-batch",
                f"{what}, and cannot be trained on: {text}",
                f"leave it out (drop_last: true, in Python a Loader with drop_last=True), or give {other}",
            )
        ]
    return []


def _look(evidence: Evidence) -> list[Finding]:
    findings = list(check_optimizer(evidence))
    _run_model(evidence)
    findings += check_data(evidence)
    if any(finding.name == "nan-in-data" for finding in findings):
        return findings
    findings += check_inputs(evidence)
    before = [*check_targets(evidence), *check_outputs(evidence)]
    findings += before
    if any(finding.severity == "error" and finding.name != "too-few-outputs" for finding in before):
        return findings
    try:
        run_loss(evidence)
    except torch.OutOfMemoryError:
        raise
    except REFUSALS as refusal:
        return [*findings, _refused_by_loss(evidence, refusal)]
    return findings + _without_echoes(list(check_learning(evidence)), findings)


def _run_model(evidence: Evidence) -> None:
    enter_training(evidence.model)
    for module in evidence.model.modules():
        if "_compiled_call_impl" in module.__dict__:
            # Compiled in place: its plain code is looked at, and `untouched` puts the compiled one back.
            module.__dict__["_compiled_call_impl"] = None
    watch = Watch(evidence.model)
    try:
        evidence.outputs, evidence.targets = convention_of(evidence.loss).forward(evidence.model, evidence.batch)
    except (UsageError, torch.OutOfMemoryError):
        raise
    except REFUSALS as refusal:
        raise refused_by_model(refusal, watch.stack, evidence.model, evidence.batch) from refusal
    finally:
        watch.off()
    evidence.layers = watch.layers
    if isinstance(evidence.outputs, LossValue):
        evidence.answer = evidence.outputs
        evidence.outputs, evidence.targets = evidence.answer.outputs, evidence.answer.targets
    evidence.outputs = compared(evidence.loss, evidence.outputs, evidence.targets)


def _refused_by_loss(evidence: Evidence, refusal: Exception) -> Finding:
    text = first_line(refusal).rstrip(".")
    outputs = ", ".join(map(batches.form, batches.tensors(evidence.outputs)))
    targets = evidence.targets_given()
    message = f"{describe(evidence.loss)} refuses outputs {outputs}" + (
        f" with targets {', '.join(map(batches.form, targets))}" if targets else ""
    )
    if all(name is not None for name, _ in evidence.parts) and "weight" not in text:
        if _TYPES.search(text) and targets:
            wanted = "long" if "type Long but found" in text else "float"
            return error("target-dtype", f"{message}: {text}", f"give `targets.{wanted}()`")
        if _SHAPES.search(text):
            fix = "give outputs and targets the shapes that docs/losses.md names"
            return error("shape-mismatch", f"{message}: {text}", fix)
    if evidence.value is not None:
        fix = "the message is of the backward pass: look at the operations between model and loss that it names"
        if "inplace" in text:
            text = text.partition(" Hint:")[0].rstrip(".")
            fix = "change no tensor in place that the forward pass still needs: `x = x + y` for `x += y`"
        return error("loss-refused", f"the gradients of the loss cannot be computed: {text}", fix)
    fix = "docs/losses.md says what each loss is given"
    if evidence.outputs is None:
        message, fix = (
            f"the model returns None, and {describe(evidence.loss)} takes a tensor",
            "return the outputs in its forward",
        )
    elif part := _scores_in(evidence.outputs):
        name = type(evidence.outputs).__name__
        message = f"the model returns a {name}, and {describe(evidence.loss)} takes a tensor"
        fix = f"give the loss what it needs of it: loss=lambda outputs, targets: loss_function(outputs{part}, targets)"
    if "not implemented for" in text:
        fix = "compute the loss in float32: `outputs.float()`"
    return error("loss-refused", f"{message}: {text}", fix)


def _scores_in(outputs: Any) -> str:
    """How the scores are read from an object of outputs: ``.logits``, ``["logits"]``; "" where it is a tensor."""
    if isinstance(outputs, torch.Tensor):
        return ""
    if type(outputs) in (list, tuple):
        return "[0]" if outputs and isinstance(outputs[0], torch.Tensor) else ""
    members = outputs if isinstance(outputs, dict) else getattr(outputs, "__dict__", {})
    if hasattr(type(outputs), "_asdict"):
        members = outputs._asdict()
    usual = [n for n in ("logits", "out", "output", "last_hidden_state", "prediction") if n in members]
    name = next(iter([*usual, *(n for n, v in members.items() if isinstance(v, torch.Tensor))]), "")
    return "" if not name else f"[{name!r}]" if type(outputs) is dict else f".{name}"


# How torch words a refusal of a type, and of a shape.
_TYPES = re.compile(r"\b(dtype|scalar type|result type|bool tensors?|Integral inputs)\b")
_SHAPES = re.compile(r"\b(sizes?|shapes?|dimensions?|[01]D or [12]D|broadcast\w*)\b", re.I)

# What another finding already explains is left out: a zero gradient because of dead units, a loss far off
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
