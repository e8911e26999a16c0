"""ONNX files: made from an exported program, and checked before onnxruntime sees them."""

from __future__ import annotations

import contextlib
import json
import logging
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from ..errors import UsageError, first_line
from ..safe_tensors import BadFile, parse_json
from .archive import read_whole
from .info import ModelInfo

MAX_BYTES = 2**31 - 1  # what a protobuf message can hold
MAX_VALUE_NUMBERS = 2**29
MAX_NODES = 100_000
INPUT, OUTPUT = "images", "logits"
KEY = "surefoot"

# Operators that compute a value of a size known from their inputs' shapes. No control flow (unbounded time), no
# operators of other domains (libraries), none that reads strings or sequences.
_OPERATOR_NAMES = """
    Abs Add And ArgMax ArgMin Atan AveragePool BatchNormalization BitwiseAnd BitwiseNot BitwiseOr Cast CastLike Ceil
    Celu Clip Concat Constant ConstantOfShape Conv ConvTranspose Cos CumSum Div Dropout Einsum Elu Equal Erf Exp
    Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater
    GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization IsInf IsNaN
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not Or
    PRelu Pad Pow RMSNormalization Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Size Slice Softmax
    Softplus Softsign SpaceToDepth DepthToSpace Split Sqrt Squeeze Sub Sum Swish Tan Tanh ThresholdedRelu Tile TopK
    Transpose Trilu Unsqueeze Where Xor
"""
_OPERATORS = frozenset(_OPERATOR_NAMES.split())
# These make a size out of numbers; their result's shape must be known before the file is run.
_SIZE_FROM_NUMBERS = {"ConstantOfShape", "Expand", "Tile", "Range", "Pad", "Resize"}


def to_onnx(program: torch.export.ExportedProgram, info: ModelInfo) -> bytes:
    """An ONNX model of a program, with any batch size and the info among its metadata. Raises `UsageError`."""
    onnx = _package("onnx")
    _package("onnxscript")
    from .exporting import quiet

    try:
        with quiet(), _logging_off("torch.onnx"):
            made = torch.onnx.export(
                program, (), input_names=[INPUT], output_names=[OUTPUT], dynamo=True, verbose=False
            )
            model = made.model_proto
    except Exception as error:  # the exporter raises many kinds; each means that an operator has no ONNX form
        raise UsageError(f"the model cannot be written as ONNX: {first_line(error)}; export .pt2 instead") from error
    _strip(model)
    model.producer_name = "surefoot"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    described = info.to_json()
    for key, value in ((KEY, described), ("classes", described["classes"])):
        model.metadata_props.append(onnx.StringStringEntryProto(key=key, value=json.dumps(value)))
    onnx.checker.check_model(model)
    return model.SerializeToString(deterministic=True)


def read_onnx(path: Path) -> tuple[Callable[[torch.Tensor], torch.Tensor], ModelInfo]:
    """Check an ONNX file and make a session of onnxruntime for it. Raises `UsageError`."""
    onnx, ort = _package("onnx"), _package("onnxruntime")
    data = read_whole(path, MAX_BYTES)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except Exception as error:  # protobuf's DecodeError, without an import of protobuf's internals
        raise BadFile(path, f"is not an ONNX file, or was cut ({error})") from error
    check(path, model, onnx)
    info = _info(path, model)
    shape, dtype = _input_form(path, model.graph, onnx)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    # Loading must not compute: folding constants would run parts of the file before anyone asked for it.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own kinds, one for each status code
        raise BadFile(path, f"onnxruntime refuses it: {first_line(error)}") from error
    name = model.graph.input[0].name

    def run(batch: torch.Tensor) -> torch.Tensor:
        try:
            (output,) = session.run(None, {name: batch.cpu().numpy()})
        except Exception as error:
            raise ValueError(first_line(error)) from error
        return torch.from_numpy(output)

    known = {field: getattr(info, field) for field in info.__dataclass_fields__}
    return run, ModelInfo(**known | {"input_shape": shape, "input_dtype": dtype})


def check(path: Path, model: Any, onnx: Any) -> None:
    """Refuse what is more than a graph of known operators on tensors that the file holds. Raises `BadFile`."""
    graph = model.graph
    if not graph.node or not graph.output:
        raise BadFile(path, "is not an ONNX model: it holds no graph")
    if len(graph.node) > MAX_NODES:
        raise BadFile(path, f"holds {len(graph.node)} nodes; at most {MAX_NODES} are run")
    if model.functions or graph.sparse_initializer or model.training_info:
        raise BadFile(path, "holds functions, sparse tensors or training parts, which are not run from a file")
    foreign = sorted({f"{n.domain}.{n.op_type}".lstrip(".") for n in graph.node if not _known(n)})
    if foreign:
        raise BadFile(path, f"uses operators that are not run from a file: {', '.join(foreign[:5])[:300]}")
    for tensor in graph.initializer:
        _check_tensor(path, tensor, onnx)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g") or attribute.graphs or attribute.HasField("sparse_tensor"):
                raise BadFile(path, f"{node.op_type} holds a graph of its own, which is not run from a file")
            if attribute.HasField("t"):
                _check_tensor(path, attribute.t, onnx)
    _check_sizes(path, model, onnx)


def _known(node: Any) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in _OPERATORS


def _check_tensor(path: Path, tensor: Any, onnx: Any) -> None:
    name = tensor.name[:80]
    if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data:
        raise BadFile(path, f"the tensor {name!r} lies in another file; only what is inside is read")
    dtypes = onnx.helper.get_all_tensor_dtypes()
    if tensor.data_type not in dtypes or tensor.data_type == onnx.TensorProto.STRING:
        raise BadFile(path, f"the tensor {name!r} has a dtype that is no number")
    if any(size < 0 for size in tensor.dims):
        raise BadFile(path, f"the tensor {name!r} has a negative size")
    numel = math.prod(tensor.dims)
    if numel > MAX_BYTES * 2:
        raise BadFile(path, f"the tensor {name!r} claims {numel} numbers; the file cannot hold them")
    if tensor.HasField("raw_data"):
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        # Types of four bits are packed, two numbers to a byte.
        expected = {numel * width, (numel + 1) // 2} if width == 1 else {numel * width}
        if len(tensor.raw_data) not in expected:
            raise BadFile(path, f"the tensor {name!r} has {len(tensor.raw_data)} bytes for {numel} numbers")
        return
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data")
    held = max(len(getattr(tensor, name)) for name in fields)
    if held not in (numel, 2 * numel, (numel + 1) // 2):
        raise BadFile(path, f"the tensor {name!r} holds {held} values for {numel} numbers")


def _check_sizes(path: Path, model: Any, onnx: Any) -> None:
    """Infer each value's shape without computing it; none may be huge for one sample."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model, data_prop=True, strict_mode=True)
    except Exception as error:  # onnx raises its own kinds for graphs that are not consistent
        raise BadFile(path, f"its shapes do not go together: {first_line(error)}") from error
    known: dict[str, list[int]] = {}
    graph = inferred.graph
    open_sizes = {d.dim_param for value in graph.input for d in value.type.tensor_type.shape.dim} - {""}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shape = value.type.tensor_type.shape if value.type.HasField("tensor_type") else None
        if shape is None:
            continue
        known[value.name] = [d.dim_value if d.HasField("dim_value") else 1 for d in shape.dim]
        if math.prod(known[value.name]) > MAX_VALUE_NUMBERS or min(known[value.name], default=0) < 0:
            raise BadFile(path, f"{value.name[:80]!r} would have the shape {str(known[value.name])[:80]}")
        # Inference gives names of its own to sizes that follow from no shape but from numbers.
        if any(not d.HasField("dim_value") and d.dim_param not in open_sizes for d in shape.dim):
            del known[value.name]
    for node in graph.node:
        if node.op_type in _SIZE_FROM_NUMBERS and node.output[0] not in known:
            raise BadFile(path, f"{node.op_type} makes a value whose size is not known before it is run")


def _input_form(path: Path, graph: Any, onnx: Any) -> tuple[tuple[int, ...], str]:
    inner = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in inner]
    if len(inputs) != 1 or len(graph.output) != 1 or inputs[0] is not graph.input[0]:
        raise BadFile(path, f"takes {len(inputs)} inputs and gives {len(graph.output)}; one of each can be used")
    kind = inputs[0].type.tensor_type
    dims = list(kind.shape.dim)
    if not dims or not all(d.HasField("dim_value") and d.dim_value > 0 for d in dims[1:]):
        raise BadFile(path, "does not tell the shape of its input (only the batch size may be open)")
    dtype = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return tuple(d.dim_value for d in dims[1:]), dtype


def _info(path: Path, model: Any) -> ModelInfo:
    for item in model.metadata_props:
        if item.key == KEY:
            found = parse_json(path, item.value.encode(), "its description", max_containers=100_000)
            return ModelInfo.from_json(found, path)
    return ModelInfo(model={"class": f"{path.name}:program", "args": None})


def _strip(model: Any) -> None:
    """Without the notes of the exporter, which hold the paths of this machine."""
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        item.doc_string = ""
        del item.metadata_props[:]
    del model.metadata_props[:]


def _package(name: str) -> Any:
    try:
        return __import__(name)
    except ImportError:
        raise UsageError(f"ONNX needs the package {name}: pip install 'surefoot[onnx]'") from None


@contextlib.contextmanager
def _logging_off(name: str) -> Iterator[None]:
    """The exporter warns of each torchvision operator that it cannot offer."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
