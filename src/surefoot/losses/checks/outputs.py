"""Checks of the outputs against what the loss wants: logits, log-probabilities, probabilities, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from ...finding import Finding
from ..torch_losses import option, reduction
from .evidence import Evidence, last_operation
from .findings import error, warning

# Last operations after which values of any size and sign come.
_LINEAR = frozenset({"Addmm", "Mm", "Bmm", "Baddbmm", "Convolution", "Linear", "NativeBatchNorm", "Mkldnn"})
_RELUS = frozenset({"Relu", "Threshold"})


def check_outputs(evidence: Evidence) -> Iterator[Finding]:
    """Findings about the outputs, before the loss is computed."""
    outputs = evidence.outputs
    for name, loss in evidence.parts:
        if name == "GaussianNLLLoss":
            yield from _variance(outputs)
        if name == "KLDivLoss" and reduction(loss) == "mean":
            yield warning(
                "kl-reduction-mean",
                "KLDivLoss's reduction='mean' divides by all elements: it is the KL divergence divided by the number "
                "of classes",
                "set reduction: batchmean",
            )
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point() or outputs.numel() == 0:
            continue
        if not bool(outputs.isfinite().all()):
            continue  # NaN looks like nothing; the loss will show it
        if name in _CHECKS:
            yield from _CHECKS[name](name, loss, outputs)


class _Profile:
    """Properties of a tensor of outputs along the dimension of the classes."""

    def __init__(self, outputs: Tensor, dim: int | None = None):
        self.last = last_operation(outputs)
        values = outputs.detach()
        # float16 and bfloat16 keep about three digits; there a sum is only roughly 1.
        loose = values.dtype in (torch.float16, torch.bfloat16)
        self.tolerance = 3e-2 if loose else 2e-3
        self.values = values.double()
        self.dim = dim if dim is not None else (1 if values.dim() > 1 else 0)
        self.count = values.shape[self.dim]
        self.within = bool(((self.values >= 0) & (self.values <= 1)).all())

    def probabilities(self) -> bool:
        """Within 0 and 1, summing to 1."""
        return self.count > 1 and self.within and self._ones(self.values.sum(self.dim))

    def log_probabilities(self, dim: int | None = None) -> bool:
        """Logs of numbers that sum to 1."""
        sums = self.values.exp().sum(self.dim if dim is None else dim)
        return bool((self.values <= self.tolerance).all()) and self._ones(sums)

    def other_dimension(self) -> int | None:
        """Another dimension along which there are logs of numbers that sum to 1."""
        dims = (d for d in range(self.values.dim()) if d != self.dim and self.values.shape[d] > 1)
        return next(filter(self.log_probabilities, dims), None)

    def _ones(self, sums: Tensor) -> bool:
        return bool(((sums - 1).abs() < self.tolerance).all())


def _cross_entropy(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    profile = _Profile(outputs)
    if profile.count == 1:
        yield warning(
            "single-class",
            "CrossEntropyLoss compares classes and the model has one output: the loss is 0 whatever it says",
            "use BCEWithLogitsLoss with float targets, or give one output for each class",
        )
    elif profile.probabilities() or profile.last == "Softmax":
        yield warning(
            "softmax-before-cross-entropy",
            "the outputs are probabilities (each row sums to 1) and CrossEntropyLoss applies softmax itself: "
            f"done twice, the loss cannot fall below {_floor(profile.count):.3g} and learning is slow",
            "take Softmax out of the model (or give its log to NLLLoss)",
        )
    elif profile.last == "LogSoftmax" or (profile.log_probabilities() and profile.last not in _LINEAR):
        yield warning(
            "log-softmax-before-cross-entropy",
            "the outputs are log-probabilities and CrossEntropyLoss applies log-softmax itself; once is enough",
            "use NLLLoss, or take LogSoftmax out of the model",
        )
    elif profile.last == "Sigmoid":
        yield warning(
            "sigmoid-before-cross-entropy",
            "the model ends in Sigmoid: its outputs stay within 0 and 1, and CrossEntropyLoss wants logits of any "
            f"size: the loss cannot fall below {_floor(profile.count):.3g}",
            "take Sigmoid out of the model (for many labels at once use BCEWithLogitsLoss)",
        )
    elif profile.last in _RELUS:
        yield from _relu(name)


def _floor(classes: int) -> float:
    """The least cross entropy of outputs within 0 and 1: -log(e / (e + C - 1))."""
    e = torch.e
    return float(torch.log(torch.tensor((e + classes - 1) / e, device="cpu")))


def _relu(name: str | None) -> Iterator[Finding]:
    yield warning(
        "relu-before-loss",
        f"the model ends in ReLU: its outputs cannot be negative, and {name} wants logits of both signs",
        "take the last ReLU out of the model",
    )


def _nll(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    profile = _Profile(outputs, outputs.dim() - 1 if name == "CTCLoss" else None)
    yield from _wants_logs(name, profile, "raw-logits-to-nll", "probabilities-to-nll")


def _kl(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    profile = _Profile(outputs)
    # A distribution may lie along any dimension: KLDivLoss itself knows of none.
    if profile.other_dimension() is None:
        yield from _wants_logs(name, profile, "kl-given-logits", "kl-given-probabilities")


def _wants_logs(name: str | None, profile: _Profile, logits: str, probabilities: str) -> Iterator[Finding]:
    if profile.log_probabilities():
        return
    what = f"{name} wants log-probabilities"
    if profile.probabilities():
        yield warning(
            probabilities,
            f"{what}; the outputs are probabilities (each row sums to 1), so that the loss is no log-likelihood",
            "use LogSoftmax in the place of Softmax",
        )
        return
    if (other := profile.other_dimension()) is not None:
        yield warning(
            "softmax-over-wrong-dimension",
            f"{what} over dimension {profile.dim}, that of the classes; the outputs are normalised over dimension "
            f"{other}",
            f"use LogSoftmax(dim={profile.dim})",
        )
        return
    total = float(profile.values.exp().sum(profile.dim).flatten()[0])
    yield warning(
        logits,
        f"{what}; these are raw scores (exp of the first row sums to {total:.3g}, not 1), "
        "so that the loss can fall without end",
        f"end the model in LogSoftmax(dim={profile.dim})" + (", or use CrossEntropyLoss" if name == "NLLLoss" else ""),
    )


def _bce(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    profile = _Profile(outputs)
    fix = "use BCEWithLogitsLoss, or end the model in Sigmoid"
    if not profile.within:
        low, high = float(profile.values.min()), float(profile.values.max())
        yield error(
            "raw-logits-to-bce", f"BCELoss wants probabilities; the outputs go from {low:.3g} to {high:.3g}", fix
        )
    elif profile.last in _LINEAR:
        yield warning(
            "raw-logits-to-bce",
            "BCELoss wants probabilities; the model's last layer is linear, and its outputs lie within 0 and 1 "
            "only by chance",
            fix,
        )


def _with_logits(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    profile = _Profile(outputs)
    if profile.last in ("Sigmoid", "Softmax") or (profile.values.dim() > 1 and profile.probabilities()):
        yield warning(
            "probabilities-to-bce-with-logits",
            f"the outputs are probabilities (the model ends in {profile.last or 'a softmax'}) and {name} applies "
            "sigmoid itself: done twice, every answer lies between 0.5 and 0.73",
            "take it out of the model" + (" (or use BCELoss)" if name == "BCEWithLogitsLoss" else ""),
        )
    elif profile.last in _RELUS:
        yield from _relu(name)


def _margin(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    profile = _Profile(outputs)
    if profile.last in ("Softmax", "Sigmoid") or profile.probabilities():
        yield warning(
            "probabilities-to-margin-loss",
            f"the outputs are probabilities, and {name} wants scores that can lie a margin of "
            f"{option(loss, 'margin', 1):g} apart",
            "take Softmax or Sigmoid out of the model",
        )


def _poisson(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    if option(loss, "log_input", True):
        return
    low = float(outputs.detach().min())
    if low < 0:
        yield warning(
            "negative-rate",
            f"log_input is false, so that the outputs are expected counts; the lowest is {low:.3g}, "
            "whose log is not defined",
            "set log_input: true, or end the model in Softplus",
        )


def _hinge(name: str | None, loss: Any, outputs: Tensor) -> Iterator[Finding]:
    low = float(outputs.detach().min())
    if low < 0:
        yield warning(
            "negative-distance",
            f"HingeEmbeddingLoss wants distances; the lowest output is {low:.3g}, and the loss falls without end",
            "give a distance (norm of a difference), or use SoftMarginLoss for scores",
        )


def _variance(outputs: Any) -> Iterator[Finding]:
    if not isinstance(outputs, list | tuple) or len(outputs) != 2 or not isinstance(outputs[1], Tensor):
        return
    variance = outputs[1]
    fix = "make it positive: `softplus(x) + 1e-6`, or exp of a log-variance"
    low = float(variance.detach().min())
    if low < 0:
        yield error("negative-variance", f"GaussianNLLLoss's variance must be positive; the lowest is {low:.3g}", fix)
    elif last_operation(variance) in _LINEAR:
        yield warning(
            "negative-variance", "the variance comes straight from a linear layer, and nothing keeps it positive", fix
        )


_CHECKS: dict[str | None, Callable[[str | None, Any, Tensor], Iterator[Finding]]] = {
    "CrossEntropyLoss": _cross_entropy,
    "NLLLoss": _nll,
    "CTCLoss": _nll,
    "KLDivLoss": _kl,
    "BCELoss": _bce,
    "BCEWithLogitsLoss": _with_logits,
    "MultiLabelSoftMarginLoss": _with_logits,
    "SoftMarginLoss": _with_logits,
    "MultiMarginLoss": _margin,
    "MultiLabelMarginLoss": _margin,
    "PoissonNLLLoss": _poisson,
    "HingeEmbeddingLoss": _hinge,
}
