"""What an objective holds that is trained or changes on the way, and is therefore part of a run's state."""

from __future__ import annotations

from typing import Any

from torch import nn

from .. import generators
from ..wrapping import tensors


def learns(loss: Any) -> bool:
    """Whether a loss has parameters of its own, which are then trained."""
    return isinstance(loss, nn.Module) and any(True for _ in loss.parameters())


def hidden_state(loss: Any, model: nn.Module) -> dict[str, nn.Module]:
    """The modules with parameters or buffers in an objective, by what a checkpoint calls them.

    A loss that is no module, or that has modules in a plain list, is looked through as far as attributes lead.
    """
    hidden: dict[str, nn.Module] = {}
    inside = {id(part) for part in model.modules()}
    for place, value in generators.walk({"loss": loss}):
        if isinstance(value, nn.Module) and id(value) not in inside:
            inside |= {id(part) for part in value.modules()}
            if any(True for _ in tensors(value)):
                hidden[place] = value
    return hidden
