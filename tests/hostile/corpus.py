"""All hostile files, by kind: what each tries, and what its refusal must say."""

from __future__ import annotations

from pathlib import Path

from . import containers, legacy, pickles, places, programs
from .case import Case

KINDS = (
    pickles.gadgets,
    pickles.disguises,
    pickles.machine_tricks,
    pickles.tensors,
    containers.zips,
    containers.safetensors_files,
    legacy.legacy_files,
    legacy.bombs,
    legacy.shards,
    legacy.other_formats,
    places.directories,
    places.kinds_of_files,
    programs.programs,
    programs.onnx_files,
)


def corpus(canary: Path) -> list[Case]:
    """Every case; whatever code of theirs ran would make the file `canary`."""
    cases = [case for kind in KINDS for case in kind(canary)]
    assert len({case.name for case in cases}) == len(cases)
    return cases
