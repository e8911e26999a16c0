"""FSDP2: an update of a model in pieces has the bits of one process; what cannot be is said before anything is done."""

from __future__ import annotations

import math

import pytest
import torch
from ranks import by_sockets, linux_on_x86, run_ranks
from test_step_ranks import CASES, COLLECTIVES, Run, counted, digest
from torch import nn

from surefoot.errors import UsageError
from surefoot.micro_batches import Division
from surefoot.nonfinite import NonFinite
from surefoot.sharding import blocks, shard
from surefoot.world import World
from surefoot.wrapping import whole

STEPS = 6
SHARDED = [case for case in CASES if case != "L-BFGS"]


def gathered(state):
    return torch.utils._pytree.tree_map(
        lambda leaf: leaf.full_tensor() if hasattr(leaf, "full_tensor") else leaf, state
    )


def trained(world, parts, case):
    run = Run(world, case, parts)
    kind = type(run.model)
    if world.size > 1:
        run.step.shard()
    run.train(STEPS, late=3)
    loss = run.step.loss.state_dict() if isinstance(run.step.loss, nn.Module) else {}
    average = [] if run.step.ema is None else [gathered(run.step.ema.module.state_dict())]
    with whole(run.model):
        assert type(run.model) is kind and all(type(p) is nn.Parameter for p in run.model.parameters())
        model = digest(run.model.state_dict())
    return model, digest(gathered(run.optimizer.state_dict()["state"]), loss, *average)


def all_trained(world, plan, sockets=False):
    torch.set_num_threads(1)
    world = by_sockets(world) if sockets else world
    return {(case, parts): trained(world, parts, case) for case, parts in plan}


def test_an_update_of_a_model_in_pieces_has_the_bits_of_one_process():
    plan = [(case, 4) for case in SHARDED] + [("AdamW", 3), ("AdamW", 6), ("SGD, accumulated", 8)]
    alone = all_trained(World.alone(), plan)
    for size in (2, 3, 4):
        own = [(case, parts) for case, parts in plan if parts % size == 0 and parts // size in (1, 2, 4)]
        own = own if size > 2 else [key for key in own if key[0] in ("AdamW", "SGD, accumulated", "objective")]
        for rank in run_ranks(size, all_trained, own):
            for key, value in rank.items():
                assert value == alone[key], (size, key)
        few = [key for key in own if key[0] in ("AdamW", "SGD, accumulated")]
        for rank in run_ranks(size, all_trained, few, True):
            assert rank == {key: alone[key] for key in few}, (size, "by sockets")


def exchanges(world):
    """What two updates of a model in pieces send, once each parameter was reached."""
    run, counts = Run(world, "SGD, accumulated", 2), {}
    run.step.shard()
    run.train(2, late=99)
    with pytest.MonkeyPatch.context() as patch:
        for name in (*COLLECTIVES, "all_gather_single", "all_gather_into_tensor"):
            if hasattr(torch.distributed, name):
                patch.setattr(torch.distributed, name, counted(name, getattr(torch.distributed, name), counts))
        run.train(4, late=99)
    return counts


@linux_on_x86
def test_in_shared_memory_parameters_and_gradients_are_not_sent():
    assert run_ranks(2, exchanges) == [{}] * 2


class Leaves(nn.Module):
    """Reaches its second layer with some batches only."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.late, self.drop = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3), nn.Dropout(0)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.late(self.second(self.first(x)) if self.calls < 3 else self.first(x))


def leaves_out(world):
    CASES["leaves out"] = (Leaves, *CASES["AdamW"][1:])
    run = Run(world, "leaves out", 2)
    run.step.shard()
    with pytest.raises(UsageError) as caught:
        run.train(STEPS, late=99)
    return str(caught.value)


def test_a_parameter_that_a_batch_leaves_out_is_named():
    for rank, told in enumerate(run_ranks(2, leaves_out)):
        assert told.startswith(f"this batch reaches no second.weight on rank {rank}, and FSDP2 adds"), told


class Scaled(nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))


@pytest.mark.parametrize(
    ("model", "optimizer", "message"),
    [
        (Scaled, torch.optim.SGD, "scale is a number without dimension"),
        (lambda: nn.Conv2d(3, 3, 3).to(memory_format=torch.channels_last), torch.optim.SGD, "weight does not lie"),
        (lambda: nn.Embedding(3, 2, sparse=True), torch.optim.SGD, "has sparse gradients"),
        (
            lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()),
            torch.optim.SGD,
            "0.weight is torch.float32, 1.weight is torch.float64, and torch gathers both at once",
        ),
        (lambda: nn.Linear(2, 2), torch.optim.LBFGS, "LBFGS needs whole parameters"),
        (lambda: nn.Linear(2, 2), lambda p: torch.optim.SGD(p, fused=True), "no fused SGD for parameters in pieces"),
    ],
)
def test_what_cannot_be_kept_in_pieces_is_refused(model, optimizer, message):
    model = model()
    with pytest.raises(UsageError, match=f"parallel: fsdp2 cannot be used: .*{message}"):
        shard(model, optimizer(model.parameters()))
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_blocks_are_the_repeated_members_of_lists_that_share_nothing_with_what_is_outside():
    layers = nn.ModuleList([nn.TransformerEncoderLayer(8, 2) for _ in range(3)])
    model = nn.ModuleDict({"embed": nn.Embedding(5, 8), "layers": layers, "head": nn.Sequential(nn.Linear(8, 5))})
    assert blocks(model) == list(layers)
    layers[1].linear2.bias = layers[0].norm1.bias  # now these two share a parameter
    assert blocks(model) == [layers[2]]


def compiled_then_refused(world):
    """A compiled model after three updates, after a loss that is NaN on the last rank, and after one that is not."""
    torch.set_num_threads(1)
    run = Run(world, "AdamW", 2, lambda model: torch.compile(model, backend="eager") if world.size > 1 else model)
    if world.size > 1:
        run.step.shard()
    run.train(3, late=99)
    told, digests = [], []
    for factor in (1.0, math.nan, 1.0):
        if told:
            inputs = torch.ones(2, 6) * (factor if world.rank == world.size - 1 else 1.0)
            batches = [(inputs, torch.zeros(2, dtype=torch.long))] * (2 // world.size)
            try:
                told.append(run.step([Division(2, world.rank, world.size).given(batches, 4)]).updated)
            except NonFinite as error:
                told.append(str(error))
        else:
            told.append("trained")
        with whole(run.model):
            digests.append(digest(run.model.state_dict()))
    return told, digests


def test_a_compiled_model_trains_in_pieces_and_a_loss_that_is_not_finite_is_everybodys():
    first, second = run_ranks(2, compiled_then_refused)
    assert first == second and first[0] == ["trained", "the loss is nan", True]
    assert first[1][0] == first[1][1] != first[1][2]
    assert first[1][0] == compiled_then_refused(World.alone())[1][0]
