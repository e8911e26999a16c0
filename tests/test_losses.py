"""Losses by name, how each is called, sums of them, weights from the data."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from surefoot import losses
from surefoot.errors import UsageError
from surefoot.losses.registry import LEFT_OUT
from surefoot.metrics import RunningMetrics

DOCS = (Path(__file__).parent.parent / "docs" / "losses.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCS, re.M | re.S))


def test_every_loss_class_of_torch_is_there_or_left_out_for_a_reason():
    in_torch = {n for n, c in vars(nn).items() if isinstance(c, type) and issubclass(c, nn.Module) and "Loss" in n}
    assert len(in_torch) >= 23
    assert in_torch == set(losses.LOSSES.names()) | set(LEFT_OUT)


def test_the_registry_and_the_findings_are_read_without_torch():
    code = (
        "import sys; from surefoot.losses import FINDINGS, LOSSES; "
        "assert len(LOSSES) > 20 and FINDINGS; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_entry_says_what_it_is_for_and_links_to_its_formula():
    anchors = {h.lower() for h in SECTIONS}
    for entry in losses.LOSSES:
        for fact in ("task", "input", "target", "shapes", "batch", "formula"):
            assert entry.facts[fact], (entry.name, fact)
        assert entry.summary
        page, _, anchor = entry.facts["formula"].partition("#")
        assert page == "docs/losses.md" and anchor in anchors, entry.name


@pytest.mark.parametrize("name", losses.LOSSES.names())
def test_the_formula_written_in_the_docs_is_what_torch_computes(name):
    (code,) = re.findall(r"```python\n(.*?)```", SECTIONS[name], re.S)
    assert "assert_close" in code and "$$" in SECTIONS[name]
    torch.manual_seed(0)
    exec(compile(code, f"docs/losses.md#{name}", "exec"), {"torch": torch, "nn": nn})


def test_arguments_are_torch_s_own():
    loss = losses.build_loss("CrossEntropyLoss", {"label_smoothing": 0.1, "weight": [1, 2.5]})
    assert type(loss) is nn.CrossEntropyLoss
    assert loss.label_smoothing == 0.1 and loss.weight.tolist() == [1, 2.5]


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("CrossEntropy", {}, "did you mean 'CrossEntropyLoss'"),
        ("NLLLoss2d", {}, "did you mean 'NLLLoss'"),
        ("CrossEntropyLoss", {"label_smothing": 0.1}, "did you mean 'label_smoothing'"),
        ("CrossEntropyLoss", {"label_smoothing": 1.5}, "label_smoothing: 1.5 is above 1"),
        ("CrossEntropyLoss", {"weight": "heavy"}, "the text 'heavy' is not a Tensor"),
        ("MSELoss", {"reduction": "avg"}, "give one of mean, sum, none"),
        ("MSELoss", {"reduction": "batchmean"}, "MSELoss has no reduction 'batchmean'"),
        ("MSELoss", {"reduction": "Mean"}, "did you mean 'mean'"),
        ("MSELoss", {"size_average": True}, "deprecated"),
        ("HuberLoss", {"delta": 0}, "delta: 0 is not above 0"),
        ("BCELoss", {"weight": "balanced"}, "BCELoss takes no balanced weight"),
        ("MSELoss", {"weight": "balanced"}, "MSELoss takes no balanced weight"),
        ("LinearCrossEntropyLoss", {}, "needs the argument 'in_features'"),
    ],
)
def test_a_wrong_argument_is_told(name, args, told):
    if not hasattr(torch.nn, name) and name == "LinearCrossEntropyLoss":
        told = "unknown loss"  # torch 2.10 has none
    with pytest.raises(UsageError, match=re.escape(told)):
        losses.build_loss(name, args)


def test_all_mistakes_are_told_at_once():
    with pytest.raises(UsageError) as error:
        losses.build_loss("CrossEntropyLoss", {"label_smoothing": 2, "weigth": [1], "reduction": "sun"})
    assert len(str(error.value).splitlines()) == 3


# --- weights from the data ---------------------------------------------------------------------------------------


def test_balanced_weights_are_n_over_c_times_n_c():
    targets = torch.tensor([0] * 6 + [1] * 3 + [2])
    loss = losses.build_loss("NLLLoss", {"weight": "balanced"}, targets=targets, classes=3)
    torch.testing.assert_close(loss.weight, torch.tensor([10 / 18, 10 / 9, 10 / 3]))


def test_balanced_weights_give_each_class_the_same_part_of_the_loss():
    targets = torch.randint(0, 4, (500,), generator=torch.Generator().manual_seed(0)).clamp(max=3)
    weight = losses.class_weights(targets, 4).double()
    part = torch.bincount(targets) * weight
    torch.testing.assert_close(part, torch.full((4,), 125.0, dtype=torch.float64), rtol=1e-6, atol=0)


def test_ignored_targets_do_not_count():
    targets = torch.tensor([0, 1, 9, 9, 9])
    args = {"weight": "balanced", "ignore_index": 9}
    assert losses.build_loss("CrossEntropyLoss", args, targets=targets, classes=2).weight.tolist() == [1, 1]


def test_positives_weigh_by_negatives_over_positives():
    targets = torch.tensor([[1.0, 0], [0, 0], [0, 0], [0, 1]])
    loss = losses.build_loss("BCEWithLogitsLoss", {"pos_weight": "balanced"}, targets=targets)
    assert loss.pos_weight.tolist() == [3, 3]


@pytest.mark.parametrize(
    ("targets", "classes", "told"),
    [
        (torch.tensor([0, 2]), 3, "class 1 of 3"),
        (torch.tensor([0, 1]), 3, "class 2 of 3"),
        (torch.tensor([0, 5]), 3, "the target 5; class indices are 0 to 2"),
        (torch.tensor([0, -1]), None, "the target -1"),
        (torch.tensor([0.0, 1.0]), None, "these targets are float32"),
        (torch.tensor([], dtype=torch.long), 2, "holds no targets"),
        (None, 2, "none were given"),
    ],
)
def test_weights_that_cannot_be_balanced_are_told(targets, classes, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        losses.build_loss("CrossEntropyLoss", {"weight": "balanced"}, targets=targets, classes=classes)


def test_a_label_without_positives_is_told():
    with pytest.raises(UsageError, match="label 1"):
        losses.positive_weight(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))


# --- calling ------------------------------------------------------------------------------------------------------


def test_a_function_of_ones_own_is_a_loss():
    def own(outputs, targets):
        return ((outputs - targets) ** 2).sum(1)  # one value a sample

    x, y = torch.randn(4, 3), torch.randn(4, 3)
    value = losses.apply(own, nn.Identity(), (x, y))
    assert torch.equal(value.loss, ((x - y) ** 2).sum(1).mean())
    assert value.outputs is x and value.targets is y
    assert losses.weighs_by(own) == "samples" and losses.default_metrics(own) == ()


def test_a_class_of_ones_own_may_carry_a_convention():
    from surefoot.losses.conventions import TRIPLET

    class Own(nn.Module):
        convention = TRIPLET

        def forward(self, anchor, positive, negative):
            return (anchor - positive).norm() - (anchor - negative).norm()

    a, p, n = torch.randn(3, 4, 2)
    assert losses.apply(Own(), nn.Identity(), (a, p, n)).loss.item() == pytest.approx(Own()(a, p, n).item())


def test_an_overridden_forward_is_a_formula_of_its_own():
    class Focal(nn.CrossEntropyLoss):
        def forward(self, outputs, targets):
            return super().forward(outputs, targets) ** 2

    assert losses.default_metrics(Focal()) == ("accuracy", "f1_macro")
    assert losses.weighs_by(Focal(weight=torch.ones(3))) == "samples"


@pytest.mark.parametrize(
    ("loss", "batch", "told"),
    [
        (
            nn.MSELoss(),
            torch.zeros(3, 2),
            "a batch for this loss holds 2 parts, (inputs, targets); this one is (3, 2) float32;",
        ),
        (nn.MSELoss(), (torch.zeros(3),) * 3, "this one is [(3,) float32, (3,) float32, (3,) float32]"),
        (nn.TripletMarginLoss(), (torch.zeros(3, 2),) * 2, "holds 3 parts, (anchor, positive, negative)"),
        (nn.CosineEmbeddingLoss(), (torch.zeros(3, 2),) * 2, "holds 3 parts, (first, second, targets)"),
        (nn.CTCLoss(), (torch.zeros(3, 2),) * 2, "holds 3 or 4 parts"),
        (nn.GaussianNLLLoss(), (torch.zeros(3, 2), torch.zeros(3, 2)), "a model that returns (mean, variance)"),
        (
            lambda outputs, targets: 1.0,
            (torch.zeros(3, 2), torch.zeros(3, 2)),
            "returned float; it must return a tensor",
        ),
    ],
)
def test_a_batch_or_a_loss_of_the_wrong_make_up_is_told(loss, batch, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        losses.apply(loss, nn.Identity(), batch)


def test_an_all_ignored_micro_batch_has_no_part():
    x = torch.randn(6, 3, requires_grad=True)
    targets = torch.tensor([0, 1, 2, -100, -100, -100])
    loss = nn.CrossEntropyLoss()
    whole = torch.autograd.grad(loss(x, targets), x)[0]
    parts = [(x[:3], targets[:3]), (x[3:], targets[3:])]
    shares = losses.shares(loss, parts)
    values = [losses.apply(loss, nn.Identity(), p, s).loss for p, s in zip(parts, shares, strict=True)]
    total = values[0] + values[1]
    assert total.item() == pytest.approx(loss(x, targets).item())
    torch.testing.assert_close(torch.autograd.grad(total, x)[0], whole)


# --- sums ---------------------------------------------------------------------------------------------------------


def test_a_sum_is_the_sum_and_so_are_its_gradients():
    x, y = torch.randn(8, 3, requires_grad=True), torch.randn(8, 3)
    both = losses.WeightedSum([(0.7, nn.MSELoss()), (0.3, lambda o, t: (o - t).abs().mean())])
    ours = torch.autograd.grad(losses.apply(both, nn.Identity(), (x, y)).loss, x)[0]
    plain = torch.autograd.grad(nn.MSELoss()(x, y) * 0.7 + (x - y).abs().mean() * 0.3, x)[0]
    assert torch.equal(ours, plain)


def test_a_sum_of_losses_that_divide_by_different_things_accumulates_exactly():
    weight = torch.tensor([1.0, 5.0, 0.1], dtype=torch.float64)
    both = losses.WeightedSum([(1.0, nn.CrossEntropyLoss(weight=weight)), (0.5, nn.MultiMarginLoss())])
    x = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, -100]).clamp(min=0)
    whole = torch.autograd.grad(losses.apply(both, nn.Identity(), (x, y)).loss, x)[0]
    parts = list(zip(x.split([4, 4, 1]), y.split([4, 4, 1]), strict=True))
    shares = losses.shares(both, parts)
    total = sum(losses.apply(both, nn.Identity(), p, s).loss for p, s in zip(parts, shares, strict=True))
    torch.testing.assert_close(torch.autograd.grad(total, x)[0], whole)


def test_a_sum_scores_as_its_parts_do():
    same = losses.WeightedSum([(1, nn.CrossEntropyLoss()), (1, nn.MultiMarginLoss())])
    mixed = losses.WeightedSum([(1, nn.CrossEntropyLoss()), (1, nn.BCELoss())])
    assert losses.default_metrics(same) == ("accuracy", "f1_macro")
    assert losses.default_metrics(mixed) == ()


def test_a_sum_moves_with_its_parts_and_is_called_as_they_are():
    triplets = losses.WeightedSum([(1, nn.TripletMarginLoss()), (2, nn.TripletMarginWithDistanceLoss())])
    a, p, n = torch.randn(3, 4, 2)
    assert losses.apply(triplets, nn.Identity(), (a, p, n)).loss.shape == ()
    weighted = losses.WeightedSum([(1, nn.CrossEntropyLoss(weight=torch.ones(3)))]).double()
    assert weighted.parts[0].weight.dtype == torch.float64


@pytest.mark.parametrize(
    ("parts", "told"),
    [
        ([], "at least one"),
        ([(float("nan"), nn.MSELoss())], "not a finite number"),
        ([(1.0, 3)], "is not a loss"),
        ([(nn.MSELoss(), 1.0)], r"a pair \(factor, loss\), not \(MSELoss\(\), 1.0\)"),
        ([nn.MSELoss()], r"a pair \(factor, loss\), not MSELoss\(\)"),
        ([(1.0, nn.MSELoss()), (1.0, nn.TripletMarginLoss())], "must take the same batch"),
    ],
)
def test_a_sum_that_cannot_be_is_told(parts, told):
    with pytest.raises(UsageError, match=told):
        losses.WeightedSum(parts)


# --- metrics that follow from a loss ------------------------------------------------------------------------------


def test_metrics_of_a_name_and_of_a_loss_agree():
    for name in losses.LOSSES.names():
        required = {"in_features": 4, "num_classes": 3, "n_classes": 3, "cutoffs": [1]}
        needs = losses.LOSSES[name].parameters()
        args = {k: v for k, v in required.items() if k in needs}
        assert losses.default_metrics(name) == losses.default_metrics(losses.build_loss(name, args))


def test_a_metric_that_makes_no_sense_is_told():
    with pytest.raises(UsageError, match="MSELoss has no accuracy"):
        losses.metric_options(nn.MSELoss(), ["accuracy"])
    with pytest.raises(UsageError, match="did you mean 'accuracy'"):
        losses.metric_options(nn.MSELoss(), ["acuracy"])
    assert losses.metric_options(lambda o, t: o.sum(), ["accuracy"])["kind"] == "classes"


def positions(shape, classes):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, classes, generator=generator), torch.randint(0, classes, shape, generator=generator)


@pytest.mark.parametrize("name", ["CrossEntropyLoss", "NLLLoss"])
@pytest.mark.parametrize("shape", [(4, 6), (4, 6, 7)])
def test_classes_may_be_the_last_dimension_of_the_outputs(name, shape):
    outputs, targets = positions(shape, 5)
    outputs = outputs.log_softmax(-1)
    targets[0, 0] = -100
    loss = losses.build_loss(name, {"weight": [1.0, 2.0, 0.5, 1.0, 3.0]})
    plain = loss(outputs.movedim(-1, 1), targets)
    for given in (outputs, outputs.movedim(-1, 1)):
        value = losses.apply(loss, nn.Identity(), (given, targets))
        assert torch.allclose(value.loss, plain) and torch.equal(value.outputs, outputs.movedim(-1, 1))
        assert torch.allclose(losses.value_of(loss, given, targets), plain)
    running = RunningMetrics(**losses.metric_options(loss))
    running.add(value.loss, value.outputs, targets, 4)
    counted = targets != -100
    assert running.result()["accuracy"] == ((outputs.argmax(-1) == targets) & counted).sum() / counted.sum()


def test_where_classes_are_as_many_as_positions_nothing_is_guessed():
    outputs, targets = positions((4, 5), 5)
    loss, batch = nn.CrossEntropyLoss(), (outputs, targets)
    with pytest.raises(UsageError, match=r"outputs \(4, 5, 5\) and targets \(4, 5\) the classes may be the second dim"):
        losses.apply(loss, nn.Identity(), batch)
    transposed = losses.apply(loss, nn.Identity(), (outputs.transpose(1, 2), targets)).loss
    assert torch.allclose(transposed, loss(outputs.transpose(1, 2), targets))
    function = losses.apply(lambda o, t: nn.functional.cross_entropy(o, t), nn.Identity(), batch).loss
    assert torch.equal(function, loss(outputs, targets))
    # Padded batches differ in length: what an earlier one showed holds for one that fits both ways.
    losses.apply(loss, nn.Identity(), (outputs[:, :3], targets[:, :3]))
    assert torch.equal(losses.apply(loss, nn.Identity(), batch).loss, transposed)


def test_a_sum_gives_its_own_functions_the_outputs_as_the_model_made_them():
    outputs, targets = positions((4, 6), 5)
    shapes = []

    def own(outputs, targets):
        shapes.append(outputs.shape)
        return outputs.square().mean()

    total = losses.WeightedSum([(1.0, nn.CrossEntropyLoss()), (2.0, own)])
    value = losses.apply(total, nn.Identity(), (outputs, targets))
    expected = nn.functional.cross_entropy(outputs.transpose(1, 2), targets) + 2 * outputs.square().mean()
    assert torch.allclose(value.loss, expected) and shapes == [outputs.shape] and value.outputs.shape == (4, 5, 6)


def test_the_first_batch_with_classes_last_is_looked_over_as_any_other():
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 9), nn.Softmax(dim=-1))
    batch = torch.arange(24).reshape(4, 6) % 9, torch.arange(24).reshape(4, 6) % 7
    found = losses.lint(model, nn.CrossEntropyLoss(), None, batch, classes=9)
    assert [finding.name for finding in found] == ["softmax-before-cross-entropy"]


@pytest.mark.parametrize("args", [{}, {"label_smoothing": 0.1}])
def test_a_class_that_is_ignored_needs_no_samples_to_be_balanced(args):
    targets = torch.tensor([0, 0, 1, 2, 2, 2])
    outputs = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    args = {"weight": "balanced", "ignore_index": 0, **args}
    loss = losses.build_loss("CrossEntropyLoss", args, targets=targets, classes=3)
    assert loss.weight.tolist() == pytest.approx([0, 4 / (2 * 1), 4 / (2 * 3)])
    assert math.isfinite(loss(outputs, targets))


@pytest.mark.parametrize("shape", [(4, 3, 5), (4, 2, 3, 5)])
def test_positives_of_masks_weigh_alike_wherever_they_lie(shape):
    generator = torch.Generator().manual_seed(0)
    targets = (torch.rand(shape, generator=generator) > 0.8).float()
    loss = losses.build_loss("BCEWithLogitsLoss", {"pos_weight": "balanced"}, targets=targets)
    each = [targets] if len(shape) == 3 else list(targets.unbind(1))
    assert loss.pos_weight.flatten().tolist() == pytest.approx([float((1 - t).sum() / t.sum()) for t in each])
    assert loss(torch.zeros(shape), targets).isfinite()


class Scores(nn.Module):
    """A model in the manner of transformers': keywords in, an object with `logits` out."""

    def __init__(self, size=1):
        super().__init__()
        self.layer = nn.Linear(3, size)

    def forward(self, tokens, mask=None):
        return {"logits": self.layer(tokens).squeeze(-1)}


def test_losses_of_several_inputs_call_the_model_as_others_do():
    model = Scores()
    a, b, c = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0))
    first, second, third = ({"tokens": each, "mask": each} for each in (a, b, c))
    loss, signs = nn.MarginRankingLoss(), torch.ones(4)
    expected = loss(*(model(each)["logits"] for each in (a, b)), signs)
    assert losses.apply(loss, model, (first, second, signs)).loss == expected
    wide = Scores(5)
    loss = nn.TripletMarginLoss()
    expected = loss(*(wide(each)["logits"] for each in (a, b, c)))
    assert losses.apply(loss, wide, (first, second, third)).loss == expected


def test_ctc_takes_the_logits_of_an_object_and_names_a_tuple():
    class Steps(nn.Module):
        def forward(self, x):
            return (x.log_softmax(-1), len(x)) if self.lengths else {"logits": x.log_softmax(-1)}

    model = Steps()
    batch = (torch.randn(6, 2, 4), torch.tensor([[1, 2], [3, 1]]), torch.tensor([2, 2]))
    model.lengths = False
    assert losses.apply(nn.CTCLoss(), model, batch).loss.isfinite()
    model.lengths = True
    for given in (batch, (*batch[:2], torch.tensor([6, 6]), batch[2])):
        with pytest.raises(UsageError, match=r"returns log-probabilities \(T, N, C\); this one returned \[\(6, 2, 4\)"):
            losses.lint(model, nn.CTCLoss(), None, given)
