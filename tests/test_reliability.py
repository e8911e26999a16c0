"""How sure answers are: the counts of a direct sum, the same in any batches and on any ranks."""

from __future__ import annotations

import pytest
import torch

from surefoot import evaluate
from surefoot.metrics.reliability import BINS, Reliability
from surefoot.world import World


def direct(outputs, targets):
    confidence, answers = outputs.double().softmax(1).max(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    samples = [int((place == k).sum()) for k in range(BINS)]
    right = [int(((place == k) & (answers == targets)).sum()) for k in range(BINS)]
    means = [float(confidence[place == k].mean()) if n else 0.0 for k, n in enumerate(samples)]
    return {"samples": samples, "right": right, "confidence": means}


@pytest.fixture
def answers():
    generator = torch.Generator().manual_seed(0)
    return 3 * torch.randn(500, 5, generator=generator), torch.randint(0, 5, (500,), generator=generator)


@pytest.mark.parametrize("size", [500, 64, 7])
def test_counts_are_those_of_a_direct_sum_in_any_batches(answers, size):
    outputs, targets = answers
    reliability = Reliability()
    for begin in range(0, 500, size):
        reliability.add(outputs[begin : begin + size], targets[begin : begin + size])
    found, wanted = reliability.result(World.alone()), direct(outputs, targets)
    assert found["samples"] == wanted["samples"] and found["right"] == wanted["right"]
    assert found["confidence"] == pytest.approx(wanted["confidence"], abs=1e-9)


def test_sums_do_not_depend_on_the_order_of_batches(answers):
    outputs, targets = answers
    one, other = Reliability(), Reliability()
    for begin in range(0, 500, 50):
        one.add(outputs[begin : begin + 50], targets[begin : begin + 50])
        other.add(outputs[450 - begin : 500 - begin], targets[450 - begin : 500 - begin])
    assert one.result(World.alone()) == other.result(World.alone())


def test_what_is_ignored_not_finite_or_of_another_form_is_left_out(answers):
    outputs, targets = answers
    reliability = Reliability(ignore_index=0)
    spoiled = outputs.clone()
    spoiled[0] = torch.nan
    reliability.add(spoiled, targets)
    reliability.add(outputs[:, :, None], targets[:, None])
    reliability.add(outputs, targets.float())
    reliability.add((outputs, outputs), targets)
    assert sum(reliability.result(World.alone())["samples"]) == int((targets[1:] != 0).sum())
    assert Reliability().result(World.alone()) is None


def test_evaluation_gives_it_with_the_confusion_matrix(answers):
    outputs, targets = answers
    found = evaluate(torch.nn.Identity(), torch.nn.CrossEntropyLoss(), (outputs, targets), batch_size=64, confusion=5)
    assert found.reliability["samples"] == direct(outputs, targets)["samples"]
    assert evaluate(torch.nn.Identity(), torch.nn.CrossEntropyLoss(), (outputs, targets)).reliability is None
