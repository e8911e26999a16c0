"""Arguments of one's own classes and functions that YAML has no objects for: a path, a device, a dtype, a tensor."""

from __future__ import annotations

import enum
import json
import signal
import sys
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pytest
import torch

from surefoot.annotations import accepted
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.proof import compare
from surefoot.registry import argument_problems, as_given


class Mode(enum.Enum):
    plain = 1
    scaled = 2


class Way(enum.StrEnum):
    UP = "up"


GIVEN = [
    (Path, "data", Path("data")),
    (Path | None, "data", Path("data")),
    (PurePosixPath, "data", PurePosixPath("data")),
    (PathLike[str], "data", Path("data")),
    (str | Path, "data", "data"),
    (Any, "data", "data"),
    (Literal["best"] | Path, "best", "best"),
    (Literal["best"] | Path, "last", Path("last")),
    (Path | None, None, None),
    (torch.device, "cpu", torch.device("cpu")),
    (torch.device | None, "cuda:1", torch.device("cuda:1")),
    (torch.dtype, "float16", torch.float16),
    (torch.dtype, "torch.bfloat16", torch.bfloat16),
    (Mode, "scaled", Mode.scaled),
    (Way, "UP", Way.UP),
    (Way, "up", Way.UP),
    (list[Path], ["a"], [Path("a")]),
    (Sequence[Path] | None, ["a", "b"], [Path("a"), Path("b")]),
    (tuple[Mode, int], ["scaled", 3], [Mode.scaled, 3]),
    (tuple[torch.dtype, ...], ["float16", "int8"], [torch.float16, torch.int8]),
    (dict[str, Path], {"train": "a"}, {"train": Path("a")}),
    (Mapping[str, list[Mode]], {"a": ["plain"]}, {"a": [Mode.plain]}),
    (list[str | Path], ["a"], ["a"]),
    (list[Any], ["a", {"b": 1}], ["a", {"b": 1}]),
    (dict, {"a": [1]}, {"a": [1]}),
    (list, ["a"], ["a"]),
    (torch.Tensor | None, [1, 2], torch.tensor([1.0, 2.0])),
    (list | torch.Tensor, [1, 2], [1, 2]),
]


@pytest.mark.parametrize(("annotation", "value", "expected"), GIVEN, ids=str)
def test_a_function_is_given_what_it_is_annotated_with(annotation, value, expected):
    def make(argument): ...

    make.__annotations__ = {"argument": annotation}
    given = as_given({"argument": value}, make)["argument"]
    assert type(given) is type(expected)
    assert torch.equal(given, expected) if isinstance(given, torch.Tensor) else given == expected
    assert accepted(annotation).fits(value)


def test_without_an_annotation_the_default_says_what_is_taken():
    def make(root=Path("data"), dtype=torch.float32, mode=Mode.plain, size=(2, 3)): ...

    given = {"root": "x", "dtype": "float64", "mode": "scaled", "size": [4, 5]}
    assert argument_problems("make", make, given) == []
    assert as_given(given, make) == {"root": Path("x"), "dtype": torch.float64, "mode": Mode.scaled, "size": [4, 5]}


@pytest.mark.parametrize(
    ("annotation", "value", "told"),
    [
        (Path, 3, "3 is not a path, as text"),
        (Path, "", "the text '' is not a path, as text"),
        (torch.device, "warp", "the text 'warp' is not a torch.device, as text"),
        (torch.dtype, "nn", "the text 'nn' is not a torch.dtype, as text"),
        (Mode | None, "sclaed", "the text 'sclaed' is not one of plain, scaled or null"),
        (dict[str, int], {"a": "b"}, "a mapping is not a mapping with a whole number under each key"),
    ],
)
def test_what_stands_for_none_is_refused(annotation, value, told):
    def make(argument): ...

    make.__annotations__ = {"argument": annotation}
    assert [str(problem) for problem in argument_problems("make", make, {"argument": value})] == [f"argument: {told}"]


MINE = """
import os
import signal
from pathlib import Path

import torch
from torch import Tensor, nn

class Net(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64, start: Path = Path("nowhere"), scale: Tensor | None = None):
        super().__init__()
        self.body = nn.Linear(4, 3, dtype=dtype)
        self.register_buffer("scale", scale)
        nn.init.constant_(self.body.bias, float(start.read_text()))
    def forward(self, x):
        return self.body(x.to(self.body.weight.dtype)) * self.scale

def data(root: Path, device=torch.device("cpu")):
    x = torch.load(root / "x.pt", map_location=device)
    y = (x.sum(1) > 0).long()
    return (x[16:], y[16:]), (x[:16], y[:16])

def loss(outputs, targets, weight: Tensor):
    if left := int(os.environ.get("MINE_STOPS_AFTER", 0)):
        os.environ["MINE_STOPS_AFTER"] = str(left - 1)
        if left == 1:
            signal.raise_signal(signal.SIGTERM)
    return nn.functional.cross_entropy(outputs, targets, weight)
"""

RECIPE = """
epochs: 2
model: {import: "mine:Net", dtype: float32, start: start.txt, scale: [1, 2, 3]}
data: {import: "mine:data", root: in, device: cpu, batch_size: 8}
loss: {import: "mine:loss", weight: [1, 2, 1]}
optimizer: {name: SGD, lr: 0.1}
execution: {threads: 1, compile: none}
"""


def test_a_recipe_with_them_trains_goes_on_and_is_opened(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("mine.py").write_text(MINE)
    Path("recipe.yaml").write_text(RECIPE)
    Path("start.txt").write_text("0.25")
    Path("in").mkdir()
    torch.save(torch.randn(64, 4, generator=torch.Generator().manual_seed(1)), "in/x.pt")
    try:
        assert main(["check", "recipe.yaml"]) == 0
        assert main(["train", "recipe.yaml", "--run", "whole"]) == 0
        monkeypatch.setenv("MINE_STOPS_AFTER", "9")
        assert main(["train", "recipe.yaml", "--run", "stopped"]) == 128 + signal.SIGTERM
        assert main(["resume", "stopped"]) == 0
        assert compare(Path("whole"), Path("stopped"))[0] is None
        capsys.readouterr()
        assert main(["eval", "whole/model", "--trust-code", "--data", "whole/recipe.yaml", "--json"]) == 0
        trained = json.loads(Path("whole/metrics.jsonl").read_text().splitlines()[-1])["loss"]
        assert json.loads(capsys.readouterr().out)["loss"] == pytest.approx(trained, rel=1e-5)
        assert main(["check", "recipe.yaml", "model.dtype=float23"]) == 2
        assert "model.dtype: the text 'float23' is not a torch.dtype, as text" in capsys.readouterr().err
    finally:
        sys.modules.pop("mine", None)


def test_a_list_that_makes_no_tensor_is_named_by_its_argument():
    def make(weight: torch.Tensor): ...

    with pytest.raises(UsageError, match=r"^weight: the list \[\[1\], \[2, 3\]\] is no tensor; give numbers, in lists"):
        as_given({"weight": [[1], [2, 3]]}, make)
