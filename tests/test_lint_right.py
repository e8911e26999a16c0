"""The lint is silent where nothing is wrong: the eight losses' right uses and random right set-ups."""

from __future__ import annotations

import pytest
import torch
from loss_table import CASES
from right_practices import PRACTICES
from right_setups import right_setup
from torch import nn

from surefoot import recipe
from surefoot.build import build
from surefoot.losses import lint
from surefoot.models import MODELS, LeNet5


def told(setup) -> list[str]:
    found = lint(setup.model, setup.loss, setup.optimizer, setup.batch, classes=setup.classes)
    return [f"{setup.about}: {finding}" for finding in found]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_no_false_alarm_over_the_table_of_all_losses(case):
    for seed in range(5):
        torch.manual_seed(seed)
        model, loss = case.model(), case.make()
        optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.1)
        for n in (2, 16, 64):
            assert lint(model, loss, optimizer, case.batch(n, seed)) == []


SIGMOID, LOG = nn.Sigmoid(), nn.LogSoftmax(dim=1)
TUTORIAL = {
    "MSE": (nn.MSELoss(), lambda n: torch.randn(n, 10), None),
    "CrossEntropy": (nn.CrossEntropyLoss(), lambda n: torch.randint(0, 10, (n,)), None),
    "BCE": (nn.BCELoss(), lambda n: torch.randint(0, 2, (n, 10)).float(), SIGMOID),
    "BCEWithLogits": (nn.BCEWithLogitsLoss(), lambda n: torch.randint(0, 2, (n, 10)).float(), None),
    "NLL": (nn.NLLLoss(), lambda n: torch.randint(0, 10, (n,)), LOG),
    "L1": (nn.L1Loss(), lambda n: torch.randn(n, 10), None),
    "SmoothL1": (nn.SmoothL1Loss(), lambda n: torch.randn(n, 10), None),
    "KLDiv": (nn.KLDivLoss(reduction="batchmean"), lambda n: torch.randn(n, 10).softmax(1), LOG),
}


@pytest.mark.parametrize("name", TUTORIAL)
@pytest.mark.parametrize("n", [1, 4, 64])
def test_no_false_alarm_over_the_eight_losses_of_the_tutorial(name, n):
    loss, targets, end = TUTORIAL[name]
    for seed in range(5):
        torch.manual_seed(seed)
        model = nn.Sequential(LeNet5(), *([end] if end else []))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        images = (torch.rand(n, 1, 28, 28) - 0.5) / 0.5
        assert lint(model, loss, optimizer, (images, targets(n)), classes=10 if "LL" in name else None) == []


@pytest.mark.parametrize("name", ["LeNet5", "SmallResNet"])
def test_no_false_alarm_for_a_trained_model(name):
    torch.manual_seed(0)
    model = MODELS.build(name, {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    images, targets = torch.randn(8, 1, 28, 28), torch.arange(8)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), targets).backward()
        optimizer.step()
    assert lint(model, nn.CrossEntropyLoss(), optimizer, (images, targets), classes=10) == []


@pytest.mark.parametrize("name", PRACTICES)
def test_no_false_alarm_over_good_practices_that_look_odd(name):
    for seed in range(10):
        torch.manual_seed(seed)
        model, loss, batch = PRACTICES[name]()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        assert [str(finding) for finding in lint(model, loss, optimizer, batch)] == []


def test_no_false_alarm_over_100_random_right_set_ups():
    assert [line for seed in range(100) for line in told(right_setup(seed))] == []


@pytest.mark.slow
def test_no_false_alarm_over_1000_random_right_set_ups():
    assert [line for seed in range(1000, 2000) for line in told(right_setup(seed))] == []


@pytest.mark.parametrize("name", recipe.packaged_names())
def test_no_false_alarm_over_the_packaged_recipes(name, request):
    loaded = recipe.load_recipe(name, [])
    of_pictures = loaded.data.part.name != "text"
    overrides = ["data.train_size=512"] if of_pictures else []
    if loaded.data.part.name == "fashion_mnist":
        overrides.append(f"data.dir={request.getfixturevalue('fashion_mnist_dir')}")
    for model in dict.fromkeys([loaded.model.part.name, *(["SmallResNet"] if of_pictures else [])]):
        built = build(recipe.load_recipe(name, [*overrides, f"model={model}"]))
        found = lint(built.model, built.loss, built.optimizer, built.train.peek(), classes=built.about.classes)
        assert [str(finding) for finding in found] == []
