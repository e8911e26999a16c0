"""Nothing that is NaN or infinite is saved as good: such weights would be what a resume goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import RunFailed
from ..nonfinite import first_not_finite
from .store import CheckpointStatus


def require_finite(objects: Mapping[str, Any], step: int, known: Sequence[CheckpointStatus]) -> None:
    """Raise RunFailed where a trained parameter of a module in `objects` is NaN or infinite, except `known`."""
    for key, value in objects.items():
        if isinstance(value, nn.Module) and (name := first_not_finite(value)) is not None:
            kept = f"the checkpoint of step {known[-1].step} is kept" if known else "nothing was saved before"
            raise RunFailed(
                f"step {step}: {key}.{name} is NaN or infinite, so this is not saved; {kept}; lower the learning rate, "
                "limit the gradients' norm, or look at the last samples"
            )
