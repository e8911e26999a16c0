"""Arrays by name as data: .npz and .safetensors, which of them is what, and what is refused."""

from __future__ import annotations

import numpy
import pytest
import torch
from command_runs import resumed_alike

from surefoot import safe_tensors
from surefoot.artifacts import read_info
from surefoot.build import build_data
from surefoot.cli import main
from surefoot.data.array_files import npz, safetensors
from surefoot.errors import UsageError
from surefoot.files import write_new
from surefoot.recipe import load_recipe

PARTS = (("test", 2), ("val", 3), ("train", 6))
X, Y = numpy.arange(60.0).reshape(20, 3), numpy.arange(20) % 3


def saved(tmp_path, name="data.npz", **arrays) -> str:
    path = tmp_path / name
    if name.endswith(".npz"):
        numpy.savez(path, **arrays)
    else:
        write_new(path, safe_tensors.chunks({n: torch.as_tensor(a).contiguous() for n, a in arrays.items()}))
    return str(path)


@pytest.mark.parametrize("read, name", [(npz, "data.npz"), (safetensors, "data.safetensors")])
def test_arrays_are_inputs_and_targets_by_name(tmp_path, read, name):
    path = saved(tmp_path, name, x=X, y=Y)
    splits = read(path, val_share=0.2)
    inputs, targets = splits.train.tensors
    assert (inputs.dtype, inputs.shape, targets.dtype, targets.shape) == (torch.float32, (16, 3), torch.int64, (16,))
    assert splits.classes == ("0", "1", "2") and splits.sizes == {"in_features": 3, "classes": 3, "outputs": 3}
    assert torch.equal(inputs[:, 0].long() // 3 % 3, targets) and len(splits.val) == 4 and splits.preprocessing is None
    assert read(path, val_share=0.2).val.fingerprint() == splits.val.fingerprint()
    assert read(path, val_share=0.2, seed=1).val.fingerprint() != splits.val.fingerprint()
    second = read(path, val=saved(tmp_path, "second" + name[4:], x=X[:2], y=Y[:2]))
    assert (len(second.train), len(second.val)) == (20, 2)
    path = saved(tmp_path, "third" + name[4:], age=X, weight=X, mass=Y / 2)
    splits = read(path, inputs="weight", targets="mass", val_share=0)
    assert splits.classes is None and splits.val is None and splits.train.targets().shape == (20, 1)


def test_names_of_splits_are_found_and_pictures_get_their_channels_first(tmp_path):
    pictures = numpy.zeros((6, 5, 4), dtype=numpy.uint8)
    labels = numpy.arange(6, dtype=numpy.uint8) % 2
    splits = npz(saved(tmp_path, x_train=pictures, y_train=labels, x_test=pictures[:2], y_test=labels[:2]))
    assert (splits.train.tensors[0].shape, splits.val.tensors[0].shape) == ((6, 1, 5, 4), (2, 1, 5, 4))
    assert splits.train.targets().dtype == torch.int64 and splits.preprocessing.scale == 1 / 255
    three = {f"{kind}_{part}": array[:n] for part, n in PARTS for kind, array in (("x", pictures), ("y", labels))}
    splits = npz(saved(tmp_path, **three))
    assert (len(splits.train), len(splits.val)) == (6, 3)
    colours = numpy.zeros((6, 5, 4, 3), dtype=numpy.uint8)
    splits = npz(saved(tmp_path, images=colours, labels=labels, val_images=colours[:1], val_labels=labels[:1]))
    assert splits.train.tensors[0].shape == (6, 3, 5, 4) and splits.sizes["channels"] == 3 and len(splits.val) == 1
    masks = numpy.zeros((6, 5, 4), dtype=numpy.int32)
    splits = npz(saved(tmp_path, images=colours, y=masks), val_share=0)
    assert splits.train.targets().shape == (6, 5, 4) and splits.classes == ("0",)


def test_a_single_array_is_inputs_alone(tmp_path):
    splits = npz(saved(tmp_path, anything=X))
    assert len(splits.train.tensors) == 1 and splits.classes is None and splits.sizes == {"in_features": 3}


@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        ({"a": X, "b": Y}, {}, r"holds a \(20, 3\) float64, b \(20,\) int64; say which is which: inputs: NAME"),
        ({"x": X, "y": Y, "z": X}, {}, "say which is which"),
        ({}, {}, "holds no arrays"),
        ({"x": X, "y": Y}, {"inputs": "xs"}, "inputs: .* has no array 'xs'; did you mean 'x'"),
        ({"features": X, "y": Y}, {"inputs": "featuers"}, "did you mean 'features'"),
        ({"x": X, "y": Y[:3]}, {}, "tensors hold 20 and 3 samples"),
        ({"x": X, "y": Y, "x_val": X}, {}, "has x_val to validate on, where x and y train; give as many"),
        ({"x": X * [1, numpy.nan, 1], "y": Y}, {}, "'x' is not finite in 20 of 20 samples, first in 0; mend it"),
        ({"x": X * [1, 1e39, 1], "y": Y}, {}, "'x' is not finite in 20 of 20 samples, first in 0; scale them"),
        ({"x": X, "y": X * 1e38}, {}, "'y' is not finite in 19 of 20 samples, first in 1; scale them: .* float32"),
        ({"x": X, "y": numpy.array(["a"] * 20)}, {}, "an array of str32 is no array of numbers; encode it"),
        ({"x": X, "y": numpy.array([{}] * 20)}, {}, "it holds Python objects, which are never read"),
        ({"x": X[:0], "y": Y[:0]}, {}, "the data set is empty"),
        ({"x": numpy.float64(3), "y": Y}, {}, "a tensor of one number has no samples"),
        ({"x": X, "y": Y}, {"val": "{tmp}/other.npz"}, "val: has no array 'x'; the arrays are q"),
        ({"x": X, "y": Y}, {"val": "{tmp}/more.npz"}, "1 of 1 labels lie outside the 3 classes"),
    ],
)  # fmt: skip
def test_arrays_that_cannot_be_are_told(tmp_path, arrays, arguments, message):
    saved(tmp_path, "other.npz", q=X)
    saved(tmp_path, "more.npz", x=X[:1], y=numpy.array([5]))
    path = saved(tmp_path, **arrays)
    with pytest.raises(UsageError, match=message):
        npz(path, **{k: v.format(tmp=tmp_path) for k, v in arguments.items()})


def test_files_that_are_none_are_told(tmp_path):
    numpy.save(tmp_path / "one.npy", X)
    (tmp_path / "text.npz").write_text("no archive")
    saved(tmp_path, x=X, y=Y)
    (tmp_path / "cut.npz").write_bytes((tmp_path / "data.npz").read_bytes()[:300])
    for name, message in [
        ("one.npy", "is one array; write several with numpy.savez"),
        ("text.npz", "cannot be read as an .npz file"),
        ("cut.npz", "cannot be read as an .npz file"),
        ("dat.npz", "does not exist; did you mean 'data.npz'"),
        ("", "is a directory"),
    ]:
        with pytest.raises(UsageError, match=message):
            npz(str(tmp_path / name))
    with pytest.raises(UsageError, match="text.npz"):
        safetensors(str(tmp_path / "text.npz"))


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_a_recipe_trains_on_arrays_and_resumes_exactly(tmp_path, kind):
    path = saved(tmp_path, f"data.{kind}", x=X, y=X.sum(1))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: MLP, hidden: [4]}}\ndata: {{name: {kind}, path: {path}, batch_size: 6}}\nloss: MSELoss\n"
        "optimizer: {name: Adam, lr: 0.01}\nepochs: 2\nexecution: plain\n"
    )
    resumed_alike(recipe, tmp_path)
    assert read_info(tmp_path / "run" / "model").model["args"] | {"hidden": 0} == {
        "in_features": 3, "classes": 1, "hidden": 0, "dropout": 0.0
    }  # fmt: skip


@pytest.mark.parametrize("read, name", [(npz, "data.npz"), (safetensors, "data.safetensors")])
def test_arrays_that_validate_are_matched_by_name_whatever_their_order(tmp_path, read, name):
    rows = {"clean_val": X + 100, "noisy_val": X, "clean": X + 100, "noisy": X}
    splits = read(saved(tmp_path, name, **rows), inputs="noisy", targets="clean")
    for source in (splits.train, splits.val):
        assert torch.equal(source.tensors[0] + 100, source.tensors[1])
    splits = read(saved(tmp_path, "other" + name[4:], x=X, y=Y, test_label=Y[:2], test_image=X[:2]))
    assert (splits.train.tensors[0].shape, splits.val.tensors[0].shape) == ((20, 3), (2, 3))
    rows = {"clean": X, "noisy": X, "a_val": X, "b_val": X}
    with pytest.raises(UsageError, match="which of a_val and b_val goes with which of noisy and clean"):
        read(saved(tmp_path, "third" + name[4:], **rows), inputs="noisy", targets="clean")


def test_arrays_beside_those_named_may_hold_anything(tmp_path):
    others = {"names": numpy.array(["cat", "dog"]), "seed": 5, "meta": numpy.array({"a": 1}, dtype=object)}
    path = saved(tmp_path, x=X, y=Y, **others)
    assert len(npz(path, inputs="x", targets="y").train) == 18
    with pytest.raises(UsageError, match=r"holds x .* names \(no array of numbers\), .*; say which is which"):
        npz(path)
    with pytest.raises(UsageError, match="data.npz: 'names': an array of str.* is no array of numbers"):
        npz(path, inputs="names", targets="y")


@pytest.mark.parametrize("read, name", [(npz, "data.npz"), (safetensors, "data.safetensors")])
def test_a_column_of_whole_numbers_is_classes_and_one_of_floats_is_not(tmp_path, read, name):
    labels = Y.astype(numpy.uint8)[:, None]
    splits = read(saved(tmp_path, name, x_train=X, y_train=labels, x_val=X[:4], y_val=labels[:4]))
    assert splits.classes == ("0", "1", "2") and splits.sizes["classes"] == 3
    assert splits.train.targets().tolist() == Y.tolist() and splits.val.targets().tolist() == Y[:4].tolist()
    splits = read(saved(tmp_path, "floats" + name[4:], x=X, y=labels / 1.0), val_share=0)
    assert splits.classes is None and splits.train.targets().shape == (20, 1)


@pytest.mark.parametrize(
    ("loss", "targets", "shape"),
    [
        ("BCEWithLogitsLoss", X % 2 == 0, (20, 3)),
        ("{name: BCEWithLogitsLoss, pos_weight: balanced}", (X % 2).astype(int), (20, 3)),
        ("[{name: MSELoss, factor: 0.5}, HuberLoss]", Y[:, None], (20, 1)),
        ("BCEWithLogitsLoss", (Y[:, None] > 0).astype(numpy.uint8), (20, 1)),
        ("PoissonNLLLoss", Y, (20, 1)),
        ("CrossEntropyLoss", Y[:, None].astype(numpy.uint8), (20,)),
    ],
)
def test_whole_numbers_are_what_the_loss_of_a_recipe_compares(tmp_path, loss, targets, shape):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{name: MLP, hidden: [4]}}\ndata: {{name: npz, path: {saved(tmp_path, x=X, y=targets)}, val_share: 0, "
        f"batch_size: 6}}\nloss: {loss}\noptimizer: {{name: Adam, lr: 0.01}}\nepochs: 1\nexecution: plain\n"
        "tensorboard: false\n"
    )
    read = build_data(load_recipe(recipe)).train.targets()
    assert read.shape == shape and read.is_floating_point() == (loss != "CrossEntropyLoss")
    assert numpy.array_equal(read.numpy().reshape(targets.shape), targets)
    assert main(["train", str(recipe), "--run", str(tmp_path / "run")]) == 0
    assert main(["eval", str(tmp_path / "run"), "--split", "train"]) == 0
