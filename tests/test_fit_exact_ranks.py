"""fit on several ranks ends in the bits of one process: parameters, optimizer, records, evaluations, files."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal

import pytest
import torch
from ranks import run_ranks
from torch import nn
from torch.utils.data import IterableDataset

import surefoot
from surefoot.data import DatasetSource, Loader, StreamSource
from surefoot.errors import Stopped, UsageError
from surefoot.tracking import Progress
from surefoot.world import World

PARTS = 4


class Net(nn.Module):
    """Dropout and normalization by rows; of images, rows or padded sequences."""

    def __init__(self, norm=lambda: nn.LayerNorm(16)):
        super().__init__()
        self.first, self.norm, self.drop, self.last = nn.LazyLinear(16), norm(), nn.Dropout(0.3), nn.Linear(16, 3)

    def forward(self, x):
        return self.last(self.drop(self.norm(torch.relu(self.first(x.flatten(1))))))


class Normalized(Net):
    """With running statistics, and a weight that is divided by an estimate that each forward pass betters."""

    def __init__(self):
        super().__init__(lambda: nn.BatchNorm1d(16))
        self.last = nn.utils.parametrizations.spectral_norm(self.last)


def rows(n, classes=3):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, 6, generator=generator), torch.randint(0, classes, (n,), generator=generator)


class Drawing:
    """A Dataset that draws."""

    def __len__(self):
        return 37

    def __getitem__(self, index):
        x, y = rows(37)
        return x[index] + 0.1 * torch.randn(6), y[index]


class Numbers(IterableDataset):
    """A stream without a state that draws."""

    def __iter__(self):
        for x, y in zip(*rows(37), strict=True):
            yield x + 0.1 * torch.randn(6), y


def padded(samples):
    """A batch of a collate function that draws; sequences of several lengths would be padded here."""
    return torch.stack([x for x, _ in samples]) * torch.rand(1), torch.stack([y for _, y in samples])


def lopsided():
    x, y = rows(37)
    y[torch.arange(37) % 9 < 5] = -100
    y[36] = 1
    return x, y


def counted(model, batch):
    loss = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
    return {"loss": loss[:2].mean(), "weight": batch[1].sum() + 1, "most": loss.max()}


def steps(**options):
    return {"step": surefoot.StepOptions(**options)}


def share_of_right(outputs, targets):
    return (outputs.argmax(1) == targets).float().mean()


WEIGHT = torch.tensor([0.2, 1.0, 3.0])
# What is given to fit beside the model: the loss, the data, further arguments.
CASES = {
    "clipped, averaged, accumulated": (
        nn.CrossEntropyLoss(label_smoothing=0.1),
        lambda: rows(37),
        steps(grad_accum_steps=2, max_grad_norm=0.5, ema_decay=0.9),
    ),
    "lopsided": (
        nn.CrossEntropyLoss(weight=WEIGHT),
        lambda: Loader(lopsided(), 9, shuffle=False),
        {},
    ),
    "a data set that draws": (nn.CrossEntropyLoss(), lambda: Loader(DatasetSource(Drawing(), collate=padded), 9), {}),
    "an objective": (surefoot.objective(counted), lambda: rows(37), {}),
    "fewer rows than ranks": (nn.CrossEntropyLoss(), lambda: Loader(rows(11), 3), {}),
    "batch normalization, accumulated": (
        nn.CrossEntropyLoss(),
        lambda: Loader(rows(37), 9, drop_last=True),
        {"model": Normalized, **steps(grad_accum_steps=3, ema_decay=0.9)},
    ),
    "a stream": (nn.CrossEntropyLoss(), lambda: Loader(StreamSource(Numbers()), 9), {}),
    "metrics of others": (
        nn.CrossEntropyLoss(),
        lambda: rows(37),
        {"metrics": ["auto", share_of_right]},
    ),
}


def fitted(world, folder, case, epochs=2, parts=PARTS, progress=False, parallel="ddp", **more):
    loss, data, arguments = CASES[case]
    arguments = {**arguments, **more}
    torch.manual_seed(0)
    net = arguments.pop("model", Net)()
    net(torch.zeros(2, 6))
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    run = surefoot.RunOptions(
        progress=progress,
        micro_batches=parts,
        log_every=2,
        tensorboard=False,
        execution="plain",
        world=world,
        parallel=parallel,
    )
    data = data()
    size = {} if isinstance(data, Loader) else {"batch_size": 9}
    val = Loader(rows(25), 4, shuffle=False)
    result = surefoot.fit(
        net,
        loss,
        optimizer,
        data,
        epochs=epochs,
        val=val,
        run_dir=folder,
        seed=3,
        run=run,
        **size,
        **arguments,
    )
    return digest(net.state_dict()), digest(optimizer.state_dict()), result.metrics, result.steps


def digest(state):
    whole = hashlib.sha256()
    for leaf in torch.utils._pytree.tree_leaves(state):
        leaf = leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf
        whole.update(leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return whole.hexdigest()[:16]


def records(folder):
    """The journal's records without the clock."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [{name: value for name, value in line.items() if name != "wall_s"} for line in lines]


def all_cases(world, folder, parallel="ddp"):
    return {case: fitted(world, folder / str(n), case, parallel=parallel) for n, case in enumerate(CASES)}


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a case gives in one process, and where its run is."""
    folder = tmp_path_factory.mktemp("alone")

    @functools.cache
    def of(case):
        path = folder / str([*CASES].index(case))
        return repr(fitted(World.alone(), path, case)), records(path), (path / "model/model.safetensors").read_bytes()

    return of


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_run_has_the_bits_of_one_process(alone, tmp_path, parallel):
    ranks = run_ranks(4, all_cases, tmp_path, parallel)
    for number, case in enumerate(CASES):
        result, journal, model = alone(case)
        assert [repr(one[case]) for one in ranks] == [result] * 4, case
        assert records(tmp_path / str(number)) == journal, case
        assert (tmp_path / str(number) / "model/model.safetensors").read_bytes() == model, case


# --- stopped, and gone on with by others -----------------------------------------------------------------------------


class StopAt(Progress):
    """Sends this process a SIGTERM at a step's record."""

    def __init__(self, step):
        super().__init__()
        self.step = step

    def record(self, record):
        super().record(record)
        if record["step"] == self.step and record["kind"] == "step":
            os.kill(os.getpid(), signal.SIGTERM)


def stopped(world, folder, case, at, **more):
    with pytest.raises(Stopped):
        fitted(world, folder, case, resume=True, progress=StopAt(at), **more)


def gone_on_with(world, folder, case, **more):
    return fitted(world, folder, case, resume=True, **more)


def sharded_twice(world, folder, at, **more):
    for case, path in zip(ELASTIC[:2], (folder / "a", folder / "b"), strict=True):
        stopped(world, path, case, at, parallel="fsdp2", **more)


def test_a_sharded_run_is_gone_on_with_by_any_number_of_ranks_and_ways(alone, tmp_path):
    """Four ranks in pieces, two in pieces, two with the whole model each, one process."""
    run_ranks(4, sharded_twice, tmp_path, 2)
    assert len([*max((tmp_path / "a").glob("checkpoints/step-*")).glob("model-0000?-of-00004.safetensors")]) == 4
    run_ranks(2, sharded_twice, tmp_path, 4)
    run_ranks(2, stopped, tmp_path / "b", ELASTIC[1], 6)
    for case, path in zip(ELASTIC[:2], (tmp_path / "a", tmp_path / "b"), strict=True):
        ended = gone_on_with(World.alone(), path, case, parallel="fsdp2")
        assert (repr(ended), records(path)) == alone(case)[:2]


ELASTIC = ["clipped, averaged, accumulated", "a data set that draws", "a stream"]


@pytest.mark.parametrize("case", ELASTIC)
def test_a_run_is_gone_on_with_by_any_number_of_ranks(case, alone, tmp_path):
    run = tmp_path / "run"
    run_ranks(4, stopped, run, case, 2)
    run_ranks(2, stopped, run, case, 4)
    ended = gone_on_with(World.alone(), run, case)
    assert (repr(ended), records(run)) == alone(case)[:2]


# --- the first batch -------------------------------------------------------------------------------------------------


def refused(world, what):
    net = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    x, y = rows(64)
    if what == "data of one rank" and world.rank == 1:
        y = y + 7
    run = surefoot.RunOptions(progress=False, execution="plain", world=world)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(UsageError) as caught:
        surefoot.fit(net, nn.CrossEntropyLoss(), optimizer, (x, y), epochs=1, batch_size=12, run=run)
    return str(caught.value)


def test_what_is_wrong_on_one_rank_is_told_by_all():
    first, second = run_ranks(2, refused, "data of one rank")
    assert first == second and first.startswith("rank 1: target-out-of-range")


def test_micro_batches_that_are_too_small_for_the_model_are_told_before_training():
    told = set(run_ranks(4, refused, "small micro-batches"))  # 64 rows: the last batch has 4
    assert len(
        told
    ) == 1 and "of 4 micro-batches of a batch the smallest has 1 sample, and cannot be trained on" in min(told)
