"""Two finished runs compared as bytes: the first difference, by name and step."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ..text import counted

# The one field of a record, and of the state, that may differ between two equal runs.
TIME = "wall_s"
# What the two runs are called where they differ.
Sides = tuple[str, str]
SIDES = "untouched has", "killed has"
# A step's checkpoint, and how many of the same step came before it.
_SAVED = re.compile(r"step-(\d+)(?:-(\d+))?").fullmatch


def compare(one: Path, other: Path, *, seeded: bool = True, sides: Sides = SIDES) -> tuple[str | None, int]:
    """The first difference between two finished runs, or None; and how many items were compared.

    Records but for `wall_s`; the tensors and state of every checkpoint that both kept, the newest included; the saved
    models; every point in TensorBoard. Where the runs have not `seeded` every generator of the process, as a recipe's
    runs do, the state of one that no checkpoint shows in use does not count: each process has another.
    """
    mine, theirs = _saved(one), _saved(other)
    steps = sorted({*mine} & {*theirs})
    unused = functools.cache(lambda: () if seeded else tuple(_unused(mine) & _unused(theirs)))
    return first_difference(_items(one, mine, steps, unused), _items(other, theirs, steps, unused), sides)


def first_difference(
    one: Iterator[tuple[str, Any]], other: Iterator[tuple[str, Any]], sides: Sides = SIDES
) -> tuple[str | None, int]:
    """The first of two series of named items that is not equal, in words, or None; and how many were."""
    compared = 0
    for (name, mine), (_, theirs) in zip(one, other, strict=True):
        if mine != theirs and (difference := _difference(mine, theirs, sides)):
            return f"{name}{difference}", compared
        compared += 1
    return None, compared


def _saved(run: Path) -> dict[int, Path]:
    """The checkpoints by step: of one step the last. How often it was saved does not count: a stop after the last
    update saves it once more."""
    folder = run / "checkpoints"
    revisions = [(int(m[1]), int(m[2] or 0), path) for path in _listed(folder) if (m := _SAVED(path.name))]
    return {step: path for step, _, path in sorted(revisions)}


def _listed(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _unused(saved: dict[int, Path]) -> set[str]:
    """The generators of the process that have one state in all checkpoints, as prefixes of their names there."""
    states: dict[str, set[str]] = {}
    for path in saved.values():
        tensors = _of_checkpoint(path)[1].tensors()
        for kind, state in json.loads((path / "state.json").read_text("utf-8"))["rng"].items():
            tensor_states = [
                repr(tensor.tolist()) for name, tensor in tensors.items() if f"{name}/".startswith(f"rng/{kind}/")
            ]
            states.setdefault(f"rng/{kind}", set()).add(repr([state, *tensor_states]))
    return {name for name, distinct in states.items() if len(distinct) == 1}


def _items(
    run: Path, saved: dict[int, Path], steps: list[int], unused: Callable[[], tuple[str, ...]]
) -> Iterator[tuple[str, Any]]:
    from ..tracking.validation import read_validation

    yield "run.json, conditions", json.loads((run / "run.json").read_text("utf-8"))["conditions"]
    yield "newest checkpoint, step", max(saved, default=None)
    yield "metrics.jsonl", records(run)
    yield "validation.json", read_validation(run)
    for step in steps:
        for file, part in zip(
            ("model.safetensors", "optimizer.safetensors"), _of_checkpoint(saved[step], unused), strict=True
        ):
            yield f"step {step:,}, {file}", part
        state = json.loads((saved[step] / "state.json").read_text("utf-8"))
        if "progress" in state["objects"]:
            state["objects"]["progress"].pop(TIME, None)
        state.pop("marks")  # checksums of the same
        state.pop("journal")  # an offset in bytes, which hangs on how many digits the times have
        yield f"step {step:,}, state.json", _State(state, unused)
    for folder in ("model", "model/best"):
        weights, described = run / folder / "model.safetensors", run / folder / "model.json"
        yield f"{folder}/model.safetensors", _Tensors(weights) if weights.exists() else None
        about = json.loads(described.read_text("utf-8")) if described.exists() else {}
        about.pop("seal", None)  # of this very directory
        yield f"{folder}/model.json", about
    yield "tensorboard", _points(run)


def _of_checkpoint(path: Path, unused: Callable[[], tuple[str, ...]] = tuple) -> list[_Tensors]:
    """The model's tensors and all others, as files; of a checkpoint in shards, those that one process would have."""
    from .. import safe_tensors
    from ..checkpoint import store

    if not any(path.glob("*-of-*.safetensors")):
        return [_Tensors(path / name, unused) for name in (store.MODEL, store.OPTIMIZER)]
    content = store.load(store.status_of(path))
    whole = [safe_tensors.dumps(content.model, metadata={"format": "pt"}), safe_tensors.dumps(content.other)]
    tables = [content.model, content.other]
    return [_Tensors(path, unused, data, table) for data, table in zip(whole, tables, strict=True)]


class _Tensors:
    """A file of tensors, equal to one of the same bytes; `data` and `table` where it is put together of several."""

    def __init__(
        self,
        path: Path,
        unused: Callable[[], tuple[str, ...]] = tuple,
        data: bytes | None = None,
        table: dict[str, Any] | None = None,
    ):
        self.path, self._unused, self._table = path, unused, table
        self.data = path.read_bytes() if data is None else data

    def tensors(self) -> dict[str, Any]:
        """By name."""
        from .. import safe_tensors

        return safe_tensors.load(self.path).tensors if self._table is None else self._table

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Tensors) and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    def difference(self, other: _Tensors, sides: Sides) -> str:
        """The first tensor that differs, how many of its values do and by how much, and how many tensors do; "" where
        none does that counts."""
        mine, theirs = self.tensors(), other.tensors()
        if mine.keys() != theirs.keys():
            return f"{min(mine.keys() ^ theirs.keys())} is in one of them only"
        differing = [name for name in mine if not _same(mine[name], theirs[name])]
        if not differing:
            return "the same tensors, in other bytes"
        differing = [name for name in differing if not name.startswith(self._unused())]
        if not differing:
            return ""
        first = differing[0]
        also = f"; {len(differing)} of {counted(len(mine), 'tensor')} differ" if len(differing) > 1 else ""
        if mine[first].shape != theirs[first].shape or mine[first].dtype != theirs[first].dtype:
            shapes = [f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in (mine[first], theirs[first])]
            return f"{first}: {_two(sides, *shapes)}{also}"
        unequal = (_octets(mine[first]) != _octets(theirs[first])).any(1)
        gap = _gap(mine[first], theirs[first])
        return f"{first}: {int(unequal.sum())} of {counted(unequal.numel(), 'value')}, by at most {gap:.3g}{also}"


def _same(one: Any, other: Any) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype and bool((_octets(one) == _octets(other)).all())


def _octets(tensor: Any) -> Any:
    """The bytes of a tensor, a row for each value: NaN is itself there, and -0 is not 0."""
    import torch

    return tensor.contiguous().reshape(-1, 1).view(torch.uint8)


def _gap(one: Any, other: Any) -> float:
    """The largest difference of two values that are numbers."""
    import torch

    wide = torch.complex128 if one.is_complex() else torch.float64
    return float((one.to(wide) - other.to(wide)).abs().nan_to_num(0.0, posinf=math.inf).max())


class _State:
    """What state.json holds, by dotted names."""

    def __init__(self, state: dict[str, Any], unused: Callable[[], tuple[str, ...]]):
        self.fields, self._unused = _flat(state), unused

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _State) and self.fields == other.fields

    __hash__ = None  # type: ignore[assignment]

    def difference(self, other: _State, sides: Sides) -> str:
        """The first field that differs; "" where none does that counts."""
        differing = _differing(self.fields, other.fields)
        name = next((name for name in differing if not name.replace(".", "/").startswith(self._unused())), None)
        return "" if name is None else f"{name}: {_two(sides, *_fields(name, self.fields, other.fields))}"


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    """The names whose values differ, or that only one of them has: a field that is null is one that is there."""
    names = sorted({*mine, *theirs})
    return [name for name in names if not (name in mine and name in theirs and mine[name] == theirs[name])]


def _fields(name: str, *sides: dict[str, Any]) -> list[Any]:
    return [fields.get(name, "no such field") for fields in sides]


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names: so that a difference is named by its place."""
    if not isinstance(value, dict) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{name}.{key}" if name else str(key))
    return flat


def records(run: Path) -> list[dict[str, Any]] | None:
    """The records of a run, but for the times; floats as their text. None where there is no journal."""
    if not (run / "metrics.jsonl").exists():
        return None
    from ..tracking import read_records

    return [{k: _exact(v) for k, v in r.items() if k != TIME} for r in read_records(run / "metrics.jsonl")]


def _exact(value: Any) -> Any:
    # NaN is not equal to itself; its text is.
    return repr(value) if isinstance(value, float) else value


def _points(run: Path) -> list[tuple[str, int, Any]]:
    """Every point but those of speed, in the order written: one that appears twice is a difference."""
    board = run / "tensorboard"
    folders = sorted({path.parent for path in board.rglob("events.out.tfevents.*")})
    return [
        ("/".join((*folder.relative_to(board).parts, tag)), step, value)
        for folder in folders
        for tag, step, value in _points_in(folder)
    ]


def _points_in(folder: Path) -> list[tuple[str, int, Any]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from ..tracking.tensorboard import SPEED

    sizes = {"scalars": 0, "tensors": 0, "histograms": 0, "images": 0}
    events = EventAccumulator(str(folder), size_guidance=sizes).Reload()
    tags = events.Tags()
    scalars = [tag for tag in tags["scalars"] if tag != SPEED]
    points = [(tag, e.step, _exact(e.value)) for tag in scalars for e in events.Scalars(tag)]
    points += [(tag, e.step, e.histogram_value) for tag in tags["histograms"] for e in events.Histograms(tag)]
    points += [(tag, e.step, _picture(e)) for tag in tags["images"] for e in events.Images(tag)]
    return points + [(tag, e.step, _of_tensor(e.tensor_proto)) for tag in tags["tensors"] for e in events.Tensors(tag)]


def _picture(event: Any) -> str:
    digest = hashlib.sha256(event.encoded_image_string).hexdigest()
    return f"a picture of {event.width} x {event.height} with SHA-256 {digest[:16]}"


def _of_tensor(proto: Any) -> Any:
    """The one number of most of them, or all that it holds (texts)."""
    if not proto.string_val and len(proto.float_val) == 1:
        return _exact(float(proto.float_val[0]))
    return proto.SerializeToString(deterministic=True)


def _two(sides: Sides, mine: Any, theirs: Any) -> str:
    return f"{sides[0]} {str(mine)[:200]}, {sides[1]} {str(theirs)[:200]}"


def _difference(mine: Any, theirs: Any, sides: Sides) -> str:
    """How two items differ, to follow their name; "" where the difference does not count."""
    if (isinstance(mine, _Tensors) and isinstance(theirs, _Tensors)) or (
        isinstance(mine, _State) and isinstance(theirs, _State)
    ):
        difference = mine.difference(theirs, sides)  # type: ignore[arg-type]
        return difference and f": {difference}"
    if isinstance(mine, dict) and isinstance(theirs, dict):
        key = _differing(mine, theirs)[0]
        return f": {key}: {_two(sides, *_fields(key, mine, theirs))}"
    if isinstance(mine, list) and isinstance(theirs, list):
        for number, (a, b) in enumerate(zip(mine, theirs, strict=False), 1):
            if a != b:
                return f", entry {number}: {sides[0]} {a}, {sides[1]} {b}"
        return f": {_two(sides, counted(len(mine), 'entry'), len(theirs))}"
    if isinstance(mine, bytes) and isinstance(theirs, bytes):
        pairs = enumerate(zip(mine, theirs, strict=False))
        at = next((i for i, (a, b) in pairs if a != b), min(len(mine), len(theirs)))
        return f": first different byte is {at} of {len(mine)}"
    return f": {_two(sides, _shown(mine), _shown(theirs))}"


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return f"a file of {len(value.data):,} bytes" if isinstance(value, _Tensors) else str(value)[:200]
