"""A hand-written DistributedDataParallel loop with a Checkpointer: saved, stopped and gone on with as one run."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import run_ranks
from torch import nn

import surefoot
from surefoot.checkpoint.run import RunDirectory
from surefoot.errors import RankFailed, Stopped, SurefootError, UsageError

EPOCHS, STEPS = 2, 12


def _train(world, run, at=None, do=None, epochs=EPOCHS, wrap=None, **options):
    """The loop that a user writes; `do` is called with the rank before update number `at`."""
    torch.manual_seed(world.rank)  # each rank draws dropout of its own
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 3))
    net = world.wrap(model) if wrap is None else wrap(model)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    draws = torch.Generator().manual_seed(5)
    data = torch.randn(72, 6, generator=draws), torch.randint(0, 3, (72,), generator=draws)
    loader = surefoot.Loader(data, 12, seed=1, share=world)
    journal = surefoot.Journal(run, tensorboard=False, world=world)
    objects = {"model": net, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    with journal, surefoot.Checkpointer(run, journal=journal, world=world, **objects, **options) as saver:
        saver.resume()
        while loader.epoch < epochs:
            for inputs, targets in loader:
                if saver.steps + 1 == at:
                    do(world.rank)
                optimizer.zero_grad()
                loss = nn.functional.cross_entropy(net(inputs), targets)
                loss.backward()
                optimizer.step()
                journal.step(saver.steps + 1, {"loss": float(loss.detach())}, epoch=loader.epoch)
                saver.step()
            scheduler.step()
            journal.epoch(loader.epoch - 1, {"val/loss": 1.0}, step=saver.steps)
            saver.epoch({"val/loss": float(world.rank)})
    return digest(net, optimizer, scheduler)


def digest(*objects) -> str:
    """A hash of every number in their states."""
    total = hashlib.sha256()

    def add(value):
        if isinstance(value, torch.Tensor):
            value = value.full_tensor() if hasattr(value, "full_tensor") else value
            total.update(value.numpy(force=True).tobytes())
        elif isinstance(value, dict):
            for key in value:
                add(key)
                add(value[key])
        elif isinstance(value, list | tuple):
            for item in value:
                add(item)
        else:
            total.update(repr(value).encode())

    for thing in objects:
        add(thing.state_dict())
    return total.hexdigest()


def records(run) -> list[dict]:
    return [{**json.loads(line), "wall_s": 0} for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]


def _terminate(rank):
    if rank == 1:
        signal.raise_signal(signal.SIGTERM)


def _kill(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)


def _stopped(world, run, at, **options):
    """The loop of a rank that is asked to stop; where it stood then."""
    with pytest.raises(Stopped) as caught:
        _train(world, run, at, _terminate, **options)
    return str(caught.value)


def _lost(world, run, at, **options):
    with pytest.raises(RankFailed) as caught:
        _train(world, run, at, _kill, **options)
    return str(caught.value)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory):
    """What each rank of an untouched run ends with, and its records; by the number of ranks."""
    made = {}

    def of(size):
        if size not in made:
            run = tmp_path_factory.mktemp("untouched") / "run"
            made[size] = run_ranks(size, _train, str(run)), records(run)
        return made[size]

    return of


@pytest.mark.parametrize("size", [2, 3])
def test_one_rank_asked_to_stop_stops_all_at_one_step_and_resumed_they_end_alike(size, untouched, run_dir):
    messages = run_ranks(size, _stopped, str(run_dir), 5)
    assert len(set(messages)) == 1 and "stopped by SIGTERM after step" in messages[0], messages
    assert [json.loads((run_dir / "run.json").read_text())[key] for key in ("status", "saved")] == ["interrupted", True]
    digests, lines = untouched(size)
    assert run_ranks(size, _train, str(run_dir)) == digests and len(set(digests)) == 1
    assert records(run_dir) == lines


@pytest.mark.parametrize("size", [2, 3])
def test_a_killed_rank_ends_all_and_resumed_they_end_alike(size, untouched, run_dir):
    messages = run_ranks(size, functools.partial(_lost, every="2 steps"), str(run_dir), 9, die={1})
    assert "rank 1: has ended without a word" in str(messages)
    digests, lines = untouched(size)
    assert run_ranks(size, functools.partial(_train, every="2 steps"), str(run_dir)) == digests
    assert records(run_dir) == lines


def _errors(world, run, disk):
    """What each rank is told where one could not begin, or could not save."""
    model = nn.Linear(2, 1 + (disk == "other" and world.rank == 1))
    if disk == "full" and world.rank == 0:

        def full(*arguments):
            raise OSError(28, "No space left on device", str(run))

        surefoot.checkpoint.writer.store.commit = full
    try:
        with surefoot.Checkpointer(run, world=world, model=model) as saver:
            saver.resume()
            saver.step()
    except SurefootError as error:
        return type(error).__name__, str(error), error.exit_code


def test_every_error_is_every_ranks(run_dir):
    (kind, text, code), *others = run_ranks(3, _errors, str(run_dir), "other")
    assert others == [(kind, text, code)] * 2 and (kind, code) == ("UsageError", 2)
    assert text.startswith("rank 1 would train something else than rank 0:\n  model: Linear(") and not run_dir.exists()
    (kind, text, code), *others = run_ranks(2, _errors, str(run_dir), "full")
    assert others == [(kind, text, code)] and (kind, code) == ("RankFailed", 1)
    assert text.startswith(f"rank 0: {run_dir}: the checkpoint of step 1 could not be written: No space left")
    with RunDirectory.open(run_dir):
        (kind, text, code), other = run_ranks(2, _errors, str(run_dir), "")
    assert (kind, code) == ("UsageError", 2) and "rank 0:" in text and f"in use by process {os.getpid()}" in text
    assert other == (kind, text, code)


def _saves_when_asked(world, run):
    """Which checkpoints are there once rank 1 alone was asked to save, and once an hour has passed for rank 1 alone."""
    # A step takes one, the first one too, so that each step asks.
    seconds = itertools.count(int(time.monotonic()) + 2)
    surefoot.asking.time = SimpleNamespace(monotonic=lambda: float(next(seconds)))
    clock = surefoot.checkpoint.checkpointer.time = SimpleNamespace(monotonic=lambda: 0.0)
    with surefoot.Checkpointer(run, world=world, every="10 min", keep_last=None, model=nn.Linear(2, 1)) as saver:
        for step in range(1, 40):
            if step == 3 and world.rank == 1:
                signal.raise_signal(signal.SIGUSR1)
            if step == 20:
                clock.monotonic = lambda: 3600.0 * world.rank
            saver.step()
        clock.monotonic = lambda: 700.0 * (world.rank == 0)
        saver.epoch()
    return sorted(path.name for path in Path(run).glob("checkpoints/step-*"))


def test_any_rank_may_ask_for_a_save_and_only_rank_0s_clock_counts(run_dir):
    names, other = run_ranks(2, _saves_when_asked, str(run_dir))
    assert names == other and names == ["step-000000003", "step-000000039"]


def test_without_a_world_the_ranks_are_refused(run_dir):
    first, second = run_ranks(2, _without, str(run_dir))
    assert first == "world: this is rank 0 of 2, and each would train for itself; give world=surefoot.World.join()"
    assert second.startswith("world: this is rank 1 of 2")


def _without(world, run):
    with pytest.raises(UsageError) as caught:
        surefoot.Checkpointer(run, model=nn.Linear(1, 1))
    return str(caught.value)


def test_a_checkpoint_of_two_ranks_keeps_the_random_state_of_each_and_goes_on_with_others(run_dir):
    """Another number of ranks takes rank 0's."""
    first, second = run_ranks(2, _draw, str(run_dir))
    assert first != second and run_ranks(2, _draw, str(run_dir)) == [first, second]
    assert run_ranks(1, _draw, str(run_dir)) == [first]


def _draw(world, run):
    torch.manual_seed(world.rank)
    with surefoot.Checkpointer(run, world=world, model=nn.Linear(1, 1), allow=["world"]) as saver:
        saver.resume() or saver.save()
        saver.steps or saver.step()
        draw = torch.rand(()).item()
        saver._saved_at = saver.steps, saver.epochs  # the next process finds the same checkpoint
    return draw


def _stops_once(world, folder):
    """A run that is stopped while a question is on its way, and another one in the same processes."""
    with pytest.raises(Stopped), surefoot.Checkpointer(f"{folder}/a", world=world, model=nn.Linear(1, 1)) as saver:
        saver.resume()
        world.ask((signal.SIGTERM, 0, 0, 0))
        world._asking._question = world._asking._question or (lambda: [signal.SIGTERM, 0, 0, 0, 1])
        saver.stop()
    with surefoot.Checkpointer(f"{folder}/b", world=world, model=nn.Linear(1, 1)) as saver:
        for _ in range(5):
            saver.step()
    return saver.steps


def test_what_stopped_one_run_does_not_stop_the_next_of_the_same_processes(tmp_path):
    assert run_ranks(2, _stops_once, str(tmp_path)) == [5, 5]
