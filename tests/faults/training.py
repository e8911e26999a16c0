"""The run that is killed, starved and lied to: a hand-written loop over everything that a checkpoint holds."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from checkpoint_helpers import Net, data, digest
from torch import nn

from surefoot import rng
from surefoot.checkpoint import Checkpointer, RunDirectory
from surefoot.data import Loader
from surefoot.errors import SurefootError
from surefoot.schedules import LinearWarmup, Schedule
from surefoot.tracking import JournalFile


@dataclass(frozen=True)
class Settings:
    """How a sitting differs from the plain one."""

    epochs: int = 2
    every: str | None = "1 step"
    keep_last: int = 2
    background: bool = True
    width: int = 0
    allow: tuple[str, ...] = ()
    conditions: dict[str, Any] = field(default_factory=dict)
    source: Callable[[], Any] = data
    workers: int = 0
    on_step: Callable[[int], None] | None = None
    on_validation: Callable[[], None] | None = None
    on_built: Callable[[], None] | None = None
    on_resumed: Callable[[], None] | None = None


def train(run: Path, settings: Settings) -> str:
    """One sitting to the end of the run, or to wherever it is stopped; the digest of the last state.

    After a save that was waited for, its step is written to `promised` beside the run: from then on no fault may
    lose it.
    """
    rng.seed_all(1)
    inputs_targets = settings.source()
    loader = Loader(inputs_targets, batch_size=4, seed=5, workers=settings.workers)
    model = Net()
    if settings.width:
        model.wide = nn.Linear(settings.width, settings.width)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    schedule = Schedule(
        optimizer,
        torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0),
        LinearWarmup(optimizer, warmup_period=5),
    )
    sums = {"loss": 0.0, "count": 0}
    objects = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader, "sums": sums}
    if settings.on_built:
        settings.on_built()
    with (
        RunDirectory.take(run) as directory,
        JournalFile(run / "metrics.jsonl") as journal,
        Checkpointer(
            directory,
            every=settings.every,
            keep_last=settings.keep_last,
            background=settings.background,
            conditions=settings.conditions,
            allow=settings.allow,
            journal=journal,
            **objects,
        ) as saver,
    ):
        restored = saver.resume()
        if restored is not None:
            print(f"resumed at step {restored.step}", flush=True)
        if settings.on_resumed:
            settings.on_resumed()
        while loader.epoch < settings.epochs:
            model.train()
            for inputs, targets in loader:
                loss = nn.functional.cross_entropy(model(inputs), targets)
                if not bool(loss.isfinite()):
                    where = loader.last_indices.tolist()
                    raise SurefootError(f"step {saver.steps}: the loss is {loss.item()} on samples {where}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                sums["loss"] += loss.item()
                sums["count"] += 1
                journal.append({"kind": "step", "step": saver.steps, "loss": loss.item(), "lr": schedule.lrs})
                if settings.on_step:
                    settings.on_step(saver.steps)
                saver.step()
                if not settings.background and settings.every == "1 step":
                    _promise(run, saver.steps)
            model.eval()
            if settings.on_validation:
                settings.on_validation()
            with torch.no_grad():
                value = float(nn.functional.cross_entropy(model(data()[0]), data()[1]))
            journal.append({"kind": "epoch", "epoch": loader.epoch - 1, "loss": value, "sums": dict(sums)})
            schedule.epoch(value)
            saver.epoch({"val/loss": value})
    return digest(objects)


def _promise(run: Path, step: int) -> None:
    descriptor = os.open(run.parent / f"{run.name}.promised", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{step}\n".encode())
    os.close(descriptor)


def guarded(run: Path, settings: Settings) -> int:
    """`train` as a command runs it: one message and an exit code, a traceback only for a mistake of ours."""
    try:
        found = train(run, settings)
    except SurefootError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except BaseException:
        traceback.print_exc()
        return 70
    (run.parent / f"{run.name}.digest").write_text(found)
    return 0


def records(run: Path) -> list[dict[str, Any]]:
    """The journal without the field that may differ."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "wall_s"} for line in lines]
