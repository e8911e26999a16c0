"""What a loss's mean divides by is the total of all ranks: their shares add up to the loss of one large batch."""

from __future__ import annotations

import pytest
import torch
from ranks import run_ranks
from torch import nn

from surefoot import losses
from surefoot.data import Loader
from surefoot.data.sources import DatasetSource
from surefoot.losses.averaging import all_count, shares
from surefoot.metrics import RunningMetrics
from surefoot.metrics.reliability import Reliability
from surefoot.world import World

PARTS, N, CLASSES = 12, 22, 4


class Counting:
    """A world that counts how often it is asked, and waited for."""

    size = 2

    def __init__(self, world):
        self.world, self.asked, self.awaited = world, 0, 0

    def begin_sum(self, tensor):
        self.asked += 1
        answer = self.world.begin_sum(tensor)

        def wait():
            self.awaited += 1
            return answer()

        return wait


def targets(lopsided=True):
    """Class indices: whole ranks have none that counts."""
    labels = torch.arange(N) % CLASSES
    labels[: N // 2 if lopsided else 1] = -100
    return labels


def tokens():
    """Sequences of several lengths, so that ranks pad to several lengths."""
    return DatasetSource(
        [(torch.full((1 + i % 5,), float(i)), torch.full((1 + i % 5,), i % CLASSES)) for i in range(N)], collate=padded
    )


def padded(samples):
    pad = nn.utils.rnn.pad_sequence
    return pad([x for x, _ in samples], True), pad([y for _, y in samples], True, padding_value=-100)


def rows(*shape):
    return torch.linspace(-1, 1, N * torch.Size(shape).numel()).reshape(N, *shape)


WEIGHT = torch.tensor([0.1, 0.7, 1.3, 2.9])


def own(outputs, truth):
    return (outputs - truth).abs().mean()


# What each is, its data, and whether shapes alone tell what it is a mean over.
CASES = {
    "classes, ignored ones on some ranks only": (nn.CrossEntropyLoss(), (rows(CLASSES), targets()), False),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHT), (rows(CLASSES), targets(False)), False),
    "class probabilities": (nn.CrossEntropyLoss(), (rows(CLASSES), rows(CLASSES).softmax(1)), True),
    "positions": (nn.CrossEntropyLoss(), (rows(CLASSES, 3), targets()[:, None].expand(N, 3)), False),
    "elements": (nn.MSELoss(), (rows(3), rows(3) ** 2), True),
    "elements of samples of several shapes": (nn.MSELoss(), tokens(), False),
    "samples": (nn.MultiMarginLoss(), (rows(CLASSES), targets(False).clamp(min=0)), True),
    "a function of one's own": (own, (rows(3), rows(3) ** 2), True),
    "a sum over samples": (nn.MSELoss(reduction="sum"), (rows(3), rows(3) ** 2), True),
    "a sum of losses": (
        losses.WeightedSum([(1, nn.CrossEntropyLoss()), (0.5, nn.MultiMarginLoss())]),
        (rows(CLASSES), targets(False).clamp(min=0)),
        False,
    ),
    "an objective": (
        losses.objective(lambda model, batch: own(model(batch[0]), batch[1])),
        (rows(3), rows(3) ** 2),
        True,
    ),
}


def divided(case, world):
    """Of each step of an epoch: this rank's losses times their shares, and how often the world was asked."""
    loss, data, _ = CASES[case]
    loader = Loader(data, 9, shuffle=False)
    loader.divide(PARTS, world.rank, world.size)
    steps = []
    for micro_batches in loader:
        counting = Counting(world)
        counts = shares(loss, micro_batches, counting)
        values = [
            losses.apply(loss, nn.Identity(), b, s).loss.item() for b, s in zip(micro_batches, counts, strict=True)
        ]
        steps.append((values, counting.asked))
    return steps


def all_cases(world):
    return {case: divided(case, world) for case in CASES}


@pytest.fixture(scope="module")
def alone():
    return all_cases(World.alone())


@pytest.mark.parametrize("case", CASES)
def test_the_shares_of_micro_batches_add_up_to_the_loss_of_the_batch(case, alone):
    loss, data, by_shape = CASES[case]
    if "several shapes" not in case:  # what is padded depends on the micro-batches, and counts as an element
        whole = [losses.apply(loss, nn.Identity(), batch).loss.item() for batch in Loader(data, 9, shuffle=False)]
        assert [sum(values) for values, _ in alone[case]] == pytest.approx(whole, nan_ok=True)
    assert all((asked == 0) == by_shape for _, asked in alone[case])


@pytest.mark.parametrize("size", [2, 3, 4])
def test_any_number_of_ranks_has_the_bits_of_one_process(size, alone):
    ranks = run_ranks(size, all_cases)
    for case, expected in alone.items():
        for place, (values, asked) in enumerate(expected):
            steps = [rank[case][place] for rank in ranks]
            assert repr(sum((own for own, _ in steps), [])) == repr(values), case
            assert {times for _, times in steps} == {asked}, case


def test_ranks_wait_for_one_another_after_their_forward_passes_and_once():
    """The exchange goes on meanwhile: a rank that is a little late keeps no other from computing."""
    loss, loader, world = nn.CrossEntropyLoss(), Loader((torch.zeros(8, 4), torch.arange(8) % 4), 8), Counting(World())
    loader.divide(2)
    (micro_batches,) = loader
    waited = []
    for batch, share in zip(micro_batches, shares(loss, micro_batches, world), strict=True):
        losses.apply(loss, lambda x: waited.append(world.awaited) or x, batch, share)
    assert (world.asked, waited, world.awaited) == (1, [0, 1], 1)


@pytest.mark.parametrize(
    ("loss", "labels", "all_of_them"),
    [
        (nn.CrossEntropyLoss(), [0, 3], True),
        (nn.CrossEntropyLoss(), [0, -100], False),
        (nn.CrossEntropyLoss(ignore_index=0), [1, 2], True),
        (nn.CrossEntropyLoss(ignore_index=1), [0, 2], False),  # between the least and the largest: not looked for
        (nn.CrossEntropyLoss(weight=torch.ones(4)), [0, 1], False),
        (losses.WeightedSum([(1.0, nn.CrossEntropyLoss()), (2.0, nn.NLLLoss(ignore_index=3))]), [0, 3], False),
        (nn.MultiMarginLoss(), [0, -100], True),
    ],
)
def test_whether_all_targets_count_is_told_by_the_data(loss, labels, all_of_them):
    assert all_count(loss, (torch.zeros(2, 4), torch.tensor(labels))) == all_of_them


def test_what_counts_by_its_number_has_the_shares_that_looking_at_it_gives():
    loader, world = Loader((torch.zeros(11, 4), torch.arange(11) % 4), 11), Counting(World())
    loader.divide(3)
    (micro_batches,) = loader
    looked = [share() for share in shares(nn.CrossEntropyLoss(), micro_batches, world)]
    assert shares(nn.CrossEntropyLoss(), micro_batches, world, complete=True) == [float(s) for s in looked]
    assert world.asked == 1


def test_class_156_is_not_ignored_where_labels_are_uint8():
    """In uint8 it is what -100 becomes."""
    outputs, loss = torch.eye(200) * 9, nn.CrossEntropyLoss()
    targets = torch.arange(150, 160, dtype=torch.uint8)
    assert losses.sample_weight(loss, outputs, targets) == 10
    assert losses.averaging.many_weights(loss, [targets]) == [10]
    running = RunningMetrics(kind="classes", own=("accuracy", "f1_macro", "perplexity"))
    reliability = Reliability()
    for answered in (outputs[targets.long()], outputs[:10]):
        running.add(torch.tensor(0.0), answered, targets, 10)
        reliability.add(answered, targets)
    wide = RunningMetrics(kind="classes", own=("accuracy", "f1_macro", "perplexity"))
    for answered in (outputs[targets.long()], outputs[:10]):
        wide.add(torch.tensor(0.0), answered, targets.long(), 10)
    assert running.result() == wide.result() and running.result()["accuracy"] == 0.5
    assert sum(reliability.result(World.alone())["samples"]) == 20
