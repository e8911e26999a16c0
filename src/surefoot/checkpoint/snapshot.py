"""A moment of a run in memory of its own, and back: what a save writes and a resume reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from .. import rng, safe_tensors
from ..errors import RunFailed, UsageError
from ..world import World
from ..wrapping import local, shared_out
from . import beside_tensors, object_states, store
from .codec import Corrupt, Decoder, Encoder, storable
from .file_image import FileCopies, FileImage
from .pieces import Pieces, file_name

FORMAT = 1


@dataclass(frozen=True)
class Snapshot:
    """The state as a JSON-able tree, and the images of both files of tensors; nothing in it changes any more."""

    step: int
    state: dict[str, Any] = field(repr=False)
    model: FileImage = field(repr=False)
    other: FileImage = field(repr=False)
    metrics: dict[str, Any] = field(default_factory=dict)
    shards: int = 1
    number: int = 0
    pieces: dict[str, Pieces] = field(default_factory=dict, repr=False)

    def files(self) -> dict[str, Iterable[bytes | memoryview]]:
        """The chunks of each file that this rank writes, by name."""
        files: dict[str, Iterable[bytes | memoryview]] = {
            file_name(part, self.number, self.shards): image.chunks()
            for part, image in ((store.MODEL, self.model), (store.OPTIMIZER, self.other))
        }
        return files if self.number else {**files, store.STATE: self._state_chunks()}

    def _state_chunks(self) -> Iterator[bytes]:
        yield self.state_bytes()

    def state_bytes(self) -> bytes:
        """state.json. Raises `RunFailed` when it is larger than what can be read back."""
        return state_json(self.state, f"the state of step {self.step}")


def state_json(state: Mapping[str, Any], what: str) -> bytes:
    """The text of a state. Raises `RunFailed` for one that could not be read back (`store.load` has these limits)."""
    data = json.dumps(state, separators=(",", ":"), allow_nan=False).encode()
    containers = data.count(b"{") + data.count(b"[")
    for size, most, unit in (
        (len(data), store.MAX_STATE_BYTES, "bytes"),
        (containers, store.MAX_STATE_CONTAINERS, "lists and objects"),
    ):
        if size > most:
            large = max(
                (k for k in ("objects", "optimizers", "modules") if k in state), key=lambda k: len(repr(state[k]))
            )
            inner = state[large]
            if isinstance(inner, dict) and inner:
                large += "/" + max(inner, key=lambda name: len(repr(inner[name])))
            raise RunFailed(
                f"{what} takes {size} {unit} without its tensors; at most {most} can be read back. The largest part "
                f"is {large}: keep long lists as tensors"
            )
    return data


class Snapshots:
    """Takes snapshots of the same objects again and again; each is good until the next is taken."""

    def __init__(self, objects: Mapping[str, Any], world: World):
        self._objects, self._world = objects, world
        # Whether each rank has a piece of the model, and of what follows it.
        self.spread = any(isinstance(value, nn.Module) and shared_out(value) for value in objects.values())
        self._model_copies = FileCopies({"format": "pt"})
        self._other_copies = FileCopies()

    def check(self) -> None:
        """Raise `UsageError` for what could not be saved, without copying anything."""
        state, *encoders = self._encode()
        try:
            state_json(state, "the state")
        except RunFailed as error:
            raise UsageError(str(error)) from error
        for encoder in encoders:
            safe_tensors.layout(_own(encoder, 0))

    def take(
        self,
        *,
        step: int,
        epoch: int,
        journal: int | None,
        metrics: dict[str, Any],
        marks: Mapping[str, Any] = MappingProxyType({}),
        rngs: Sequence[Any] = (),
    ) -> Snapshot:
        """Everything as it is now. `journal` is the journal's size in bytes, or None without one, `marks` its own.

        `rngs` are the random states of the other ranks, where they are not this one's.
        """
        state, model, other = self._encode(rngs)
        number = self._world.rank if self.spread else 0
        state |= {"format": FORMAT, "step": step, "epoch": epoch, "journal": journal, "marks": dict(marks)}
        return Snapshot(
            step,
            state,
            self._model_copies.copy(_own(model, number)),
            self._other_copies.copy(_own(other, number)),
            metrics,
            self._world.size if self.spread else 1,
            number,
            {store.MODEL: model.pieces, store.OPTIMIZER: other.pieces} if self.spread else {},
        )

    @staticmethod
    def random_states(world: World) -> list[Any]:
        """The random states of ranks 1, 2, ...; none where all are rank 0's, as of a process alone."""
        if world.size == 1:
            return []
        first, *others = world.gather(rng.to_plain(rng.get_state()))
        return [rng.from_plain(other) for other in others] if any(other != first for other in others) else []

    def _encode(self, rngs: Sequence[Any] = ()) -> tuple[dict[str, Any], Encoder, Encoder]:
        """The state as JSON, and both tables of tensors, still those of the live objects."""
        reshard(self._objects)
        tree = object_states.get_state(self._objects)
        model, other = Encoder(), Encoder()
        # The model's names are plain, whatever else there is (a loss with class weights).
        plain = "model" if "model" in tree["modules"] else next(iter(tree["modules"]), None)
        modules = {}
        for key, part in tree["modules"].items():
            tensors = {
                name: model.encode(tensor, name if key == plain else f"{key}.{name}")
                for name, tensor in part["tensors"].items()
            }
            beside = {n: other.encode(part[n], f"modules/{key}/{n}") for n in beside_tensors.PARTS if n in part}
            modules[key] = {**part, "tensors": tensors, **beside}
        state = {
            "modules": modules,
            "optimizers": other.encode(tree["optimizers"], "optimizers"),
            "objects": other.encode(tree["objects"], "objects"),
            "rng": other.encode(rng.get_state(), "rng"),
            **({"rngs": other.encode(list(rngs), "rngs")} if rngs else {}),
        }
        other.share_memory()
        return state, model, other


def _own(encoder: Encoder, number: int) -> dict[str, torch.Tensor]:
    """What of the tensors this rank writes: its pieces, and on rank 0 all that is not in pieces."""
    names = encoder.pieces if number else encoder.tensors
    return {name: storable(local(encoder.tensors[name])) for name in names}


def reshard(objects: Mapping[str, Any]) -> None:
    """Let modules under FSDP2 show their pieces, also after a forward pass without a backward pass."""
    for value in objects.values():
        for part in shared_out(value) if isinstance(value, nn.Module) else ():
            part.reshard()


def decode(content: store.Content) -> dict[str, Any]:
    """The tree behind a verified checkpoint. Raises `Damaged` for one that no Checkpointer wrote."""
    state, path = content.state, content.path / store.STATE
    kinds = {"step": int, "epoch": int, "modules": dict, "optimizers": dict, "objects": dict, "rng": dict}
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise store.Damaged(path, "is not a state that this version of surefoot reads")
    for key, kind in kinds.items():
        if not isinstance(state.get(key), kind):
            raise store.Damaged(path, f"lacks {key!r}")
    marks = state.setdefault("marks", {})  # earlier versions kept none
    state.setdefault("rngs", [])
    if (
        state["step"] != content.manifest["step"]
        or type(state.get("journal")) not in (int, type(None))
        or not isinstance(marks, dict)
        or not isinstance(state["rngs"], list)
    ):
        raise store.Damaged(path, "does not agree with its manifest")
    model, other = Decoder(content.model), Decoder(content.other)
    try:
        modules = {}
        for key, part in state["modules"].items():
            if not isinstance(part, dict):
                raise Corrupt(f"module {key[:80]!r} is no table")
            beside = {name: other.decode(part[name]) for name in beside_tensors.PARTS if name in part}
            modules[key] = {**part, "tensors": model.decode(part.get("tensors")), **beside}
        decoded = {key: other.decode(state[key]) for key in ("optimizers", "objects", "rng", "rngs")}
    except Corrupt as error:
        raise store.Damaged(path, str(error)) from error
    if unused := model.unused | other.unused:
        raise store.Damaged(path, f"does not use tensor {min(unused)[:80]!r}")
    return {**state, "modules": modules, **decoded}
