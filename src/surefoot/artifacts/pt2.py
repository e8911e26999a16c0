"""Programs exported by `torch.export` (.pt2): made here, and read by torch where the user trusts them."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UsageError, first_line
from ..safe_tensors import BadFile, parse_json
from .info import ModelInfo

EXTRA = "surefoot.json"


def traced(model: nn.Module, batch: Sequence[Tensor]) -> torch.export.ExportedProgram:
    """The program of a model in eval mode, for any batch size. Raises `UsageError` where it has none.

    `batch` holds one tensor (N, ...) for each argument of forward().
    """
    # Zeros of two samples: example inputs are stored in the file, and a user's data is private; a
    # batch of one would be taken for a fixed size.
    example = tuple(torch.zeros((2, *part.shape[1:]), dtype=part.dtype, device="cpu") for part in batch)
    size = {0: torch.export.Dim("batch", min=1)}
    shapes: dict[str, Any] = {"raw": size}
    if len(example) > 1:
        shapes["more"] = (size,) * (len(example) - 1)
    try:
        with quiet(), torch.no_grad():
            try:
                program = torch.export.export(model, example, dynamic_shapes=shapes, strict=False)
            except Exception:  # reading the bytecode takes longer, and keeps len(x) open, which running it cannot
                program = torch.export.export(model, example, dynamic_shapes=shapes, strict=True)
    except Exception as error:  # torch.export raises many kinds; each means that there is no program
        name = type(getattr(model, "model", model)).__name__
        raise UsageError(
            f"{name} cannot be exported as a program: {first_line(error)}. Its forward may "
            "depend on the values of its input or on the batch size; export .safetensors or .pth instead"
        ) from error
    for node in program.graph.nodes:
        # Source lines with the paths of this machine; whoever gets the file has no use for them.
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(name, None)
    return program


def to_pt2(program: torch.export.ExportedProgram, info: ModelInfo) -> memoryview:
    """The bytes of a .pt2 file, with the info and the class names beside the program."""
    described = info.to_json()
    extra = {EXTRA: json.dumps(described), "classes.json": json.dumps(described["classes"])}
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files=extra)
    return buffer.getbuffer()


def read_pt2(path: Path, trust_code: bool) -> tuple[Callable[..., Any], ModelInfo]:
    """A function that runs the program on batches, and what the file says of itself. Raises `UsageError`.

    torch evaluates texts and pickles of such a file while it reads it, so nothing is looked at without `trust_code`.
    """
    if not trust_code:
        raise UsageError(
            f"{path}: is a program (.pt2); reading one lets torch run code that it holds. If you trust whoever made "
            "it, say so with --trust-code (in Python: trust_code=True); .onnx and .safetensors need no trust",
            code="trust",
        )
    extra = {EXTRA: ""}
    try:
        with quiet(), torch.device("cpu"):
            program = torch.export.load(path, extra_files=extra)
            run = program.module()
    except Exception as error:  # torch raises many kinds for one thing: a file that it cannot read
        raise BadFile(path, f"torch cannot read it as an exported program: {first_line(error)}") from error
    shape, dtype = _input_form(program)
    described = extra[EXTRA]
    if not described:
        return run, ModelInfo({"class": f"{path.name}:program", "args": None}, input_shape=shape, input_dtype=dtype)
    text = described if isinstance(described, bytes) else described.encode()
    data = parse_json(path, text, EXTRA, max_containers=100_000)
    return run, ModelInfo.from_json(data, f"{path}: {EXTRA}")


def _input_form(program: torch.export.ExportedProgram) -> tuple[tuple[int, ...] | None, str | None]:
    """Shape without N and dtype of a program's one input; None where it has several or sizes are open."""
    names = set(program.graph_signature.user_inputs)
    values = [node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor) or not values[0].dim():
        return None, None
    sizes = values[0].shape[1:]
    dtype = str(values[0].dtype).removeprefix("torch.")
    return (tuple(sizes) if all(isinstance(n, int) for n in sizes) else None), dtype


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Without the warnings of torch's exporters about their own internals, which nobody who exports can act on."""
    levels = {name: logging.getLogger(name).level for name in ("torch.export", "torch.onnx", *loggers)}
    try:
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
