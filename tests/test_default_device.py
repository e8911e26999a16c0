"""`torch.set_default_device` is for the user's tensors: Surefoot's own lie where they belong, and bits do not change.

The default device here is meta, whose tensors hold no numbers: whatever lies there by mistake is found at once.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

import surefoot
from surefoot import Checkpoints, RunOptions, StepOptions, evaluate, fit, predict
from surefoot.artifacts import export
from surefoot.data import Loader
from surefoot.planning import lr_find

SOURCE = Path(surefoot.__file__).parent
MAKERS = {
    *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
    *("rand", "randint", "randn", "randperm", "scalar_tensor", "tensor", "zeros"),
}
# Models are made where the user makes models; these weights lie where their targets do.
OTHERS = ("models/", "losses/balance.py")


@pytest.fixture
def elsewhere():
    """Within a test the default device is meta."""
    torch.set_default_device("meta")
    yield
    torch.set_default_device(None)


def made():
    generator = torch.Generator().manual_seed(0)
    with torch.device("cpu"):
        inputs, targets = torch.randn(48, 8, generator=generator), torch.arange(48) % 3
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.2), nn.Linear(16, 3))
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), (inputs, targets)


def trained(run_dir, epochs, resume=False):
    model, optimizer, data = made()
    source = torch.utils.data.TensorDataset(*data)
    loader = Loader(source, 8, weights="balanced", seed=3)
    with torch.device("cpu"):  # as on any device, the schedule is the user's
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    checkpoints = Checkpoints("5 steps", keep_best="val/accuracy")
    run = RunOptions(progress=False, checkpoints=checkpoints)
    step = StepOptions(ema_decay=0.9, max_grad_norm=1.0, grad_accum_steps=2)
    arguments = {"val": data, "schedule": schedule, "run_dir": run_dir, "resume": resume, "run": run, "step": step}
    fit(model, nn.CrossEntropyLoss(), optimizer, loader, epochs=epochs, **arguments)
    return model.state_dict()


def test_a_run_has_the_same_bits_and_is_gone_on_with(tmp_path, elsewhere):
    trained(tmp_path / "elsewhere", 1)
    there = trained(tmp_path / "elsewhere", 3, resume=True)
    torch.set_default_device(None)
    here = trained(tmp_path / "here", 3)
    assert all(torch.equal(there[name], tensor) for name, tensor in here.items())
    files = [tmp_path / run / "model" / "model.safetensors" for run in ("elsewhere", "here")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_done_with_a_model(tmp_path, elsewhere):
    model, optimizer, data = made()
    assert evaluate(model, nn.CrossEntropyLoss(), data).samples == 48
    assert predict(model, data[0]).shape == (48, 3)
    assert len(lr_find(model, nn.CrossEntropyLoss(), optimizer, [data], steps=12).rates) >= 10
    for ending in ("pth", "safetensors", "pt2", "onnx"):
        assert export(model.eval(), tmp_path / f"m.{ending}", batch=data[0]).bytes > 0


@pytest.mark.parametrize("path", sorted(SOURCE.rglob("*.py")), ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_each_tensor_that_is_made_has_its_device_named(path):
    if path.relative_to(SOURCE).as_posix().startswith(OTHERS):
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call)]
    for call in calls:
        maker = call.func
        if isinstance(maker, ast.Attribute) and isinstance(maker.value, ast.Name) and maker.value.id == "torch":
            named = any(keyword.arg in ("device", None) for keyword in call.keywords)
            assert named or maker.attr not in MAKERS, f"{path}:{call.lineno}: torch.{maker.attr} without a device"
