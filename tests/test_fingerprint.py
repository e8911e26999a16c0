"""What a fingerprint of data sees: whatever samples hold, however they hold it; and what it says that it cannot see."""

from __future__ import annotations

import collections
import dataclasses
import datetime
import threading
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from surefoot.data import DatasetSource, TensorSource
from surefoot.fingerprint import Fingerprint


class Slotted:
    """Attributes in slots."""

    __slots__ = ("x",)

    def __init__(self, x):
        self.x = x


class Stateful:
    """Tells what it holds by __getstate__ only, and holds itself, as a graph's storage does."""

    def __init__(self, x):
        self.me, self._x = self, x

    def __getstate__(self):
        return {"x": self._x, "me": self.me}


class ArrayState:
    """Whose __getstate__ returns an array."""

    def __init__(self, x):
        self._x = x

    def __getstate__(self):
        return self._x


def family(n):
    """A node with a set of nodes that refer back to it."""
    parent = SimpleNamespace(children=set(), n=0)
    parent.children |= {Child(parent, 3), Child(parent, n)}
    return parent


class Child:
    def __init__(self, parent, n):
        self.parent, self.n = parent, n


@dataclasses.dataclass
class Graph:
    """As a graph of torch_geometric: tensors by name."""

    x: torch.Tensor
    edges: torch.Tensor


class Mapping(collections.UserDict):
    """As a BatchEncoding."""


def picture(shade, size=(4, 4)):
    image = pytest.importorskip("PIL.Image")
    return image.new("L", size, shade)


HOLDERS = {
    "a picture": lambda n: picture(n),
    "attributes": lambda n: SimpleNamespace(x=torch.tensor([1.0, n])),
    "slots": Slotted,
    "a state of its own": Stateful,
    "a graph": lambda n: Graph(torch.tensor([[float(n)]]), torch.tensor([[0], [0]])),
    "a mapping": lambda n: Mapping(x=numpy.array([n])),
    "objects in an array": lambda n: numpy.array([{"n": n}], dtype=object),
    "in each other": lambda n: ([{"a": (Slotted([n]),)}],),
    "a set": lambda n: {"a", "b", n},
    "a deque": lambda n: collections.deque([n]),
    "a date": lambda n: datetime.date(2020, 1, n),
    "a subclass of a tensor": lambda n: torch.tensor([n]).as_subclass(torch.nn.Buffer),
    "conjugated": lambda n: torch.tensor([n + 1j]).conj(),
    "sparse": lambda n: torch.tensor([0.0, n]).to_sparse(),
    "complex": lambda n: complex(n, 1),
    "a state that is an array": lambda n: ArrayState(numpy.array([1, n])),
    "a set of what refers to it": lambda n: family(n),
    "nested": lambda n: torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(n, 3)], layout=torch.jagged),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_equal_contents_are_equal_and_others_are_not(name):
    make = HOLDERS[name]
    assert Fingerprint.of(make(1)) == Fingerprint.of(make(1)) != Fingerprint.of(make(2))
    assert "blind" not in Fingerprint.of(make(1))


class Samples(Dataset):
    """Samples out of a function; `held` is an attribute."""

    def __init__(self, make, held=None, count=1000):
        self.make, self.held, self.count = make, held, count

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.make(index)


def of(*arguments, **named):
    return DatasetSource(Samples(*arguments, **named)).fingerprint()


def test_sixty_four_samples_are_read_spread_over_the_whole():
    read = set()
    source = DatasetSource(Samples(lambda index: read.add(index) or index))
    source.fingerprint()
    assert len(read) == 64 and {0, 999} <= read


HELD = {
    "a tensor": lambda odd: torch.full((500,), 7.0).index_fill_(0, torch.tensor([333]), odd),
    "an array": lambda odd: numpy.arange(500) + (numpy.arange(500) == 333) * int(odd),
    "a list of tensors": lambda odd: [torch.zeros(3)] * 3 + [torch.full((3,), odd)],
    "a list of texts": lambda odd: ["a"] * 333 + [str(odd)],
    "a data set inside": lambda odd: Subset(Samples(lambda i: 0, torch.tensor([odd])), [0]),
    "several inside": lambda odd: ConcatDataset([Samples(lambda i: 0, torch.tensor([odd]))]),
}


@pytest.mark.parametrize("name", HELD)
def test_one_number_that_changed_in_what_a_data_set_holds_is_seen(name):
    make = HELD[name]
    assert of(lambda i: 0, make(1.0)) == of(lambda i: 0, make(1.0)) != of(lambda i: 0, make(2.0))


def test_one_number_that_changed_in_memory_is_seen():
    x = torch.zeros(100_000)
    before = TensorSource(x).fingerprint()
    x[77_777] = 1
    assert TensorSource(x).fingerprint() != before


def test_a_part_that_knows_its_whole_is_data():
    def part(number):
        whole = Samples(float, torch.tensor([number]))
        whole.part = Samples(float, whole)
        return DatasetSource(whole.part).fingerprint()

    assert part(1.0) == part(1.0) != part(2.0)


def test_the_same_files_in_another_directory_are_the_same_data():
    assert of(lambda i: 0, ["/here/a.png"]) == of(lambda i: 0, ["/there/a.png"]) != of(lambda i: 0, ["/here/b.png"])


def test_a_cache_that_reading_fills_is_not_the_data():
    class Cached(Samples):
        def __init__(self):
            super().__init__(float)
            self.cache = torch.zeros(1000)

        def __getitem__(self, index):
            self.cache[index] = 1 + self.make(index)
            return self.cache[index].clone()

    dataset = Cached()
    before = DatasetSource(dataset).fingerprint()
    assert before == DatasetSource(Cached()).fingerprint()


def test_what_cannot_be_seen_is_said():
    source = DatasetSource(Samples(lambda index: threading.Lock(), count=3))
    source.fingerprint()
    assert "_thread.lock in a sample holds cannot be seen" in source.notes[0]


def test_what_cannot_be_seen_in_a_set_is_said_too():
    assert "blind to _thread.lock" in Fingerprint.of({threading.Lock()})
