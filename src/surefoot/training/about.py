"""What is written about a run beside its numbers, and the model that it saves with it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..artifacts import save_model
from ..preprocessing import Preprocessing
from ..tracking import read_records
from .records import Recorder


@dataclass(frozen=True)
class About:
    """What is written about a run beside its numbers, for those who read it later.

    `files` are further files of the run directory (``recipe.yaml``); `conditions` are what a resume must find
    unchanged, beside versions, device, threads and data, which are always compared; `details` are told in the
    first line. The rest goes into the saved model: names of the classes, the preprocessing that raw inputs need,
    their shape (one sample, without N) and dtype, the recipe's digest, and as `source` the import path and the
    arguments of a model class of the user's own.
    """

    name: str = "run"
    files: Mapping[str, str] = field(default_factory=dict)
    conditions: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] | None = None
    preprocessing: Preprocessing | None = None
    loss_name: Any = None
    recipe_digest: str | None = None
    source: tuple[str, Mapping[str, Any]] | None = None
    input_shape: Sequence[int] | None = None
    input_dtype: str | None = None


def save_model_of(
    about: About, run_dir: Path, recorder: Recorder, where: str, model: nn.Module, metrics: Mapping[str, float]
) -> None:
    """Write the model, with all that is needed to use it, to a directory below the run's."""
    (run_dir / where).parent.mkdir(exist_ok=True)
    assert recorder.journal is not None, "a model is saved in a run directory, which has a journal"
    save_model(
        model,
        run_dir / where,
        preprocessing=about.preprocessing,
        classes=about.classes,
        input_shape=about.input_shape,
        input_dtype=about.input_dtype,
        loss=about.loss_name,
        metrics=dict(metrics),
        recipe_digest=about.recipe_digest,
        title=about.name,
        source=about.source,
        history=[record for record in read_records(recorder.journal.path) if record["kind"] == "epoch"],
    )
