"""The modes that a model runs in: training or evaluation, entered and put back module by module; precision."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator

import torch
from torch import nn

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager[object]:
    """torch's autocast for bf16 and fp16; nothing for float32."""
    dtype = AUTOCAST.get(precision)
    return contextlib.nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """`model` in evaluation mode; afterwards each module's own flag is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def enter_training(model: nn.Module) -> str | None:
    """Put a model that is in evaluation mode as a whole into training mode; returns what a user should know, or None.

    A model of which some modules are in training mode stays as it is: parts frozen in evaluation mode are meant so.
    """
    modules = list(model.modules())
    if not any(module.training for module in modules):
        model.train()
        return "the model was in evaluation mode (model.eval()) and is trained in training mode"
    if not model.training:
        leaves = ((name, m) for name, m in model.named_modules() if name and next(m.children(), None) is None)
        named = [name for name, module in leaves if not module.training]
        if named:
            more = f" and {len(named) - 3} more" if len(named) > 3 else ""
            return (
                f"parts of the model are in evaluation mode and stay so ({', '.join(named[:3])}{more}); "
                "call model.train() first to train all of it in training mode"
            )
    return None


def set_mode(optimizer: torch.optim.Optimizer, training: bool) -> None:
    """Call the optimizer's own `train()` or `eval()` where it has them, as schedule-free ones do."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if callable(switch):
        switch()


def float32_products() -> Iterator[tuple[str, str]]:
    """What each backend makes of products of float32, by name. torch's older flags raise once one of these was set."""
    places = ["mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn", "cuda.matmul", "cudnn.conv", "cudnn.rnn"]
    for place in places if torch.cuda.is_available() else places[:3]:
        precision = getattr(operator.attrgetter(place)(torch.backends), "fp32_precision", None)
        if precision is not None:
            yield place, str(precision)
