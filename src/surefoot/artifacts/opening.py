"""One way to use a trained model, whatever it was saved as."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import batches
from ..arguments import Arguments
from ..errors import UsageError, first_line
from ..models import spec_of
from ..preprocessing import Preprocessing
from ..text import counted
from .answers import check_classes, kind_of, probabilities
from .arguments import check_model, checked
from .formats import recognise
from .importing import build_named, import_weights
from .info import UNKNOWN, ModelInfo, describe_model
from .model_dir import load_model, model_directory, read_info
from .pretrained import takes_tokens
from .pt2 import read_pt2


class Ready(nn.Module):
    """A model behind its preprocessing: raw batch in, the model's own output out; what exports contain."""

    def __init__(self, model: nn.Module, preprocessing: Preprocessing | None):
        super().__init__()
        self.preprocessing = preprocessing.module() if preprocessing else None
        self.model = model
        floats = (p.dtype for p in model.parameters() if p.is_floating_point())
        self.dtype = next(floats, torch.float32)
        self.one_argument = False
        with contextlib.suppress(ValueError):  # a program of torch.jit has no signature
            kinds = [p.kind for p in inspect.signature(model.forward).parameters.values()]
            self.one_argument = kinds == [inspect.Parameter.POSITIONAL_OR_KEYWORD]

    def forward(self, raw: torch.Tensor, *more: torch.Tensor) -> Any:
        """The model's own output; the preprocessing is that of the first input.

        Several inputs go to a forward() of one argument as one tuple, as training gives them.
        """
        x = raw if self.preprocessing is None else self.preprocessing(raw)
        # Pixels that nobody scales are taken as numbers; other integers are indices (of an embedding) and stay.
        # What is no tensor (a tuple of inputs) is the model's own matter.
        if isinstance(x, torch.Tensor) and x.dtype != self.dtype and (x.is_floating_point() or x.dtype is torch.uint8):
            x = x.to(self.dtype)
        return self.model((x, *more)) if more and self.one_argument else self.model(x, *more)


@dataclass(frozen=True)
class LoadedModel:
    """A model to use: call it on raw batches, whatever format it came from.

    `path` is the file or directory that was opened; `run` computes outputs from inputs that are preprocessed.
    `format` is ``directory``, ``safetensors``, ``pth``, ``folder`` (of weights), ``pt2`` or ``onnx``;
    `module` is the live model where
    the format holds one (the first three), to be trained on or exported; `info` is what the file says.
    """

    path: Path
    format: str
    info: ModelInfo
    run: Callable[..., Any] = field(repr=False)
    module: nn.Module | None = field(default=None, repr=False)

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The names of the classes, in the order of the outputs."""
        return self.info.classes

    @property
    def preprocessing(self) -> Preprocessing | None:
        """What is done to a raw batch; calling the model does it already."""
        return self.info.preprocessing

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """The shape of one raw sample, without N."""
        return self.info.input_shape

    def __call__(self, raw: torch.Tensor, *more: torch.Tensor) -> Any:
        """What the model itself returns (logits, as a rule) for a raw batch (N, ...) on the CPU.

        A model of several inputs takes them as further tensors.

        Raises `UsageError` for a batch of another shape or dtype than the model takes.
        """
        if not self.info.preprocessing_known:
            raise UsageError(
                f"{self.path}: does not say how raw data are prepared for this model; pass preprocessing=..., e.g. "
                "surefoot.Preprocessing(mean=0.5, std=0.5) for pixels of 0 to 255 to -1 to 1",
                code="data-preprocessing",
            )
        shape, dtype = self.info.input_shape, self.info.input_dtype
        if not isinstance(raw, torch.Tensor):
            if shape is not None or self.preprocessing is not None:
                raise UsageError(f"{self.path}: takes one tensor of raw samples (N, ...), not {type(raw).__name__}")
            dtype, what = None, type(raw).__name__
        else:
            what = f"batch of shape {list(raw.shape)}"
        if shape is not None and tuple(raw.shape[1:]) != shape:
            raise UsageError(f"{self.path}: takes batches (N, {', '.join(map(str, shape))}), not {list(raw.shape)}")
        if dtype is not None and raw.dtype != getattr(torch, dtype):
            name = str(raw.dtype).removeprefix("torch.")
            raise UsageError(f"{self.path}: takes raw data of {dtype}, not {name}")
        with torch.inference_mode():
            try:
                return self.run(raw, *more)
            except UsageError:
                raise
            except (RuntimeError, ValueError, IndexError, TypeError) as error:
                raise UsageError(f"{self.path}: does not take a {what}: {first_line(error)}") from error

    def predict(self, raw: torch.Tensor, batch_size: int = 256) -> Any:
        """Probabilities (N, classes) for a raw batch of any length, computed `batch_size` samples at a time.

        Softmax after losses that take logits or log-probabilities of classes, sigmoid after
        BCEWithLogitsLoss; the model's own output where its loss is another one or is not known.
        A model that returns a tuple, a dictionary or an object of tensors gives the same form, and one that returns an
        object with `logits` gives these. Raises `UsageError` where the model's output holds no tensors, has no row for
        each sample, or is not as wide as its classes.
        """
        check = Arguments()
        check.instance("raw", raw, torch.Tensor, "torch.zeros(2, 1, 28, 28)")
        check.whole("batch_size", batch_size, low=1)
        check.done()
        if not raw.dim():
            raise UsageError(f"{self.path}: takes batches (N, ...), not a single number")
        parts = [self(part) for part in torch.split(raw, batch_size)] or [self(raw)]
        outputs = batches.joined(list(map(batches.scores, parts)))
        if outputs is None:
            raise UsageError(
                f"{self.path}: the model returns {batches.form(parts[0])}; predictions need tensors of (N, ...)"
            )
        classes = isinstance(outputs, torch.Tensor) and kind_of(self.info) == "softmax"
        wide = len(self.classes or ())
        if classes and wide and outputs.dim() > 2 and outputs.shape[1] != wide == outputs.shape[-1]:
            outputs = outputs.movedim(-1, 1)  # as the loss took them
        for part in batches.tensors(outputs):
            if len(part) != len(raw) or (classes and part.dim() < 2):
                expected = f"({len(raw)}, {'classes' if classes else '...'})"
                raise UsageError(
                    f"{self.path}: the model gives {list(part.shape)} for {counted(len(raw), 'sample')}; "
                    f"expected {expected}"
                )
        if isinstance(outputs, torch.Tensor):
            check_classes(self.info, outputs, self.path)
        return probabilities(self.info, batches.mapped(_wide, outputs))

    def describe(self) -> dict[str, Any]:
        """Plain data about the model, for people and for ``--json``."""
        described = self.info.to_json()
        del described["format"], described["format_version"]
        return {"path": str(self.path), "format": self.format, **described}


def _wide(value: Any) -> Any:
    """Numbers of half precision as float32, whole ones as float64, which holds all up to 2**53; others as they are."""
    if not isinstance(value, torch.Tensor) or value.is_complex():
        return value
    if not value.is_floating_point():
        return value.double()
    return value.float() if value.element_size() < 4 else value


def open_model(
    path: str | Path,
    model: nn.Module | str | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    key: str | None = None,
    trust_code: bool = False,
) -> LoadedModel:
    """Open `path`: a run directory, a model directory, ``.safetensors``, ``.pth``, ``.pt2`` or ``.onnx``, to use it.

    The format is recognised by the content. Weights that do not name their model (``.pth``, foreign
    ``.safetensors``) need `model`, a registered name, ``module:Name`` or an instance, and a `preprocessing` before
    they can be called. `key` is that of `import_weights`. With `trust_code` the class that a file names is
    imported, and a ``.pt2`` is read by torch, which runs code of the file. Raises `UsageError`.

    >>> import tempfile; from surefoot.artifacts import save_model; from surefoot.models import LeNet5
    >>> with tempfile.TemporaryDirectory() as d:
    ...     where = save_model(LeNet5(), Path(d, "model"), classes=[str(i) for i in range(10)])
    ...     open_model(where).predict(torch.zeros(3, 1, 28, 28)).shape
    torch.Size([3, 10])
    """
    checked(locals())
    check_model(model, name=True)
    path = Path(path)
    if (directory := model_directory(path)) is not None:
        instance = build_named(model, {})[0] if isinstance(model, str) else model
        info = _with(read_info(directory), preprocessing, classes)
        module = load_model(directory, instance, trust_code=trust_code)
        return LoadedModel(directory, "directory", info, Ready(module, info.preprocessing).eval(), module)
    kind = "folder" if path.is_dir() else recognise(path).kind
    if kind in ("pt2", "onnx") and preprocessing is not None:
        raise UsageError(
            f"{path}: a program (.{kind}) takes its data as it was exported to; leave preprocessing out, and where the "
            "program lacks it, call the model on preprocessing(raw)",
            code="argument",
        )
    if kind == "pt2":
        run, info = read_pt2(path, trust_code)
        return LoadedModel(path, "pt2", _with(info, None, classes), run)
    if kind == "onnx":
        from .onnx_file import read_onnx

        session, info = read_onnx(path)
        return LoadedModel(path, "onnx", _with(info, None, classes), session)
    imported = import_weights(path, model, key=key, trust_code=trust_code)
    info = imported.info or describe_model(
        imported.model,
        preprocessing=None if takes_tokens(imported.model) else UNKNOWN,
        input_shape=getattr(imported.model, "sample_shape", None) if spec_of(imported.model) else None,
    )
    info = _with(info, preprocessing, classes)
    ready = Ready(imported.model, info.preprocessing).eval()
    return LoadedModel(path, kind if kind in ("safetensors", "folder") else "pth", info, ready, imported.model)


def _with(info: ModelInfo, preprocessing: Preprocessing | None, classes: Sequence[str] | None) -> ModelInfo:
    changes: dict[str, Any] = {}
    if isinstance(preprocessing, Preprocessing):
        changes |= {"preprocessing": preprocessing, "preprocessing_known": True}
    if classes is not None:
        changes["classes"] = tuple(classes)
    return replace(info, **changes) if changes else info
