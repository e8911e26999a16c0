"""The bits of a run do not depend on how many processes train it: parameters, optimizer and moving average."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import math

import pytest
import torch
from ranks import RanksFailed, by_sockets, linux_on_x86, run_ranks
from torch import nn

import surefoot
from surefoot.data import Loader
from surefoot.errors import UsageError
from surefoot.micro_batches import Division
from surefoot.nonfinite import NonFinite
from surefoot.step import StepOptions, TrainStep
from surefoot.training.loop import grouped
from surefoot.world import World

SAMPLES, BATCH, STEPS = 96, 13, 14


class Net(nn.Module):
    """Dropout, LayerNorm, a layer that is used twice, one that joins late, and one that nothing uses."""

    def __init__(self, unused=False):
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(6, 16), nn.LayerNorm(16), nn.Dropout(0.3)
        self.twice, self.late, self.last = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        self.unused = nn.Linear(2, 2) if unused else None

    def forward(self, x):
        x = self.drop(self.norm(torch.relu(self.first(x))))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.last(self.drop(self.late(x)))


class Margins(nn.Module):
    """A loss with a parameter of its own, which no wrapper of the model knows."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, outputs, targets):
        return nn.functional.cross_entropy(outputs * self.scale, targets)


class Moving(Net):
    """A buffer that each pass binds anew, one whose numbers all lie in one place, and one that torch does not send."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(6))
        self.register_buffer("ones", torch.ones(1).expand(6), persistent=False)
        self.register_buffer("passes", torch.zeros(1, dtype=torch.int16))

    def forward(self, x):
        self.passes += 1
        self.centre = 0.9 * self.centre + 0.1 * x.mean(0)
        return super().forward((x - self.centre) * self.ones)


class Centred(nn.Module):
    """A loss with a buffer that each call moves."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3))

    def forward(self, outputs, targets):
        loss = nn.functional.cross_entropy(outputs - self.centre, targets)
        with torch.no_grad():
            self.centre.lerp_(outputs.mean(0), 0.1)
        return loss


def whole(model, batch):
    """An objective that says what its mean is over, and calls the model by itself."""
    inputs, targets = batch
    return {
        "loss": nn.functional.cross_entropy(model(inputs), targets),
        "weight": targets.sum() + 1,
        "x": targets.sum(),
    }


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def lbfgs(parameters):
    return torch.optim.LBFGS(parameters, lr=0.1, max_iter=3)


WEIGHTS = torch.tensor([0.2, 1.0, 3.0])
# Model, loss, optimizer, settings.
CASES = {
    "AdamW": (Net, nn.CrossEntropyLoss, adamw, {"ema_decay": 0.9, "max_grad_norm": 0.5}),
    "SGD, accumulated": (Net, nn.CrossEntropyLoss, sgd, {"ema_decay": 0.9, "grad_accum_steps": 3}),
    "class weights, bf16": (Net, lambda: nn.CrossEntropyLoss(weight=WEIGHTS), sgd, {"precision": "bf16"}),
    "fp16": (Net, nn.CrossEntropyLoss, sgd, {"precision": "fp16"}),
    "loss with a parameter": (Net, Margins, adamw, {"clip_value": 0.1}),
    "buffers": (Moving, Centred, sgd, {}),
    "objective": (Net, lambda: surefoot.objective(whole), adamw, {}),
    "unused parameters": (lambda: Net(unused=True), nn.CrossEntropyLoss, adamw, {"set_to_none": False}),
    "L-BFGS": (Net, nn.CrossEntropyLoss, lbfgs, {}),
}


def data():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(SAMPLES, 6, generator=generator), torch.randint(0, 3, (SAMPLES,), generator=generator)


def digest(*states):
    file = io.BytesIO()
    for state in states:
        for leaf in torch.utils._pytree.tree_leaves(state):
            file.write(leaf.numpy().tobytes() if isinstance(leaf, torch.Tensor) else repr(leaf).encode())
    return hashlib.sha256(file.getvalue()).hexdigest()[:16]


class Run:
    """A loop by hand: as `fit` divides batches and steps, without its records."""

    def __init__(self, world, case, parts, wrap=lambda model: model):
        kind, loss, optimizer, options = CASES[case]
        torch.manual_seed(0)
        model, loss = kind(), loss()
        model.late.requires_grad_(False)
        parameters = [*model.parameters(), *(loss.parameters() if isinstance(loss, nn.Module) else ())]
        self.model, self.optimizer = model, optimizer(parameters)
        self.step = TrainStep(wrap(model), loss, self.optimizer, StepOptions(**options), world=world, seed=5)
        self.loader = Loader(data(), BATCH, seed=1)
        self.loader.divide(parts, world.rank, world.size)
        self.losses = []

    def train(self, steps, late=STEPS // 2):
        done = len(self.losses)
        while done < steps:
            for group in grouped(self.loader, self.step.options.grad_accum_steps):
                if done == late:
                    self.model.late.requires_grad_(True)
                self.losses.append(self.step(group).loss)
                done += 1
                if done == steps:
                    break
        return self

    def parts(self):
        more = [part for part in (self.step.ema, self.step.loss) if isinstance(part, nn.Module)]
        return [self.model, self.optimizer, self.step, self.loader, *more]

    def resumed(self, world, case, parts):
        """Another run that goes on from here, whatever its process has drawn."""
        other = Run(world, case, parts)
        for mine, its in zip(self.parts(), other.parts(), strict=True):
            its.load_state_dict(copy.deepcopy(mine.state_dict()))
        other.losses = list(self.losses)
        torch.manual_seed(99)
        return other

    def digest(self):
        extra = [] if self.step.ema is None else [self.step.ema.module.state_dict()]
        loss = self.step.loss.state_dict() if isinstance(self.step.loss, nn.Module) else {}
        return digest(self.model.state_dict(), self.optimizer.state_dict()["state"], loss, *extra)


def digests(world, parts, cases=tuple(CASES)):
    """Of runs that were never stopped, and whether one that was stopped after step 5 ends as they do."""
    torch.set_num_threads(1)
    found = {}
    for case in cases:
        found[case] = Run(world, case, parts).train(STEPS).digest()
        if world.size > 1:
            again = Run(world, case, parts).train(5).resumed(world, case, parts).train(STEPS).digest()
            assert again == found[case], f"{case}: resumed"
    return found


def digests_by_sockets(world, parts, cases):
    return digests(by_sockets(world), parts, cases)


@pytest.mark.parametrize("parts", [4, 3, 6])
def test_any_number_of_ranks_gives_the_bits_of_one_process_stopped_or_not(parts):
    """From 3 ranks on DistributedDataParallel by itself does not: its first reduction has another layout."""
    cases = tuple(CASES) if parts == 4 else ("AdamW", "SGD, accumulated")
    alone = digests(World.alone(), parts, cases)
    assert len(set(alone.values())) == len(cases)
    for size in (2, 4) if parts == 4 else (3,):
        for kind in (digests, digests_by_sockets) if size < 4 else (digests,):
            for rank in run_ranks(size, kind, parts, cases):
                assert rank == alone, kind.__name__


def begun(world):
    """What an objective holds, of ranks that have made it at random."""
    torch.manual_seed(world.rank)
    model, critic = nn.Linear(3, 2), nn.Linear(2, 1)

    def criticised(model, batch):
        return critic(model(batch[0])).square().mean()

    optimizer = torch.optim.SGD([*model.parameters(), *critic.parameters()], lr=0.1)
    TrainStep(model, surefoot.objective(criticised), optimizer, world=world)
    return digest(model.state_dict()), digest(critic.state_dict())


def test_ranks_begin_with_rank_0s_values_of_all_that_an_objective_holds():
    first, second = run_ranks(2, begun)
    assert first == second == begun(World.alone())


def bad_batches(world, precision):
    """A loss, then a gradient, that is not finite on rank 1 alone: what each rank is told, and what it has then."""
    torch.set_num_threads(1)
    step = Run(world, "fp16" if precision == "fp16" else "loss with a parameter", 4).step
    step.options = dataclasses.replace(step.options, on_nonfinite="skip")
    group = next(grouped(Loader((torch.ones(8, 6), torch.zeros(8, dtype=torch.long)), 8), 1))[0]
    told = []
    for bad in (math.inf, 1e30, 1.0):
        parts = Division(4, world.rank, world.size).given([group] * (4 // world.size), 8)
        if 2 in parts.numbers:
            at = parts.numbers.index(2)
            parts[at] = (group[0] * bad, group[1])
        before = digest(step.model.state_dict())
        try:
            updated = step([parts]).updated
        except NonFinite as error:
            updated = str(error)
        told.append((updated, digest(step.model.state_dict()) == before))
    return told, digest(step.model.state_dict(), step.optimizer.state_dict()["state"])


@pytest.mark.parametrize("precision", ["float32", "fp16"])
def test_a_loss_that_is_not_finite_on_one_rank_is_everybodys(precision):
    alone = bad_batches(World.alone(), precision)
    ranks = run_ranks(2, bad_batches, precision)
    assert ranks[0] == ranks[1] == alone
    (first, kept), *_, last = alone[0]
    assert first == "the loss is nan" and kept and last == (True, False)


def wrapped_by_hand(world, parts):
    """Models given as DistributedDataParallel, by the user or by `World.wrap`, alone or compiled."""
    torch.set_num_threads(1)
    ddp = nn.parallel.DistributedDataParallel
    ways = {
        "ddp": ddp,
        "finds unused": lambda model: ddp(model, find_unused_parameters=True),
        "wrapped": world.wrap,
        "compiled": lambda model: torch.compile(ddp(model), backend="eager"),
    }
    runs = {name: Run(world, "AdamW", parts, wrap).train(4, late=99) for name, wrap in ways.items()}
    assert runs["ddp"].step.divided.reduction.called(last=True) is runs["ddp"].step.model
    assert runs["compiled"].step.divided.reduction.called(last=True) is runs["compiled"].step.model
    return {name: run.digest() for name, run in runs.items()}


def test_a_model_given_as_ddp_trains_to_the_same_bits():
    torch.set_num_threads(1)  # as each rank does
    alone = Run(World.alone(), "AdamW", 2).train(4, late=99).digest()
    for rank in run_ranks(2, wrapped_by_hand, 2):
        assert set(rank.values()) == {alone}, rank


class Two(World):
    """Another rank that nobody may ask."""

    size = 2


def test_a_model_that_shares_its_steps_otherwise_is_refused_before_anything_is_exchanged():
    model = nn.Sequential(nn.DataParallel(nn.Linear(2, 2)))
    with pytest.raises(UsageError, match="a DataParallel cannot be trained by several processes here"):
        TrainStep(model, nn.MSELoss(), sgd(model.parameters()), world=Two())


def test_a_sparse_buffer_is_refused_before_anything_is_exchanged():
    model = nn.Linear(2, 2)
    model.register_buffer("graph", torch.eye(3).to_sparse())
    with pytest.raises(UsageError, match=r"its sparse buffer of shape \(3, 3\) cannot be shared by several processes"):
        TrainStep(model, nn.MSELoss(), sgd(model.parameters()), world=Two())


class Leaves(Net):
    """Leaves a layer out of some batches."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) if self.calls < 3 else self.last(self.first(x))


def leaves_out(world, sockets=False):
    CASES["leaves out"] = (Leaves, nn.CrossEntropyLoss, sgd, {})
    return Run(by_sockets(world) if sockets else world, "leaves out", 2).train(4, late=99).digest()


def test_a_parameter_that_a_batch_leaves_out_is_named():
    with pytest.raises(RanksFailed, match="this batch gave norm.weight no gradient on rank 0, though earlier ones did"):
        run_ranks(2, leaves_out, True)


@linux_on_x86
def test_in_shared_memory_a_batch_may_leave_parameters_out():
    left_out = [run_ranks(2, leaves_out), run_ranks(2, leaves_out)]
    assert len({digest for ranks in left_out for digest in ranks}) == 1


def test_micro_batches_change_bits_and_nothing_else():
    one, four = (Run(World.alone(), "AdamW", parts) for parts in (1, 4))
    one.model.drop.p = four.model.drop.p = 0.0
    one.train(3, late=99), four.train(3, late=99)
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4)


COLLECTIVES = ("all_reduce", "all_gather", "all_gather_object", "all_to_all_single", "broadcast", "barrier")


def counted(name, function, counts):
    def call(*args, **kwargs):
        counts[name] = counts.get(name, 0) + 1
        return function(*args, **kwargs)

    return call


def exchanges(world, ignored, sockets):
    """What a rank exchanges in 5 updates, once each parameter was reached."""
    torch.set_num_threads(1)
    world = by_sockets(world) if sockets else world
    x, y = data()
    y = torch.where(torch.arange(SAMPLES) % 7 == 0, -100, y) if ignored else y
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    step = TrainStep(model, nn.CrossEntropyLoss(), sgd(model.parameters()), world=world)
    loader = Loader((x, y), 12)
    loader.divide(2, world.rank, world.size)
    updates = [[batch] for batch in loader]
    for update in updates[:2]:
        step(update)
    counts = {}
    with pytest.MonkeyPatch.context() as patch:
        for name in COLLECTIVES:
            patch.setattr(torch.distributed, name, counted(name, getattr(torch.distributed, name), counts))
        for update in updates[2:7]:
            step(update)
    return counts


def test_ranks_exchange_gradients_and_counts_only_where_targets_are_ignored():
    """One bucket an update; the shares of rows are known, and nothing is agreed on beside."""
    assert run_ranks(2, exchanges, False, True) == [{"all_reduce": 5}] * 2
    assert run_ranks(2, exchanges, True, True) == [{"all_reduce": 5, "all_gather": 5}] * 2


@linux_on_x86
def test_in_shared_memory_nothing_is_sent():
    assert run_ranks(2, exchanges, False, False) == [{}] * 2
