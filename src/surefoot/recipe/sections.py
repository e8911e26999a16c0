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
    return field(default=default, metadata={"kind": kind, "doc": doc, "name": name, "shown": shown})


def keys_of(cls: Any) -> dict[str, Key]:
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

    `path` is its key (``"optimizer"``, ``"loss.1"``): for messages about what only shows when it is built.

    >>> Part("MLP", Frozen({"hidden": [256]})).arguments()
    {'hidden': [256]}
    """

    name: str
    args: Frozen = Frozen()
    imported: bool = False
    path: str = field(default="", compare=False)

    def arguments(self) -> dict[str, Any]:
        """The arguments as plain dicts and lists, yours to change."""
        return {name: thaw(value) for name, value in self.args.items()}

    def mapping(self) -> dict[str, Any]:
        """The mapping that the recipe would hold."""
        return {"import" if self.imported else "name": self.name, **self.arguments()}

    def plain(self) -> Any:
        """The mapping that the recipe would hold; the bare name where there are no arguments."""
        return self.mapping() if self.args or self.imported else self.name


# One part of each registry that messages can show.
EXAMPLES = {
    "model": "LeNet5",
    "data": "garments",
    "loss": "CrossEntropyLoss",
    "objective": "{import: my_package.training:objective}",
    "metric": "accuracy",
    "optimizer": "{name: SGD, lr: 0.1}",
    "scheduler": "{name: StepLR, step_size: 5}",
    "warmup": "{name: LinearWarmup, warmup_period: 100}",
    "augmentation": "{name: RandomCrop, padding: 2}",
}


def title(registry: str) -> str:
    """How messages call a part of a registry."""
    return "data set" if registry == "data" else registry


def titled(registry: str) -> str:
    """The same with its article."""
    return f"{'an' if registry[0] in 'aeiou' else 'a'} {title(registry)}"


def part_expected(registry: str) -> str:
    """What a value that names a part is, in messages and docs."""
    return f"the name of {titled(registry)}, or a mapping with it"


class Keyed:
    """A section: something with keys. One with a field `part` holds the keys of that part of `registry` too.

    With `open_ended`, keys beyond its own are arguments of something, and its field `args` holds them. Of the keys
    `one_of`, whose default is None, exactly one is given.
    """

    registry: ClassVar[str] = ""
    open_ended: ClassVar[bool] = False
    one_of: ClassVar[tuple[str, ...]] = ()

    def plain(self) -> dict[str, Any]:
        """The section as plain dicts, lists and scalars, every default filled in, in the file's order."""
        settings = {n: k.kind.plain(getattr(self, k.attribute)) for n, k in keys_of(type(self)).items()}
        settings = {n: value for n, value in settings.items() if value is not None or n not in self.one_of}
        if self.registry:
            part: Part = getattr(self, "part")  # noqa: B009 (a field of the sections with a registry only)
            return {**part.mapping(), **settings}
        return {**settings, **thaw(getattr(self, "args", {}))}

    def brief(self) -> Any:
        """As `plain`, without the settings that are at their defaults."""
        whole: Any = self.plain()
        if not isinstance(whole, dict):
            return whole
        settings = {}
        for name, each in keys_of(type(self)).items():
            value = getattr(self, each.attribute)
            if name in whole and value != each.default:
                settings[name] = _brief(value, whole[name])
        if self.registry:
            part: Part = getattr(self, "part")  # noqa: B009 (as in `plain`)
            return {**part.mapping(), **settings} if settings else part.plain()
        return {**settings, **thaw(getattr(self, "args", {}))}


def _brief(value: Any, plain: Any) -> Any:
    if isinstance(value, Keyed):
        return value.brief()
    if isinstance(value, tuple) and value and all(isinstance(item, Keyed) for item in value):
        items = [item.brief() for item in value]
        return items if isinstance(plain, list) else items[0]
    return plain
