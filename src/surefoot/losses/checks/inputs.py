"""Checks of what goes in: finite, not all the same, of a scale that a fresh network can use."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from ...finding import Finding
from .evidence import Evidence
from .findings import error, warning

# The first layer sets the scale by itself, or takes indices.
_SETS_SCALE = (
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.LocalResponseNorm,
    nn.Embedding,
    nn.EmbeddingBag,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
# Beyond these a mean or a spread is no longer that of data brought near zero mean and unit variance. Pixels of 0 to 255
# have a spread of about 80, those scaled twice one of about 0.001.
_LARGE, _SMALL = 10.0, 5e-3


def check_data(evidence: Evidence) -> Iterator[Finding]:
    """Whether inputs and targets are finite; checked before the model runs."""
    for what, tensors in (("inputs", evidence.inputs()), ("targets", evidence.targets_given())):
        for tensor in tensors:
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                bad = ~tensor.isfinite()
                rows = bad.flatten(1).any(1) if tensor.dim() > 1 else bad
                where = f", first in sample {int(rows.nonzero()[0, 0])}" if tensor.dim() else ""
                yield error(
                    "nan-in-data",
                    f"{int(bad.sum())} of {tensor.numel()} numbers in the first batch's {what} "
                    f"are NaN or infinite{where}",
                    "remove or fill them before training",
                )
                break


def check_inputs(evidence: Evidence) -> Iterator[Finding]:
    """Whether what the first layer with weights sees is of a usable scale."""
    inputs = evidence.inputs()
    if inputs and all(map(_all_alike, inputs)):
        what = "zero" if not bool(inputs[0].any()) else "the same"
        yield warning(
            "constant-inputs",
            f"all {len(inputs[0])} inputs of the first batch are {what}",
            "look where the inputs come from: a wrong scaling or conversion often leaves zeros",
        )
        return
    first = None
    for layer in evidence.layers:
        if isinstance(layer.module, _SETS_SCALE):
            return
        if next(layer.module.parameters(recurse=False), None) is not None:
            first = layer
            break
    value = first.input if first is not None else next(iter(inputs), None)
    if value is None or not value.is_floating_point() or value.numel() < 16:
        return
    if bool(((value == 0) | (value == 1)).all()):  # one-hot
        return
    values = value.detach().float()
    spread, mean = float(values.std()), float(values.mean())
    low, high = float(values.min()), float(values.max())
    taken_by = f"layer {first.label} is given" if first is not None and first.name else "the model is given"
    scale = f"{taken_by} inputs of {low:.3g} to {high:.3g}, with mean {mean:.3g} and standard deviation {spread:.3g}"
    pixels = low >= 0 and 100 < high <= 255
    if spread > _LARGE or abs(mean) > _LARGE:
        fix = (
            "divide pixels by 255 and normalise (data.normalize: {mean: 0.5, std: 0.5})"
            if pixels
            else "normalise: subtract the mean, divide by the standard deviation"
        )
        yield warning("inputs-not-normalised", f"{scale}; networks start rightly near mean 0 and deviation 1", fix)
    elif spread < _SMALL and max(abs(low), abs(high)) < 4 * _SMALL:
        yield warning(
            "inputs-not-normalised",
            f"{scale}; so small a scale leaves nothing to learn from",
            "check that the inputs are scaled once only, and normalise them",
        )


def _all_alike(inputs: Tensor) -> bool:
    """Whether all samples are equal, and not by chance, as a few one-hot rows or tokens may be."""
    if inputs.dim() == 0 or inputs.numel() < 16 or not bool((inputs == inputs[:1]).all()):
        return False
    if len(inputs) < 2 or not bool(inputs.any()):
        return not bool(inputs.any())
    return len(inputs) > 20 or (inputs.is_floating_point() and not bool((inputs == inputs.round()).all()))
