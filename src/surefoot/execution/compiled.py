"""Forward, loss and backward compiled as one graph; clipping and the update follow it.

The step is traced below autograd (`make_fx` over `functional_call`) and the graph is given to Inductor as it is. This
is neither `torch.compile(model)`, which on torch 2.13's CPU gives LeNet-5's convolutions zero gradients, nor
`torch.compile(step)`, whose guards cost 0.1 ms a call.
"""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import torch_compat
from ..errors import first_line
from ..losses import conventions
from ..modes import autocast
from ..step import TrainStep
from ..untouched import Snapshot
from ..wrapping import replicating
from .constants import HOOKS, Constants
from .graph_step import CannotCompile, GraphResult, fits, refuse_gradients_of_others, signature, soundness
from .pools import written_out
from .settings import laid_out_like


class _Bundle(nn.Module):
    """Model and loss as one module, so that both of their tensors can be handed in."""

    def __init__(self, model: nn.Module, loss: Callable[..., Tensor]):
        super().__init__()
        self.model = model
        self.loss = loss  # registered where it is a module
        self.training = model.training

    def forward(self, batch: Sequence[Any], shares: Sequence[Tensor]) -> conventions.LossValue:
        share = (tuple(shares) if len(shares) > 1 else shares[0]) if shares else None
        return conventions.apply(self.loss, self.model, batch, share)


class CompiledGraph:
    """The graph of a step's gradients for batches shaped like `batch`; made by `compile_step`.

    Everything that it reads or changes is handed to the graph at each call: parameters, buffers, batch; and of a
    micro-batch its share, `shares` tensors of one number.
    """

    def __init__(self, step: TrainStep, batch: Sequence[Any], shares: int = 0):
        model, loss, optimizer = step.model, step.loss, step.optimizer
        self.bundle = _Bundle(model, loss)
        trained = {id(p) for group in optimizer.param_groups for p in group["params"] if p.requires_grad}
        named = dict(self.bundle.named_parameters())
        self.names = [name for name, p in named.items() if id(p) in trained]
        self.parameters = [named[name] for name in self.names]
        if trained - set(map(id, named.values())):
            raise CannotCompile(
                "the optimizer has a parameter that is in neither model nor loss, and that a graph would not train: "
                "give the loss as an nn.Module that holds it"
            )
        frozen = {name: p for name, p in named.items() if id(p) not in trained}
        self._frozen = list(frozen.values())
        refuse_gradients_of_others(step)
        # Where each buffer stands: an eager step or a load may put another tensor in its place.
        self._buffers = [
            (self.bundle.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2])
            for name, _ in self.bundle.named_buffers()
        ]
        self.other_names = [*frozen, *(name for name, _ in self.bundle.named_buffers())]
        self.precision = step.options.precision
        self.guard = step.checks
        if not all(isinstance(part, Tensor) for part in batch):
            raise CannotCompile("its batches hold more than plain tensors")
        self.signature = signature(batch)
        self._like = tuple(torch.ones((), dtype=torch.float64, device="cpu") for _ in range(shares))
        self._graph: Callable[..., Any] | None = None
        self._output_spec: Any = None
        self._single = False
        self._present: list[bool] = []

    def trace(self, batch: Sequence[Any]) -> torch.fx.GraphModule:
        """The step as a graph of primitive operations, for batches shaped like `batch`.

        Raises CannotCompile for a forward pass that does more than tensor operations.
        """
        from torch.fx.experimental.proxy_tensor import make_fx

        arguments = self.arguments(batch, self._like)
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, of its internals
            before = Snapshot(self.bundle.model, self.bundle.loss)
            try:
                graph = make_fx(self._flat, tracing_mode="fake", _allow_non_fake_inputs=True)(*arguments)
            finally:
                changed = before.put_back()
        if changed is not None:
            raise CannotCompile(f"{changed}, which a graph would not")
        return graph

    def compile(self, batch: Sequence[Any], lower: Callable[..., Any] | None = None) -> None:
        """Trace, and make code of the graph with `lower(graph, arguments)`, by default Inductor.

        Raises whatever torch raises for a step that it cannot trace or compile.
        """
        arguments = self.arguments(batch, self._like)
        graph = self.trace(batch)
        with torch.no_grad():
            graph = written_out(graph, arguments)
            self._graph = (lower or by_inductor)(graph, arguments)
        self.constants = Constants(model=self.bundle.model, loss=self.bundle.loss)

    def arguments(self, batch: Sequence[Any], shares: Sequence[Tensor] = ()) -> list[Tensor]:
        """Everything that the graph reads, in its order."""
        others = [*self._frozen, *(module._buffers[name] for module, name in self._buffers)]
        return [*self.parameters, *others, *batch, *shares]

    def __call__(self, batch: Sequence[Any], shares: Sequence[Tensor] = ()) -> GraphResult:
        """Run on the live tensors: buffers move on."""
        assert self._graph is not None, "compile() comes first"
        with torch.no_grad():
            loss, sound, *rest = self._graph(*self.arguments(batch, shares))
        if self._single:  # what nearly every model gives; putting a tree together is not free
            outputs, grads = rest[0], iter(rest[1:])
        else:
            count = self._output_spec.num_leaves
            outputs = pytree.tree_unflatten(rest[:count], self._output_spec)
            grads = iter(rest[count:])
        return GraphResult(loss, sound, outputs, [next(grads) if present else None for present in self._present])

    def fits(self, batch: Sequence[Any]) -> bool:
        """Whether the graph is one for this batch and for what is trained now."""
        if not fits(batch, self.signature) or not self.constants.modes_hold():
            return False
        return all(p.requires_grad for p in self.parameters) and not any(p.requires_grad for p in self._frozen)

    def _flat(self, *everything: Tensor) -> list[Tensor]:
        first, second = len(self.parameters), len(self.parameters) + len(self.other_names)
        leaves = [p.detach().requires_grad_() for p in everything[:first]]
        loss, outputs = self._forward(leaves, everything[first:second], everything[second:])
        with torch.enable_grad():
            made: Sequence[Tensor | None] = torch.autograd.grad(loss, leaves, allow_unused=True)
        self._present = [grad is not None for grad in made]
        grads = [None if g is None else laid_out_like(g, p) for g, p in zip(made, self.parameters, strict=True)]
        present = [g for g in grads if g is not None]
        loss = loss.detach()
        sound = soundness(loss, present) if self.guard else loss
        flat_outputs, self._output_spec = pytree.tree_flatten(outputs)
        self._single = isinstance(outputs, Tensor)
        return [loss, sound, *(o.detach() for o in flat_outputs), *present]

    def _forward(
        self, leaves: Sequence[Tensor], others: Sequence[Tensor], batch: Sequence[Tensor]
    ) -> tuple[Tensor, Any]:
        tensors = dict(zip(self.names, leaves, strict=True)) | dict(zip(self.other_names, others, strict=True))
        with torch.enable_grad(), autocast(leaves[0].device, self.precision):
            rows, shares = tuple(batch[: len(self.signature)]), tuple(batch[len(self.signature) :])
            value = torch.func.functional_call(self.bundle, tensors, (rows, shares))
        for name, before in zip(self.other_names, others, strict=True):
            if tensors[name] is not before:  # a buffer that was assigned anew instead of changed in place
                before.copy_(tensors[name].detach())
        return value.loss, value.outputs


def compile_step(step: TrainStep, batch: Sequence[Any], shares: int = 0) -> CompiledGraph:
    """Compile the step's gradients under the settings that now hold (threads, oneDNN, memory layout).

    Nothing that the run will see is changed. Raises CannotCompile, with torch's reason, for what cannot be.
    """
    if reason := why_not(step.model):
        raise CannotCompile(reason)
    if not step.model.training:
        raise CannotCompile("the model is in evaluation mode; call model.train() first")
    # Before minutes are spent: oneDNN's backward pass of an LSTM fails in Inductor's code.
    recurrent = (name for name, module in step.model.named_modules() if isinstance(module, nn.RNNBase))
    if (name := next(recurrent, None)) is not None:
        kind = type(step.model.get_submodule(name)).__name__
        raise CannotCompile(f"{name or 'the model'} is an nn.{kind}, whose kernels a graph cannot hold")
    try:
        graph = CompiledGraph(step, batch, shares)
        graph.compile(batch)
    except CannotCompile:
        raise
    except Exception as error:  # tracing runs the user's forward on stand-ins: anything may be raised
        raise CannotCompile(first_line(error, kind=True)) from error
    return graph


def by_inductor(graph: torch.fx.GraphModule, arguments: list[Tensor]) -> Callable[..., Any]:
    """The graph as machine code."""
    on_cpu = all(argument.device.type == "cpu" for argument in arguments)
    # Random numbers come from torch's own generators, which a checkpoint holds. The wrapper in C++ halves what a
    # call costs. Left to itself, Inductor lays every image out with its channels last, and back, which costs LeNet-5
    # half of its step at batch 512; layouts are a setting.
    settings = {"fallback_random": True, "cpp_wrapper": on_cpu, "layout_optimization": not _contiguous(arguments)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own, of its internals
        return torch_compat.inductor_compile(graph, arguments, settings)


def _contiguous(arguments: Sequence[Tensor]) -> bool:
    """Whether images and the weights of convolutions lie as torch makes them."""
    return all(argument.is_contiguous() for argument in arguments if argument.dim() == 4)


def why_not(model: nn.Module) -> str | None:
    """Why this model's step cannot be compiled on this machine, or None."""
    if (reason := why_no_code(next((p.device.type for p in model.parameters()), "cpu"))) is not None:
        return reason
    if (kind := replicating(model)) is not None:
        return f"a graph of a {kind} would leave out what it does between processes or devices"
    return why_hooks(model)


def why_no_code(device: str = "cpu") -> str | None:
    """Why nothing can be compiled for `device` on this machine, or None."""
    lacks = device == "cpu" and compiler() is None
    return "there is no C++ compiler (g++ or clang++) on this machine" if lacks else None


def why_hooks(model: nn.Module) -> str | None:
    """Which hook a graph would leave out, or None."""
    for name, module in model.named_modules():
        if any(getattr(module, kind) for kind in HOOKS):
            return f"module {name or type(model).__name__} has hooks, which a graph would leave out"
    for name, parameter in model.named_parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            return f"parameter {name} has hooks, which a graph would leave out"
    return None


def compiler() -> str | None:
    """The C++ compiler that Inductor would use."""
    for name in (os.environ.get("CXX"), "g++", "clang++"):
        if name and (path := shutil.which(name)):
            return path
    return None
