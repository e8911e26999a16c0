"""A moment of a run in memory of its own, and back: what a save writes and a resume reads."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .. import rng
from ..errors import RunFailed
from . import capture, store
from .codec import Corrupt, Decoder, Encoder, storable
from .copies import FileCopies, FileImage

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """The state as a JSON-able tree, and the images of both files of tensors; nothing in it changes any more."""

    step: int
    state: dict[str, Any] = field(repr=False)
    model: FileImage = field(repr=False)
    other: FileImage = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)

    def state_bytes(self) -> bytes:
        """state.json. Raises `RunFailed` when it is larger than what can be read back."""
        data = json.dumps(self.state, separators=(",", ":"), allow_nan=False).encode()
        if len(data) > store.MAX_STATE_BYTES:
            raise RunFailed(
                f"the state of step {self.step} takes {len(data)} bytes without its tensors; at most "
                f"{store.MAX_STATE_BYTES} can be read back; keep long lists as tensors"
            )
        return data


class Snapshots:
    """Takes snapshots of the same objects again and again; each is good until the next is taken."""

    def __init__(self, objects: Mapping[str, Any]):
        self._objects = objects
        self._model_copies = FileCopies({"format": "pt"})
        self._other_copies = FileCopies()

    def check(self) -> None:
        """Raise `UsageError` for what could not be saved, without copying anything."""
        self._encode()

    def take(self, *, step: int, epoch: int, journal: int | None, metrics: dict[str, Any]) -> Snapshot:
        """Everything as it is now. `journal` is the journal's size in bytes, or None without one."""
        state, model, other = self._encode()
        state |= {"format": FORMAT, "step": step, "epoch": epoch, "journal": journal}
        return Snapshot(
            step,
            state,
            self._model_copies.copy({name: storable(tensor) for name, tensor in model.tensors.items()}),
            self._other_copies.copy({name: storable(tensor) for name, tensor in other.tensors.items()}),
            metrics,
        )

    def _encode(self) -> tuple[dict[str, Any], Encoder, Encoder]:
        """The state as JSON, and both tables of tensors, still those of the live objects."""
        tree = capture.capture(self._objects)
        model, other = Encoder(), Encoder()
        several = len(tree["modules"]) > 1
        modules = {}
        for key, found in tree["modules"].items():
            tensors = {
                name: model.encode(tensor, f"{key}.{name}" if several else name)
                for name, tensor in found["tensors"].items()
            }
            extra = other.encode(found["extra"], f"modules/{key}/extra")
            modules[key] = {**found, "tensors": tensors, "extra": extra}
        state = {
            "modules": modules,
            "optimizers": other.encode(tree["optimizers"], "optimizers"),
            "objects": other.encode(tree["objects"], "objects"),
            "rng": other.encode(rng.capture(), "rng"),
        }
        return state, model, other


def decode(content: store.Content) -> dict[str, Any]:
    """The tree behind a verified checkpoint. Raises `Damaged` for one that no Checkpointer wrote."""
    state, path = content.state, content.path / store.STATE
    kinds = {"step": int, "epoch": int, "modules": dict, "optimizers": dict, "objects": dict, "rng": dict}
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise store.Damaged(path, "is not a state that this version of surefoot reads")
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            raise store.Damaged(path, f"lacks {key!r}")
    if state["step"] != content.manifest["step"] or type(state.get("journal")) not in (int, type(None)):
        raise store.Damaged(path, "does not agree with its manifest")
    model, other = Decoder(content.model), Decoder(content.other)
    try:
        modules = {}
        for key, found in state["modules"].items():
            if not isinstance(found, dict):
                raise Corrupt(f"module {key[:80]!r} is no table")
            modules[key] = {
                **found,
                "tensors": model.decode(found.get("tensors")),
                "extra": other.decode(found.get("extra")),
            }
        decoded = {key: other.decode(state[key]) for key in ("optimizers", "objects", "rng")}
    except Corrupt as error:
        raise store.Damaged(path, str(error)) from error
    if unused := model.unused | other.unused:
        raise store.Damaged(path, f"does not use tensor {min(unused)[:80]!r}")
    return {**state, "modules": modules, **decoded}
