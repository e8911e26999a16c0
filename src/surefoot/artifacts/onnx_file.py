"""ONNX files: made from an exported program, and run by onnxruntime within bounds of memory and time."""

from __future__ import annotations

import functools
import json
import math
import os
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UsageError, first_line
from ..registry import package
from ..safe_tensors import BadFile, parse_json
from ..text import counted
from .archive import read_whole
from .info import DTYPES, ModelInfo
from .pt2 import quiet

MAX_BYTES = 2**31 - 1  # what a protobuf message can hold
MAX_NODES = 1_000_000
MAX_CALLED = 20_000  # onnxruntime writes functions out where they are called, in more than linear time
MAX_CALLS_DEEP = 50
MAX_RUN_BYTES = 4 * 2**30
MAX_SECONDS = 120
INPUT, OUTPUT = "images", "logits"
KEY = "surefoot"
# What onnxruntime holds itself. Operators of other domains come from libraries, which are never loaded.
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "ai.onnx.preview.training")


def to_onnx(program: torch.export.ExportedProgram, info: ModelInfo, outputs: int = 1) -> bytes:
    """An ONNX model of a program, with any batch size and the info among its metadata. Raises `UsageError`."""
    onnx = _package("onnx")
    _package("onnxscript")
    inputs = len(program.graph_signature.user_inputs)
    names = [INPUT] if inputs == 1 else [f"input_{i}" for i in range(inputs)]
    results = [OUTPUT] if outputs == 1 else [f"output_{i}" for i in range(outputs)]
    try:
        # Other forms of attention give views that torch cannot write out for an open batch size.
        with quiet(), sdpa_kernel(SDPBackend.MATH):
            made = torch.onnx.export(program, (), input_names=names, output_names=results, dynamo=True, verbose=False)
            assert made is not None
            model = made.model_proto
    except Exception as error:  # the exporter raises many kinds; each means that an operator has no ONNX form
        while error.__cause__ is not None:  # what torch wraps says which operator it was
            error = error.__cause__  # type: ignore[assignment]
        raise UsageError(f"the model cannot be written as ONNX: {first_line(error)}; export .pt2 instead") from error
    _strip(model)
    model.producer_name = "surefoot"
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if dims and not dims[0].HasField("dim_value"):
            dims[0].dim_param = "batch"
    described = info.to_json()
    for key, value in ((KEY, described), ("classes", described["classes"])):
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=json.dumps(value)))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def read_onnx(path: Path) -> tuple[Callable[..., Any], ModelInfo]:
    """Check an ONNX file and make a session of onnxruntime's CPU provider for it. Raises `UsageError`.

    The function returned takes one tensor for each input and gives a tensor, or a tuple of them where the file has
    several outputs. Values of a run may take `MAX_RUN_BYTES` in all, a run at most `MAX_SECONDS`. Tensors in other
    files are read from the file's own folder only, and no library of operators is ever loaded.
    """
    onnx, ort = _package("onnx"), _package("onnxruntime")
    data = read_whole(path, MAX_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, without an import of protobuf's internals
        raise BadFile(path, f"is not an ONNX file, or was cut ({first_line(error)})") from error
    outside = check(path, model, onnx)
    info = _info(path, model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    # Loading must not compute: folding constants would run parts of the file before anyone asked for it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    _bounded_memory(ort)
    options.add_session_config_entry("session.use_env_allocators", "1")
    try:
        source = str(path) if outside else data
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, one for each status code
        raise BadFile(path, f"onnxruntime refuses it: {_reason(error)}") from error
    inputs = session.get_inputs()
    shape, dtype = _input_form(inputs)
    fields = {name: getattr(info, name) for name in info.__dataclass_fields__}
    run = functools.partial(_run, ort, session, inputs)
    return run, ModelInfo(**fields | {"input_shape": shape, "input_dtype": dtype})


def _run(ort: Any, session: Any, inputs: Sequence[Any], *batch: Tensor) -> Any:
    if len(batch) != len(inputs):
        names = ", ".join(f"{i.name} {list(i.shape)}" for i in inputs)
        raise ValueError(f"it takes {counted(len(inputs), 'input')} ({names[:300]}), not {len(batch)}")
    sizes = inputs[0].shape
    if len(batch) == 1 and sizes and sizes[0] == 1 and len(batch[0]) > 1:
        # Exported for one sample: one after another.
        parts = [_run(ort, session, inputs, batch[0][i : i + 1]) for i in range(len(batch[0]))]
        if isinstance(parts[0], tuple):
            return tuple(torch.cat(column) for column in zip(*parts, strict=True))
        return torch.cat(parts)
    arrays = {i.name: part.detach().cpu().numpy() for i, part in zip(inputs, batch, strict=True)}
    options = ort.RunOptions()
    over = threading.Timer(MAX_SECONDS, lambda: setattr(options, "terminate", True))
    over.daemon = True
    over.start()
    try:
        outputs = session.run(None, arrays, options)
    except Exception as error:
        late = f"it took more than {MAX_SECONDS} s: " if options.terminate else ""
        raise ValueError(late + _reason(error)) from error
    finally:
        over.cancel()
    results = []
    for value, output in zip(outputs, session.get_outputs(), strict=True):
        if not hasattr(value, "dtype") or value.dtype.kind not in "biufc":
            raise ValueError(f"its output {output.name!r} is {output.type}, not a tensor of numbers")
        results.append(torch.from_numpy(value.copy() if not value.flags.writeable else value))
    return results[0] if len(results) == 1 else tuple(results)


@functools.cache
def _bounded_memory(ort: Any) -> None:
    """One arena for all sessions of this process that refuses to grow above `MAX_RUN_BYTES`."""
    where = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    limits = ort.OrtArenaCfg({"max_mem": MAX_RUN_BYTES, "arena_extend_strategy": 1})
    ort.create_and_register_allocator(where, limits)


def check(path: Path, model: Any, onnx: Any) -> bool:
    """Refuse a model that reaches outside of its file and folder, or lies about its tensors. Raises `BadFile`.

    Returns whether some of its tensors lie in other files of its folder.
    """
    if not model.graph.node or not model.graph.output:
        raise BadFile(path, "is not an ONNX model: it holds no graph")
    for domain in sorted({node.domain for node in _nodes(path, [model.graph, *model.functions])}):
        functions = {function.domain for function in model.functions}
        if domain not in _DOMAINS and domain not in functions:
            raise BadFile(
                path,
                f"uses operators of {domain[:80]!r}, which come from a library; only what onnxruntime "
                "itself holds is run",
            )
    _check_functions(path, model)
    outside = False
    for tensor in _tensors(path, model):
        outside = _check_tensor(path, tensor, onnx) or outside
    return outside


def _check_functions(path: Path, model: Any) -> None:
    """Functions that call functions may stand for far more nodes than the file holds: count before they are made."""
    bodies = {(f.domain, f.name): [(n.domain, n.op_type) for n in _nodes(path, [f])] for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(key: tuple[str, str], depth: int) -> int:
        if depth > MAX_CALLS_DEEP:
            raise BadFile(path, f"holds functions that call one another more than {MAX_CALLS_DEEP} deep")
        if key not in sizes:
            sizes[key] = sum(size(inner, depth + 1) for inner in bodies[key]) if key in bodies else 1
        return sizes[key]

    called = sum(size(key, 0) for n in _nodes(path, [model.graph]) if (key := (n.domain, n.op_type)) in bodies)
    if called > MAX_CALLED:
        raise BadFile(path, f"its functions stand for {called} nodes where they are called; at most {MAX_CALLED} run")


def _nodes(path: Path, bodies: Sequence[Any], graphs: list[Any] | None = None) -> Iterator[Any]:
    """Every node of graphs and functions, and of their inner graphs (If, Loop), which are added to `graphs`."""
    waiting, count = list(bodies), 0
    while waiting:
        for node in waiting.pop().node:
            count += 1
            if count > MAX_NODES:
                raise BadFile(path, f"holds more than {MAX_NODES} nodes")
            yield node
            for attribute in node.attribute:
                inner = [graph for graph in (attribute.g, *attribute.graphs) if graph.node or graph.initializer]
                waiting += inner
                if graphs is not None:
                    graphs += inner


def _tensors(path: Path, model: Any) -> Iterator[Any]:
    """Every tensor that the file holds or refers to."""
    graphs, sparse = [model.graph], []
    for node in _nodes(path, [model.graph, *model.functions], graphs):
        for attribute in node.attribute:
            yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for graph in graphs:
        yield from graph.initializer
        sparse += graph.sparse_initializer
    for each in sparse:
        yield from (each.values, each.indices)


def _check_tensor(path: Path, tensor: Any, onnx: Any) -> bool:
    name = tensor.name[:80]
    if any(size < 0 for size in tensor.dims):
        raise BadFile(path, f"the tensor {name!r} has a negative size")
    numel = math.prod(tensor.dims)
    dtypes = onnx.helper.get_all_tensor_dtypes()
    if tensor.data_type not in dtypes or numel > 8 * MAX_BYTES:
        raise BadFile(path, f"the tensor {name!r} claims {numel} numbers of dtype {tensor.data_type}")
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        _check_external(path, name, {entry.key: entry.value for entry in tensor.external_data})
        return True
    if tensor.HasField("raw_data"):
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        # Types of four and two bits are packed, two or four numbers to a byte.
        expected = {numel * width, (numel + 1) // 2, (numel + 3) // 4} if width == 1 else {numel * width}
        if len(tensor.raw_data) not in expected:
            raise BadFile(path, f"the tensor {name!r} has {len(tensor.raw_data)} bytes for {numel} numbers")
    return False


def _check_external(path: Path, name: str, entry: dict[str, str]) -> None:
    """The file of a tensor is a regular one beside the model, not reached through a link, and long enough."""
    location = entry.get("location", "")
    if not location or "\0" in location or os.path.basename(location) != location or location in (".", ".."):
        raise BadFile(path, f"the tensor {name!r} lies in {location[:80]!r}; only files of the same folder are read")
    other = path.parent / location
    try:
        status = other.lstat()
        end = int(entry.get("offset") or 0) + int(entry.get("length") or 0)
    except (OSError, ValueError) as error:
        raise BadFile(path, f"the tensor {name!r} lies in {location[:80]!r}: {first_line(error)}") from error
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1 or not 0 <= end <= status.st_size:
        raise BadFile(path, f"the tensor {name!r}: {location[:80]!r} is no regular file that holds it")


def _input_form(inputs: Sequence[Any]) -> tuple[tuple[int, ...] | None, str | None]:
    """Shape without N and dtype of the one input; None where there are several or sizes are open."""
    if len(inputs) != 1:
        return None, None
    dtype = inputs[0].type.removeprefix("tensor(").removesuffix(")")
    dtype = {"float": "float32", "double": "float64"}.get(dtype, dtype)
    sizes = inputs[0].shape[1:]
    fixed = inputs[0].shape and all(isinstance(n, int) and n > 0 for n in sizes)
    return (tuple(sizes) if fixed else None), (dtype if dtype in DTYPES else None)


def _info(path: Path, model: Any) -> ModelInfo:
    for item in model.metadata_props:
        if item.key == KEY:
            data = parse_json(path, item.value.encode(), "its description", max_containers=100_000)
            return ModelInfo.from_json(data, path)
    return ModelInfo(model={"class": f"{path.name}:program", "args": None})


def _reason(error: Exception) -> str:
    """The first line of onnxruntime's message, without its own prefix of codes."""
    return first_line(error).rpartition(" : ")[2][:300]


def _strip(model: Any) -> None:
    """Without the notes of the exporter, which hold the paths of this machine."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    del model.metadata_props[:]


def _package(name: str) -> Any:
    return package(name, f"ONNX needs the package {name}: pip install 'surefoot[onnx]'")
