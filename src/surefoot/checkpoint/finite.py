"""Nothing that is NaN or infinite is saved as good: such weights would be what a resume goes on with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..errors import RunFailed
from ..torch_compat import all_finite
from ..untouched import is_lazy
from ..wrapping import named_parameters
from .store import CheckpointStatus


def require_finite(objects: Mapping[str, Any], step: int, known: Sequence[CheckpointStatus]) -> None:
    """Raise RunFailed where a trained parameter of a module in `objects` is NaN or infinite, except `known`."""
    modules = [(key, value) for key, value in objects.items() if isinstance(value, nn.Module)]
    trained = ((f"{key}.{n}", p) for key, m in modules for n, p in named_parameters(m) if p.requires_grad)
    bad = next((name for name, p in trained if not is_lazy(p) and not all_finite([p.detach()])), None)
    if bad is not None:
        kept = f"the checkpoint of step {known[-1].step} is kept" if known else "nothing was saved before"
        raise RunFailed(
            f"step {step}: {bad} is NaN or infinite, so this is not saved; {kept}; lower the learning rate, limit the "
            "gradients' norm, or look at the last samples"
        )
