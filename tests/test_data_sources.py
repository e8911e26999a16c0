"""Sources: what counts as data, what is refused, fingerprints and class counts."""

from __future__ import annotations

import dataclasses
import hashlib
import subprocess
import sys

import numpy
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset

from surefoot.data import DATA, DatasetSource, DataSplits, Loader, TensorSource, as_source
from surefoot.errors import UsageError
from surefoot.preprocessing import Preprocessing


class Pairs:
    """A map-style data set without torch's base class."""

    def __init__(self, count: int = 10, offset: float = 0.0):
        self.count = count
        self.offset = offset

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return torch.tensor([index + self.offset]), index % 3


class Endless(IterableDataset):
    def __iter__(self):
        yield 1


def test_whatever_holds_samples_becomes_a_source():
    inputs, targets = torch.arange(6.0)[:, None], torch.arange(6)
    source = TensorSource(inputs, targets)
    assert as_source(source) is source
    for data in (
        (inputs, targets),
        [inputs, targets],
        (inputs.numpy(), targets.numpy()),
        TensorDataset(inputs, targets),
    ):
        made = as_source(data)
        assert isinstance(made, TensorSource)
        assert made.fingerprint() == source.fingerprint()
    part = as_source(Subset(TensorDataset(inputs, targets), [4, 1]))
    assert isinstance(part, TensorSource)
    assert part.tensors[1].tolist() == [4, 1]
    assert isinstance(as_source(Pairs()), DatasetSource)
    assert isinstance(as_source(Subset(Pairs(), [1, 2])), DatasetSource)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((x for x in "ab"), "a generator can be read only once; give an IterableDataset"),
        (DataLoader(TensorDataset(torch.zeros(3))), "give its data set"),
        (torch.zeros(3), r"found one Tensor; give \(inputs, targets\), or \(inputs,\) where an objective"),
        ("garments", "found one str"),
        ({"a": 1}, "found one dict"),
        (7, "int is not a data set"),
        (Pairs(0), "the data set Pairs is empty"),
        ((torch.zeros(0, 2), torch.zeros(0)), "the data set is empty"),
        ((torch.zeros(3, 2), torch.zeros(4)), "tensors hold 3 and 4 samples"),
        ((torch.zeros(()),), "a tensor of one number has no samples"),
        (Loader((torch.zeros(3),), 3), r"a Loader was given; give its source \(loader.source\)"),
        ([torch.zeros(3)] * 4, r"a list of 4 arrays may be samples or columns; give \(torch.stack\(samples\),\)"),
    ],
)
def test_what_is_no_data_is_refused(data, message):
    with pytest.raises(UsageError, match=message):
        as_source(data)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 3, -1], "2 of 4 labels lie outside the 3 classes 0 to 2: the first is 3 at sample 2"),
        ([0.0, 1.0], "targets are torch.float32; class labels are whole numbers"),
        ([True, False], "targets are torch.bool"),
    ],
)
def test_labels_outside_the_classes_are_refused_everywhere(labels, message):
    inputs, labels = torch.zeros(len(labels), 1), torch.tensor(labels)
    good = TensorSource(torch.zeros(3, 1), torch.arange(3))
    with pytest.raises(UsageError, match=message):
        TensorSource(inputs, labels, classes="abc")
    with pytest.raises(UsageError, match=message):
        DataSplits(good, TensorSource(inputs, labels), tuple("abc"), None)


def test_splits_without_classes_take_any_targets():
    source = TensorSource(torch.zeros(3, 1), torch.rand(3))
    assert DataSplits(source, None, None, Preprocessing()).val is None
    with pytest.raises(UsageError, match="classes: 2 is not a list of names"):
        DataSplits(source, None, 2, None)
    with pytest.raises(UsageError, match="2 columns and 1 names; give one each"):
        TensorSource(torch.zeros(3), torch.zeros(3), names=["x"])


def test_unsigned_tensors_become_what_torch_has_operations_for():
    for name, wider in (("uint16", torch.int32), ("uint32", torch.int64), ("uint64", torch.int64)):
        source = TensorSource(torch.tensor([[7], [9]]).to(getattr(torch, name)))
        assert source.tensors[0].dtype == wider and source.tensors[0].tolist() == [[7], [9]]


@dataclasses.dataclass
class Part:
    x: torch.Tensor


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([{"a": 1, "b": 2}, {"a": 1}], "sample 0 is {a: int, b: int} and sample 1 is {a: int}; make them alike"),
        ([Part(torch.zeros(1)), (1, 2)], r"sample 0 is Part{x: \(1,\) float32} and sample 1 is \[int, int\]"),
    ],
)
def test_samples_of_other_parts_are_told(samples, message):
    with pytest.raises(UsageError, match=f"the samples cannot be joined in a batch: {message}"):
        next(iter(Loader(samples, 2, shuffle=False)))


def test_targets_are_read_from_wherever_they_are():
    labels = torch.tensor([2, 0, 2, 2])
    assert TensorSource(torch.zeros(4), labels).targets().tolist() == [2, 0, 2, 2]
    assert DatasetSource(Pairs(10)).targets().bincount().tolist() == [4, 3, 3]
    with pytest.raises(UsageError, match="without targets"):
        TensorSource(torch.zeros(4)).targets()


def test_a_datasets_own_targets_are_taken_without_reading_it():
    class Listed(Pairs):
        targets = [0, 1, 1]

        def __getitem__(self, index):
            raise AssertionError("read")

    assert DatasetSource(Listed(3)).targets().tolist() == [0, 1, 1]


def test_a_fingerprint_changes_with_every_number_type_shape_and_order():
    def fingerprint(*tensors):
        return TensorSource(*tensors).fingerprint()

    x = torch.arange(24, dtype=torch.float32).view(4, 6)
    y = torch.tensor([0, 1, 2, 3])
    other = x.clone()
    other[3, 5] += 1e-5
    different = [
        fingerprint(x, y),
        fingerprint(other, y),
        fingerprint(x.view(4, 2, 3), y),
        fingerprint(x.double(), y),
        fingerprint(x, y.flip(0)),
        fingerprint(x, y.int()),
        fingerprint(y, x),
        fingerprint(x),
        fingerprint(x[:3], y[:3]),
    ]
    assert len(set(different)) == len(different)
    assert fingerprint(x.t().contiguous().t(), y) == different[0]
    # By hand, so that it stays what old runs recorded.
    digest = hashlib.sha256(b"torch.float32 (4, 6)\n" + x.numpy().tobytes())
    digest.update(b"torch.int64 (4,)\n" + y.numpy().tobytes())
    assert different[0] == digest.hexdigest()


def test_a_datasets_fingerprint_changes_with_its_length_class_and_samples():
    class Others(Pairs):
        pass

    sources = [Pairs(100), Pairs(101), Others(100), Pairs(100, offset=0.5)]
    assert len({DatasetSource(source).fingerprint() for source in sources}) == 4
    assert DatasetSource(Pairs(100)).fingerprint() == DatasetSource(Pairs(100)).fingerprint()


def test_samples_of_any_kind_have_a_fingerprint():
    class Mixed(Pairs):
        def __getitem__(self, index):
            array = numpy.arange(3) + index
            return {"a": array, "b": [1, "x", None, 2.5]}, numpy.float32(self.offset), (b"raw", object())

    assert DatasetSource(Mixed()).fingerprint() == DatasetSource(Mixed()).fingerprint()
    assert DatasetSource(Mixed()).fingerprint() != DatasetSource(Mixed(offset=1.0)).fingerprint()


def test_read_only_arrays_are_copied_and_others_shared():
    array = numpy.zeros((3, 2))
    assert TensorSource(array).tensors[0].data_ptr() == array.ctypes.data
    array.flags.writeable = False
    assert TensorSource(array).tensors[0].data_ptr() != array.ctypes.data


def test_the_registry_lists_without_torch():
    code = "import sys; from surefoot.data import DATA; print(DATA.names()); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    names = DATA.names()
    assert {"garments", "image_folder", "csv", "text", "hugging_face"} <= set(names)
    assert (done.returncode, done.stdout) == (0, f"{names}\n")
    assert all(entry.load() and entry.summary for entry in DATA)
