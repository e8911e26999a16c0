"""fit in several processes: untouched, stopped, killed, resumed and resized, a run ends with the same bits."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from ranks import RanksFailed, run_ranks
from torch import nn

import surefoot
from surefoot.errors import RankFailed, Stopped, SurefootError, UsageError
from surefoot.training.loop import Loop
from surefoot.world import World


def _model() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))


def _fit(
    world,
    run,
    *,
    at=None,
    do=None,
    where="step",
    resume=True,
    epochs=3,
    micro_batches=None,
    allow=(),
    parallel="ddp",
    patience=50,
    **options,
):
    """One run; `do` is called with the rank before update number `at`, or in the first validation."""
    made = make(**options)
    if do is not None:
        _interrupt(at, do, where, world)
    run_options = surefoot.RunOptions(
        world=world,
        parallel=parallel,
        progress=False,
        micro_batches=micro_batches,
        allow=allow,
        log_every=1,
        execution="plain",
        tensorboard=False,
        checkpoints=surefoot.Checkpoints(every="2 steps", keep_best="val/loss"),
        early_stopping=surefoot.EarlyStopping(patience=patience),
    )
    made["run"] = run_options
    result = surefoot.fit(**made, epochs=epochs, run_dir=run, resume=resume)
    return result.steps, result.metrics


def make(optimizer="adamw", lr=0.02, accumulate=1, ema=None, plateau=False, norm=False):
    """The objects of a run: 50 samples, so that batches of 8 end with one of 2; normalized, each has two a rank."""
    torch.manual_seed(3)
    model = _model() if not norm else nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))
    draws = torch.Generator().manual_seed(5)
    n = 56 if norm else 50
    data = torch.randn(n, 6, generator=draws), torch.randint(0, 3, (n,), generator=draws)
    val = torch.randn(23, 6, generator=draws), torch.randint(0, 3, (23,), generator=draws)
    kinds = {"adamw": torch.optim.AdamW, "sgd": functools.partial(torch.optim.SGD, momentum=0.9)}
    made = kinds[optimizer](model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(made, patience=0, threshold=0.5) if plateau else None
    step = surefoot.StepOptions(grad_accum_steps=accumulate, ema_decay=ema, max_grad_norm=1.0)
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]))
    return {
        "model": model,
        "loss": loss,
        "optimizer": made,
        "data": data,
        "val": surefoot.Loader(val, 5, shuffle=False),
        "schedule": schedule,
        "batch_size": 8,
        "seed": 1,
        "step": step,
    }


def _interrupt(at, do, where, world):
    """Call `do` before the update number `at`, or at the `at`-th batch of a validation."""
    calls = iter(range(1, 10_000))
    if where == "step":
        call = surefoot.step.TrainStep.__call__

        def step(self, micro_batches):
            if next(calls) == at:
                do(world.rank)
            return call(self, micro_batches)

        surefoot.step.TrainStep.__call__ = step
    else:
        between = Loop.stop_in_validation

        def noted(self, before):
            if next(calls) == at:
                do(world.rank)
            between(self, before)

        Loop.stop_in_validation = noted


def left(run) -> dict[str, str]:
    """What a finished run left, as hashes: parameters, optimizer and the rest of the state, records, model."""
    last = max(Path(run).glob("checkpoints/step-*"))
    files = [last / "model.safetensors", last / "optimizer.safetensors", Path(run) / "model/model.safetensors"]
    lines = [{**json.loads(line), "wall_s": 0} for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    about = json.loads((Path(run) / "run.json").read_text())
    assert about["status"] == "done" and not about["inexact"], about
    return {"records": json.dumps(lines), "bytes": [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]}


def _signalled(world, run, signum, ranks, **options):
    def do(rank):
        if rank in ranks:
            for _ in range(2):  # scheduler and agent both send one
                signal.raise_signal(signum)

    os.environ["TORCHELASTIC_RUN_ID"] = "job"
    with pytest.raises(Stopped) as caught:
        _fit(world, run, do=do, **options)
    return str(caught.value)


def _killed(world, run, which, **options):
    with pytest.raises(RankFailed) as caught:
        _fit(world, run, do=lambda rank: rank == which and os.kill(os.getpid(), signal.SIGKILL), **options)
    return str(caught.value)


CASES = {
    "2 ranks, adamw, dropout, short batch": (2, {}),
    "3 ranks, sgd, accumulation, moving average": (3, {"optimizer": "sgd", "accumulate": 3, "ema": 0.9}),
    "4 ranks, adamw, dropout, short batch": (4, {}),
    "3 ranks, batch norm, plateau": (3, {"norm": True, "plateau": True}),
}


@pytest.mark.parametrize("case", CASES)
def test_untouched_killed_stopped_and_resumed_are_one(tmp_path, case):
    """Killed in a step, asked to stop twice over in a validation, by one rank alone."""
    size, kind = CASES[case]
    untouched, resumed = str(tmp_path / "untouched"), str(tmp_path / "resumed")
    run_ranks(size, functools.partial(_fit, **kind), untouched)
    messages = run_ranks(size, functools.partial(_killed, at=4, **kind), resumed, size - 1, die={size - 1})
    assert f"rank {size - 1}: has ended" in str(messages)
    stop = functools.partial(_signalled, at=3, where="validation", **kind)
    messages = run_ranks(size, stop, resumed, signal.SIGTERM, [size - 1])
    assert len(set(messages)) == 1 and "stopped by SIGTERM after step" in messages[0]
    run_ranks(size, functools.partial(_fit, **kind), resumed)
    assert left(resumed) == left(untouched)


def test_resized_a_run_has_the_bits_of_one_process(tmp_path):
    """4, 2, 1 and again 4 processes, stopped in between, against one process that was never stopped."""
    untouched, resized = str(tmp_path / "untouched"), str(tmp_path / "resized")
    (alone,) = run_ranks(1, functools.partial(_fit, micro_batches=4), untouched)
    for size, at in ((4, 4), (2, 5), (1, 6)):
        run_ranks(size, functools.partial(_signalled, at=at, micro_batches=4), resized, signal.SIGTERM, [size - 1])
    assert run_ranks(4, _fit, resized) == [alone] * 4  # as many micro-batches as it was begun with
    assert left(resized) == left(untouched)


def _refused(world, run, **options):
    with pytest.raises(SurefootError) as caught:
        _fit(world, run, **options)
    return f"{type(caught.value).__name__} {caught.value}"


def test_what_several_processes_cannot_do_is_said_by_all(tmp_path):
    run = str(tmp_path / "run")
    for size, options, words in (
        (2, {"micro_batches": 3}, "micro_batches: 2 ranks cannot have as many of 3 each; give a multiple of 2"),
        (2, {"parallel": "none"}, "parallel: none, but this is rank 0 of 2; give ddp, or start one process"),
    ):
        messages = run_ranks(size, functools.partial(_refused, **options), run)
        assert words in messages[0] and messages[0].startswith("UsageError"), messages
        assert not os.path.exists(run)
    run_ranks(2, functools.partial(_fit, epochs=1), run)
    first, *others = run_ranks(3, _refused, run)
    assert first.startswith("ConditionsChanged") and "world.micro_batches: was 2, is 3" in first and "--allow" in first
    assert run_ranks(3, functools.partial(_fit, allow=["world"]), run)[0][0] == 21
    assert json.loads((tmp_path / "run" / "run.json").read_text())["inexact"] == ["world.micro_batches: was 2, is 3"]
    assert "already holds a run" in str(run_ranks(2, functools.partial(_refused, resume=False), run))


def _split_without_a_seed(world, run):
    """What each rank is told where each has drawn a split of its own, as without a seed; the weights are the same."""
    torch.manual_seed(world.rank)
    data = torch.utils.data.TensorDataset(torch.arange(60.0).reshape(20, 3), torch.arange(20) % 3)
    train, val = torch.utils.data.random_split(data, [16, 4])
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    quiet = surefoot.RunOptions(world=world, progress=False)
    with pytest.raises(UsageError) as caught:
        surefoot.fit(
            model, nn.CrossEntropyLoss(), optimizer, train, val=val, epochs=1, batch_size=8, run_dir=run, run=quiet
        )
    return str(caught.value)


@pytest.mark.parametrize("kept", [True, False])
def test_ranks_with_other_data_are_refused_with_a_run_directory_and_without(tmp_path, kept):
    run = str(tmp_path / "run") if kept else None
    first, second = run_ranks(2, _split_without_a_seed, run)
    assert first == second and first.startswith("rank 1 would train something else than rank 0:\n  data.loader: ")
    assert "\n  data.val: " in first and not os.path.exists(tmp_path / "run")


def _parted(world, where):
    """Data that every script for DistributedDataParallel divides by itself; what is said to it."""
    data = torch.utils.data.TensorDataset(torch.arange(60.0).reshape(20, 3), torch.arange(20) % 3)
    sampler = torch.utils.data.DistributedSampler(data, num_replicas=world.size, rank=world.rank)
    own = torch.utils.data.DataLoader(data, batch_size=5, sampler=sampler)
    batched = torch.utils.data.BatchSampler(sampler, 5, drop_last=False)
    model, loss, quiet = nn.Linear(3, 3), nn.CrossEntropyLoss(), surefoot.RunOptions(world=world, progress=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with pytest.raises(UsageError) as caught:
        if where == "train":
            surefoot.fit(model, loss, optimizer, own, epochs=1, run=quiet)
        elif where == "val":
            surefoot.fit(model, loss, optimizer, data, val=own, epochs=1, run=quiet)
        elif where == "evaluate":
            surefoot.evaluate(model, loss, own, world=world)
        else:
            surefoot.Loader(data, 1, sampler=batched, share=world)
    return str(caught.value)


@pytest.mark.parametrize("where", ["train", "val", "evaluate", "a loader of one's own"])
def test_data_that_a_sampler_has_divided_among_the_ranks_are_not_divided_again(where):
    first, second = run_ranks(2, _parted, where)
    assert first == second and "data: sampler: DistributedSampler leaves each process a part of the samples" in first


def _raises(world, run):
    """An exception in one rank's data; what each rank is told."""

    def broken(self, micro_batches):
        if world.rank == 1:
            raise KeyError("a column")
        return call(self, micro_batches)

    call, surefoot.step.TrainStep.__call__ = surefoot.step.TrainStep.__call__, broken
    with world:
        _fit(world, run)


def test_an_exception_of_one_rank_ends_all_with_its_text(tmp_path):
    with pytest.raises(RanksFailed) as caught:
        run_ranks(3, _raises, str(tmp_path / "run"))
    errors = caught.value.errors
    assert "KeyError: 'a column'" in errors[1]
    assert all("RankFailed: rank 1: KeyError: 'a column'" in errors[rank] for rank in (0, 2)), errors
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


def _restarted(world, run):
    """As torchrun starts a rank again: its first attempt was killed in a step."""
    os.environ |= {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1"}
    return _fit(world, run, resume=False)


def test_a_restart_goes_on_with_its_own_run_and_no_other(tmp_path):
    run, other = str(tmp_path / "run"), str(tmp_path / "other")
    run_ranks(2, functools.partial(_first_attempt, at=4), run, 1, die={1})
    run_ranks(2, _restarted, run)
    run_ranks(2, functools.partial(_fit, epochs=3), other)
    assert left(run) == left(other)
    assert "already holds a run" in str(run_ranks(2, _restarted_elsewhere, other))


def _first_attempt(world, run, which, **options):
    os.environ["TORCHELASTIC_RUN_ID"] = "none"
    return _killed(world, run, which, resume=False, **options)


def _restarted_elsewhere(world, run):
    with pytest.raises(UsageError) as caught:
        _restarted(world, run)
    return str(caught.value)


def test_a_run_of_one_process_is_recorded_as_before_there_were_several(tmp_path):
    """So that runs which were begun by earlier versions go on."""
    _fit(World.alone(), tmp_path / "run", epochs=1)
    conditions = json.loads((tmp_path / "run" / "run.json").read_text())["conditions"]
    assert conditions and not [name for name in conditions if name.startswith("world.")]


def _in_a_script(world, run, *, epochs=2, **on_rank_1):
    """A run with a loss of a script that reads which rank it is on; what rank 1 is given otherwise, if anything."""
    other = on_rank_1 if world.rank == 1 else {}
    script = {"__name__": "__main__", "F": nn.functional, "FACTOR": other.pop("factor", 2.0)}
    script |= {"RANK": world.rank, "MAIN": world.rank == 0, "DEVICE": f"cuda:{world.rank}"}
    exec(
        "def loss(outputs, targets):\n"
        "    assert (RANK == 0) == MAIN and DEVICE\n"
        "    return FACTOR * F.cross_entropy(outputs, targets)",
        script,
    )
    made = make() | {"loss": script["loss"], "epochs": epochs, "run_dir": run, "resume": True, **other}
    made["run"] = surefoot.RunOptions(world=world, progress=False, execution="plain", tensorboard=False)
    try:
        surefoot.fit(**made)
    except UsageError as error:
        return str(error)
    return [parameter.tolist() for parameter in made["model"].parameters()]


def test_a_script_may_know_which_rank_it_is(tmp_path):
    whole, parted = str(tmp_path / "whole"), str(tmp_path / "parted")
    first, second = run_ranks(2, functools.partial(_in_a_script, epochs=3), whole)
    assert first == second and isinstance(first, list)
    run_ranks(2, _in_a_script, parted)
    assert run_ranks(1, functools.partial(_in_a_script, epochs=3), parted) == [first]
    run_ranks(1, functools.partial(_in_a_script, epochs=4), parted)
    assert isinstance(run_ranks(2, functools.partial(_in_a_script, epochs=5), parted)[1], list)


@pytest.mark.parametrize(
    "other, said",
    [
        ({"factor": 3.0}, "  code.__main__:FACTOR: "),
        ({"epochs": 3}, "  fit.epochs: 2 on rank 0, 3 on rank 1"),
        ({"metrics": ["accuracy"]}, "  fit.metrics: auto on rank 0, ['accuracy'] on rank 1"),
        ({"val": None}, "  fit.validates: True on rank 0, False on rank 1"),
        ({"run_dir": None, "resume": False}, "  fit.run_dir: True on rank 0, False on rank 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_ranks_with_other_arguments_are_refused_by_name(tmp_path, other, said):
    run = str(tmp_path / "run")
    first, second = run_ranks(2, functools.partial(_in_a_script_with, other=other), run)
    assert first == second and first.startswith("rank 1 would train something else than rank 0:\n") and said in first
    assert not os.path.exists(run)


def _in_a_script_with(world, run, *, other):
    return _in_a_script(world, run, **other) if world.rank == 1 else _in_a_script(world, run)
