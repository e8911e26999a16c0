"""The tutorial's own training code, its last line, and our verbs on the file that it leaves."""

from __future__ import annotations

import gzip
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_models import GarmentClassifier

from surefoot.artifacts import pickled, read_state
from surefoot.artifacts.archive import archive_in, open_file
from surefoot.cli import main


def idx(folder: Path, stem: str) -> np.ndarray:
    """An idx file by plain numpy, without our reader."""
    path = next(p for p in sorted(folder.rglob(f"{stem}*")) if p.is_file())
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    dimensions = data[3]
    shape = np.frombuffer(data, ">u4", dimensions, 4)
    return np.frombuffer(data, np.uint8, offset=4 + 4 * dimensions).reshape(shape)


@pytest.mark.real_data
def test_the_tutorials_lenet_is_evaluated_by_surefoot_eval(fashion_mnist_dir, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("SUREFOOT_DATA", str(fashion_mnist_dir))
    images = torch.from_numpy(idx(fashion_mnist_dir, "train-images").copy())[:, None]
    labels = torch.from_numpy(idx(fashion_mnist_dir, "train-labels").copy()).long()

    def transform(raw: torch.Tensor) -> torch.Tensor:
        return (raw.float() / 255 - 0.5) / 0.5  # ToTensor, Normalize((0.5,), (0.5,))

    torch.manual_seed(0)
    model = GarmentClassifier()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    for batch in torch.randperm(60_000)[: 64 * 150].split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(transform(images[batch])), labels[batch]).backward()
        optimizer.step()
    torch.save(model.state_dict(), tmp_path / "model_params.pth")

    test_images = torch.from_numpy(idx(fashion_mnist_dir, "t10k-images").copy())[:, None]
    test_labels = torch.from_numpy(idx(fashion_mnist_dir, "t10k-labels").copy()).long()
    with torch.no_grad():
        logits = torch.cat([model(transform(part)) for part in test_images.split(1000)])
    right = int((logits.argmax(1) == test_labels).sum())
    assert right > 6000

    file = str(tmp_path / "model_params.pth")
    assert main(["eval", file, "--model", "LeNet5", "--data", "fashion_mnist", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["samples"] == 10_000 and found["accuracy"] == pytest.approx(right / 10_000, abs=1.5e-4)
    loss = float(torch.nn.functional.cross_entropy(logits, test_labels))
    assert found["loss"] == pytest.approx(loss, rel=1e-4)

    # The road that `import` prints: the same numbers, and a picture's class by name.
    monkeypatch.chdir(tmp_path)
    assert main(["import", "model_params.pth", "--model", "LeNet5"]) == 0
    printed = [line for line in capsys.readouterr().out.splitlines() if "surefoot " in line]
    evaluate, predict = (shlex.split(line[line.index("surefoot ") :])[1:] for line in printed)
    assert main([*evaluate, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["accuracy"], again["loss"]) == (found["accuracy"], found["loss"])
    np.save("boot.npy", test_images[:1].numpy())
    assert main([*predict[:-1], "boot.npy", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["predictions"][0]["class"] == again["classes"][int(logits[0].argmax())]


# Whatever torch.save writes of plain data and tensors, the checker follows to the same values as torch.load.

numbers = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(allow_nan=False), st.booleans(), st.none(), st.text(max_size=8)
)
tensors = st.builds(
    lambda shape, dtype, flip: torch.zeros(shape, dtype=dtype).transpose(0, -1 if flip else 0),
    st.lists(st.integers(0, 3), min_size=1, max_size=3),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint16, torch.float8_e5m2]),
    st.booleans(),
)
trees = st.recursive(
    st.one_of(numbers, tensors),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=5), st.integers()), inner, max_size=4),
        st.tuples(inner, inner),
        st.tuples(inner, inner, inner, inner),
    ),
    max_leaves=12,
)


def same(followed: object, loaded: object) -> bool:
    if isinstance(loaded, torch.Tensor):
        assert isinstance(followed, pickled.Stored)
        return followed.shape == tuple(loaded.shape) and f"torch.{followed.dtype}" == str(loaded.dtype)
    if isinstance(loaded, dict):
        assert isinstance(followed, dict)
        return list(followed) == list(loaded) and all(same(followed[k], loaded[k]) for k in loaded)
    if isinstance(loaded, list | tuple):
        assert type(followed) is type(loaded)
        return len(followed) == len(loaded) and all(map(same, followed, loaded))
    return type(followed) is type(loaded) and followed == loaded


@settings(max_examples=60)
@given(trees)
def test_what_is_followed_is_what_torch_loads(tmp_path, tree):
    torch.save(tree, tmp_path / "w.pth")
    loaded = torch.load(tmp_path / "w.pth", weights_only=True)
    with open_file(tmp_path / "w.pth") as file:
        archive = archive_in(tmp_path / "w.pth", file)
        assert same(pickled.Machine("w.pth").run(archive.read("data.pkl", 10**7)), loaded)


@settings(max_examples=40)
@given(st.dictionaries(st.text(min_size=1, max_size=8), tensors, min_size=1, max_size=6))
def test_any_state_dict_is_read_as_torch_reads_it(tmp_path, state):
    torch.save(state, tmp_path / "w.pth")
    found, plain = read_state(tmp_path / "w.pth").tensors, torch.load(tmp_path / "w.pth", weights_only=True)
    assert list(found) == list(plain)
    assert all(found[n].dtype == t.dtype and found[n].stride() == t.stride() for n, t in plain.items())
