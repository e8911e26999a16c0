"""Data as users have them: every dtype and byte order, frames, lists, splits; right, or refused in one message."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fit_arguments import FIXED, Heard, fit_arguments
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, random_split

from surefoot import Loader, Preprocessing, UsageError, evaluate, fit, predict
from surefoot.data import DatasetSource, DataSplits, TensorSource, as_source
from surefoot.data.splits import pixel_scale

FLOAT64 = "data: float64 is read as float32, which the model computes in"
N = 6
NUMBERS = np.arange(N * 3).reshape(N, 3) % 2
LABELS = np.arange(N) % 2
# Every letter of NumPy's and the other byte order, and what torch holds it as.
TAKEN = {
    "?": torch.bool,
    **dict.fromkeys(["i1"], torch.int8),
    **dict.fromkeys(["<i2", ">i2"], torch.int16),
    **dict.fromkeys(["<i4", ">i4", "<u2", ">u2"], torch.int32),
    **dict.fromkeys(["<i8", ">i8", "<u4", ">u4", "<u8", ">u8"], torch.int64),
    "u1": torch.uint8,
    **dict.fromkeys(["<f2", ">f2"], torch.float16),
    **dict.fromkeys(["<f4", ">f4"], torch.float32),
    **dict.fromkeys(["<f8", ">f8", "g", "O"], torch.float64),
    **dict.fromkeys(["<c8", ">c8"], torch.complex64),
    **dict.fromkeys(["<c16", ">c16", "G"], torch.complex128),
}


@pytest.mark.parametrize("dtype", TAKEN)
def test_every_dtype_and_byte_order_of_numbers_is_read_right(dtype):
    array = NUMBERS.astype(dtype)
    if dtype == "O":
        array[0, 0] = 0.0
        TAKEN_AS = torch.float64
    else:
        TAKEN_AS = TAKEN[dtype]
    inputs, targets = as_source((array, LABELS)).tensors
    assert inputs.dtype == TAKEN_AS and targets.tolist() == LABELS.tolist()
    assert inputs.to(torch.complex128).real.tolist() == NUMBERS.tolist()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (NUMBERS.astype("U3"), "is no array of numbers; encode it: classes, labels = numpy.unique"),
        (NUMBERS.astype("S3"), "is no array of numbers; encode it"),
        (NUMBERS.astype("M8[D]"), "datetime64[D] is no array of numbers"),
        (NUMBERS.astype("m8[s]"), "timedelta64[s] is no array of numbers"),
        (np.zeros(N, dtype=[("a", "f4")]), "array['name']"),
        (np.array(list("abcdef"), dtype=object), "an array of objects (str)"),
        (np.array([1, None, 2, 3, 4, 5], dtype=object), "an array of objects (NoneType)"),
        (np.ma.array(NUMBERS, mask=NUMBERS > 0), "values that are masked; fill them"),
        (np.full((N, 3), 2**64 - 1, dtype=np.uint64), "numbers above 2**63 - 1"),
        (np.float64(3.0), "found float64"),
        (torch.eye(N).to_sparse(), "give tensor.to_dense()"),
        (np.array(3.0), "a tensor of one number has no samples"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused_with_what_to_give(array, message):
    with pytest.raises(UsageError) as refusal:
        as_source((array, LABELS))
    assert message in str(refusal.value)


def test_any_stride_and_order_in_memory_is_read_right():
    for array in (NUMBERS[::-1], NUMBERS[:, ::-1], np.asfortranarray(NUMBERS), NUMBERS[::2]):
        inputs, _ = as_source((array, LABELS[: len(array)])).tensors
        assert inputs.tolist() == array.tolist()
    read_only = NUMBERS.copy()
    read_only.flags.writeable = False
    assert as_source((read_only, LABELS)).tensors[0].tolist() == NUMBERS.tolist()


def test_an_array_on_the_disk_that_may_be_written_in_memory_stays_there(tmp_path):
    np.save(tmp_path / "x.npy", NUMBERS.astype("float32"))
    array = np.load(tmp_path / "x.npy", mmap_mode="c")
    assert as_source((array, LABELS)).tensors[0].data_ptr() == array.ctypes.data


def test_lists_of_numbers_are_read_as_torch_reads_them():
    for data in ((NUMBERS.astype(float).tolist(), LABELS.tolist()), [NUMBERS.astype(float).tolist(), LABELS.tolist()]):
        inputs, targets = as_source(data).tensors
        assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
        assert inputs.tolist() == NUMBERS.tolist() and targets.tolist() == LABELS.tolist()
    stacked = as_source(([torch.ones(3)] * N, LABELS)).tensors[0]
    assert stacked.shape == (N, 3)
    assert len(as_source([(torch.zeros(3), 1)] * 5)) == 5, "a list of samples is a data set"


class Frame:
    """What pandas' DataFrame and Series show of themselves."""

    def __init__(self, values, columns=(), dtypes=()):
        self.values, self.columns, self.dtypes = values, list(columns), list(dtypes)
        self.ndim = values.ndim

    def __len__(self):
        return len(self.values)

    def __getitem__(self, name):
        return self.values[:, self.columns.index(name)]

    def to_numpy(self):
        return self.values


def test_frames_are_read_as_arrays_and_their_texts_are_named():
    frame = Frame(NUMBERS.astype(float), "abc", [np.dtype(float)] * 3)
    inputs, targets = as_source((frame, Frame(LABELS))).tensors
    assert inputs.tolist() == NUMBERS.tolist() and targets.tolist() == LABELS.tolist()
    mixed = NUMBERS.astype(object)
    mixed[:, 1] = "x"
    with pytest.raises(UsageError, match="the columns b hold no numbers"):
        as_source((Frame(mixed, "abc", [np.dtype(int), np.dtype(object), np.dtype(int)]), LABELS))
    with pytest.raises(UsageError, match=r"a Frame was given; give \(inputs, targets\)"):
        as_source(frame)


def test_frames_of_pandas_and_polars():
    pandas = pytest.importorskip("pandas")
    polars = pytest.importorskip("polars")
    for library in (pandas, polars):
        frame = library.DataFrame({"a": [1.0, 2.0], "b": [1, 2], "c": ["x", "y"]})
        inputs, targets = as_source((frame[["a", "b"]], frame["b"])).tensors
        assert inputs.tolist() == [[1, 1], [2, 2]] and targets.tolist() == [1, 2]
        with pytest.raises(UsageError):
            as_source((frame, frame["b"]))


class Sized(Dataset):
    """Samples of one length, or each of its own."""

    classes = ("a", "b")

    def __init__(self, equal=True):
        self.equal = equal

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return torch.zeros(3 if self.equal else index + 1), index % 2


NESTS = {
    "inputs in a tuple": (((NUMBERS, NUMBERS), LABELS), "the inputs are a tuple of 2 arrays; give a Dataset"),
    "inputs in a mapping": (({"a": NUMBERS}, LABELS), "the inputs are a dict of 1 arrays"),
    "two pairs": (((NUMBERS, LABELS), (NUMBERS, LABELS)), "give data=(inputs, targets) and val=(inputs, targets)"),
    "a split": (random_split(Sized(), [4, 4]), "give the first as data and the second as val"),
    "a mapping": ({"x": NUMBERS, "y": LABELS[:3]}, "the columns hold 'x' "),
    "a class": (Sized, "the class Sized was given"),
    "a file's name": ("data.csv", "found one str"),
    "unequal lists": (([[1, 2], [3], [4]], [0, 1, 0]), "samples are of unequal shapes"),
    "a column that is none": ((NUMBERS, None), "found NoneType where a tensor or a NumPy array was expected"),
    "names of files": (("x.npy", "y.npy"), "found str where a tensor"),
    "lists of unequal lengths": (([1.0, 2.0, 3.0], [0, 1]), "tensors hold 3 and 2 samples"),
    "unequal tensors": (([torch.zeros(1), torch.zeros(2)], [0, 1]), "(1,) float32 and (2,) float32"),
}


@pytest.mark.parametrize(("data", "message"), NESTS.values(), ids=NESTS)
def test_what_is_no_data_set_is_refused_by_what_it_is(data, message):
    with pytest.raises(UsageError) as refusal:
        as_source(data)
    assert message in str(refusal.value) and "larger than" not in str(refusal.value)


def test_a_split_keeps_the_classes():
    part = random_split(Sized(), [6, 2])[0]
    assert as_source(part).classes == as_source(Subset(part, [0, 1])).classes == ("a", "b")


@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_unequal_length_are_named_with_the_way_out(workers):
    loader = Loader(Sized(equal=False), 4, shuffle=False, workers=workers)
    with pytest.raises(UsageError) as refusal:
        next(iter(loader))
    loader.close()
    assert "sample 0 is [(1,) float32, int] and sample 1 is [(2,) float32, int]" in str(refusal.value)
    assert "DatasetSource(dataset, collate=function)" in str(refusal.value)
    padded = DatasetSource(
        Sized(equal=False),
        collate=lambda samples: (
            nn.utils.rnn.pad_sequence([x for x, _ in samples], batch_first=True),
            torch.tensor([y for _, y in samples]),
        ),
    )
    assert Loader(padded, 4, shuffle=False).peek()[0].shape == (4, 4)


def test_samples_that_torch_cannot_join_are_named_and_a_users_own_error_is_not():
    image = pytest.importorskip("PIL.Image").new("L", (2, 2))
    with pytest.raises(UsageError, match=r"sample 0 is \[Image, int\] \(default_collate"):
        Loader([(image, 1)] * 4, 2, shuffle=False).peek()

    class Broken(Sized):
        def __getitem__(self, index):
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="^mine$"):
        Loader(Broken(), 2).peek()


# --- what fit, evaluate and predict make of them ------------------------------------------------------------------


def trained(model, data, loss=None, **settings):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"progress": False, "execution": FIXED, **settings}
    return fit(model, loss or nn.CrossEntropyLoss(), optimizer, data, **fit_arguments(epochs=1, **settings))


def test_float64_is_read_as_float32_with_a_word():
    x, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    model, heard = nn.Linear(3, 2), Heard()
    trained(model, (x, y), val=(x, y), progress=heard)
    assert heard.messages.count(FLOAT64) == 2
    assert evaluate(model, nn.CrossEntropyLoss(), (x, y)).samples == 20
    assert predict(model, x).dtype == torch.float32
    double = nn.Linear(3, 2).double()
    trained(double, (x, y), progress=Heard())
    assert predict(double, x).dtype == torch.float64


class Doubles(Dataset):
    """Twenty samples of float64, with their number as the class."""

    def __len__(self):
        return 20

    def __getitem__(self, index):
        return np.random.default_rng(index).normal(size=3), index % 2


class DoubleStream(IterableDataset):
    def __iter__(self):
        return iter(Doubles()[index] for index in range(20))


@pytest.mark.parametrize(
    "data",
    [Doubles(), [Doubles()[i] for i in range(20)], DataLoader(Doubles(), 5), DoubleStream()],
    ids=["Dataset", "list", "DataLoader", "stream"],
)
def test_float64_of_samples_is_read_as_that_of_arrays(data):
    x, y = np.stack([Doubles()[index][0] for index in range(20)]), np.arange(20) % 2
    model, heard = nn.Linear(3, 2), Heard()
    trained(model, data, val=data, progress=heard)
    assert heard.messages.count(FLOAT64) == 2
    whole = evaluate(model, nn.CrossEntropyLoss(), (x, y), batch_size=5).metrics
    assert evaluate(model, nn.CrossEntropyLoss(), data, batch_size=5).metrics == whole
    trained(model.double(), data, val=data, progress=(heard := Heard()))
    assert FLOAT64 not in heard.messages


def test_predict_takes_what_evaluate_takes_and_leaves_the_targets_out():
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x = torch.stack([torch.tensor(Doubles()[i][0]) for i in range(20)])
    expected = predict(model, x)
    listed = [Doubles()[index] for index in range(20)]
    inputs_alone = [(x[index],) for index in range(20)]
    split = DataSplits(TensorSource(x[:1], torch.zeros(1)), TensorSource(x, torch.zeros(20)), None, None)
    for data in (Doubles(), listed, inputs_alone, DataLoader(Doubles(), 7), DoubleStream(), split, x.tolist()):
        assert torch.equal(predict(model, data, batch_size=6), expected)
    assert torch.equal(predict(model, Loader((x.float(), torch.zeros(20)), 6, shuffle=False)), expected)
    with pytest.raises(UsageError, match="shuffled, drawn or in part.*give the data set itself"):
        predict(model, Loader((x.float(), torch.zeros(20)), 6))
    with pytest.raises(UsageError, match="in part"):
        predict(model, DataLoader(Doubles(), 6, drop_last=True))


def test_without_a_batch_size_a_small_data_set_is_one_batch():
    model = nn.Linear(3, 2)
    assert trained(model, (torch.zeros(20, 3) + torch.arange(20)[:, None] / 20, torch.arange(20) % 2)).steps == 1


def test_a_short_last_batch_that_cannot_be_trained_on_is_found_before_the_first_step():
    x, y = torch.randn(33, 4), torch.arange(33) % 2
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    before = [p.detach().clone() for p in model.parameters()]
    for settings in ({}, {"grad_accum_steps": 3}):
        with pytest.raises(UsageError, match="last-batch: the last batch of each epoch has 1 of 8 samples"):
            trained(model, (x, y), batch_size=8, **settings)
    assert all(map(torch.equal, before, model.parameters()))
    assert trained(model, Loader((x, y), 8, drop_last=True), val=Loader((x, y), 8, shuffle=False)).steps == 4
    model[1].eval()
    assert trained(model, (x, y), batch_size=8).steps == 5, "frozen in evaluation mode, it takes one sample"


class Answer(dict):
    """As the outputs of a library: a mapping whose items are attributes."""

    __getattr__ = dict.__getitem__


def test_a_model_that_returns_an_object_is_told_how_its_scores_are_read():
    class Wrapped(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.layer, self.kind = nn.Linear(4, 2), kind

        def forward(self, x):
            return self.kind(loss=None, prediction=self.layer(x))

    x, y = torch.randn(16, 4), torch.arange(16) % 2
    for kind, part in ((Answer, ".prediction"), (dict, "['prediction']")):
        model = Wrapped(kind)
        with pytest.raises(UsageError) as refusal:
            trained(model, (x, y), batch_size=8)
        assert f"loss=lambda outputs, targets: loss_function(outputs{part}, targets)" in str(refusal.value)
        assert "bug" not in str(refusal.value)
        loss = nn.CrossEntropyLoss()
        read = eval(f"lambda outputs, targets: loss(outputs{part}, targets)", {"loss": loss})
        assert trained(model, (x, y), batch_size=8, loss=read, val=(x, y)).steps == 2


# --- normalize ----------------------------------------------------------------------------------------------------


class Pixels(Dataset):
    """Images of one value, by dtype, one by one."""

    def __init__(self, value, dtype, channels=1):
        self.image = torch.full((channels, 2, 2), value).to(dtype)

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return self.image, 0


@pytest.mark.parametrize(
    ("value", "dtype"),
    [(255, d) for d in (torch.uint8, torch.int16, torch.int32, torch.int64)]
    + [(65535, torch.int32), (65535, torch.int64), (1.0, torch.float32), (1.0, torch.float64), (True, torch.bool)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_normalize_means_pixels_of_0_to_1_whatever_the_data_are_kept_as(value, dtype, channels):
    """docs/recipe.md: mean and std are of pixels scaled to 0..1."""
    data = Pixels(value, dtype, channels)
    memory = as_source((torch.stack([data.image] * 4), torch.zeros(4, dtype=torch.int64)))
    for source in (as_source(data), memory):
        mean = (0.5,) * channels
        preprocessing = Preprocessing(scale=pixel_scale(source), mean=mean, std=mean)
        inputs, _ = Loader(source, 2, preprocessing=preprocessing).peek()
        assert inputs.dtype == torch.float32 and torch.equal(inputs, torch.ones(2, channels, 2, 2))


def test_integers_that_are_no_pixels_are_not_normalised():
    for value, dtype in ((-1, torch.int16), (70000, torch.int32)):
        with pytest.raises(UsageError, match="which are no pixels; give floats"):
            pixel_scale(as_source(Pixels(value, dtype)))
    with pytest.raises(UsageError, match="the inputs are a list and not one tensor"):
        pixel_scale(as_source([((torch.zeros(2), torch.zeros(3)), 0)] * 4))


MINE = """
import torch
class Pixels(torch.utils.data.Dataset):
    classes = ("a", "b")
    def __len__(self): return 64
    def __getitem__(self, index): return torch.full((1, 2, 2), 255, dtype=torch.uint8), index % 2
def whole(): return Pixels()
def split(): return torch.utils.data.random_split(Pixels(), [48, 16])
"""
RECIPE = """
epochs: 1
model: {name: MLP, in_features: 4}
data: {import: "FUNCTION", batch_size: 8, normalize: {mean: 0.5, std: 0.5}}
loss: CrossEntropyLoss
optimizer: {name: SGD, lr: 0.1}
"""


def test_a_recipes_data_are_scaled_and_a_list_of_two_is_train_and_val(tmp_path, monkeypatch):
    from surefoot.build import build_data, build_model
    from surefoot.recipe import parse_recipe

    (tmp_path / "pixels_of_mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    for function, sizes in (("whole", (64, None)), ("split", (48, 16))):
        recipe = parse_recipe(RECIPE.replace("FUNCTION", f"pixels_of_mine:{function}"))
        splits = build_data(recipe)
        assert (len(splits.train), splits.val and len(splits.val)) == sizes
        assert splits.classes == ("a", "b")
        inputs, _ = Loader(splits.train, 8, preprocessing=splits.preprocessing).peek()
        assert float(inputs.max()) == 1.0
        assert build_model(recipe, splits)(inputs).shape == (8, 2)


# --- what a run knows of its data ---------------------------------------------------------------------------------


class Numbered(Pixels):
    """Images of three values, with names for their classes."""

    classes = ("dark", "grey", "light")

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.image * (index % 3), index % 3


def test_a_run_of_any_data_set_has_a_model_that_can_be_used(tmp_path):
    """Without an About: classes, preprocessing, shape, dtype and loss come from the data and the loss."""
    from surefoot import About, export, open_model

    data = Numbered(100, torch.uint8)
    preprocessing = Preprocessing(scale=pixel_scale(as_source(data)))
    loader = Loader(data, 4, preprocessing=preprocessing)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    trained(model, loader, val=Loader(data, 4, shuffle=False, preprocessing=preprocessing), run_dir=tmp_path / "run")
    opened = open_model(tmp_path / "run" / "model", model)
    info = opened.info
    assert (info.input_shape, info.input_dtype, info.classes) == ((1, 2, 2), "uint8", Numbered.classes)
    assert (info.preprocessing, info.loss) == (preprocessing, "CrossEntropyLoss")
    export(opened, tmp_path / "m.onnx")
    other = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    trained(other, loader, run_dir=tmp_path / "named", about=About(classes=["a", "b", "c"]))
    assert open_model(tmp_path / "named" / "model", other).info.classes == ("a", "b", "c")


@pytest.mark.parametrize("settings", [{}, {"grad_accum_steps": 2}])
def test_labels_of_uint8_are_the_labels_that_they_are(settings):
    """torch takes them in a cross entropy; as an index they would be a mask, and their products overflow."""
    x, y = torch.randn(60, 4), torch.arange(60) % 20
    weight = torch.linspace(0.5, 2, 20)
    results = []
    for labels in (y, y.to(torch.uint8)):
        torch.manual_seed(0)
        model, loss = nn.Linear(4, 20), nn.CrossEntropyLoss(weight=weight)
        metrics = trained(model, (x, labels), loss, val=(x, labels), batch_size=8, lint_off="all", **settings).metrics
        results.append((metrics, evaluate(model, loss, (x, labels), confusion=20).confusion.tolist()))
    assert results[0] == results[1]
    assert sum(map(sum, results[0][1])) == 60


def test_splits_are_made_of_whatever_is_data():
    from surefoot import DataSplits

    splits = DataSplits((NUMBERS, LABELS), [(torch.zeros(3), 1)] * 3, ["no", "yes"], None)
    assert (len(splits.train), len(splits.val), splits.classes) == (N, 3, ("no", "yes"))
    with pytest.raises(UsageError, match="data: preprocessing: 0.5 was given"):
        DataSplits((NUMBERS, LABELS), None, None, 0.5)


def test_labels_beyond_the_names_have_no_cell_in_the_confusion_matrix():
    model = nn.Linear(3, 5)
    x, y = torch.randn(20, 3), torch.arange(20) % 5
    matrix = evaluate(model, nn.CrossEntropyLoss(), (x, y), confusion=3).confusion
    assert matrix.shape == (3, 3) and int(matrix.sum()) <= 12
