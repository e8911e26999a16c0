"""Compiled forms and measured settings on several ranks: the bits of one process, and one decision for all."""

from __future__ import annotations

import contextlib
import dataclasses
import functools

import pytest
import torch
from ranks import run_ranks
from test_fit_exact_ranks import Normalized, digest, rows
from torch import nn

import surefoot
from surefoot.data import Loader
from surefoot.execution import Execution, compiled, measure, parts
from surefoot.execution.choose import choose_execution, tune
from surefoot.execution.measure import Bench, Trial
from surefoot.execution.settings import as_torch_would
from surefoot.losses import WeightedSum
from surefoot.step import StepOptions, TrainStep
from surefoot.tracking import Progress
from surefoot.world import World

FIXED = {"threads": 1, "onednn": True, "memory_format": "contiguous", "optimizer_impl": "default"}
PARTS = 4
LOSSES = {
    "plain": nn.CrossEntropyLoss,
    "ignored": lambda: nn.CrossEntropyLoss(ignore_index=1),
    "sum": lambda: WeightedSum([(1.0, nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))), (0.5, nn.NLLLoss())]),
}


class Says(Progress):
    def __init__(self):
        super().__init__()
        self.said = []

    def message(self, text):
        self.said.append(text)


@contextlib.contextmanager
def without_inductor(fails=False):
    """Graphs are run as they were traced, `torch.compile` as dynamo takes the model apart; how often each was."""
    calls = {"graph": 0, "module": 0}

    def lowered(graph, arguments):
        if fails:
            raise RuntimeError("this compiler is broken")
        return graph

    def broken(graph, arguments):
        raise RuntimeError("this compiler is broken")

    def counted(kind, call):
        def run(self, *arguments):
            calls[kind] += 1
            return call(self, *arguments)

        return run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "by_inductor", lowered)
        patch.setattr(torch, "compile", functools.partial(torch.compile, backend=broken if fails else "eager"))
        for kind, part in (("graph", parts.GraphPart), ("module", parts.ModulePart)):
            patch.setattr(part, "__call__", counted(kind, part.__call__))
        yield calls


class Layer(nn.Module):
    """Each has a number of its own, for which code is made anew."""

    def __init__(self, number):
        super().__init__()
        self.number, self.inner, self.drop = number, nn.Linear(6, 6), nn.Dropout(0.2)

    def forward(self, x):
        return x + self.drop(torch.relu(self.inner(x))) / (1 + self.number)


class Layered(nn.Module):
    """More layers than dynamo makes code for of one method, unless it is told to."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(Layer(number) for number in range(10))
        self.head = nn.Linear(6, 3)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def fitted(world, form, loss="plain", fails=(), accumulated=1, parallel="ddp", kind=Normalized, optimizer="SGD"):
    """30 rows in batches of 9: micro-batches of 2 and of 3 rows, of which those of 2 are compiled."""
    torch.manual_seed(0)
    net = kind()
    net(torch.zeros(2, 6))
    says = Says()
    run = surefoot.RunOptions(
        progress=says,
        micro_batches=PARTS,
        execution={**FIXED, "compile": form},
        world=world,
        lint_off=["all"],
        parallel=parallel,
    )
    with without_inductor(world.rank in fails) as calls:
        surefoot.fit(
            net,
            LOSSES[loss](),
            torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9),
            Loader(rows(30), 9, drop_last=True),
            epochs=2,
            seed=3,
            metrics=(),
            run=run,
            step=StepOptions(grad_accum_steps=accumulated),
        )
    assert not [name for module in net.modules() for name in vars(module) if name == "forward"]
    return digest(net.state_dict()), {kind: n > 0 for kind, n in calls.items() if n}, says.said


CASES = [("gradients", "plain", 1), ("gradients", "ignored", 2), ("gradients", "sum", 1), ("module", "plain", 1)]


def all_cases(world):
    torch.set_num_threads(1)
    runs = [fitted(world, form, loss, accumulated=n) for form, loss, n in CASES]
    assert not [line for *_, said in runs for line in said if "is not used" in line]
    return [run[:2] for run in runs]


def test_a_compiled_form_has_the_same_bits_on_any_number_of_ranks():
    alone = all_cases(World.alone())
    assert [used for _, used in alone] == [{"graph": True}] * 3 + [{"module": True}]
    for size in (2, 4):
        for rank in run_ranks(size, all_cases):
            assert [bits for bits, _ in rank] == [bits for bits, _ in alone]


# --- a model under FSDP2 ---------------------------------------------------------------------------------------------


def in_pieces(world):
    torch.set_num_threads(1)
    runs = [
        fitted(world, form, parallel="fsdp2", kind=kind) for form, kind in (("module", Normalized), (True, Layered))
    ]
    assert not [line for *_, said in runs for line in said if "not compiled" in line or "is not used" in line]
    return [run[:2] for run in runs]


def test_a_model_in_pieces_is_compiled_as_a_module_with_the_same_bits():
    alone = in_pieces(World.alone())
    assert [used for _, used in alone] == [{"module": True}] * 2
    for rank in [*run_ranks(2, in_pieces), *run_ranks(4, in_pieces)]:
        assert [bits for bits, _ in rank] == [bits for bits, _ in alone]
        assert any(used for _, used in rank)


def falls_back(world, form, parallel):
    torch.set_num_threads(1)
    return fitted(world, form, fails=(1,), parallel=parallel), fitted(world, "none")[0]


@pytest.mark.parametrize(("form", "parallel"), [("gradients", "ddp"), ("module", "fsdp2")])
def test_what_one_rank_cannot_compile_none_does(form, parallel):
    first, second = run_ranks(2, falls_back, form, parallel)
    for (bits, _, said), plain in (first, second):
        assert bits == plain
        assert said == [] or any("this compiler is broken" in line for line in said), said
    assert first[0][2]


def refused(world):
    """A run that cannot be gone on with in its form: the error is everybody's, before any step."""
    net = nn.Linear(6, 3)
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), world=world)
    loader = Loader(rows(30), 8)
    loader.divide(2, world.rank, world.size)
    with without_inductor(world.rank == 1), pytest.raises(surefoot.execution.CannotCompile) as caught:
        parts.verified_part(Execution(compile="gradients"), step, [loader.first_parts()])
    return str(caught.value)


def test_a_refusal_names_its_rank():
    assert run_ranks(2, refused) == ["rank 1: RuntimeError: this compiler is broken"] * 2


def on_nan(world, form, in_pieces):
    """What is said of a form whose first examples have a NaN, and whether it is taken where a later one has none."""
    torch.manual_seed(0)
    net = Normalized()
    net(torch.zeros(2, 6))
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), world=world)
    loader = Loader(rows(32), 8)
    loader.divide(2, world.rank, world.size)
    examples = [loader.first_parts(position) for position in range(3)]
    for example in examples[:2]:
        example[1][0][0] = torch.nan
    if in_pieces:
        step.shard()
    with without_inductor():
        assert parts.verified_part(Execution(compile=form), step, examples) is not None
        with pytest.raises(surefoot.execution.CannotCompile) as caught:
            parts.verified_part(Execution(compile=form), step, examples[:2])
    return str(caught.value)


@pytest.mark.parametrize(("form", "in_pieces"), [("gradients", False), ("module", True)])
def test_a_form_is_not_accepted_on_batches_that_nothing_can_be_compared_on(form, in_pieces):
    said = run_ranks(2, on_nan, form, in_pieces)
    assert said[0] == said[1] and "cannot be compared with eager" in said[0]


class Clock:
    """Goes on when a step is run, and then by what that step takes on this rank."""

    now = 0.0

    def perf_counter(self):
        return self.now


def timed(world):
    """oneDNN on is faster on rank 0 and much slower on rank 1."""
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), world=world)
    loader = Loader((torch.randn(16, 1, 4, 4), torch.arange(16) % 3), 8)
    loader.divide(2, world.rank, world.size)
    clock = Clock()

    @contextlib.contextmanager
    def running(self, execution):
        def run(number):
            clock.now += 0.001 * (1 if not execution.onednn else (0.5, 3.0)[world.rank])

        yield run

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "time", clock)
        patch.setattr(Bench, "_running", running)
        fixed = {k: v for k, v in FIXED.items() if k != "onednn"} | {"compile": False}
        table = tune(fixed, step, loader.first_batches(2), steps_expected=1000, say=str)
        return table.best.to_json(), [row.ms for row in table.rows]


def test_settings_are_measured_on_all_ranks_and_the_slowest_decides():
    first, second = run_ranks(2, timed)
    assert first == second
    assert not first[0]["onednn"] and sorted(map(round, first[1])) == [1, 3]


def breaks(world):
    """A candidate that fails on one rank alone."""
    net = nn.Linear(6, 3)
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1), world=world)
    loader = Loader(rows(16), 8)
    loader.divide(2, world.rank, world.size)
    trial = Trial(as_torch_would())
    with Bench(step, loader.first_batches(2)) as bench:
        bench.time(trial)
        if world.rank == 1:
            bench.batches[0][0] = (torch.zeros(4, 7), torch.zeros(4, dtype=torch.long))
        bench.time(trial)
    return trial.refused, len(trial.times)


def test_what_fails_on_one_rank_is_held_against_a_candidate_on_all():
    first, second = run_ranks(2, breaks)
    assert first == second and first[0].startswith("it fails: RuntimeError") and first[1] == 1


def test_another_number_of_processes_takes_the_choice_that_is_kept_with_its_own_threads():
    """torchrun gives one thread to each of several processes, and none to one: the rest decides on bits."""
    net, threads = nn.Linear(6, 3), torch.get_num_threads()
    step = TrainStep(net, nn.CrossEntropyLoss(), torch.optim.SGD(net.parameters(), 0.1))
    chosen, said = [], []
    try:
        for ranks, number in ((1, 2), (2, 1)):
            torch.set_num_threads(number)
            loader = Loader(rows(32), 8)
            loader.divide(2, 0, ranks)
            settings = {"compile": False} if not chosen else {"compile": False, "onednn": "auto"}
            with pytest.MonkeyPatch.context() as patch:
                if chosen:
                    patch.setattr("surefoot.execution.choose.tune", lambda *_, **__: pytest.fail("measured again"))
                batches = loader.first_batches(2)
                chosen.append(choose_execution(settings, step, batches, steps_expected=1000, say=said.append))
    finally:
        torch.set_num_threads(threads)
    assert [one.threads for one in chosen] == [2, 1] and not said
    assert dataclasses.replace(chosen[0], threads=1) == chosen[1]
