"""A computation read from a file: a list of known operators on named tensors, checked, then run one by one.

This stands in for `torch.export.load`, which unpickles parts of its file, evaluates expressions and calls any
torch attribute that the file names. Here a node can only be an operator of the list below, on values that
exist; sizes are tried out without memory first. The numbers are those that torch gives: each node is one call
of the same ATen operator.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..safe_tensors import BadFile

MAX_NODES = 100_000
# The most one value may take for a batch of one; what an image model needs is far below.
MAX_VALUE_BYTES = 2 * 2**30

# Pure functions of tensors; none reads a file, waits, draws random numbers or changes how torch works.
_ATEN_NAMES = """
    abs add addmm adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d alias all amax amin any arange argmax
    argmin atan avg_pool1d avg_pool2d avg_pool3d baddbmm batch_norm bitwise_and bitwise_not bitwise_or bmm cat ceil
    celu chunk clamp clamp_max clamp_min clone constant_pad_nd contiguous conv1d conv2d conv3d conv_transpose1d
    conv_transpose2d conv_transpose3d cos cumsum detach detach_ div dropout einsum elu embedding eq erf exp expand
    expand_as flatten flip floor floor_divide full full_like gather ge gelu glu group_norm gt hardsigmoid hardswish
    hardtanh index_select instance_norm isnan layer_norm le leaky_relu lift_fresh_copy linear linear_backward log
    log1p log_softmax logical_and logical_not logical_or logsumexp lt masked_fill matmul max max_pool1d max_pool2d
    max_pool3d maximum mean min minimum mish mm movedim mul narrow ne neg new_full new_ones new_zeros norm ones
    ones_like pad permute pixel_shuffle pow prelu prod reciprocal reflection_pad1d reflection_pad2d relu relu6
    remainder repeat replication_pad1d replication_pad2d reshape rms_norm roll round rsqrt rsub scalar_tensor
    scaled_dot_product_attention select selu sigmoid sign silu sin slice softmax softplus split split_with_sizes sqrt
    squeeze stack std sub sum t tan tanh threshold to _to_copy topk transpose tril triu unbind unflatten unfold
    unsqueeze upsample_bilinear2d upsample_nearest2d upsample_nearest1d var var_mean view view_as where zeros
    zeros_like _softmax _log_softmax _unsafe_view
"""
_ATEN = frozenset(_ATEN_NAMES.split())
_CHECKS = {"_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size", "sym_constrain_range"}
_NUMBERS: dict[str, Callable[..., Any]] = {
    "_operator.add": operator.add,
    "_operator.sub": operator.sub,
    "_operator.mul": operator.mul,
    "_operator.floordiv": operator.floordiv,
    "_operator.mod": operator.mod,
    "_operator.neg": operator.neg,
    "_operator.eq": operator.eq,
    "_operator.ne": operator.ne,
    "_operator.ge": operator.ge,
    "_operator.gt": operator.gt,
    "_operator.le": operator.le,
    "_operator.lt": operator.lt,
    "torch.sym_max": max,
    "torch.sym_min": min,
    "math.trunc": math.trunc,
    "math.floor": math.floor,
    "math.ceil": math.ceil,
}
DTYPES = {
    1: "uint8", 2: "int8", 3: "int16", 4: "int32", 5: "int64", 6: "float16", 7: "float32", 8: "float64",
    10: "complex64", 11: "complex128", 12: "bool", 13: "bfloat16", 28: "uint16", 29: "float8_e4m3fn",
    30: "float8_e5m2", 31: "float8_e4m3fnuz", 32: "float8_e5m2fnuz", 34: "uint32", 35: "uint64",
}  # fmt: skip
_MEMORY_FORMATS = {1: "contiguous_format", 2: "channels_last", 3: "channels_last_3d", 4: "preserve_format"}
_INFINITE = {"Infinity": math.inf, "-Infinity": -math.inf, "NaN": math.nan}


@dataclass(frozen=True)
class Ref:
    """The value of an earlier node, a weight or an input, by name."""

    name: str


# Stands for the device of the run, whatever device the program was exported on.
_DEVICE = object()


@dataclass(frozen=True)
class Node:
    """One call: `results` are the names for what it returns, nested as it returns it; `last` may be freed after."""

    call: Callable[..., Any]
    target: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    results: Any
    last: tuple[str, ...] = ()


@dataclass(frozen=True)
class Program:
    """Weights by name, the input's name, shape (-1: any) and dtype, the calls, and the output's name."""

    weights: Mapping[str, torch.Tensor]
    input: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    nodes: tuple[Node, ...]
    output: str
    _tried: set[int] = field(default_factory=set, repr=False, compare=False)

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        """The output for a batch on the CPU. Raises `ValueError` for a batch of another shape or dtype."""
        fits = batch.dim() == len(self.shape) and all(
            wanted in (-1, size) for wanted, size in zip(self.shape, batch.shape, strict=True)
        )
        if not fits or batch.dtype != self.dtype:
            raise ValueError(
                f"the program takes {str(self.dtype).removeprefix('torch.')} of shape "
                f"{['N' if n < 0 else n for n in self.shape]}, not {str(batch.dtype).removeprefix('torch.')} of "
                f"shape {list(batch.shape)}"
            )
        if batch.shape[0] not in self._tried:
            self.try_out(batch.shape[0])
        with torch.inference_mode():
            # A copy, because an operator that works in place (`relu_`) may be the first.
            return self._run(batch.clone(), self.weights, "cpu", math.inf)

    def try_out(self, samples: int = 1) -> torch.Tensor:
        """Run without memory: shapes are computed and no number. Raises `ValueError` for what is too large."""
        weights = {n: torch.empty_like(w, device="meta") for n, w in self.weights.items()}
        batch = torch.empty([samples if n < 0 else n for n in self.shape], dtype=self.dtype, device="meta")
        with torch.inference_mode():
            result = self._run(batch, weights, "meta", MAX_VALUE_BYTES * max(1, samples))
        self._tried.add(samples)
        return result

    def _run(self, batch: torch.Tensor, weights: Mapping[str, Any], device: str, limit: float) -> torch.Tensor:
        values: dict[str, Any] = {**weights, self.input: batch}
        for node in self.nodes:
            args = [_filled(arg, values, device) for arg in node.args]
            kwargs = {name: _filled(arg, values, device) for name, arg in node.kwargs.items()}
            result = node.call(*args, **kwargs)
            _name_results(node, node.results, result, values, limit)
            for name in node.last:
                del values[name]
        return values[self.output]


def parse_nodes(
    path: Path, found: Any, known: set[str], output: str, kept: frozenset[str]
) -> tuple[Node, ...]:
    """The calls in the JSON list `found`; `known` are the names that exist before, `kept` those never freed.

    Raises `BadFile` for an operator that is not on the list and for anything malformed.
    """
    if not isinstance(found, list) or len(found) > MAX_NODES:
        raise BadFile(path, f"its program is not a list of at most {MAX_NODES} calls")
    nodes = [node for item in found if (node := _node(path, item, known)) is not None]
    if output not in known:
        raise BadFile(path, f"its program returns {output[:80]!r}, which it does not compute")
    # From the end backwards, the first use met is the last one made.
    used = {output} | kept
    freed = []
    for node in reversed(nodes):
        names = dict.fromkeys([*_refs(node.args), *_refs(tuple(node.kwargs.values())), *_names(node.results)])
        freed.append(tuple(name for name in names if name not in used))
        used |= set(names)
    pairs = zip(nodes, reversed(freed), strict=True)
    return tuple(Node(n.call, n.target, n.args, n.kwargs, n.results, last) for n, last in pairs)


def _node(path: Path, found: Any, known: set[str]) -> Node | None:
    if not isinstance(found, Mapping) or not isinstance(found.get("target"), str):
        raise BadFile(path, "a call of its program is damaged")
    target = found["target"]

    def bad(what: str) -> BadFile:
        return BadFile(path, f"its program calls {target[:100]}: {what}")

    call, schema = _operator(target, bad)
    if call is None:
        return None
    inputs = found.get("inputs")
    outputs = found.get("outputs")
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) > 1000:
        raise bad("without lists of inputs and outputs")
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    for item in inputs:
        if not isinstance(item, Mapping) or not isinstance(item.get("name"), str):
            raise bad("with a damaged argument")
        value = _argument(item.get("arg"), known, bad)
        if schema is None and not isinstance(value, Ref | int | float):
            raise bad("with an argument that is no number")
        if schema is None or (item.get("kind") == 1 and len(args) < len(schema) and schema[len(args)] == item["name"]):
            args.append(value)
        elif item["name"] in schema:
            kwargs[item["name"]] = value
        else:
            raise bad(f"with the argument {item['name'][:60]!r}, which it does not take")
    results = [_result(item, known, bad) for item in outputs]
    return Node(call, target, tuple(args), kwargs, results[0] if len(results) == 1 else results)


def _operator(target: str, bad: Any) -> tuple[Callable[..., Any] | None, list[str] | None]:
    """The function and its parameters' names; no function for a check that has been made already."""
    if target in _NUMBERS:
        return _NUMBERS[target], None
    parts = target.split(".")
    if parts[:3] == ["torch", "ops", "aten"] and len(parts) == 5:
        name, overload = parts[3:]
        if name in _CHECKS:
            return None, None
        base = name[:-1] if name.endswith("_") and not name.endswith("__") else name
        if (base in _ATEN or name in ("sym_size", "sym_numel")) and not overload.startswith("_"):
            packet = getattr(torch.ops.aten, name, None)
            if overload in (packet.overloads() if packet is not None else ()):
                call = getattr(packet, overload)
                return call, [argument.name for argument in call._schema.arguments]
    raise bad(
        "this is not one of the operators that Surefoot runs from a file. If you trust the file, "
        "torch.export.load(FILE).module() runs it outside of Surefoot"
    )


def _argument(found: Any, known: set[str], bad: Any) -> Any:
    if not isinstance(found, Mapping) or len(found) != 1:
        raise bad("with a damaged argument")
    ((kind, value),) = found.items()
    match kind, value:
        case "as_none", _:
            return None
        case "as_tensor", {"name": str(name)}:
            return _ref(name, known, bad)
        case "as_sym_int" | "as_sym_float" | "as_sym_bool", {"as_name": str(name)}:
            return _ref(name, known, bad)
        case "as_sym_int" | "as_sym_float" | "as_sym_bool", {"as_int": v} | {"as_float": v} | {"as_bool": v}:
            return _number(v, bad)
        case "as_int" | "as_float" | "as_bool", _:
            return _number(value, bad)
        case "as_string", str() if len(value) <= 200:
            return value
        case "as_ints" | "as_floats" | "as_bools", list() if len(value) <= 10_000:
            return [_number(item, bad) for item in value]
        case "as_tensors", list():
            return [_argument({"as_tensor": item}, known, bad) for item in value]
        case "as_sym_ints", list() if len(value) <= 100:
            return [_argument({"as_sym_int": item}, known, bad) for item in value]
        case "as_optional_tensors", list():
            return [_argument(item, known, bad) for item in value]
        case "as_optional_tensor", _:
            return _argument(value, known, bad)
        case "as_scalar_type", int() if value in DTYPES:
            return getattr(torch, DTYPES[value])
        case "as_memory_format", int() if value in _MEMORY_FORMATS:
            return getattr(torch, _MEMORY_FORMATS[value])
        case "as_layout", 7:
            return torch.strided
        case "as_device", _:
            return _DEVICE
    raise bad(f"with an argument of the kind {str(kind)[:40]!r}, which Surefoot does not run from a file")


def _number(value: Any, bad: Any) -> Any:
    if isinstance(value, str) and value in _INFINITE:
        return _INFINITE[value]
    if isinstance(value, float) or (isinstance(value, int) and -(2**63) <= value < 2**63):
        return value
    raise bad("with a number that is none")


def _ref(name: str, known: set[str], bad: Any) -> Ref:
    if name not in known:
        raise bad(f"on {name[:80]!r}, which is not computed before")
    return Ref(name)


def _result(found: Any, known: set[str], bad: Any) -> Any:
    match found:
        case {"as_tensor": {"name": str(name)}} | {"as_sym_int": {"as_name": str(name)}}:
            return _new(name, known, bad)
        case {"as_sym_bool": {"as_name": str(name)}} | {"as_sym_float": {"as_name": str(name)}}:
            return _new(name, known, bad)
        case {"as_tensors": list(items)}:
            return [_result({"as_tensor": item}, known, bad) for item in items]
        case {"as_none": _}:
            return None
    raise bad("with a damaged output")


def _new(name: str, known: set[str], bad: Any) -> str:
    if name in known or not name.isidentifier():
        raise bad(f"whose result is called {name[:80]!r}, which is no name or taken")
    known.add(name)
    return name


def _filled(arg: Any, values: Mapping[str, Any], device: str) -> Any:
    if isinstance(arg, Ref):
        return values[arg.name]
    if isinstance(arg, list):
        return [_filled(item, values, device) for item in arg]
    return device if arg is _DEVICE else arg


def _name_results(node: Node, names: Any, result: Any, values: dict[str, Any], limit: float) -> None:
    if names is None:
        return
    if isinstance(names, list):
        if not isinstance(result, Sequence) or len(result) != len(names):
            raise ValueError(f"{node.target} does not return the {len(names)} values that the program names")
        for name, item in zip(names, result, strict=True):
            _name_results(node, name, item, values, limit)
        return
    if isinstance(result, torch.Tensor):
        if result.numel() * result.element_size() > limit:
            shape = list(result.shape)
            raise ValueError(f"{node.target} makes a tensor of shape {shape}, more than is run from a file")
    elif not isinstance(result, int | float) or not -(2**63) <= result < 2**63:
        raise ValueError(f"{node.target} makes something that is neither a tensor nor a number of 64 bits")
    values[names] = result


def _refs(args: Any) -> list[str]:
    if isinstance(args, Ref):
        return [args.name]
    if isinstance(args, list | tuple):
        return [name for arg in args for name in _refs(arg)]
    return []


def _names(results: Any) -> list[str]:
    if isinstance(results, list):
        return [name for item in results for name in _names(item)]
    return [] if results is None else [results]
