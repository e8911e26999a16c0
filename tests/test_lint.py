"""The lint finds what is wrong, and says it so that it can be mended."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from wrong_setups import WRONG, Then, body, setup, x, y

import surefoot
from surefoot.errors import UsageError
from surefoot.losses import FINDINGS, WeightedSum, lint

DOCS = (Path(surefoot.__file__).parent / "explanations" / "lint.md").read_text(encoding="utf-8")


def found_in(arguments) -> dict:
    arguments = dict(arguments)
    return {
        finding.name: finding
        for finding in lint(
            arguments.pop("model"),
            arguments.pop("loss"),
            arguments.pop("optimizer"),
            arguments.pop("batch"),
            **arguments,
        )
    }


def test_every_finding_has_at_least_three_wrong_set_ups():
    counts = Counter(finding for finding, _, _ in WRONG)
    assert set(counts) == set(FINDINGS)
    assert min(counts.values()) >= 3


@pytest.mark.parametrize(("finding", "label", "make"), WRONG, ids=[f"{f}-{label}" for f, label, _ in WRONG])
def test_a_wrong_set_up_is_named(finding, label, make):
    for seed in range(3):
        torch.manual_seed(seed)
        found = found_in(make())
        assert finding in found, f"seed {seed}: {[str(f) for f in found.values()]}"
        assert finding not in found_in({**make(), "off": [finding]})


def test_every_finding_has_a_section_in_the_docs_and_nothing_else_has():
    assert re.findall(r"^## ([a-z-]+)$", DOCS, re.M) == list(FINDINGS)


def test_a_finding_says_what_was_seen_why_it_is_wrong_and_the_fix():
    torch.manual_seed(0)
    (finding,) = found_in(setup(body(5, nn.Softmax(1)), nn.CrossEntropyLoss(), (x(), y()))).values()
    assert finding.severity == "warning"
    assert "each row sums to 1" in finding.message and "applies softmax itself" in finding.message
    assert finding.fix.startswith("take Softmax out")
    assert finding.doc == "surefoot explain softmax-before-cross-entropy"
    assert str(finding).startswith("softmax-before-cross-entropy: ") and finding.doc in str(finding)


# What torch then raises, or worse, does not raise: training cannot go on after these.
ERRORS = {
    "target-out-of-range", "target-dtype", "shape-mismatch", "loss-refused", "nan-in-data", "nan-at-start",
    "last-batch",
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(ERRORS))
def test_what_cannot_be_trained_is_an_error(name):
    for finding, _, make in WRONG:
        if finding == name:
            torch.manual_seed(0)
            assert found_in(make())[name].severity == "error"


def test_one_mistake_is_told_once():
    """Nothing beside the finding itself, for every mistake that has no second side."""
    alone = 0
    for finding, _, make in WRONG:
        torch.manual_seed(0)
        alone += list(found_in(make())) == [finding]
    assert alone / len(WRONG) > 0.8


def test_the_parts_of_a_sum_are_looked_at_each():
    both = WeightedSum([(1.0, nn.CrossEntropyLoss()), (0.1, nn.MultiMarginLoss())])
    assert set(found_in(setup(body(5, nn.Softmax(1)), both, (x(), y())))) == {
        "softmax-before-cross-entropy",
        "probabilities-to-margin-loss",
    }


def test_an_unknown_name_to_switch_off_is_told():
    with pytest.raises(UsageError, match="did you mean 'constant-target'"):
        lint(**setup(body(), nn.CrossEntropyLoss(), (x(), y())), off=["constant-targets"])


# --- a model that cannot run --------------------------------------------------------------------------------------


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(400, 10)

    def forward(self, images):
        return self.fc(self.conv(images).flatten(1))


@pytest.mark.parametrize(
    ("model", "inputs", "told"),
    [
        (
            Own(),
            torch.randn(2, 1, 8, 8),
            "layer 'fc', Linear(in_features=400, out_features=10, bias=True), was given (2, 144)",
        ),
        (Own(), torch.randn(2, 1, 8, 8), "set in_features=144"),
        (Own(), torch.randn(2, 1, 8, 8), "test_lint.py:"),
        (Own(), torch.randn(2, 1, 8, 8), "return self.fc(self.conv(images).flatten(1))"),
        (Own(), torch.randn(2, 3, 8, 8), "it takes 1 channels, (N, 1, ...)"),
        (Own(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8), "`inputs.to(torch.float32) / 255`"),
        (nn.Linear(64, 3), torch.randn(2, 8, 8), "flatten its input first"),
        (nn.Linear(64, 3), torch.randn(2, 64).double(), "give `inputs.to(torch.float32)`"),
        (nn.Sequential(nn.BatchNorm1d(4)), torch.randn(1, 4), "more than one sample"),
        (nn.Sequential(nn.BatchNorm1d(4)), torch.randn(3, 5), "set num_features=5"),
        (nn.Embedding(10, 3), torch.tensor([3, 10]), "its indices go from 0 to 9; this batch has 3 to 10"),
        (nn.Embedding(10, 3), torch.tensor([0.5]), "give int64 indices"),
    ],
)
def test_a_model_that_refuses_the_batch_is_told_by_layer_shapes_and_line(model, inputs, told):
    with pytest.raises(UsageError) as refusal:
        lint(model, nn.CrossEntropyLoss(), None, (inputs, torch.zeros(len(inputs), dtype=torch.long)))
    assert told in str(refusal.value)
    assert refusal.value.__cause__ is not None


def test_what_the_backward_pass_refuses_is_not_laid_to_the_loss():
    class InPlace(nn.Linear):
        def forward(self, inputs):
            return super().forward(inputs).exp().add_(1)

    (found,) = lint(InPlace(4, 3), nn.CrossEntropyLoss(), None, (torch.randn(8, 4), torch.arange(8) % 3))
    assert found.name == "loss-refused" and "CrossEntropyLoss" not in found.message
    assert found.message.startswith("the gradients of the loss cannot be computed: ") and "`x = x + y`" in found.fix


def test_a_fault_in_the_users_own_code_stays_what_it_is():
    with pytest.raises(ZeroDivisionError):
        lint(Then(body(), lambda o: o / (1 // 0)), nn.CrossEntropyLoss(), None, (x(), y()))


def test_a_batch_of_the_wrong_make_up_is_told():
    with pytest.raises(UsageError, match="holds 2 parts"):
        lint(body(), nn.CrossEntropyLoss(), None, (x(), x(), y()))


def test_every_finding_that_the_losses_page_names_exists():
    page = (Path(__file__).parent.parent / "docs" / "losses.md").read_text(encoding="utf-8")
    mistakes = "".join(re.findall(r"Common mistakes\*\*:(.*?)\n\n", page, re.S))
    named = set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", mistakes))
    assert len(named) > 15 and named <= set(FINDINGS)


def test_training_ends_before_the_first_step_where_it_cannot_go_on():
    from surefoot.training import fit

    model = body(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model[0].weight.detach().clone()
    with pytest.raises(UsageError, match="target-out-of-range: the targets go from 0 to 4"):
        fit(model, nn.CrossEntropyLoss(), optimizer, (x(), y(5)), epochs=1, batch_size=16)
    assert torch.equal(model[0].weight, weight)


def test_check_says_where_a_recipe_cannot_be_trained(capsys):
    from surefoot.cli import main

    small = ["quickstart", "data.train_size=100", "data.val_size=20"]
    assert main(["check", *small, "loss=BCEWithLogitsLoss"]) == 2
    told = capsys.readouterr().out
    assert "target-out-of-range" in told and "it cannot be trained as it is" in told
    assert main(["check", *small, "loss=NLLLoss"]) == 0
    assert "raw-logits-to-nll" in capsys.readouterr().out
    assert main(["check", *small, "loss=NLLLoss", "strict=true"]) == 2
    assert main(["check", *small, "loss=NLLLoss", "lint_off=[all]"]) == 0
    assert "raw-logits-to-nll" not in capsys.readouterr().out.split("quickstart: ")[-1]


@pytest.mark.parametrize(
    ("model", "loss", "inputs", "targets"),
    [
        (nn.Conv2d(1, 3, 1), nn.CrossEntropyLoss(), torch.rand(4, 1, 3, 3), torch.zeros(4, 3, 3, dtype=torch.uint8)),
        (nn.Linear(3, 3), nn.MultiLabelMarginLoss(), torch.rand(4, 3), torch.zeros(4, 3, dtype=torch.float64)),
    ],
)
def test_indices_of_another_type_are_to_be_made_int64(model, loss, inputs, targets):
    torch.manual_seed(0)
    findings = {finding.name: finding for finding in lint(model, loss, None, (inputs, targets))}
    assert findings["target-dtype"].fix == "give `targets.long()`"


def test_the_number_of_classes_may_be_numpys():
    batch = (torch.randn(8, 3), torch.tensor([0, 1] * 4))
    (finding,) = lint(nn.Linear(3, 2), nn.CrossEntropyLoss(), None, batch, classes=np.int64(5))
    assert finding.name == "too-few-outputs" and "the data has 5 classes" in finding.message
