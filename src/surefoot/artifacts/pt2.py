"""Programs exported by `torch.export` (.pt2): read into a checked `Program`, without unpickling or evaluating."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..errors import first_line
from ..safe_tensors import BadFile, parse_json
from . import pickled
from .archive import Archive, archive_in, open_archive
from .info import ModelInfo
from .program import DTYPES, Program, parse_nodes

EXTRA = "surefoot.json"
_JSON_LIMIT = 64 * 1024 * 1024
_CONTAINERS = 3_000_000
_RECORD = re.compile(
    r"models/model\.json|data/(weights|constants)/model_\1_config\.json|data/weights/weight_\d{1,9}"
    r"|data/constants/tensor_\d{1,9}|data/sample_inputs/model\.pt|extra/[\w.-]{1,100}"
    r"|archive_format|archive_version|byteorder|version|\.[A-Za-z_.]+|\.data/[A-Za-z_]+"
)
_EXAMPLES_LIMIT = 2**30
# Possessive, so that no text makes the matching slow.
_EXPRESSION = re.compile(r"(?:'[A-Za-z]\w*+'|[A-Za-z]\w*+|\d++|[-+*/%(),<>=&|~ ]){1,2000}+")
_CALL = re.compile(r"(\w+)\s*\(")
_CALLED = {
    "Symbol", "Integer", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv",
    "Max", "Min", "Eq", "Ne", "Ge", "Gt", "Le", "Lt", "And", "Or", "Not", "Identity", "PowByNatural",
}  # fmt: skip
_SCHEMA = 8  # the major version of torch's format that this reader follows


@dataclass(frozen=True)
class ProgramFile:
    """A program and what the file says about itself (None where Surefoot did not write it)."""

    program: Program
    info: ModelInfo | None


def read_program(path: str | Path) -> ProgramFile:
    """Read a .pt2 file. Raises `BadFile`, naming what cannot be run from a file.

    Pickled parts (the example inputs that torch writes beside every program) are never looked at.
    """
    with open_archive(path) as archive:
        path = archive.path
        _check_records(archive)
        model = _json(archive, "models/model.json")
        _check_for_others(archive, model)
        major = _at(model, "schema_version", "major", path=path)
        if major != _SCHEMA:
            raise BadFile(path, f"is of version {str(major)[:20]} of torch's format; this Surefoot reads {_SCHEMA}")
        module = _at(model, "graph_module", path=path)
        graph, signature = _at(module, "graph", path=path), _at(module, "signature", path=path)
        weights, data_input = _inputs(archive, signature)
        if len(_list(_at(graph, "inputs", path=path), path)) != len(weights) + 1:
            raise BadFile(path, "its graph and its signature tell of different inputs")
        shape, dtype = _input_form(_at(graph, "tensor_values", path=path).get(data_input), path)
        output = _output(signature, path)
        nodes = parse_nodes(
            path, graph.get("nodes"), {*weights, data_input}, output, frozenset((*weights, data_input))
        )
        program = Program(weights, data_input, shape, dtype, nodes, output)
        try:
            result = program.try_out()
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, NotImplementedError) as error:
            raise BadFile(path, f"its program does not run: {first_line(error)}") from error
        if not isinstance(result, torch.Tensor):
            raise BadFile(path, "its program does not return a tensor")
        return ProgramFile(program, _info(archive))


def _check_records(archive: Archive) -> None:
    path, names = archive.path, archive.records
    if "models/model.json" not in names:
        if "data.pkl" in names:
            raise BadFile(path, "is a file of weights (torch.save), not a program; name the model it is for")
        raise BadFile(path, "holds no program (models/model.json), as torch.export.save writes it")
    for name in names:
        if name.startswith("data/aotinductor/"):
            raise BadFile(path, f"holds compiled machine code ({name[:80]}), which is not run from a file")
        if re.match(r"data/constants/(custom|opaque)_obj_", name):
            raise BadFile(path, f"holds a pickled object ({name[:80]}), which is not loaded")
        if not _RECORD.fullmatch(name):
            raise BadFile(path, f"holds the record {name[:80]!r}, which is no part of a program of tensors")
    if "archive_format" not in names or archive.read("archive_format", 16) != b"pt2":
        raise BadFile(path, "its archive_format is not pt2")
    if "byteorder" in names and archive.read("byteorder", 16).decode("ascii", "replace") != sys.byteorder:
        raise BadFile(path, f"was written on a machine with another byte order than this one ({sys.byteorder})")


def _check_for_others(archive: Archive, model: Any) -> None:
    """Refuse what this reader never looks at but `torch.export.load` would run: a file that holds it is an attack.

    Those are the pickled example inputs, the expressions for sizes (evaluated as Python) and the guards and names
    (made into source code).
    """
    path = archive.path
    name = "data/sample_inputs/model.pt"
    if name in archive.records and archive.records[name].size:
        inside = Path(f"{path}: {name}")
        examples = archive_in(inside, io.BytesIO(archive.read(name, _EXAMPLES_LIMIT)))
        pickled.followed(inside, examples.read("data.pkl", pickled.MAX_BYTES), strict=True)
    waiting: list[Any] = [model]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key, value in item.items():
                if key == "expr_str" and not _is_expression(value):
                    raise BadFile(path, f"gives {str(value)[:80]!r} as a size, which is no expression of sizes")
                if key == "guards_code" and any(_code_in(guard) for guard in value or ()):
                    raise BadFile(path, "its guards hold code that does more than compare sizes")
                waiting.append(value)
        elif isinstance(item, list):
            waiting.extend(item)


def _is_expression(text: Any) -> bool:
    """Whether a size is arithmetic on symbols, and calls nothing but sympy's own classes for that."""
    if not isinstance(text, str) or len(text) > 2000 or not _EXPRESSION.fullmatch(text):
        return False
    return set(_CALL.findall(text)) <= _CALLED


def _code_in(guard: Any) -> bool:
    return not isinstance(guard, str) or "__" in guard or "import" in guard or "\n" in guard


def _json(archive: Archive, name: str) -> Any:
    data = archive.read(name, _JSON_LIMIT)
    found = parse_json(archive.path, data, name, max_containers=_CONTAINERS)
    if not isinstance(found, dict):
        raise BadFile(archive.path, f"{name} is not a JSON object")
    return found


def _inputs(archive: Archive, signature: Any) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors that the file gives to the program, by their names in it, and the name of the user's input."""
    path = archive.path
    weights = _tensors(archive, "weights")
    constants = _tensors(archive, "constants")
    given: dict[str, torch.Tensor] = {}
    data_inputs = []
    for spec in _list(_at(signature, "input_specs", path=path), path):
        match spec:
            case {"parameter": {"arg": {"name": str(name)}, "parameter_name": str(stored)}}:
                found = weights.get(stored)
            case {"buffer": {"arg": {"name": str(name)}, "buffer_name": str(stored), "persistent": bool(kept)}}:
                found = weights.get(stored) if kept else constants.get(stored, weights.get(stored))
            case {"tensor_constant": {"arg": {"name": str(name)}, "tensor_constant_name": str(stored)}}:
                found = constants.get(stored)
            case {"user_input": {"arg": {"as_tensor": {"name": str(name)}}}}:
                data_inputs.append(name)
                continue
            case _:
                kind = next(iter(spec), "nothing") if isinstance(spec, Mapping) else "nothing"
                raise BadFile(path, f"its program takes an input of the kind {str(kind)[:40]!r}, not a tensor")
        if found is None:
            raise BadFile(path, f"its program uses {stored[:80]!r}, which the file does not hold")
        if name in given or not name.isidentifier():
            raise BadFile(path, f"gives the name {name[:80]!r} to an input, which is no name or taken")
        given[name] = found
    if len(data_inputs) != 1 or data_inputs[0] in given or not data_inputs[0].isidentifier():
        raise BadFile(path, f"its program takes {len(data_inputs)} inputs; one batch is what Surefoot can give")
    return given, data_inputs[0]


def _tensors(archive: Archive, kind: str) -> dict[str, torch.Tensor]:
    path = archive.path
    config = _at(_json(archive, f"data/{kind}/model_{kind}_config.json"), "config", path=path)
    if not isinstance(config, Mapping):
        raise BadFile(path, f"its table of {kind} is damaged")
    prefix = {"weights": "weight_", "constants": "tensor_"}[kind]
    blocks: dict[str, torch.Tensor] = {}
    tensors = {}
    for name, found in config.items():

        def bad(what: str, name: str = name) -> BadFile:
            return BadFile(path, f"{kind} {name[:80]!r}: {what}")

        if not isinstance(found, Mapping) or found.get("use_pickle") is not False:
            raise bad("is pickled; it is not loaded")
        record_name = found.get("path_name")
        if not isinstance(record_name, str) or not record_name.startswith(prefix):
            raise bad("its record is not one of a tensor")
        record = archive.records.get(f"data/{kind}/{record_name}")
        if record is None:
            raise bad(f"its record {record_name[:40]} is missing")
        dtype, shape, stride, offset = _form(found.get("tensor_meta"), bad)
        item = torch.empty(0, dtype=dtype).element_size()
        if record.size % item or not _reaches(record.size // item, shape, stride, offset):
            raise bad(f"a shape of {str(list(shape))[:80]} does not go with its {record.size} bytes")
        if record_name not in blocks:
            blocks[record_name] = torch.empty(record.size, dtype=torch.uint8)
            if record.size:
                archive.read_into(record, memoryview(blocks[record_name].numpy()))
        flat = blocks[record_name].view(dtype) if record.size else torch.empty(0, dtype=dtype)
        tensors[name] = flat.as_strided(shape, stride, offset)
    return tensors


def _form(meta: Any, bad: Any) -> tuple[torch.dtype, tuple[int, ...], tuple[int, ...], int]:
    match meta:
        case {
            "dtype": int(dtype),
            "sizes": list(sizes),
            "strides": list(strides),
            "storage_offset": {"as_int": offset},
            "layout": 7,
        } if dtype in DTYPES and len(sizes) == len(strides) <= 64:
            numbers = [n.get("as_int") if isinstance(n, Mapping) else None for n in (*sizes, *strides)]
            if all(type(n) is int and 0 <= n < 2**62 for n in (*numbers, offset)):
                return (
                    getattr(torch, DTYPES[dtype]),
                    tuple(numbers[: len(sizes)]),
                    tuple(numbers[len(sizes) :]),
                    offset,
                )
    raise bad("its dtype, sizes or strides are damaged")


def _reaches(elements: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int) -> bool:
    """Whether a view stays inside its block and is not larger than it."""
    numel = 1
    for size in shape:
        numel *= size
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    return numel <= elements and (last < elements if numel else offset <= elements)


def _input_form(meta: Any, path: Path) -> tuple[tuple[int, ...], torch.dtype]:
    """Shape and dtype that the program takes; -1 where any size will do, which only the batch may be."""
    if isinstance(meta, Mapping) and meta.get("dtype") in DTYPES and isinstance(meta.get("sizes"), list):
        shape = []
        for size in meta["sizes"]:
            match size:
                case {"as_int": int(n)} if 0 < n < 2**31:
                    shape.append(n)
                case {"as_expr": _}:
                    shape.append(-1)
        numbers = 1
        for n in shape:
            numbers *= abs(n)
        if len(shape) == len(meta["sizes"]) <= 8 and numbers < 2**31 and -1 not in shape[1:]:
            return tuple(shape), getattr(torch, DTYPES[meta["dtype"]])
    raise BadFile(path, "does not tell the shape of its input (only the batch size may be open)")


def _output(signature: Any, path: Path) -> str:
    outputs = _list(_at(signature, "output_specs", path=path), path)
    match outputs:
        case [{"user_output": {"arg": {"as_tensor": {"name": str(name)}}}}]:
            return name
    if any(isinstance(item, Mapping) and "buffer_mutation" in item for item in outputs):
        raise BadFile(path, "its program changes its own buffers (exported in training mode); export model.eval()")
    raise BadFile(path, f"its program returns {len(outputs)} values; one tensor is what Surefoot can use")


def _info(archive: Archive) -> ModelInfo | None:
    if f"extra/{EXTRA}" not in archive.records:
        return None
    data = archive.read(f"extra/{EXTRA}", _JSON_LIMIT)
    found = parse_json(archive.path, data, EXTRA, max_containers=_CONTAINERS)
    return ModelInfo.from_json(found, f"{archive.path}: {EXTRA}")


def _at(found: Any, *keys: str, path: Path) -> Any:
    for key in keys:
        if not isinstance(found, Mapping) or key not in found:
            raise BadFile(path, f"its program lacks {key!r}")
        found = found[key]
    return found


def _list(found: Any, path: Path) -> list[Any]:
    if not isinstance(found, list):
        raise BadFile(path, "a list of its program is damaged")
    return found
