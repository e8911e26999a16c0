"""Parts and sections: what a recipe's mappings have in common, and how a dataclass field stands for a key."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, ClassVar

from .frozen import Frozen, thaw
from .kinds import Kind

REQUIRED: Any = dataclasses.MISSING

# One or more module names, a colon, the name of a class or function in it.
IMPORT_PATTERN = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*"


@dataclass(frozen=True)
class Key:
    """What is known of one key: its name in the file, its kind, its meaning, and how the docs show its default."""

    name: str
    attribute: str
    kind: Kind
    doc: str
    default: Any
    shown: str


def key(kind: Kind, doc: str, default: Any = REQUIRED, *, name: str = "", shown: str = "") -> Any:
    """A dataclass field for one key of the recipe."""
    metadata = {"kind": kind, "doc": doc, "name": name, "shown": shown}
    return field(default=default, metadata=metadata) if default is not REQUIRED else field(metadata=metadata)


def keys_of(cls: type) -> dict[str, Key]:
    """The keys of a section, by their names in the file, in the order in which they are written."""
    keys = {}
    for f in dataclasses.fields(cls):
        if "kind" in f.metadata:
            name = f.metadata["name"] or f.name
            keys[name] = Key(name, f.name, f.metadata["kind"], f.metadata["doc"], f.default, f.metadata["shown"])
    return keys


@dataclass(frozen=True)
class Part:
    """A registered name, or a user's own ``module:Name`` (`imported`), with its arguments.

    `where` is the place of the name (``recipe.yaml:4:8``, or the overriding argument), `path` its key
    (``"optimizer"``, ``"loss.1"``): for messages about what only shows when it is built.

    >>> Part("MLP", Frozen({"hidden": [256]})).arguments()
    {'hidden': [256]}
    """

    name: str
    args: Frozen = Frozen()
    imported: bool = False
    where: str = field(default="", compare=False)
    path: str = field(default="", compare=False)

    def arguments(self) -> dict[str, Any]:
        """The arguments as plain dicts and lists, yours to change."""
        return thaw(self.args)

    def plain(self) -> Any:
        """The mapping that the recipe would hold; the bare name where there are no arguments."""
        if not self.args and not self.imported:
            return self.name
        return self.mapping()

    def mapping(self) -> dict[str, Any]:
        """The mapping that the recipe would hold."""
        return {"import" if self.imported else "name": self.name, **thaw(self.args)}


# How messages call a part of each registry, and one that they can show.
TITLES = {
    "model": "model",
    "data": "data set",
    "loss": "loss",
    "optimizer": "optimizer",
    "scheduler": "scheduler",
    "warmup": "warmup",
    "augmentation": "augmentation",
}
EXAMPLES = {
    "model": "LeNet5",
    "data": "garments",
    "loss": "CrossEntropyLoss",
    "optimizer": "{name: SGD, lr: 0.1}",
    "scheduler": "{name: StepLR, step_size: 5}",
    "warmup": "{name: LinearWarmup, warmup_period: 100}",
    "augmentation": "{name: RandomCrop, padding: 2}",
}


def a(noun: str) -> str:
    """`noun` with its article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def part_told(registry: str) -> str:
    """What a value that names a part is, in messages and docs."""
    return f"the name of {a(TITLES[registry])}, or a mapping with it"


class Keyed:
    """A section: something with keys. One with a field `part` holds the keys of that part of `registry` too."""

    registry: ClassVar[str] = ""

    @classmethod
    def told(cls) -> str:
        """What messages and docs call it."""
        return part_told(cls.registry) if cls.registry else "a mapping"

    @classmethod
    def example(cls) -> str:
        """One that messages can show, or an empty text."""
        return EXAMPLES.get(cls.registry, "")

    @classmethod
    def open_ended(cls) -> bool:
        """Whether keys beyond its own are arguments of something: `args` holds them."""
        return any(f.metadata.get("rest") for f in dataclasses.fields(cls))

    def plain(self) -> dict[str, Any]:
        """The section as plain dicts, lists and scalars, every default filled in, in the file's order."""
        part: Part | None = getattr(self, "part", None)
        told = {} if part is None else {"import" if part.imported else "name": part.name}
        settings = {n: k.kind.plain(getattr(self, k.attribute)) for n, k in keys_of(type(self)).items()}
        if part is None:
            return {**settings, **thaw(getattr(self, "args", {}))}
        return {**told, **thaw(part.args), **settings}
