"""The recipe's data: a source with its arguments, and how its samples are served."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..registry import Range
from .kinds import Argument, Flag, Maybe, Number, Or, Several, Text, Whole
from .mappings import PartKind, Section
from .sections import Keyed, Part, key


@dataclass(frozen=True, kw_only=True)
class Normalize(Keyed):
    """How pixels become inputs: ``(pixel / 255 - mean) / std``."""

    mean: tuple[float, ...] = key(
        Several(Number(Range(), "give a finite number"), least=1, one=True),
        "One number, or one for each channel, of pixels scaled to 0..1.",
        (0.5,),
    )
    std: tuple[float, ...] = key(
        Several(Number(Range(low=0, low_open=True), "give a deviation above 0, e.g. 0.5"), least=1, one=True),
        "One number, or one for each channel.",
        (0.5,),
    )


@dataclass(frozen=True, kw_only=True)
class DataSection(Keyed):
    """A data source with its arguments, and how its samples are served."""

    registry = "data"

    part: Part
    batch_size: int = key(Whole(1, "give at least one sample"), "Samples in a batch.", 64)
    eval_batch_size: int | None = key(
        Maybe(Whole(1, "give at least one sample")), "Samples in a batch of validation; null: chosen.", None
    )
    shuffle: bool = key(Flag(), "Training samples in a new order each epoch.", True)
    drop_last: bool = key(Flag(), "Leave out a last batch that is not full.", False)
    weights: Any = key(
        Maybe(Argument()), "How often samples are drawn: balanced, a list (one for each class) or a column.", None
    )
    num_samples: int | None = key(
        Maybe(Whole(1, "give at least one sample")), "Samples in an epoch; null: as many as there are.", None
    )
    lengths: str | None = key(
        Maybe(Text("auto or the name of a part of the samples")),
        "Batches of samples of like length: by which part of them; auto is the first.",
        None,
    )
    max_tokens: int | None = key(
        Maybe(Whole(1, "give at least one token")), "With lengths: longest sample times samples in a batch.", None
    )
    workers: int = key(Whole(0, "give 0 for none"), "Processes that load ahead; 0 loads in this one.", 0)
    normalize: Normalize | str | None = key(
        Maybe(Or(("auto",), Section(lambda: Normalize))),
        "How raw values become inputs: auto is as the source says; null leaves them as they are.",
        "auto",
    )
    augment: tuple[Part, ...] = key(
        Several(PartKind("augmentation")), "Random changes to training batches, in order.", ()
    )
