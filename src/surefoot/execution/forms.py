"""Which compiled forms of a step are worth trying, the likeliest first, and how long compiling may take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from .compiled import why_not
from .measure import Bench, Trial

# A compiled step saves at least about this part of an eager one on a CPU; compiling costs about so many seconds.
COMPILE_SAVES = 0.25
COMPILE_S = 8.0
COMPILE_S_PER_PARAMETER = 0.2
LONGEST_COMPILE_S = 600.0
# About what a step spends outside of torch's kernels, for each parameter.
DISPATCH_S_PER_PARAMETER = 20e-6


def compiled_forms(
    fixed: Mapping[str, Any],
    best: Trial,
    steps_expected: int | None,
    thorough: bool,
    bench: Bench,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    """The compiled forms to try, the likeliest first; the next one where that is refused, all if `thorough`."""
    model = bench.original.model
    asked = fixed.get("compile")
    if asked == "none":
        return []
    if reason := why_not(model):
        if asked or thorough:
            say(f"the step is not compiled: {reason}")
        return []
    plain = best.execution
    if not asked and not thorough:
        if not best.times or steps_expected is None or plain.device != "cpu":
            return []
        if steps_expected * best.seconds * COMPILE_SAVES < 1.5 * compile_seconds(model):
            return []
        if _left_to_libraries(model, best.seconds):
            return []
    if asked not in (None, True):
        return [{"compile": asked}]
    forms: list[dict[str, object]] = []
    # Pools are written out only where images are contiguous; eager, such a model may prefer its channels last.
    if plain.memory_format == "channels_last" and "memory_format" not in fixed and _pools(model):
        forms += [{"compile": "gradients", "memory_format": "contiguous"}]
    forms.append({"compile": "gradients"})
    return forms + [{"compile": "module"}] if asked or thorough else forms


def compile_seconds(model: nn.Module) -> float:
    """About how long compiling takes, in seconds."""
    return COMPILE_S + COMPILE_S_PER_PARAMETER * sum(1 for _ in model.parameters())


def most_seconds(fixed: Mapping[str, Any], eager: Trial, steps_expected: int | None) -> float | None:
    """How long compiling may take: what the run would save by it. No bound for what the user asked for."""
    if "compile" in fixed or steps_expected is None or not eager.times:
        return None
    return min(steps_expected * eager.seconds * COMPILE_SAVES, LONGEST_COMPILE_S)


def _pools(model: nn.Module) -> bool:
    return any(isinstance(module, nn.MaxPool2d) for module in model.modules())


def _left_to_libraries(model: nn.Module, seconds: float) -> bool:
    """Whether a step of so many seconds is convolutions and BatchNorm, at which generated code is no better.

    ResNet-18 (16 wide, 32x32, batch 32) took 58 ms without compiling; 88 s of compiling made it 80 ms.
    """
    norms = any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    dispatch = DISPATCH_S_PER_PARAMETER * sum(1 for _ in model.parameters())
    return norms and not _pools(model) and dispatch < 0.1 * seconds
