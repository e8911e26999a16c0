"""Write a model for other programs, and show that what was written computes the same."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from .. import files, safe_tensors
from ..copying import copied
from ..errors import RunFailed, UsageError
from ..safe_tensors import BadFile
from ..text import counted
from . import weights
from .arguments import checked
from .importing import import_weights
from .info import DTYPES, ModelInfo, describe_model, is_shape
from .model_dir import build
from .opening import LoadedModel, Ready, open_model
from .pt2 import to_pt2, traced
from .swap import scratch_directory
from .weight_files import read_state

# The most that an output may differ from the live model's, relative to the largest output. Weights are copied,
# so they must give the same bits; another runtime sums in another order.
TOLERANCES = {".safetensors": 0.0, ".pth": 0.0, ".pt": 0.0, ".pt2": 1e-5, ".onnx": 1e-4}


@dataclass(frozen=True)
class Exported:
    """A finished export: `path`, `format` and size in `bytes`. `largest_difference` is over all outputs of `samples`
    raw samples, against the live model; `real` says whether those samples were given or drawn at random. Weights are
    compared bit by bit, with no sample (`samples` is 0)."""

    path: Path
    format: str
    bytes: int
    largest_difference: float
    samples: int
    real: bool

    def __str__(self) -> str:
        if not self.samples:
            return f"{self.path}: {self.bytes:,} bytes; every tensor equals the model's, bit by bit"
        of = "samples" if self.real else "random samples"
        return (
            f"{self.path}: {self.bytes:,} bytes; largest difference {self.largest_difference:.3g} "
            f"over {self.samples} {of}"
        )


def export(
    source: str | Path | LoadedModel | nn.Module,
    /,
    to: str | Path,
    *,
    batch: Tensor | Sequence[Tensor] | None = None,
    info: ModelInfo | None = None,
    **opening: Any,
) -> Exported:
    """Write the model `source` to the file `to`, in the format of its ending, load it again and compare.

    - ``.safetensors``: the weights, with the description inside; no other file is needed to open it.
    - ``.pth``: a plain state_dict, which ``torch.load(weights_only=True)`` and the tutorial's code take.
    - ``.pt2``: a program by `torch.export`, any batch size, preprocessing and class names inside.
    - ``.onnx``: the same for onnxruntime and others; needs ``surefoot[onnx]``.

    `source` is what `open_model` takes (with its keyword arguments as `opening`: ``model=``, ``trust_code=True``), a
    `LoadedModel`, or a live module with its `info`. `batch` holds real raw samples (N, ...) to compare on, a tuple
    of tensors for a model of several inputs; without it random ones are drawn for a program. Weights are compared
    bit by bit and need none. Nothing stands at `to` before it has been compared. Raises `UsageError` for a model that
    cannot be exported so, `RunFailed` when the export computes something else.

    >>> import tempfile; from surefoot.models import MODELS
    >>> with tempfile.TemporaryDirectory() as d:
    ...     about = describe_model(MODELS.build("LeNet5"), input_shape=(1, 28, 28), input_dtype="uint8")
    ...     export(MODELS.build("LeNet5"), Path(d, "lenet.pt2"), info=about).largest_difference
    0.0
    """
    checked({"to": to, "info": info, "batch": batch})
    to = Path(to)
    if to.suffix not in TOLERANCES:
        raise UsageError(f"{to}: give a name that ends in one of {', '.join(TOLERANCES)}", code="output-file")
    if not to.parent.is_dir():
        raise UsageError(f"{to}: the directory {to.parent} does not exist", code="output-file")
    if os.path.lexists(to) and not to.is_file():
        raise UsageError(f"{to}: is there and is no regular file", code="output-file")
    module, info = _live(source, info, opening)
    samples_given = _parts(batch)
    with scratch_directory(to) as place:
        temporary = place / to.name
        try:
            if TOLERANCES[to.suffix] == 0:
                files.write_new(temporary, _weights_file(to.suffix, module, _form_of(info, samples_given)))
                _compare_weights(temporary, module, info, to)
                difference, samples = 0.0, 0
            else:
                raw = samples_given or (_random_batch(info, to),)
                ready = Ready(module, info.preprocessing).eval()
                expected = _expected(ready, raw, to)
                outputs = len(pytree.tree_leaves(expected[0][1]))
                program, described = traced(ready, raw), _form_of(info, raw)
                if to.suffix == ".pt2":
                    written = to_pt2(program, described)
                else:
                    from .onnx_file import to_onnx

                    written = memoryview(to_onnx(program, described, outputs))
                files.write_new(temporary, [written])
                difference = _compare_outputs(open_model(temporary, trust_code=True), expected, to)
                samples = len(raw[0])
        except BadFile as error:
            raise UsageError(f"{to}: what was written cannot be used and was not kept: {error.reason}") from error
        size = temporary.stat().st_size
        files.system.rename(temporary, to)
        files.fsync_directory(to.parent)
    return Exported(to, to.suffix[1:], size, difference, samples, samples_given is not None)


def _parts(batch: object) -> tuple[Tensor, ...] | None:
    """The batch as one tensor for each input of the model."""
    if batch is None:
        return None
    parts = (batch,) if isinstance(batch, Tensor) else tuple(batch) if isinstance(batch, list | tuple) else ()
    if not parts or not all(isinstance(part, Tensor) and part.dim() for part in parts):
        raise UsageError(
            "batch: give a tensor of raw samples (N, ...), or a tuple with one for each of the model's inputs"
        )
    if len({len(part) for part in parts}) != 1 or not len(parts[0]):
        raise UsageError("batch: holds no sample to compare on, or its tensors hold different numbers of samples")
    return tuple(part.detach().cpu() for part in parts)


def _live(
    model: str | Path | LoadedModel | nn.Module, info: ModelInfo | None, opening: dict[str, Any]
) -> tuple[nn.Module, ModelInfo]:
    if isinstance(model, nn.Module):
        info = info or describe_model(model)
        return _copied(weights.plain(model)[0], info), info
    if not isinstance(model, LoadedModel):
        model = open_model(model, **opening)
    if model.module is None:
        raise UsageError(
            f"{model.path}: a .{model.format} program does not hold a model that could be written in another "
            "form; export from the run or model directory that it came from"
        )
    return model.module, info or model.info


def _copied(model: nn.Module, info: ModelInfo) -> nn.Module:
    """A copy on the CPU: the caller's model stays on its device and in its mode.

    What torch.jit made a program of is made again with its weights: torch exports no such program.
    """
    if not isinstance(model, torch.jit.ScriptModule):
        return copied(model, model).cpu()
    plain = build(info.model, "export", trust_code=True)  # the caller has imported its class
    weights.put(model.state_dict(), plain, "export", adopt_dtypes=True)
    weights.take_form(plain, info.buffer_dtypes, info.memory_format)
    return plain


def _random_batch(info: ModelInfo, to: Path) -> torch.Tensor:
    if info.input_shape is None:
        raise UsageError(
            f"{to}: the model does not say the shape of its input; export its weights (.safetensors or .pth), or give "
            "real samples in Python: export(..., batch=...)"
        )
    generator = torch.Generator().manual_seed(0)
    shape = (16, *info.input_shape)
    dtype = getattr(torch, info.input_dtype or "float32")
    if dtype.is_floating_point:
        return torch.rand(shape, generator=generator, device="cpu").to(dtype)
    return torch.randint(0, 256 if dtype is torch.uint8 else 2, shape, generator=generator, device="cpu").to(dtype)


def _form_of(info: ModelInfo, batch: tuple[Tensor, ...] | None) -> ModelInfo:
    """The info with the form of the input that was used, unless there are several, or one that no description holds."""
    if batch is None:
        return info
    if len(batch) > 1:
        return replace(info, input_shape=None, input_dtype=None)
    shape, dtype = tuple(batch[0].shape[1:]), str(batch[0].dtype).removeprefix("torch.")
    return replace(info, input_shape=shape if is_shape(shape) else None, input_dtype=dtype if dtype in DTYPES else None)


_Expected = list[tuple[tuple[Tensor, ...], object]]


def _expected(ready: Ready, batch: tuple[Tensor, ...], to: Path) -> _Expected:
    """Batches with what the live model gives for them: all samples, one and three, so that a batch size that was
    baked into a program shows."""
    pairs = []
    count = len(batch[0])
    for size in dict.fromkeys((count, 1, min(3, count))):
        part = tuple(tensor[:size] for tensor in batch)
        with torch.inference_mode():
            output = ready(*part)
        leaves = pytree.tree_leaves(output)
        if not leaves or not all(isinstance(leaf, Tensor) for leaf in leaves):
            raise UsageError(f"{to}: the model returns a {type(output).__name__}; tensors can be exported")
        pairs.append((part, output))
    return pairs


def _compare_weights(written: Path, module: nn.Module, info: ModelInfo, to: Path) -> None:
    """Read the file again: every tensor equals the live model's, and a registered model takes it."""
    written_state = read_state(written).tensors
    wrong = weights.differences(written_state, module)
    live = module.state_dict()
    wrong += [n for n, t in written_state.items() if n in live and not weights.same_bytes(t, live[n])]
    if wrong:
        raise RunFailed(
            f"{to}: what was written is not what the model holds: {wrong[0]}; nothing was kept", code="export-differs"
        )
    if "name" in info.model:
        fresh = build(info.model, written)
        weights.take_dtypes(module.state_dict(), fresh)
        import_weights(written, fresh)


def _compare_outputs(loaded: LoadedModel, expected: _Expected, to: Path) -> float:
    worst, allowed = 0.0, 0.0
    for batch, wanted in expected:
        theirs, ours = pytree.tree_leaves(loaded(*batch)), pytree.tree_leaves(wanted)
        if [t.shape for t in theirs] != [t.shape for t in ours]:
            shapes = ", ".join(str(list(t.shape)) for t in theirs)
            raise RunFailed(
                f"{to}: gives shape {shapes} for {counted(len(batch[0]), 'sample')}; nothing was kept",
                code="export-differs",
            )
        for output, want in zip(theirs, ours, strict=True):
            finite = want.float().masked_fill(~want.isfinite(), 0.0).abs()
            allowed = max(allowed, TOLERANCES[to.suffix] * max(1.0, float(finite.max()) if finite.numel() else 0.0))
            same = (output == want) | (output.isnan() & want.isnan())
            difference = (output.float() - want.float()).abs().masked_fill(same, 0.0)
            worst = max(worst, float(difference.max()) if difference.numel() else 0.0)
    if not worst <= allowed:
        raise RunFailed(
            f"{to}: computes something else: the largest difference is {worst:.3g}, {allowed:.3g} was allowed; "
            "nothing was kept",
            code="export-differs",
        )
    return worst


def _weights_file(ending: str, module: nn.Module, info: ModelInfo) -> Iterable[bytes | memoryview]:
    collected = weights.collect(module)  # refuses what weights_only could not load again
    if ending == ".safetensors":
        described = info.to_json() | {"tied": collected.tied}
        return safe_tensors.chunks(collected.tensors, info=described, metadata={"format": "pt"})
    state, owners = module.state_dict(), dict[int, str]()
    for name, tensor in state.items():
        owner = owners.setdefault(tensor.untyped_storage().data_ptr(), name) if tensor.numel() else name
        if (dtype := state[owner].dtype) != tensor.dtype:
            raise UsageError(
                f"{name}: shares its memory with {owner}, as {tensor.dtype} where that is {dtype}, which torch.save "
                "refuses; export a .safetensors, or give one of them a copy (tensor.clone())"
            )
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return [buffer.getbuffer()]
