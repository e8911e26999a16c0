"""A model given compiled, scripted or in DataParallel / DDP goes by its plain names, in patterns and on disk."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import surefoot
from surefoot import RunOptions, StepOptions, safe_tensors
from surefoot.artifacts import export, read_info
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.models import MLP, LeNet5, SmallResNet
from surefoot.optimizers import param_groups

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*legacy TorchScript", "ignore:.*Profiler record")

X = torch.rand(32, 1, 28, 28, generator=torch.Generator().manual_seed(0))
Y = torch.arange(32) % 10
NAMES = list(LeNet5().state_dict())


@pytest.fixture
def process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")


def ddp(model: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(model)


KINDS = {
    "compiled": compiled,
    "scripted": torch.jit.script,
    "data parallel": nn.DataParallel,
    "DDP": ddp,
    "compiled DDP": lambda model: compiled(ddp(model)),
}


def trained(model: nn.Module, epochs: int, **more):
    torch.manual_seed(0)
    groups = param_groups(model, groups=[{"match": "fc*", "lr": 0.1}], no_decay="norm_and_bias")
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9)
    run = RunOptions(progress=False, execution="plain", unfreeze=[(1, "conv1.*")])
    step = StepOptions(ema_decay=0.9)
    data = {"val": (X, Y), "batch_size": 16, "run_dir": "run", "run": run, "step": step}
    return surefoot.fit(model, nn.CrossEntropyLoss(), optimizer, (X, Y), epochs=epochs, **data, **more)


def made() -> nn.Module:
    torch.manual_seed(1)
    model = LeNet5()
    model.conv1.requires_grad_(False)
    return model


def names_in(path: Path) -> list[str]:
    return sorted(entry.name for entry in safe_tensors.read_header(path).entries)


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrapped_model_is_saved_resumed_and_exported_under_its_plain_names(
    kind, tmp_path, monkeypatch, process_group
):
    monkeypatch.chdir(tmp_path)
    wrap = KINDS[kind]
    trained(model := wrap(made()), 1)
    newest = max(Path("run/checkpoints").glob("step-*"))
    assert names_in(newest / "model.safetensors") == sorted(NAMES)
    state = (newest / "state.json").read_text()  # an AveragedModel calls what it averages `module`, wrapped or not
    assert "_orig_mod" not in state and "module.module" not in state
    assert names_in(Path("run/model/model.safetensors")) == sorted(NAMES)
    assert read_info("run/model").model == {"name": "LeNet5", "args": {"classes": 10, "channels": 1}}
    # Resumed as it was given; where the computation is the same one, as the plain model too.
    resumed = made() if kind != "scripted" else wrap(made())
    trained(resumed, 2, resume=True)
    plain = surefoot.load_model("run/model")
    whole = made()
    monkeypatch.chdir(tmp_path / "run")
    trained(whole if kind != "scripted" else wrap(whole), 2)
    again = surefoot.load_model("run/model")
    assert all(torch.equal(a, b) for a, b in zip(plain.state_dict().values(), again.state_dict().values(), strict=True))
    info = read_info("run/model")
    for ending in ("pth", "safetensors", "onnx"):
        export(model, f"m.{ending}", info=info)
    assert list(torch.load("m.pth", weights_only=True)) == NAMES
    program = onnx.load("m.onnx")
    held = {initializer.name for initializer in program.graph.initializer}
    assert any("conv1.weight" in name for name in held)
    assert not any("_orig_mod" in name or "module." in name for name in held), held


def test_what_was_scripted_is_known_by_its_class_where_its_arguments_are(tmp_path):
    surefoot.save_model(torch.jit.script(SmallResNet(width=4)), tmp_path / "a")
    assert type(surefoot.load_model(tmp_path / "a")) is SmallResNet
    scripted = torch.jit.script(MLP(in_features=4, hidden=[]))
    surefoot.save_model(scripted, tmp_path / "b")
    assert read_info(tmp_path / "b").model == {"class": "surefoot.models.mlp:MLP", "args": None}
    assert surefoot.load_model(tmp_path / "b", MLP(in_features=4, hidden=[])).layers[0].in_features == 4
    assert surefoot.open_model(tmp_path / "b", scripted)(torch.zeros(2, 4)).shape == (2, 10)
    with pytest.raises(UsageError, match="the arguments of surefoot.models.mlp:MLP were not saved"):
        export(scripted, tmp_path / "m.onnx", info=read_info(tmp_path / "b"))


RECIPE = """\
epochs: 2
model: {import: "wrapping_nets:net"}
data: {name: garments, train_size: 32, val_size: 16, batch_size: 16}
loss: CrossEntropyLoss
freeze: [conv1.*]
unfreeze: [{epoch: 1, match: conv1.*}]
optimizer:
  {name: SGD, lr: 0.1, weight_decay: 0.1, no_decay: norm_and_bias, groups: [{match: fc1.*, lr: 0.2}], layer_decay: 0.9}
execution: plain
tensorboard: false
"""


def test_the_patterns_of_a_recipe_are_over_plain_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("wrapping_nets.py").write_text(
        "import torch\nfrom surefoot.models import LeNet5\n\n\n"
        "def net():\n    return torch.nn.DataParallel(torch.compile(LeNet5(), backend='eager'))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("r.yaml").write_text(RECIPE)
    assert main(["train", "r.yaml", "--run", "run"]) == 0
    Path("plain.yaml").write_text(RECIPE.replace('import: "wrapping_nets:net"', "name: LeNet5"))
    assert main(["train", "plain.yaml", "--run", "plain"]) == 0
    one, two = (surefoot.load_model(run).state_dict() for run in ("run", "plain"))
    assert list(one) == NAMES and all(torch.equal(one[name], two[name]) for name in NAMES)
    sys.modules.pop("wrapping_nets")
