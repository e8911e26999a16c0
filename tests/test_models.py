"""The models of the registry: what they take and give, and that each is rebuilt from its record."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from surefoot.artifacts import read_info
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.models import GPT, MLP, MODELS, LeNet5, SmallResNet, TabularMLP, UNet, ViT, spec_of


class GarmentClassifier(nn.Module):
    """The tutorial's class, letter by letter: the oracle for LeNet5."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 4 * 4, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x):
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 4 * 4)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        x = self.fc3(x)
        return x


def test_lenet5_is_the_tutorials_model_bit_for_bit():
    torch.manual_seed(7)
    oracle = GarmentClassifier()
    torch.manual_seed(7)
    model = LeNet5()
    assert list(model.state_dict()) == list(oracle.state_dict())
    batch = torch.randn(5, 1, 28, 28)
    assert torch.equal(model(batch), oracle(batch))


@pytest.mark.parametrize(
    "name, args, shape",
    [
        ("LeNet5", {}, (1, 28, 28)),
        ("LeNet5", {"classes": 3, "channels": 2}, (2, 28, 28)),
        ("MLP", {}, (1, 28, 28)),
        ("MLP", {"in_features": 12, "hidden": [], "classes": 3}, (12,)),
        ("MLP", {"in_features": 12, "hidden": [8, 6], "dropout": 0.5}, (3, 4)),
        ("SmallResNet", {"width": 4}, (1, 28, 28)),
        ("SmallResNet", {"width": 4, "blocks": 2, "channels": 3, "classes": 7}, (3, 32, 32)),
        ("ViT", {"width": 8, "depth": 1, "heads": 2}, (1, 28, 28)),
        ("ViT", {"width": 8, "channels": 3, "size": [16, 24], "patch": 8, "dropout": 0.5, "classes": 7}, (3, 16, 24)),
    ],
)
def test_a_model_is_rebuilt_from_its_own_record(name, args, shape):
    model = MODELS.build(name, args)
    spec = spec_of(model)
    assert spec["name"] == name
    assert spec["args"].items() >= args.items()
    again = MODELS.build(spec["name"], spec["args"])
    again.load_state_dict(model.state_dict())
    batch = torch.randn(3, *shape)
    model.eval(), again.eval()
    assert torch.equal(model(batch), again(batch))
    assert model(batch).shape == (3, args.get("classes", 10))


def test_changing_a_record_does_not_change_the_model():
    model = MLP(hidden=[8])
    spec_of(model)["args"]["hidden"].append(9)
    assert model.arguments["hidden"] == [8]


def test_a_subclass_is_not_taken_for_its_parent():
    class Mine(LeNet5):
        pass

    Mine.__qualname__ = "LeNet5"
    assert spec_of(Mine()) is None
    assert spec_of(nn.Linear(1, 1)) is None


@pytest.mark.parametrize("name", MODELS.names())
def test_the_parameters_that_the_list_shows_are_the_ones_there(name):
    count = sum(p.numel() for p in MODELS.build(name).parameters())
    assert MODELS[name].facts["parameters"] == f"{count:,}"


@pytest.mark.parametrize(
    "name, args, said",
    [
        ("LeNet5", {"clases": 10}, "did you mean 'classes'"),
        ("LeNet5", {"classes": 0}, "below 1"),
        ("MLP", {"hidden": [0]}, "at least one"),
        ("MLP", {"dropout": 1.0}, "not below 1"),
        ("SmallResNet", {"width": "wide"}, "whole number"),
        ("ViT", {"size": 30}, "size 30 x 30 is not a multiple of patch 4; give another patch"),
        ("ViT", {"width": 10}, "not a multiple of heads 4"),
        ("ViT", {"size": [0, 4]}, r"size \[0, 4\] is neither one number nor a height and a width of 1 or more"),
        ("ViT", {"size": [-28, 28]}, "neither one number nor a height"),
        ("ViT", {"size": [28]}, "neither one number nor a height"),
        ("UNet", {"depth": 9}, "above 8"),
        ("LeNet", {}, "did you mean 'LeNet5'"),
    ],
)
def test_wrong_arguments_are_told(name, args, said):
    with pytest.raises(UsageError, match=said):
        MODELS.build(name, args)


@pytest.mark.parametrize(
    "model, shape",
    [
        (SmallResNet(width=4, blocks=2), (4, 1, 28, 28)),
        (ViT(width=8, depth=2, heads=2, patch=7), (4, 1, 28, 28)),
        (UNet(width=4, depth=2), (4, 3, 9, 14)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_parameter_gets_a_gradient(model, shape):
    model(torch.randn(shape)).logsumexp(1).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_the_vit_sees_where_a_patch_lies_and_mixes_all_of_them():
    model = ViT(width=8, depth=1, heads=2, patch=14).double()
    picture = torch.randn(1, 1, 28, 28, dtype=torch.float64)
    mirrored = torch.cat([picture[..., 14:], picture[..., :14]], -1)
    assert (model(picture) - model(mirrored)).abs().max() > 1e-9
    picture.requires_grad_()
    model(picture)[0, 0].backward()
    assert all(part.abs().max() > 0 for part in picture.grad.split(14, -1))


@pytest.mark.parametrize("height, width", [(8, 8), (9, 14), (33, 8)])
def test_the_unet_gives_a_class_for_each_pixel_of_any_size(height, width):
    model = UNet(classes=5, channels=1, width=4)
    pictures, targets = torch.randn(2, 1, height, width), torch.randint(0, 5, (2, height, width))
    outputs = model(pictures)
    assert outputs.shape == (2, 5, height, width) and F.cross_entropy(outputs, targets).isfinite()
    with pytest.raises(ValueError, match="pictures of 7 x 8 are smaller than the 8 of this depth"):
        model(torch.zeros(2, 1, 7, 8))
    assert MODELS.build("UNet", spec_of(model)["args"]).state_dict().keys() == model.state_dict().keys()


def test_a_vit_and_a_unet_learn_through_recipes_that_leave_their_sizes_to_the_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("masks_of.py").write_text(
        "from surefoot.data import DATA, DataSplits, TensorSource\n\n\n"
        "def masks():\n    s = DATA.build('garments', {'train_size': 96, 'val_size': 32})\n"
        "    def masked(source):\n        x = source.tensors[0]\n"
        "        return TensorSource(x, (x[:, 0] > 60).long(), classes=('ground', 'garment'))\n"
        "    return DataSplits(masked(s.train), masked(s.val), ('ground', 'garment'), s.preprocessing)\n"
    )
    rest = "loss: CrossEntropyLoss\noptimizer: {name: AdamW, lr: 0.004}\nexecution: plain\nepochs: 3\n"
    recipes = {
        "vit": "model: {name: ViT, patch: 7, width: 32, depth: 1}\n"
        "data: {name: garments, train_size: 800, val_size: 100, batch_size: 16}\n",
        "unet": "model: {name: UNet, width: 4, depth: 2}\ndata: {import: 'masks_of:masks', batch_size: 16}\n",
    }
    for name, text in recipes.items():
        Path(f"{name}.yaml").write_text(text + rest)
        assert main(["train", f"{name}.yaml", "--run", name]) == 0
    vit, unet = read_info("vit/model"), read_info("unet/model")
    assert vit.model["args"]["size"] == [28, 28] and vit.metrics["val/accuracy"] > 0.25
    assert unet.model["args"].items() >= {"classes": 2, "channels": 1}.items() and unet.metrics["val/accuracy"] > 0.8
    capsys.readouterr()
    assert main(["eval", "unet", "--json"]) == 0
    assert main(["export", "unet", "--to", "m.onnx"]) == 0 and main(["export", "vit", "--to", "m.pt2"]) == 0
    sys.modules.pop("masks_of")


def test_listing_the_names_does_not_import_torch():
    code = "import sys; from surefoot.models import MODELS; MODELS.names(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_gpt_is_rebuilt_from_its_own_record_and_begins_at_chance():
    args = {"classes": 50, "length": 12, "width": 16, "depth": 2, "heads": 2, "dropout": 0.1}
    model = GPT(**args)
    assert spec_of(model) == {"name": "GPT", "args": args}
    again = MODELS.build("GPT", args)
    again.load_state_dict(model.state_dict())
    tokens = torch.randint(0, 50, (3, 12))
    model.eval(), again.eval()
    logits = model(tokens)
    assert torch.equal(logits, again(tokens)) and logits.shape == (3, 50, 12)
    assert abs(F.cross_entropy(logits, tokens.roll(1)).item() - torch.tensor(50.0).log().item()) < 0.1
    with pytest.raises(ValueError, match="window of 13 tokens is longer than the model's length of 12"):
        model(torch.zeros(1, 13, dtype=torch.long))
    with pytest.raises(UsageError, match="GPT: width 10 is not a multiple of heads 4"):
        MODELS.build("GPT", {"width": 10})


def test_the_gpt_looks_at_the_tokens_before_only():
    model = GPT(classes=20, length=8, width=16, depth=2, heads=2).double()
    tokens = torch.randint(0, 20, (1, 8))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 20
    one, other = model(tokens), model(changed)
    assert torch.allclose(one[..., :5], other[..., :5], atol=1e-12)
    assert (one[..., 5:] - other[..., 5:]).abs().amax(1).min() > 1e-6
    assert torch.allclose(model(tokens[:, :3]), one[..., :3], atol=1e-12)  # a shorter window is one as well


def test_what_an_installed_library_refuses_is_told_with_its_place(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("r.yaml").write_text(
        "model: {import: 'torch.nn:Conv2d', in_channels: 4, out_channels: 3, kernel_size: 1, groups: 3}\n"
        "data: {name: garments, train_size: 32, val_size: 16}\nloss: CrossEntropyLoss\noptimizer: AdamW\nepochs: 1\n"
    )
    assert main(["check", "r.yaml"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("surefoot: r.yaml:1:8: model: torch.nn:Conv2d: ValueError: in_channels must be divisible")
    assert len(error.splitlines()) == 1


def test_sizes_that_numpy_computed_are_recorded_as_numbers():
    """A product of a shape is NumPy's; JSON does not take it, and a model could be trained and not saved."""
    model = MLP(in_features=numpy.prod((4, 2)), hidden=numpy.array([8]), classes=3)
    assert json.dumps(spec_of(model)["args"]) == '{"in_features": 8, "hidden": [8], "classes": 3, "dropout": 0.0}'
    model = TabularMLP(numbers=2, outputs=2, target_mean=numpy.array([0.0, 2.0]), target_std=[1, 2])
    assert model.arguments["target_mean"] == [0.0, 2.0] and model.mean.tolist() == [0.0, 2.0]


@pytest.mark.parametrize(
    "section", ["model", "data", "loss", "objective", "optimizer", "scheduler", "warmup", "metrics", "weights"]
)
def test_arguments_for_what_cannot_be_called_are_refused(section, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "held", raising=False)
    Path("held.py").write_text("class Held:\n    pass\n\n\nobject_of_mine = Held()\n")
    parts = {
        "model": "LeNet5",
        "data": "{name: garments, train_size: 32, val_size: 16, batch_size: 16}",
        "loss": "CrossEntropyLoss",
        "optimizer": "AdamW",
        "epochs": "1",
    }
    if section == "objective":
        del parts["loss"]
    given = "{import: 'held:object_of_mine', size: 3}"
    if section == "weights":
        section, given = "model", "{import: 'held:object_of_mine', weights: best}"
    parts[section] = f"[{given}]" if section == "metrics" else given
    Path("r.yaml").write_text("".join(f"{name}: {part}\n" for name, part in parts.items()))
    assert main(["check", "r.yaml"]) == 2
    error = capsys.readouterr().err
    assert "held:object_of_mine: is an object of Held, which cannot be called; name a class or a function" in error
    assert error.startswith("surefoot: r.yaml:") and len(error.splitlines()) == 1
