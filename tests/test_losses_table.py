"""Every loss, one table: equal to plain torch, and a mean over samples however the batch is split."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from loss_table import CASES, Case
from torch import nn

from surefoot import batches, losses
from surefoot.metrics import RunningMetrics

all_cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
REDUCTIONS = ("mean", "sum", "none")


def test_the_table_holds_every_loss_of_the_registry():
    assert {case.loss for case in CASES} == set(losses.LOSSES.names())


def gradients(*modules) -> list[torch.Tensor]:
    return [p.grad for module in modules for p in module.parameters()]


def reductions_of(case: Case) -> list[str]:
    if "reduction" in case.args or case.loss == "AdaptiveLogSoftmaxWithLoss":
        return ["as given"]
    return list(REDUCTIONS)


def both_ways(case: Case, dtype: torch.dtype, reduction: str):
    """The loss and gradients through `apply`, and through plain torch on copies."""
    torch.manual_seed(1)
    model = case.model(dtype)
    loss = case.make(**({} if reduction == "as given" else {"reduction": reduction})).to(dtype)
    batch = case.batch(8, dtype=dtype)
    twin, twin_loss = copy.deepcopy(model), copy.deepcopy(loss)
    plain = case.plain(twin_loss, twin, batch)
    plain = plain.mean() if reduction == "none" else plain
    plain.backward()
    ours = losses.apply(loss, model, batch)
    ours.loss.backward()
    return (ours.loss, gradients(model, loss)), (plain, gradients(twin, twin_loss))


@all_cases
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_value_and_gradients_equal_plain_torch_to_the_last_bit(case, dtype):
    for reduction in reductions_of(case):
        (ours, our_gradients), (plain, plain_gradients) = both_ways(case, dtype, reduction)
        assert ours.shape == () and ours.dtype == plain.dtype
        assert torch.equal(ours, plain), reduction
        assert all(map(torch.equal, our_gradients, plain_gradients)), reduction
        assert torch.isfinite(ours) and any(g.abs().sum() > 0 for g in our_gradients)


# Those that torch itself computes in bfloat16 on a CPU.
IN_BFLOAT16 = [c for c in CASES if c.loss not in ("CTCLoss", "MultiMarginLoss", "MultiLabelMarginLoss")]


@pytest.mark.parametrize("case", IN_BFLOAT16, ids=lambda case: case.id)
def test_bfloat16_equals_plain_torch_too(case):
    (ours, our_gradients), (plain, plain_gradients) = both_ways(case, torch.bfloat16, reductions_of(case)[0])
    assert torch.equal(ours, plain)
    assert all(map(torch.equal, our_gradients, plain_gradients))


def split(batch, sizes):
    return list(zip(*(part.split(sizes) for part in batch), strict=True))


@all_cases
def test_micro_batches_add_up_to_the_loss_and_gradient_of_one_batch(case):
    for reduction in reductions_of(case):
        torch.manual_seed(2)
        dtype = torch.float64
        model = case.model(dtype)
        loss = case.make(**({} if reduction == "as given" else {"reduction": reduction})).to(dtype)
        batch = case.batch(9, seed=3, dtype=dtype)
        whole, whole_loss = copy.deepcopy(model), copy.deepcopy(loss)
        expected = losses.apply(whole_loss, whole, batch).loss
        expected.backward()
        parts = split(batch, [4, 3, 2])
        total = 0.0
        for share, part in zip(losses.shares(loss, parts), parts, strict=True):
            value = losses.apply(loss, model, part, share).loss
            value.backward()
            total += value.item()
        assert total == pytest.approx(expected.item(), rel=1e-6), reduction
        for ours, plain in zip(gradients(model, loss), gradients(whole, whole_loss), strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-6, atol=1e-9)


@all_cases
def test_an_epoch_with_a_short_last_batch_has_the_mean_of_one_large_batch(case):
    for reduction in reductions_of(case):
        torch.manual_seed(4)
        model = case.model(torch.float64)
        loss = case.make(**({} if reduction == "as given" else {"reduction": reduction})).double()
        batch = case.batch(11, seed=5, dtype=torch.float64)
        expected = losses.apply(loss, model, batch).loss.item()
        if reduction == "sum":
            expected /= 11
        running = RunningMetrics(**losses.metric_options(loss))
        for part in split(batch, [4, 4, 3]):
            value = losses.apply(loss, model, part)
            running.add(value.loss, value.outputs, value.targets, batches.size(part))
        assert running.result()["loss"] == pytest.approx(expected, rel=1e-12), reduction
        assert running.samples == 11


@all_cases
def test_sample_weight_is_what_the_mean_divides_by(case):
    if case.loss == "AdaptiveLogSoftmaxWithLoss":
        pytest.skip("has no sum")
    torch.manual_seed(6)
    model = case.model(torch.float64)
    batch = case.batch(7, seed=7, dtype=torch.float64)
    mean_loss = case.make().double()
    # LinearCrossEntropyLoss has parameters of its own: the same ones for the sum.
    sum_loss = copy.deepcopy(mean_loss)
    sum_loss.reduction = "sum"
    mean = losses.apply(mean_loss, model, batch)
    total = losses.apply(sum_loss, model, batch).loss.item()
    weight = float(losses.sample_weight(mean_loss, mean.outputs, mean.targets))
    if case.loss == "CTCLoss":  # its mean first divides each sample by its target's length
        assert weight == 7
    else:
        assert mean.loss.item() * weight == pytest.approx(total, rel=1e-9)


# A function of torch.nn.functional is the same loss as the class of that name.
FUNCTIONS = {
    "CrossEntropyLoss": nn.functional.cross_entropy,
    "MSELoss": nn.functional.mse_loss,
    "BCEWithLogitsLoss": nn.functional.binary_cross_entropy_with_logits,
    "TripletMarginLoss": nn.functional.triplet_margin_loss,
    "CTCLoss": nn.functional.ctc_loss,
    "GaussianNLLLoss": nn.functional.gaussian_nll_loss,
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_of_torch_is_called_and_weighed_as_its_class(name):
    case = next(case for case in CASES if case.loss == name)
    model, batch = case.model(), case.batch(6)
    by_class, by_function = case.make(), functools.partial(FUNCTIONS[name], **case.args)
    assert torch.equal(losses.apply(by_class, model, batch).loss, losses.apply(by_function, model, batch).loss)
    assert losses.weighs_by(by_function) == losses.weighs_by(by_class)
    assert losses.default_metrics(by_function) == losses.default_metrics(by_class)
