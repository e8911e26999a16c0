"""Execution settings: how a step runs, as plain data, and a process set up for it."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .. import torch_compat
from ..artifacts.weights import memory_format
from ..errors import Problems, UsageError
from ..limits import PRECISIONS
from ..untouched import is_lazy
from ..wrapping import local

MEMORY_FORMATS = ("contiguous", "channels_last")
OPTIMIZER_IMPLS = ("default", "for_loop", "foreach", "fused")
COMPILE = ("none", "gradients", "module")

# Numbers of float32 that the widest registers of a CPU hold.
LANES = 16
_TORCH_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_IMPL_FLAGS = {
    "for_loop": {"foreach": False, "fused": False},
    "foreach": {"foreach": True, "fused": False},
    "fused": {"foreach": False, "fused": True},
}


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How one update runs. Every field can change bits, so a run records it and a resumed run takes it over.

    `threads` are those of one operation on the CPU. `onednn` says whether convolutions and the like may use
    oneDNN. `memory_format` is how the weights (and with them the activations) of images lie in memory.
    `optimizer_impl` picks among torch's own implementations of the optimizer. `compile` is ``none``,
    ``gradients`` (forward, loss and backward in one compiled graph, the update beside it) or ``module`` (torch.compile
    of the model alone). `cuda_graph` replays a captured
    step on a GPU. `plain` runs the step as it is read in `step.py` and nothing else.

    >>> Execution(threads=1, onednn=False).describe()
    'cpu, 1 thread, oneDNN off'
    >>> Execution.from_json(Execution(threads=2).to_json()) == Execution(threads=2)
    True
    """

    device: str = "cpu"
    threads: int = 1
    onednn: bool = True
    memory_format: str = "contiguous"
    optimizer_impl: str = "default"
    compile: str = "none"
    precision: str = "float32"
    cuda_graph: bool = False
    plain: bool = False

    def __post_init__(self) -> None:
        problems = []
        for name, options in (
            ("memory_format", MEMORY_FORMATS),
            ("optimizer_impl", OPTIMIZER_IMPLS),
            ("compile", COMPILE),
            ("precision", PRECISIONS),
        ):
            value = getattr(self, name)
            if value not in options:
                problems.append(f"execution: {name}: {value!r} is not one of {', '.join(options)}")
        if isinstance(self.threads, bool) or not isinstance(self.threads, int) or self.threads < 1:
            problems.append(f"execution: threads: {self.threads!r} is not a whole number of 1 or more")
        if self.cuda_graph is True and self.compile != "none":
            problems.append("execution: cuda_graph: a captured step is not a compiled one; leave one of them out")
        for name in ("onednn", "cuda_graph", "plain"):
            if not isinstance(getattr(self, name), bool):
                problems.append(f"execution: {name}: {getattr(self, name)!r} is not true or false")
        if problems:
            raise Problems(problems)

    def describe(self) -> str:
        """The settings in one line, for people."""
        parts = [self.device]
        if self.device == "cpu":
            parts.append(f"{self.threads} thread" + ("s" if self.threads > 1 else ""))
            parts.append("oneDNN" if self.onednn else "oneDNN off")
        if self.memory_format != "contiguous":
            parts.append(self.memory_format)
        if self.optimizer_impl != "default":
            parts.append(f"{self.optimizer_impl.replace('_', '-')} optimizer")
        if self.compile != "none":
            parts.append(f"compiled {self.compile}")
        if self.cuda_graph:
            parts.append("CUDA graph")
        if self.plain:
            parts.append("plain step")
        if self.precision != "float32":
            parts.append(self.precision)
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` gives the same settings back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Execution:
        """The settings that `to_json` gave. Raises UsageError for an unknown field or a value out of range."""
        fields = {field.name for field in dataclasses.fields(cls)}
        if unknown := sorted(set(data) - fields):
            raise UsageError(f"execution: unknown field {', '.join(unknown)}; there are {', '.join(sorted(fields))}")
        return cls(**data)


def as_torch_would(device: str = "cpu", precision: str = "float32", model: nn.Module | None = None) -> Execution:
    """The settings of a plain PyTorch loop in this process: nothing set, nothing chosen."""
    execution = Execution(
        device=device,
        threads=torch.get_num_threads(),
        onednn=bool(torch.backends.mkldnn.enabled),
        memory_format="contiguous" if model is None else memory_format(model),
        precision=precision,
    )
    if model is not None and unsafe_layout(execution, model):
        return dataclasses.replace(execution, memory_format="contiguous")
    return execution


@contextlib.contextmanager
def prepare(
    execution: Execution, model: nn.Module | None = None, optimizer: torch.optim.Optimizer | None = None
) -> Iterator[None]:
    """Run what is inside as `execution` says: threads, oneDNN, memory layout, the optimizer's implementation.

    All of it is as before on leaving; numbers are not changed.
    """
    threads, onednn = torch.get_num_threads(), bool(torch.backends.mkldnn.enabled)
    with contextlib.ExitStack() as stack:
        stack.callback(_set_threads, threads)
        stack.callback(torch_compat.set_onednn, onednn)
        if execution.device == "cpu":
            _set_threads(execution.threads)
            torch_compat.set_onednn(execution.onednn)
            stack.enter_context(freed_memory_kept())
        if model is not None:
            if (name := unsafe_layout(execution, model)) is not None:
                raise UsageError(
                    f"execution: memory_format: channels_last cannot be used: {name} is a strided 1x1 convolution of "
                    f"fewer than {LANES} channels, whose gradient oneDNN writes beyond its memory; give contiguous, or "
                    f"onednn: false"
                )
            if execution.optimizer_impl == "fused" and (name := _sparse(model)) is not None:
                raise UsageError(
                    f"execution: optimizer_impl: fused takes no sparse gradients, which {name} gives; leave it at "
                    "auto, or give the layer sparse=False"
                )
            formats = [(t, _format_of(t)) for t in (*model.parameters(), *model.buffers()) if _is_image(t)]
            stack.callback(_lay_out_again, formats, optimizer)
            set_layout(model, optimizer, execution.memory_format)
        if optimizer is not None:
            flags = [(group, {k: group[k] for k in ("foreach", "fused") if k in group}) for group in _groups(optimizer)]
            stack.callback(_flag_again, optimizer, flags, vars(optimizer).get("_step_supports_amp_scaling"))
            set_optimizer_impl(optimizer, execution.optimizer_impl)
        yield


def _sparse(model: nn.Module) -> str | None:
    """The first layer that makes sparse gradients, or None."""
    kinds = (nn.Embedding, nn.EmbeddingBag)
    sparse = (name or "the model" for name, m in model.named_modules() if isinstance(m, kinds) and m.sparse)
    return next(sparse, None)


def _groups(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [optimizer.defaults, *optimizer.param_groups]


def _flag_again(optimizer: torch.optim.Optimizer, flags: list[tuple[Any, Any]], amp: bool | None) -> None:
    for group, before in flags:
        group.update(before)
    if amp is None:
        vars(optimizer).pop("_step_supports_amp_scaling", None)
    else:
        optimizer._step_supports_amp_scaling = amp  # type: ignore[attr-defined]


def _is_image(tensor: torch.Tensor) -> bool:
    return not is_lazy(tensor) and tensor.dim() == 4


def _format_of(tensor: torch.Tensor) -> torch.memory_format | None:
    """How a tensor lies; None for strides of another kind, which are left alone."""
    return next((f for f in _TORCH_FORMATS.values() if tensor.is_contiguous(memory_format=f)), None)


def _lay_out_again(
    formats: list[tuple[torch.Tensor, torch.memory_format | None]], optimizer: torch.optim.Optimizer | None
) -> None:
    with torch.no_grad():
        for tensor, wanted in formats:
            if wanted is not None and not tensor.is_contiguous(memory_format=wanted):
                tensor.data = tensor.data.contiguous(memory_format=wanted)
                if tensor.grad is not None:
                    tensor.grad = laid_out_like(tensor.grad, tensor)
    if optimizer is not None:
        _lay_out_state(optimizer)


def _set_threads(count: int) -> None:
    # Setting what is set already is not free: OpenMP may rebuild its team.
    if torch.get_num_threads() != count:
        torch.set_num_threads(count)


def unsafe_layout(execution: Execution, model: nn.Module) -> str | None:
    """The module that oneDNN's backward pass may not be given in the layout of `execution`, or None."""
    if execution.memory_format != "channels_last" or execution.device != "cpu" or not execution.onednn:
        return None
    return _unsafe_in_channels_last(model)


def compile_options(model: nn.Module) -> dict[str, Any] | None:
    """Options for torch.compile: on a CPU Inductor otherwise puts every convolution in channels_last."""
    return {"layout_optimization": False} if _unsafe_in_channels_last(model) else None


def _unsafe_in_channels_last(model: nn.Module) -> str | None:
    """The first strided 1x1 convolution of few channels on the CPU.

    oneDNN's backward pass for its weights (``jit_1x1:avx2``, torch 2.13: fewer than 8 channels, on processors without
    AVX-512) writes beyond their memory in channels_last: the process crashes, or other tensors change.
    """
    for name, module in model.named_modules():
        strided = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) and module.stride != (1, 1)
        # A lazy convolution has no channels yet.
        if strided and 0 < module.in_channels < LANES and module.weight.device.type == "cpu":
            return name or type(module).__name__
    return None


def set_layout(model: nn.Module, optimizer: torch.optim.Optimizer | None, memory_format: str) -> None:
    """Lay out weights, their gradients and optimizer state alike. Parameters stay the same objects."""
    wanted = _TORCH_FORMATS[memory_format]
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if is_lazy(tensor):
                continue
            if tensor.dim() == 4 and not tensor.is_contiguous(memory_format=wanted) and _format_of(tensor) is not None:
                tensor.data = tensor.data.contiguous(memory_format=wanted)
            if (
                tensor.is_leaf
                and tensor.grad is not None
                and tensor.grad.layout is torch.strided
                and tensor.grad.stride() != tensor.stride()
            ):
                tensor.grad = laid_out_like(tensor.grad, tensor)
    if optimizer is not None:
        _lay_out_state(optimizer)


def _lay_out_state(optimizer: torch.optim.Optimizer) -> None:
    for parameter, state in optimizer.state.items():
        if not isinstance(parameter, torch.Tensor) or not isinstance(state, dict):
            continue  # a state of the optimizer as a whole
        # Fused kernels walk through parameter and state as flat memory: other strides would mix up elements.
        for name, value in state.items():
            if isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                state[name] = laid_out_like(value, parameter)


def laid_out_like(value: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`value` with the strides of `like`."""
    if value.stride() == like.stride():
        return value
    return torch.empty_strided(like.shape, like.stride(), dtype=value.dtype, device=value.device).copy_(value)


def set_optimizer_impl(optimizer: torch.optim.Optimizer, impl: str) -> None:
    """Pick torch's implementation of the update; ``default`` leaves the optimizer as it was made.

    Raises UsageError where ``fused`` was asked for and the class has none.
    """
    if impl == "default":
        return
    if impl == "fused" and not supports_fused(optimizer):
        raise UsageError(
            f"execution: optimizer_impl: {type(optimizer).__name__} has no fused implementation for these "
            "parameters; leave it at auto, or choose foreach or for_loop"
        )
    for group in (optimizer.defaults, *optimizer.param_groups):
        for name, value in _IMPL_FLAGS[impl].items():
            if name in group:
                group[name] = value
    # GradScaler asks for this; torch sets it in the constructor only.
    if impl == "fused" or hasattr(optimizer, "_step_supports_amp_scaling"):
        optimizer._step_supports_amp_scaling = impl == "fused"  # type: ignore[attr-defined]


def supports_fused(optimizer: torch.optim.Optimizer) -> bool:
    """Whether torch has a fused kernel for this optimizer on the device and type of its parameters."""
    if type(optimizer).__name__ not in ("SGD", "Adam", "AdamW", "Adagrad"):
        return False
    if not type(optimizer).__module__.startswith("torch.optim"):
        return False
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return False
    devices = ("cuda", "cpu") if type(optimizer).__name__ != "Adagrad" else ("cpu",)
    return all(
        p.is_floating_point() and p.device.type in devices and (is_lazy(p) or _without_gaps(local(p.detach())))
        for p in parameters
    )


def _without_gaps(tensor: torch.Tensor) -> bool:
    """Whether a tensor's numbers lie one after another, as fused kernels, which walk through flat memory, take them."""
    return tensor.layout is torch.strided and torch.empty_like(tensor, device="meta").stride() == tensor.stride()


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# Where glibc's own adjusting ends once large blocks were freed. It adjusts no more after the first mallopt, and its
# initial 128 kB would then hold for good: larger tensors are mapped anew, and a loop after `fit` takes twice as long.
_MMAP_AFTER, _TRIM_AFTER = 32 << 20, 64 << 20
_keeping = 0


@contextlib.contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Ask the C library to keep freed memory for the next step instead of giving it back to the system.

    Large activations are otherwise mapped anew every step, and the kernel clears each page: a quarter of a
    LeNet-5 step at batch 512. No bit changes; the process holds on to its peak. On leaving, the thresholds are
    those that glibc's own adjusting reaches. Nothing happens where it cannot be asked for (not glibc).
    """
    global _keeping
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        yield
        return
    _keeping += 1
    if _keeping == 1:
        # glibc takes at most half a gigabyte on some versions; smaller asks are then tried.
        any(mallopt(_MMAP_THRESHOLD, size) for size in (1 << 30, 1 << 29, 32 << 20))
        mallopt(_TRIM_THRESHOLD, (1 << 31) - 1)
    try:
        yield
    finally:
        _keeping -= 1
        if not _keeping:
            mallopt(_MMAP_THRESHOLD, _MMAP_AFTER)
            mallopt(_TRIM_THRESHOLD, _TRIM_AFTER)
