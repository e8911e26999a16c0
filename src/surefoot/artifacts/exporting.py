"""Write a model for other programs, and show that what was written computes the same."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from .. import files, safe_tensors
from ..errors import RunFailed, UsageError, first_line
from ..safe_tensors import BadFile
from . import weights
from .arguments import checked
from .importing import import_weights
from .info import ModelInfo, describe_model
from .model_dir import build
from .opening import LoadedModel, Ready, open_model
from .state_files import read_state
from .swap import scratch_directory

# The most that an output may differ from the live model's, relative to the largest output. Weights are copied,
# so they must give the same bits; another runtime sums in another order.
TOLERANCES = {".safetensors": 0.0, ".pth": 0.0, ".pt": 0.0, ".pt2": 1e-5, ".onnx": 1e-4}
_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


@dataclass(frozen=True)
class Exported:
    """A finished export. `largest_difference` is over all outputs of `samples` raw samples, against the live model;
    `real` says whether those samples were given or drawn at random."""

    path: Path
    format: str
    bytes: int
    largest_difference: float
    samples: int
    real: bool

    def __str__(self) -> str:
        of = "samples" if self.real else "random samples"
        return (
            f"{self.path}: {self.bytes:,} bytes; largest difference {self.largest_difference:.3g} "
            f"over {self.samples} {of}"
        )


def export(
    model: str | Path | LoadedModel | nn.Module,
    to: str | Path,
    *,
    batch: torch.Tensor | None = None,
    info: ModelInfo | None = None,
    **opening,
) -> Exported:
    """Write `model` to the file `to`, in the format of its ending, load it again and compare; returns the result.

    - ``.safetensors``: the weights, with the description inside; no other file is needed to open it.
    - ``.pth``: a plain state_dict, which ``torch.load(weights_only=True)`` and the tutorial's code take.
    - ``.pt2``: a program by `torch.export`, any batch size, preprocessing and class names inside.
    - ``.onnx``: the same for onnxruntime and others; needs ``surefoot[onnx]``.

    `model` is what `open_model` takes (with its keyword arguments), a `LoadedModel`, or a live module with its
    `info`. `batch` holds real raw samples (N, ...) to compare on; without it random ones are drawn. Nothing
    stands at `to` before it has been compared. Raises `UsageError` for a model that cannot be exported so,
    `RunFailed` when the export computes something else.

    >>> import tempfile; from surefoot.models import MODELS
    >>> with tempfile.TemporaryDirectory() as d:
    ...     about = describe_model(MODELS.build("LeNet5"), input_shape=(1, 28, 28), input_dtype="uint8")
    ...     export(MODELS.build("LeNet5"), Path(d, "lenet.pth"), info=about).largest_difference
    0.0
    """
    checked(locals())
    to = Path(to)
    writer = _WRITERS.get(to.suffix)
    if writer is None:
        raise UsageError(f"{to}: give a name that ends in one of {', '.join(_WRITERS)}")
    if not to.parent.is_dir():
        raise UsageError(f"{to}: the directory {to.parent} does not exist")
    if os.path.lexists(to) and not to.is_file():
        raise UsageError(f"{to}: is there and is no regular file")
    module, info = _live(model, info, opening)
    real = batch is not None
    batch = (_random_batch(info, to) if batch is None else batch).detach().cpu()
    if batch.shape[0] < 1:
        raise UsageError("batch: holds no sample to compare on")
    ready = Ready(module, info.preprocessing).eval()
    info = _told_by(info, batch)
    expected = _expected(ready, batch, to)
    with scratch_directory(to) as place:
        temporary = place / to.name
        files.write_new(temporary, writer(ready, info, batch))
        try:
            difference = _compare(temporary, module, info, expected, to)
        except BadFile as error:
            raise UsageError(f"{to}: what was written cannot be used and was not kept: {error.reason}") from error
        size = temporary.stat().st_size
        files.system.rename(temporary, to)
        files.fsync_directory(to.parent)
    return Exported(to, to.suffix[1:], size, difference, batch.shape[0], real)


def _live(model: object, info: ModelInfo | None, opening: dict) -> tuple[nn.Module, ModelInfo]:
    if isinstance(model, nn.Module):
        info = info or describe_model(model)
        # A copy: the caller's model stays on its device and in its mode.
        return copy.deepcopy(weights.unwrap(model)).cpu(), info
    if not isinstance(model, LoadedModel):
        model = open_model(model, **opening)
    if model.module is None:
        raise UsageError(
            f"{model.path}: a .{model.format} program does not hold a model that could be written in another "
            "form; export from the run or model directory that it came from"
        )
    return model.module, info or model.info


def _random_batch(info: ModelInfo, to: Path) -> torch.Tensor:
    if info.input_shape is None:
        raise UsageError(f"{to}: the model does not tell its input's shape; give a batch of real samples")
    generator = torch.Generator().manual_seed(0)
    shape = (16, *info.input_shape)
    dtype = getattr(torch, info.input_dtype or "float32")
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator).to(dtype)
    return torch.randint(0, 256 if dtype is torch.uint8 else 2, shape, generator=generator).to(dtype)


def _told_by(info: ModelInfo, batch: torch.Tensor) -> ModelInfo:
    """The info with the form of the input that was really used."""
    known = {name: getattr(info, name) for name in info.__dataclass_fields__}
    known["input_shape"] = tuple(batch.shape[1:])
    known["input_dtype"] = str(batch.dtype).removeprefix("torch.")
    return ModelInfo(**known)


_Expected = list[tuple[torch.Tensor, torch.Tensor]]


def _expected(ready: Ready, batch: torch.Tensor, to: Path) -> _Expected:
    """Batches with what the live model gives for them: all samples, one and three, so that a batch size that was
    baked into a program shows."""
    pairs = []
    for count in dict.fromkeys((len(batch), 1, min(3, len(batch)))):
        with torch.inference_mode():
            output = ready(batch[:count])
        if not isinstance(output, torch.Tensor):
            raise UsageError(f"{to}: the model returns a {type(output).__name__}; one tensor can be exported")
        pairs.append((batch[:count], output))
    return pairs


def _compare(written: Path, module: nn.Module, info: ModelInfo, expected: _Expected, to: Path) -> float:
    """The largest difference between any output of the file and the live model's."""
    if written.suffix in (".pth", ".pt", ".safetensors"):
        _compare_weights(written, module, to)
        return _compare_outputs(_rebuilt(written, module, info), expected, to)
    return _compare_outputs(open_model(written), expected, to)


def _rebuilt(written: Path, module: nn.Module, info: ModelInfo) -> LoadedModel:
    """The file in a fresh model of the catalogue; a user's own class cannot be built here, its bits are compared."""
    if "name" in info.model:
        fresh = build(info, written)
        weights.take_dtypes(module.state_dict(), fresh)
        module = import_weights(written, fresh).model.to(memory_format=_MEMORY_FORMATS[info.memory_format])
    return LoadedModel(written, "pth", info, Ready(module, info.preprocessing).eval(), module)


def _compare_weights(written: Path, module: nn.Module, to: Path) -> None:
    found = read_state(written).tensors
    wrong = weights.differences(found, module)
    live = module.state_dict()
    wrong += [n for n, t in found.items() if n in live and not weights.same_bytes(t, live[n])]
    if wrong:
        raise RunFailed(f"{to}: what was written is not what the model holds: {wrong[0]}; nothing was kept")


def _compare_outputs(loaded: LoadedModel, expected: _Expected, to: Path) -> float:
    worst, allowed = 0.0, 0.0
    for batch, wanted in expected:
        found = loaded(batch)
        if found.shape != wanted.shape:
            raise RunFailed(f"{to}: gives shape {list(found.shape)} for {len(batch)} samples; nothing was kept")
        finite = wanted.float().masked_fill(~wanted.isfinite(), 0.0).abs()
        allowed = max(allowed, TOLERANCES[to.suffix] * max(1.0, float(finite.max())))
        same = (found == wanted) | (found.isnan() & wanted.isnan())
        worst = max(worst, float((found.float() - wanted.float()).abs().masked_fill(same, 0.0).max()))
    if not worst <= allowed:
        raise RunFailed(
            f"{to}: computes something else: the largest difference is {worst:.3g}, {allowed:.3g} was allowed; "
            "nothing was kept"
        )
    return worst


# ------------------------------------------------------------------------------------- the formats


_Chunks = Iterable[bytes | memoryview]


def _safetensors(ready: Ready, info: ModelInfo, batch: torch.Tensor) -> _Chunks:
    found = weights.collect(ready.model)
    described = info.to_json() | {"tied": found.tied}
    return safe_tensors.chunks(found.tensors, info=described, metadata={"format": "pt"})


def _pth(ready: Ready, info: ModelInfo, batch: torch.Tensor) -> _Chunks:
    weights.collect(ready.model)  # refuses what weights_only could not load again
    buffer = io.BytesIO()
    torch.save(ready.model.state_dict(), buffer)
    return [buffer.getbuffer()]


def _pt2(ready: Ready, info: ModelInfo, batch: torch.Tensor) -> _Chunks:
    program = traced(ready, batch)
    extra = {"surefoot.json": json.dumps(info.to_json()), "classes.json": json.dumps(info.to_json()["classes"])}
    buffer = io.BytesIO()
    with quiet():
        torch.export.save(program, buffer, extra_files=extra)
    return [buffer.getbuffer()]


def _onnx(ready: Ready, info: ModelInfo, batch: torch.Tensor) -> _Chunks:
    from .onnx_file import to_onnx

    return [to_onnx(traced(ready, batch), info)]


_WRITERS: dict[str, Callable[[Ready, ModelInfo, torch.Tensor], _Chunks]] = {
    ".safetensors": _safetensors,
    ".pth": _pth,
    ".pt": _pth,
    ".pt2": _pt2,
    ".onnx": _onnx,
}


def traced(ready: Ready, batch: torch.Tensor) -> torch.export.ExportedProgram:
    """The program of a model in eval mode, for any batch size. Raises `UsageError` where it has none."""
    # Zeros of two samples: example inputs are stored in the file, and a user's data is nobody's business; a
    # batch of one would be taken for a fixed size.
    example = torch.zeros((2, *batch.shape[1:]), dtype=batch.dtype)
    try:
        with quiet(), torch.no_grad():
            shapes = ({0: torch.export.Dim("batch", min=1)},)
            program = torch.export.export(ready, (example,), dynamic_shapes=shapes, strict=False)
    except Exception as error:  # torch.export raises many kinds; each means that it found no program
        raise UsageError(
            f"{type(ready.model).__name__} cannot be exported as a program: {first_line(error)}. Its forward may "
            "depend on the values of its input or on the batch size; export .safetensors or .pth instead"
        ) from error
    for node in program.graph.nodes:
        # Source lines with the paths of this machine; whoever gets the file has no use for them.
        for name in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node"):
            node.meta.pop(name, None)
    return program


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without torch's warnings about its own internals, which nobody who exports can act on."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
