"""What several ranks measure has the bits of what one process measures; and each sample counts once."""

from __future__ import annotations

import contextlib
import io
import json

import pytest
import torch
import torchmetrics
from ranks import RanksFailed, run_ranks
from torch import nn

from surefoot import losses
from surefoot.checkpoint import Checkpointer
from surefoot.cli import main
from surefoot.data import DatasetSource, Loader
from surefoot.losses.averaging import shares
from surefoot.metrics import RunningMetrics
from surefoot.metrics.gathering import gathered
from surefoot.training import evaluate
from surefoot.world import World

PARTS, CLASSES = 12, 4


class InOrder:
    """A metric as torchmetrics has them, whose value shows every answer's place."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.value = torch.zeros(())

    def update(self, outputs, targets):
        for answer, truth in zip(outputs, targets, strict=True):
            self.value = self.value * 0.9 + answer.max() * truth

    def compute(self):
        return self.value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


def share_of_first(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


def labels(n):
    truth = torch.arange(n) * 7 % CLASSES
    truth[: n // 3] = -100
    return truth


def tokens(n):
    return labels(n)[:, None].expand(n, 3)


WEIGHT = torch.tensor([0.1, 0.7, 1.3, 2.9])


def numbers(n, *shape):
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(n))


def with_numbers(model, batch):
    outputs, truth = model(batch[0]), batch[1]
    return {
        "loss": (outputs - truth).square().mean(),
        "weight": (truth > 0).sum(),
        "far": (outputs - truth).abs().max(),
        "outputs": outputs,
        "targets": truth,
    }


OTHERS = [InOrder(), share_of_first]
# What each is: the loss, the metrics, the outputs and targets of n samples.
CASES = {
    "classes": (nn.CrossEntropyLoss(), "auto", lambda n: (numbers(n, CLASSES), labels(n))),
    "weighted classes": (
        nn.CrossEntropyLoss(torch.tensor([0.1, 0.7, 1.3, 2.9])),
        "auto",
        lambda n: (numbers(n, CLASSES), labels(n)),
    ),
    "tokens": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        "auto",
        lambda n: (numbers(n, CLASSES, 3), labels(n)[:, None].expand(n, 3)),
    ),
    "labels": (nn.BCEWithLogitsLoss(), "auto", lambda n: (numbers(n, 3), (numbers(n, 3) > 0).float())),
    "regression": (nn.MSELoss(), "auto", lambda n: (numbers(n, 3), numbers(n, 3) ** 2)),
    "a sum": (nn.L1Loss(reduction="sum"), "auto", lambda n: (numbers(n, 3), numbers(n, 3) ** 2)),
    "an objective": (losses.objective(with_numbers), "auto", lambda n: (numbers(n, 3), numbers(n, 3) ** 2)),
    "metrics of others": (nn.CrossEntropyLoss(), OTHERS, lambda n: (numbers(n, CLASSES), labels(n).clamp(min=0))),
}


# --- in training ----------------------------------------------------------------------------------------------------


def measuring(world, case, hold=1 << 30):
    loss, metrics, data = CASES[case]
    options = losses.metric_options(loss, metrics)
    if callable(options["own"]):
        options["own"] = options["own"](*data(2))
    confusion = {"confusion": CLASSES} if case == "classes" else {}
    return RunningMetrics(**options, **confusion, hold_bytes=hold, world=world)


def trained(world, case, n=37, hold=1 << 30):
    """What is read within and after an epoch of updates that are divided in micro-batches; resumed in the middle."""
    loss, _, data = CASES[case]
    running = measuring(world, case, hold)
    loader = Loader(data(n), 8, seed=1)
    loader.divide(PARTS, world.rank, world.size)
    read = []
    for batch in loader:
        each = zip(batch, shares(loss, batch, world), batch.rows, strict=True)
        values = [(losses.apply(loss, nn.Identity(), part, share), rows) for part, share, rows in each]
        running.add_parts([(*value[:3], rows, value.weight, value.numbers) for value, rows in values])
        if loader.position == 3:
            read.append(running.window())
            state = running.state_dict() if world.rank == 0 or running.objects else None  # rank 0 alone saves
            state = state if running.objects else world.agree(lambda state=state: state, on=0)
            running = measuring(world, case, hold)
            running.load_state_dict(state)
    return [*read, running.window(), running.result(), running.samples, running.matrix().tolist()]


def all_trained(world):
    return {case: (trained(world, case), trained(world, case, hold=1)) for case in CASES}


@pytest.mark.parametrize("size", [2, 3])
def test_updates_in_micro_batches_are_measured_as_in_one_process(size):
    alone = all_trained(World.alone())
    ranks = run_ranks(size, all_trained)
    for case, (expected, held_shortly) in alone.items():
        assert repr(held_shortly) == repr(expected), case
        assert expected[-2] == 37
        for one in ranks:
            assert repr(one[case]) == repr((expected, expected)), case


@pytest.mark.parametrize("case", CASES)
def test_micro_batches_are_measured_as_their_batches(case):
    loss, _, data = CASES[case]
    running = measuring(World.alone(), case)
    for batch in Loader(data(37), 8, seed=1):
        value = losses.apply(loss, nn.Identity(), batch)
        running.add(*value[:3], len(batch[0]), value.weight, value.numbers)
    expected, of_parts = running.result(), trained(World.alone(), case)[2]
    assert of_parts.keys() == expected.keys()
    for name in {*expected} - {"far"}:  # this is a batch's own
        assert of_parts[name] == pytest.approx(expected[name], rel=1e-5), name


def saved(world, folder):
    """The epoch's means: of a run that is stopped in the middle, and gone on with from its checkpoint."""
    _, _, data = CASES["regression"]
    for stop in (3, 5):
        loader, running, model = Loader(data(37), 8), measuring(world, "regression"), nn.Linear(1, 1)
        loader.divide(PARTS, world.rank, world.size)
        about = {"model": model, "loader": loader, "running": running, "world": world, "signals": False}
        with Checkpointer(folder, every="1 steps", **about) as checkpointer:
            checkpointer.resume()
            for batch in loader:
                each = zip(batch, batch.rows, strict=True)
                running.add_parts([(x.mean() * rows / batch.samples, x, y, rows) for (x, y), rows in each])
                checkpointer.step()
                if loader.position == stop:
                    break
    return running.result()


def test_a_checkpoint_holds_what_all_ranks_have_measured(tmp_path):
    alone = saved(World.alone(), tmp_path / "one")
    assert run_ranks(2, saved, tmp_path / "two") == [alone, alone]


# --- in evaluation --------------------------------------------------------------------------------------------------


class Noisy:
    """A Dataset that draws, whose batches are padded to several lengths."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return torch.full((1 + index % 5,), float(index)) + torch.rand(1), torch.tensor(index % 3)


def padded(samples):
    return nn.utils.rnn.pad_sequence([x for x, _ in samples], True), torch.stack([y for _, y in samples])


class Normalized(nn.Module):
    """Whose buffers differ between ranks, as after training."""

    def __init__(self, rank):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.head = nn.BatchNorm1d(1), nn.Linear(1, 3)
        self.norm.running_mean += rank
        self.norm.num_batches_tracked += rank

    def forward(self, x):
        return self.head(self.norm(x.mean(1, keepdim=True)))


def evaluated(world):
    """Evaluations of data sets of several sizes, fewer batches than ranks among them."""
    results = {}
    for n in (1, 5, 29):
        model = Normalized(world.rank)
        data = DatasetSource(Noisy(n), collate=padded)
        metrics = ["auto", "perplexity", *OTHERS]
        loader = Loader(data, min(n, 4), shuffle=False)
        results[n] = evaluate(model, nn.CrossEntropyLoss(), loader, metrics=metrics, confusion=3, world=world)
        assert model.norm.running_mean == 0 and model.norm.num_batches_tracked == 0
        x = numbers(n, 3)
        results["in memory", n] = evaluate(nn.Identity(), nn.MSELoss(), (x, x**2), batch_size=min(n, 4), world=world)
    matrices = [None if one.confusion is None else one.confusion.tolist() for one in results.values()]
    return [(name, one.metrics, one.samples, m) for (name, one), m in zip(results.items(), matrices, strict=True)]


@pytest.mark.parametrize("size", [3, 4])
def test_an_evaluation_counts_each_sample_once_and_has_the_bits_of_one_process(size):
    alone = evaluated(World.alone())
    assert [samples for _, _, samples, _ in alone] == [1, 1, 5, 5, 29, 29]
    assert [sum(map(sum, matrix)) for _, _, _, matrix in alone[::2]] == [1, 5, 29]
    for one in run_ranks(size, evaluated):
        assert repr(one) == repr(alone)


def of_torchmetrics(world):
    """Its metrics would gather by themselves what each rank has been given of all."""
    counts = {"name": "ConfusionMatrix", "task": "multiclass", "num_classes": 3}  # no ratio: what is twice there shows
    nested = torchmetrics.MetricCollection([torchmetrics.StatScores(task="multiclass", num_classes=3)])
    metrics = [counts, nested]
    x = numbers(29, 3)
    return evaluate(nn.Identity(), nn.CrossEntropyLoss(), (x, x.argmin(1)), batch_size=4, metrics=metrics, world=world)


def test_torchmetrics_metrics_count_each_sample_once():
    assert [one.metrics for one in run_ranks(2, of_torchmetrics)] == [of_torchmetrics(World.alone()).metrics] * 2


def eval_command(world, folder, *words):
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert main(["eval", f"{folder}/model", "--data", f"{folder}/rows.csv", "--trust-code", *words]) == 0
    return out.getvalue()


def test_the_eval_command_on_several_ranks_prints_once_what_one_process_prints(tmp_path):
    (tmp_path / "rows.csv").write_text("a,b,y\n" + "".join(f"{k},{k % 7},{k * 0.5}\n" for k in range(1100)))
    recipe = (
        f"data: {{name: csv, path: {tmp_path}/rows.csv, target: y}}\nmodel: {{name: MLP, hidden: [4]}}\n"
        "loss: MSELoss\noptimizer: {name: SGD, lr: 0.001}\nepochs: 1\n"
    )
    (tmp_path / "recipe.yaml").write_text(recipe)
    assert main(["train", f"{tmp_path}/recipe.yaml", "--run", f"{tmp_path}/model"]) == 0
    alone = eval_command(World.alone(), tmp_path, "--json")
    assert json.loads(alone)["samples"] == 1100
    assert run_ranks(2, eval_command, tmp_path, "--json") == [alone, ""]


def boxes(world):
    def found(model, batch):
        return {"loss": batch[0].mean(), "outputs": {"boxes": batch[0]}, "targets": batch[1]}

    data = numbers(8, 2), numbers(8, 2)
    evaluate(nn.Identity(), losses.objective(found), data, metrics=[lambda o, t: 1.0], world=world)


def test_a_metric_whose_answers_cannot_be_exchanged_is_refused():
    with pytest.raises(RanksFailed, match=r"metrics: .*the answers of all go to each, as tensors; found \{boxes"):
        run_ranks(2, boxes)


DTYPES = [torch.float32, torch.bfloat16, torch.int64, torch.bool, torch.uint8]


def exchanged(world):
    own = [torch.arange(k + world.rank).to(dtype) for k, dtype in enumerate(DTYPES)] + [torch.tensor(1.5 * world.rank)]
    ranks = gathered(world, own[: len(own) - world.rank])
    return [[(tensor.dtype, tensor.tolist()) for tensor in one] for one in ranks]


def test_tensors_of_any_number_shape_and_dtype_are_exchanged():
    first, second = run_ranks(2, exchanged)
    assert first == second
    assert [dtype for dtype, _ in first[0]] == [*DTYPES, torch.float32] and [d for d, _ in first[1]] == DTYPES
    assert [values for _, values in first[0]] == [[], [0], [0, 1], [False, True, True], [0, 1, 2, 3], 0]
    assert [values for _, values in first[1]][2:] == [[0, 1, 2], [False, True, True, True], [0, 1, 2, 3, 4]]
