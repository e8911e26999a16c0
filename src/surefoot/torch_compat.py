"""Every private name of torch that Surefoot runs by, each with what takes its place where a torch lacks it."""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

Hook = Callable[..., Any]

# Above this many numbers, reading them once (a norm) is cheaper than the kernel that reads and writes.
_SMALL = 1 << 20


def all_finite(tensors: Sequence[Tensor], scratch: bool = False) -> bool:
    """Whether no number in `tensors` (sparse ones too) is NaN or infinite. Reads back from the device.

    With `scratch` they may be written to, with what is there already: small gradients are then looked at in one call.
    """
    if scratch and (check := _fused_check()) is not None and sum(map(Tensor.numel, tensors)) <= _SMALL:
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not for sparse ones, or several devices
            return check(tensors)
    dense = [t if t.layout is torch.strided else t.coalesce().values() for t in tensors]
    dense = [t for t in dense if t.is_floating_point() or t.is_complex()]
    if not dense or math.isfinite(get_total_norm(dense)):
        return True
    return all(bool(t.isfinite().all()) for t in dense)  # the norm alone may have overflowed


@functools.cache
def _fused_check() -> Callable[[Sequence[Tensor]], bool] | None:
    """GradScaler's test in one call, at a scale of 1; None where this torch has it otherwise."""
    kernel = getattr(torch, "_amp_foreach_non_finite_check_and_unscale_", None)
    if kernel is None:
        return None
    constants: dict[torch.device, tuple[Tensor, Tensor]] = {}

    def check(tensors: Sequence[Tensor]) -> bool:
        if not tensors:
            return True
        device = tensors[0].device
        if device not in constants:
            constants[device] = torch.zeros(1, device=device), torch.ones(1, device=device)
        found, one = constants[device]
        found.zero_()
        with torch.no_grad():
            kernel(tensors, found, one)
        return not found.item()

    probe = (
        torch.tensor([1.5, -0.0], device="cpu"),
        torch.tensor([1.0, math.nan], device="cpu"),
        torch.tensor([math.inf], device="cpu"),
    )
    try:
        sound = check([probe[0]]) and not check(list(probe[:2])) and not check([probe[2]])
        sound = sound and probe[0].tolist() == [1.5, -0.0]
    except (RuntimeError, TypeError, NotImplementedError):
        return None
    return check if sound else None


@functools.cache
def run_backward() -> Callable[[Tensor, Tensor], None]:
    """The autograd engine's own entry where this torch has it as expected, else `torch.autograd.backward`.

    The wrapper around it (argument checks, logging hooks) costs as much as a tenth of a small step.
    """
    run: Any = getattr(getattr(torch.autograd.Variable, "_execution_engine", None), "run_backward", None)

    def direct(loss: Tensor, ones: Tensor) -> None:
        run((loss,), (ones,), False, False, (), allow_unreachable=True, accumulate_grad=True)

    try:
        leaf = torch.tensor(2.0, requires_grad=True, device="cpu")
        with torch.enable_grad():
            loss = leaf * 3
        direct(loss, torch.ones((), device="cpu"))
        expected = leaf.grad is not None and leaf.grad.item() == 3
    except (TypeError, RuntimeError):
        expected = False
    return direct if expected else torch.autograd.backward


def lerp_all(tensors: list[Tensor], ends: list[Tensor], weight: float) -> None:
    """Move each of `tensors` towards its end by `weight` of the distance, in place; in one call where torch has it."""
    if (kernel := getattr(torch, "_foreach_lerp_", None)) is not None:
        kernel(tensors, ends, weight)
        return
    for tensor, end in zip(tensors, ends, strict=True):
        tensor.lerp_(end, weight)


def fused(name: str) -> Callable[..., None] | None:
    """torch's fused update ``sgd``, ``adam`` or ``adamw``; None where this torch has none, or takes other arguments."""
    kernel = getattr(torch, f"_fused_{name}_", None)
    return kernel if kernel is not None and _fused_as_expected(name) else None


@functools.cache
def _fused_as_expected(name: str) -> bool:
    kernel = getattr(torch, f"_fused_{name}_")
    one = [[torch.ones(2, device="cpu")] for _ in range(4)]
    numbers = {"lr": 0.1, "weight_decay": 0.0, "maximize": False}
    try:
        if name == "sgd":
            rest = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "is_first_step": False}
            kernel(one[0], one[1], [], **numbers, **rest)
        else:
            rest = {"beta1": 0.9, "beta2": 0.99, "eps": 1e-8, "amsgrad": False}
            kernel(one[0], one[1], one[2], one[3], [], [torch.ones((), device="cpu")], **numbers, **rest)
    except (RuntimeError, TypeError, NotImplementedError):
        return False
    return bool((one[0][0] < 1).all())


def add_to_all(tensors: list[Tensor], number: float) -> None:
    """Add a number to each of `tensors`, in place."""
    if (kernel := getattr(torch, "_foreach_add_", None)) is not None:
        kernel(tensors, number)
        return
    for tensor in tensors:
        tensor.add_(number)


def step_hooks(optimizer: torch.optim.Optimizer) -> tuple[list[Hook], list[Hook]] | None:
    """The hooks that `optimizer.step()` calls first and last, global ones included; None where they cannot be seen."""
    from torch.optim import optimizer as module

    try:
        before = (module._global_optimizer_pre_hooks, optimizer._optimizer_step_pre_hooks)
        after = (optimizer._optimizer_step_post_hooks, module._global_optimizer_post_hooks)
    except AttributeError:
        return None
    return [h for hooks in before for h in hooks.values()], [h for hooks in after for h in hooks.values()]


def set_onednn(enabled: bool) -> None:
    """Let convolutions and the like use oneDNN, or not, from now on in this process."""
    if bool(torch.backends.mkldnn.enabled) == enabled:
        return
    switch = getattr(torch._C, "_set_mkldnn_enabled", None)
    if switch is None:
        torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment]
    else:
        switch(enabled)


def inductor_compile(
    graph: torch.fx.GraphModule, arguments: Sequence[Tensor], settings: Mapping[str, object]
) -> Callable[..., Any]:
    """A graph of primitive operations as machine code, made under `settings` of Inductor."""
    import torch._inductor
    import torch._inductor.config as config

    with config.patch(dict(settings)):
        compiled: Callable[..., Any] = torch._inductor.compile(graph, list(arguments))
        return compiled


def compile_for_one_shape(
    function: Callable[..., Any], forms: int, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """`torch.compile` of a method that is given tensors of one shape; `forms` objects may need code of their own."""
    import torch._dynamo.config as config

    make: Any = torch.compile
    compiled, first = make(function, dynamic=False, options=options), True

    def call(*arguments: Any, **keywords: Any) -> Any:
        nonlocal first
        if not first:
            return compiled(*arguments, **keywords)
        first = False
        with warnings.catch_warnings(), config.patch(recompile_limit=forms):
            # Torch hides it from who prints warnings, and not from who makes errors of them.
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            return compiled(*arguments, **keywords)

    return call


def give_hooks(optimizer: Any) -> None:
    """Give an optimizer whose class did not call torch's constructor (a wrapper of another) what hooks are kept in.

    From the first `zero_grad` or copy of such an optimizer on, torch's wrapper of `step` asks every instance of the
    class for them.
    """
    if not isinstance(optimizer, Optimizer) or "_optimizer_step_pre_hooks" in vars(optimizer):
        return
    Optimizer.__setstate__(optimizer, {})
    for name in vars(optimizer):
        if re.fullmatch("_optimizer_.*_hooks", name) and not hasattr(type(optimizer), name):
            setattr(type(optimizer), name, OrderedDict())


def scripted_class(module: torch.nn.Module) -> str | None:
    """``module:Name`` of the class that torch.jit made `module` of; None where this torch does not tell."""
    kind = getattr(getattr(module, "_c", None), "_type", None)
    name = kind().qualified_name().removeprefix("__torch__.") if callable(kind) else ""
    home, _, name = re.sub(r"___torch_mangle_\d+\.", "", name).rpartition(".")
    return f"{home}:{name}" if home else None


def as_ddp(model: torch.nn.Module, group: Any) -> torch.nn.parallel.DistributedDataParallel:
    """`model`, the same on all ranks of `group`, shared over them; gradients lie where they are summed.

    Its buffers are left alone: torch cannot send those of every dtype, nor those that are expanded.
    """
    ddp: Any = torch.nn.parallel.DistributedDataParallel
    newer = "forward_sync_buffers" in inspect.signature(ddp).parameters
    leave = {"init_sync": False, "forward_sync_buffers" if newer else "broadcast_buffers": False}
    shared: torch.nn.parallel.DistributedDataParallel = ddp(
        model, process_group=group, gradient_as_bucket_view=True, **leave
    )
    return shared


def _fsdp_groups(part: Any) -> list[Any]:
    """What FSDP2 knows of the parameters of one of its modules, those of modules within under FSDP2 left out."""
    state = part._get_fsdp_state()
    groups = getattr(state, "_fsdp_param_groups", None)  # one in earlier versions
    return [group for group in ([state._fsdp_param_group] if groups is None else groups) if group is not None]


def fsdp_whole(part: Any) -> list[tuple[Tensor, Tensor]]:
    """Each parameter of a module under FSDP2, and the whole one that stands in its place in forward and backward.

    The module must have been unsharded once.
    """
    return [(p.sharded_param, p.unsharded_param) for group in _fsdp_groups(part) for p in group.fsdp_params]


@contextlib.contextmanager
def kept_whole(part: Any) -> Iterator[None]:
    """Within it a module under FSDP2 that is whole stays so after a forward pass and under `state_dict()`."""
    groups = _fsdp_groups(part)
    before = [group.post_forward_mesh_info for group in groups]
    for group in groups:
        group.post_forward_mesh_info = None
        group._to_sharded = lambda: None
    try:
        yield
    finally:
        for group, info in zip(groups, before, strict=True):
            group.post_forward_mesh_info = info
            del group._to_sharded
            for p in group.fsdp_params:
                # An array was made of it (`numpy()`, as for saving), which may be in use still: it gets new memory.
                if len(p.all_gather_outputs) == 1 and not p.all_gather_outputs[0].untyped_storage().resizable():
                    fresh = torch.empty_like(p.all_gather_outputs[0])
                    p.all_gather_outputs = [fresh]
                    p.unsharded_param.data = fresh.as_strided(p.unsharded_param.shape, p.unsharded_param.stride())


def default_store() -> Any:
    """The store under torch's default process group; None where this torch does not tell."""
    from torch.distributed import distributed_c10d

    get = getattr(distributed_c10d, "_get_default_store", None)
    return None if get is None else get()


def gather_single() -> Callable[..., Any]:
    """``all_gather`` of torch.distributed into one tensor, by the name that this torch does not warn of."""
    import torch.distributed as dist

    new: Callable[..., Any] | None = getattr(dist, "all_gather_single", None)
    return dist.all_gather_into_tensor if new is None else new
