"""Our own metrics: what torchmetrics and scikit-learn define, chosen by the task, exact wherever a run is stopped."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torchmetrics
from torch import nn

import surefoot
from surefoot import losses
from surefoot.errors import UsageError
from surefoot.metrics import Parts, RunningMetrics
from surefoot.step import StepOptions
from surefoot.training import Checkpoints, RunOptions

G = torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _same_numbers_in_any_order():
    G.manual_seed(0)


def running_of(loss, metrics="auto", **more) -> RunningMetrics:
    return RunningMetrics(**losses.metric_options(loss, metrics), **more)


def measured(loss, outputs, targets, metrics="auto", batch=7, **more) -> dict[str, float]:
    """Over batches of 7, the last of them shorter."""
    running = running_of(loss, metrics, **more)
    for o, t in zip(outputs.split(batch), targets.split(batch), strict=True):
        running.add(losses.value_of(loss, o, t), o, t, len(o))
    return running.result()


def f1(confusion: torch.Tensor) -> float:
    """Macro F1 as torchmetrics and scikit-learn define it, of the classes that are true or answered somewhere."""
    rows = [(confusion[i, i], confusion[i].sum() + confusion[:, i].sum()) for i in range(len(confusion))]
    return float(torch.tensor([2 * both / total for both, total in rows if total]).mean())


@pytest.mark.parametrize("ignored", [-100, 0, 2])
@pytest.mark.parametrize("shape", [(), (5,), (4, 5)])
def test_of_classes(shape, ignored):
    """A class that is absent everywhere (the last one) has no part in the mean."""
    outputs = torch.randn(40, 6, *shape, generator=G)
    outputs[:, 5] = -9
    targets = torch.randint(5, (40, *shape), generator=G)
    targets[torch.rand(targets.shape, generator=G) < 0.2] = ignored
    loss = nn.CrossEntropyLoss(ignore_index=ignored, weight=torch.rand(6, generator=G), label_smoothing=0.1)
    found = measured(loss, outputs, targets, ["accuracy", "f1_macro", "iou", "perplexity"])
    settings = {"task": "multiclass", "num_classes": 6, "average": "macro", "ignore_index": ignored}
    theirs = {"f1_macro": torchmetrics.F1Score, "iou": torchmetrics.JaccardIndex}
    for name, cls in theirs.items():
        assert found[name] == pytest.approx(float(cls(**settings)(outputs, targets)), rel=1e-6), name
    perplexity = torchmetrics.text.Perplexity(ignore_index=ignored)
    expected = perplexity(outputs.flatten(2).movedim(1, -1) if shape else outputs[:, None], targets.reshape(40, -1))
    assert found["perplexity"] == pytest.approx(float(expected), rel=1e-5)
    counted = targets != ignored
    assert found["accuracy"] == pytest.approx(((outputs.argmax(1) == targets) & counted).sum() / counted.sum())


def test_auto_stands_beside_others():
    loss, outputs, targets = CASES["classes"]
    found = measured(loss, outputs, targets, ["iou", "auto", lambda o, t: 2.0, "f1_macro"])
    assert list(found) == ["loss", "accuracy", "f1_macro", "iou", "<lambda>"]


def test_f1_by_its_formula():
    outputs, targets = torch.eye(3)[[0, 1, 1, 2, 0, 0]], torch.tensor([0, 1, 2, 2, 1, 0])
    found = measured(nn.CrossEntropyLoss(), outputs, targets, batch=4)
    confusion = torch.tensor([[2, 0, 0], [1, 1, 0], [0, 1, 1]])
    assert found["f1_macro"] == pytest.approx(f1(confusion)) == pytest.approx((4 / 5 + 2 / 4 + 2 / 3) / 3)


@pytest.mark.parametrize("shape", [(4,), (1,), (), (3, 5, 6), (1, 5, 6), (5, 6)])
@pytest.mark.parametrize(
    "loss", [nn.BCEWithLogitsLoss(), nn.BCELoss(), nn.SoftMarginLoss()], ids=lambda loss: str(loss)
)
def test_of_labels_and_masks(loss, shape):
    outputs, targets = torch.randn(30, *shape, generator=G), (torch.rand(30, *shape, generator=G) > 0.6).float()
    given, wanted = outputs, targets
    if isinstance(loss, nn.BCELoss):
        given = outputs.sigmoid()
    if isinstance(loss, nn.SoftMarginLoss):
        wanted = targets * 2 - 1
    found = measured(loss, given, wanted, ["accuracy", "f1_macro", "iou"])
    labels = shape[0] if len(shape) in (1, 3) else 1
    flat = [t.reshape(30, labels, -1).movedim(1, -1).reshape(-1, labels) for t in (outputs.sigmoid(), targets.long())]
    settings = {"task": "multilabel", "num_labels": labels, "average": "macro"}
    if labels == 1:
        settings, flat = {"task": "binary"}, [t.squeeze(1) for t in flat]
    assert found["f1_macro"] == pytest.approx(float(torchmetrics.F1Score(**settings)(*flat)), rel=1e-6)
    assert found["iou"] == pytest.approx(float(torchmetrics.JaccardIndex(**settings)(*flat)), rel=1e-6)


@pytest.mark.parametrize("shape", [(), (1,), (3,)])
def test_of_numbers(shape):
    """Far from 0, where sums of squares lose most."""
    targets = 1e4 + torch.randn(50, *shape, generator=G)
    outputs = targets + 0.3 * torch.randn(50, *shape, generator=G)
    found = measured(nn.MSELoss(), outputs, targets)
    o, t = outputs.double(), targets.double()
    r2 = 1 - ((o - t) ** 2).sum(0) / ((t - t.mean(0)) ** 2).sum(0)
    assert found["r2"] == pytest.approx(float(r2.mean()), rel=1e-6)
    assert found["mae"] == pytest.approx(float((o - t).abs().mean()), rel=1e-6)
    near = measured(nn.L1Loss(), outputs - 1e4, targets - 1e4)
    theirs = torchmetrics.R2Score()(outputs - 1e4, targets - 1e4)
    assert near["r2"] == pytest.approx(float(theirs), rel=1e-4)


def test_numbers_of_other_forms():
    images = torch.randn(12, 3, 4, 4, generator=G)
    outputs = images + 0.1
    pooled = 1 - 0.01 * images.numel() / float(((images - images.mean()) ** 2).sum())
    assert measured(nn.MSELoss(), outputs, images)["r2"] == pytest.approx(pooled, rel=1e-5)
    column = torch.randn(12, 1, generator=G)
    running = running_of(nn.SmoothL1Loss(), ["mae"])
    running.add(torch.tensor(0.0), column + 0.5, column.squeeze(1), 12)
    assert running.result()["mae"] == pytest.approx(0.5)
    constant = torch.full((6,), 2.5)
    assert measured(nn.MSELoss(), constant, constant)["r2"] == 1.0
    assert measured(nn.MSELoss(), constant + 1, constant)["r2"] == 0.0
    assert math.isnan(measured(nn.MSELoss(), constant[:1], constant[:1])["r2"])
    for dtype in (torch.int64, torch.uint8):
        whole = torch.arange(6, dtype=dtype)
        assert measured(nn.L1Loss(), whole + 0.5, whole) == {"loss": 0.5, "mae": 0.5, "r2": 1 - 1.5 / 17.5}
    whole = torch.arange(20) + 1_700_000_000  # seconds
    found = measured(nn.L1Loss(), whole.double() + 0.5, whole.double())
    assert found["r2"] == pytest.approx(1 - 20 * 0.25 / 665, rel=1e-9)
    assert measured(nn.MSELoss(), whole[:1].double().expand(9) + 0.1, whole[:1].double().expand(9))["r2"] == 0.0
    half = (constant + 0.25).bfloat16()
    assert measured(nn.MSELoss(), half, constant, ["mae"])["mae"] == 0.25
    running = running_of(nn.GaussianNLLLoss(), ["mae"])
    running.add(torch.tensor(0.0), (constant + 1, constant), constant, 6)
    assert running.result()["mae"] == 1.0


def test_perplexity_is_the_exponential_of_the_mean_loss_where_that_is_a_likelihood():
    outputs, targets = torch.randn(20, 9, 11, generator=G), torch.randint(9, (20, 11), generator=G)
    targets[:, 6:] = -100
    found = measured(nn.CrossEntropyLoss(), outputs, targets)
    assert found["perplexity"] == math.exp(found["loss"]) and set(found) == {"loss", "accuracy", "perplexity"}
    smoothed = measured(nn.CrossEntropyLoss(label_smoothing=0.2), outputs, targets)
    logs = measured(nn.NLLLoss(weight=torch.rand(9, generator=G)), outputs.log_softmax(1), targets)
    assert smoothed["perplexity"] == pytest.approx(found["perplexity"], rel=1e-6) != math.exp(smoothed["loss"])
    assert logs["perplexity"] == pytest.approx(found["perplexity"], rel=1e-6)
    running = running_of(nn.CrossEntropyLoss(), "perplexity")
    running.add(torch.tensor(9e5), None, torch.tensor([0]), 1)
    assert running.result()["perplexity"] == math.inf and not running._keeps_outputs


CASES = {
    "classes": (nn.CrossEntropyLoss(), torch.randn(12, 4, generator=G), torch.randint(4, (12,), generator=G)),
    "numbers": (nn.MSELoss(), torch.randn(12, 3, generator=G), torch.randn(12, 3, generator=G)),
    "tokens": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        torch.randn(12, 4, 5, generator=G),
        torch.randint(4, (12, 5), generator=G),
    ),
    "masks": (
        nn.BCEWithLogitsLoss(),
        torch.randn(12, 2, 3, 3, generator=G),
        (torch.randn(12, 2, 3, 3, generator=G) > 0).float(),
    ),
}
NAMES = {
    "classes": ["accuracy", "f1_macro"],
    "numbers": ["mae", "r2"],
    "tokens": ["accuracy", "perplexity"],
    "masks": ["accuracy", "iou"],
}


@pytest.mark.parametrize("case", CASES)
def test_when_sums_are_taken_changes_no_bit(case):
    """Whether the work is done at the end, after each batch, or in a process that goes on from a checkpoint."""
    loss, outputs, targets = CASES[case]
    assert list(measured(loss, outputs, targets)) == ["loss", *NAMES[case]]
    whole = measured(loss, outputs, targets, NAMES[case], 3)
    assert measured(loss, outputs, targets, NAMES[case], 3, hold_batches=1) == whole
    stopped = running_of(loss, NAMES[case])
    for o, t in zip(outputs.split(3), targets.split(3), strict=True):
        state = json.loads(json.dumps(stopped.state_dict()))
        stopped = running_of(loss, NAMES[case])
        stopped.load_state_dict(state)
        stopped.add(losses.value_of(loss, o, t), o, t, len(o))
        stopped.window()
    assert stopped.result() == whole
    stopped.reset()
    assert all(map(math.isnan, stopped.result().values()))
    with pytest.raises(UsageError, match="give the saved ones"):
        running_of(loss, ["accuracy"] if case != "numbers" else ["mae"]).load_state_dict(state)


def test_micro_batches_of_several_shapes_count_as_their_parts():
    loss, outputs, targets = CASES["tokens"]
    running = running_of(loss, ["f1_macro", "perplexity"])
    running.add(torch.tensor(1.0), Parts((outputs[:5], outputs[5:, :, :2])), Parts((targets[:5], targets[5:, :2])), 12)
    alone = running_of(loss, ["f1_macro", "perplexity"])
    alone.add(torch.tensor(1.0), outputs[:5], targets[:5], 5)
    alone.add(torch.tensor(1.0), outputs[5:, :, :2], targets[5:, :2], 7)
    assert running.result()["perplexity"] == alone.result()["perplexity"]
    assert running.result()["f1_macro"] == alone.result()["f1_macro"]


@pytest.mark.parametrize(
    ("loss", "metric", "told"),
    [
        (nn.MSELoss(), "f1_macro", "MSELoss has no f1_macro; leave it out, or use a loss of classes"),
        (
            nn.CrossEntropyLoss(),
            "r2",
            "CrossEntropyLoss has no r2; leave it out, or use a loss of numbers",
        ),
        (nn.CTCLoss(), "mae", "CTCLoss has no mae"),
        (nn.PoissonNLLLoss(), "mae", "PoissonNLLLoss has no mae"),
        (nn.BCEWithLogitsLoss(), "perplexity", "BCEWithLogitsLoss has no perplexity"),
        (nn.CrossEntropyLoss(), "f1", "unknown metric 'f1'"),
    ],
)
def test_a_metric_that_a_loss_has_not_is_told(loss, metric, told):
    with pytest.raises(UsageError, match=told):
        losses.metric_options(loss, [metric])


@pytest.mark.parametrize("case", CASES)
def test_a_run_records_them_and_ends_in_the_same_numbers_after_a_stop(case, tmp_path):
    loss, outputs, targets = CASES[case]
    if case == "tokens":
        loss = nn.CrossEntropyLoss()

    class Bias(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(outputs.shape[1], *[1] * (outputs.dim() - 2)))

        def forward(self, x):
            return x + self.bias

    def run(where, epochs, resume=False):
        model = Bias()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = RunOptions(
            progress=False, tensorboard=False, lint_off=["all"], log_every=1, execution={"threads": 1},
            checkpoints=Checkpoints(keep_best=f"val/{NAMES[case][1]}"),
        )  # fmt: skip
        data = (outputs, targets)
        step = StepOptions(grad_accum_steps=2)
        return surefoot.fit(
            model, loss, optimizer, data, val=data, epochs=epochs, batch_size=3, run=options, step=step,
            run_dir=tmp_path / where, resume=resume,
        )  # fmt: skip

    whole = run("whole", 2)
    assert set(whole.metrics) == {f"{split}/{name}" for split in ("train", "val") for name in ["loss", *NAMES[case]]}
    run("part", 1)
    assert run("part", 2, resume=True).metrics == whole.metrics
    best = min if case == "tokens" else max
    records = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert whole.best.value == best(r[NAMES[case][1]] for r in records if r["split"] == "val")


def test_a_model_that_returns_its_loss_is_measured_by_its_labels():
    class Output(dict):
        __getattr__ = dict.__getitem__

    class Own(nn.Module):
        def __init__(self, size):
            super().__init__()
            self.layer = nn.Linear(4, size)

        def forward(self, inputs, labels):
            logits = self.layer(inputs)
            if labels.is_floating_point():
                loss = nn.functional.mse_loss(logits.squeeze(-1), labels)
            else:
                loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels.flatten())
            return Output(loss=loss, logits=logits)

    def names(size, labels, *shape):
        model = Own(size)
        data = {"inputs": torch.randn(8, *shape, 4), "labels": labels}
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        run = RunOptions(progress=False, lint_off=["all"], execution="plain")
        return surefoot.fit(model, None, optimizer, data, epochs=1, batch_size=4, run=run).metrics

    assert set(names(3, torch.randint(3, (8,)))) == {"train/loss", "train/accuracy", "train/f1_macro"}
    assert set(names(1, torch.randn(8))) == {"train/loss", "train/mae", "train/r2"}
    tokens = names(5, torch.randint(5, (8, 6)), 6)
    assert tokens == {"train/loss": tokens["train/loss"], "train/perplexity": math.exp(tokens["train/loss"])}


def test_a_model_that_returns_its_loss_of_masks_is_measured_by_pixels():
    class Masks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(1, 3, 1)

        def forward(self, inputs, labels):
            logits = self.layer(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    x, y = torch.randn(8, 1, 4, 5, generator=G), torch.randint(3, (8, 4, 5), generator=G)
    model, run = Masks(), RunOptions(progress=False, lint_off=["all"], execution="plain")
    data = {"inputs": x, "labels": y}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    surefoot.fit(model, None, optimizer, data, epochs=1, batch_size=4, run=run)
    found, expected = (surefoot.evaluate(*what).metrics for what in ((model, None, data), (model.layer, CE, (x, y))))
    assert found == expected and set(found) == {"loss", "accuracy", "iou"}


CE = nn.CrossEntropyLoss()
# Sequences of one length in a batch, and of others in the next.
NAMES_OF_CLASSES = ["accuracy", "f1_macro"]
LENGTHS = (5, 3, 7, 3, 1, 7)


def sequences(loss, metrics, targets_of):
    running = running_of(loss, metrics)
    pairs = []
    for length in LENGTHS:
        outputs = torch.randn(4, length, generator=G)
        pairs.append((outputs, targets_of(outputs)))
        running.add(loss(*pairs[-1]), *pairs[-1], 4)
        state, running = running.state_dict(), running_of(loss, metrics)
        running.load_state_dict(json.loads(json.dumps(state)))
    return running.result(), pairs


def test_numbers_of_sequences_whose_length_changes_are_one_column():
    found, pairs = sequences(nn.MSELoss(), ["mae", "r2"], lambda outputs: torch.randn(outputs.shape, generator=G))
    o, t = (torch.cat([pair[k].flatten() for pair in pairs]) for k in (0, 1))
    expected = measured(nn.MSELoss(), o, t)
    assert {k: found[k] for k in ("mae", "r2")} == pytest.approx({k: expected[k] for k in ("mae", "r2")}, rel=1e-12)


def test_labels_of_sequences_whose_length_changes_are_one_label():
    loss = nn.BCEWithLogitsLoss()
    found, pairs = sequences(
        loss, NAMES_OF_CLASSES, lambda outputs: (torch.rand(outputs.shape, generator=G) > 0.5).float()
    )
    o, t = (torch.cat([pair[k].flatten() for pair in pairs]) for k in (0, 1))
    expected = measured(loss, o, t)
    assert (found["accuracy"], found["f1_macro"]) == (expected["accuracy"], expected["f1_macro"])


def test_positions_to_choose_from_may_be_more_in_one_batch_than_in_the_next():
    loss = nn.CrossEntropyLoss()
    found, pairs = sequences(loss, NAMES_OF_CLASSES, lambda outputs: torch.randint(outputs.shape[1], (4,), generator=G))
    confusion = torch.zeros(7, 7)
    for outputs, targets in pairs:
        confusion.index_put_((targets, outputs.argmax(1)), torch.ones(4), accumulate=True)
    assert found["f1_macro"] == pytest.approx(f1(confusion))


def own_loss(outputs, targets):
    return outputs.square().mean()


def test_a_loss_of_ones_own_is_measured_where_only_one_reading_fits():
    scores, classes = torch.randn(6, 4, generator=G), torch.randint(4, (6,), generator=G)
    names = ["accuracy", "f1_macro", "perplexity"]
    expected = measured(CE, scores, classes, names)
    column = measured(own_loss, scores, classes[:, None], names)
    assert {k: column[k] for k in names} == pytest.approx({k: expected[k] for k in names})
    tokens, words = torch.randn(6, 5, 4, generator=G), torch.randint(4, (6, 5), generator=G)
    expected = measured(CE, tokens.movedim(-1, 1), words, names)
    last = measured(own_loss, tokens, words, names)
    assert {k: last[k] for k in names} == pytest.approx({k: expected[k] for k in names})


@pytest.mark.parametrize(
    ("outputs", "targets", "metric", "told"),
    [
        (
            torch.zeros(4, 1),
            torch.ones(4, 1),
            "accuracy",
            r"outputs \(4, 1\) float32 .*: expected a score for each class",
        ),
        (torch.zeros(4), torch.ones(4), "f1_macro", "expected a score for each class"),
        (torch.zeros(4, 3), torch.ones(4, 3), "iou", "expected classes, or probabilities that sum to 1"),
        (torch.zeros(4, 2), torch.full((4, 2), 0.5), "perplexity", "expected classes"),
        (torch.zeros(4, 3), torch.zeros(4, 2).long(), "accuracy", r"expected targets \(4,\) beside these outputs"),
        ((torch.zeros(4, 3), 1), torch.zeros(4).long(), "accuracy", "expected tensors, scores"),
        (torch.zeros(4, 2), torch.zeros(4, 1), "mae", "mae cannot be computed .*: expected as many numbers"),
        ({"y": torch.zeros(4)}, torch.zeros(4), "r2", r"outputs {y: \(4,\) float32}"),
    ],
)
def test_a_loss_of_ones_own_whose_outputs_can_be_read_otherwise_is_refused_on_the_first_batch(
    outputs, targets, metric, told
):
    with pytest.raises(UsageError, match=told):
        running_of(own_loss, [metric]).add(torch.tensor(1.0), outputs, targets, 4)


def test_it_is_refused_before_anything_is_spent(tmp_path):
    model = nn.Linear(3, 1)
    data, run = (torch.randn(8, 3, generator=G), torch.ones(8, 1)), RunOptions(progress=False, lint_off=["all"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="expected a score for each class"):
        surefoot.fit(
            model, own_loss, optimizer, data, epochs=1, metrics=["accuracy"], run=run, run_dir=tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("turned", [False, True])
def test_what_any_part_of_a_sum_leaves_out_is_left_out(turned):
    parts = [(1.0, own_loss), (1.0, nn.CrossEntropyLoss(ignore_index=2))]
    loss = losses.WeightedSum(parts[::-1] if turned else parts)
    targets = torch.tensor([0, 2, 2, 1])
    assert measured(loss, torch.eye(3)[[0, 1, 1, 1]], targets, ["accuracy"])["accuracy"] == 1


def test_a_set_of_names_has_one_order_in_every_process():
    names = ["perplexity", "iou", "f1_macro", "accuracy"]
    assert running_of(CE, set(names)).own_names == running_of(CE, frozenset(names)).own_names == tuple(sorted(names))


def test_perplexity_of_probabilities_is_refused_before_anything_is_spent(tmp_path):
    model, run = nn.Linear(3, 2), RunOptions(progress=False, lint_off=["all"])
    data = (torch.randn(8, 3, generator=G), torch.full((8, 2), 0.5))
    optimizer, loss = torch.optim.SGD(model.parameters(), lr=0.1), nn.CrossEntropyLoss(label_smoothing=0.1)
    where = {"run": run, "run_dir": tmp_path / "run"}
    with pytest.raises(UsageError, match="perplexity needs class indices"):
        surefoot.fit(model, loss, optimizer, data, epochs=1, metrics=["perplexity"], **where)
    assert not (tmp_path / "run").exists()
