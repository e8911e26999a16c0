"""One training from the command line: built, run, summarised. Shared by train and resume."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Stopped, UsageError
from ..text import counted, duration, figure, typed
from ..tracking import Progress, Summary, make_progress
from . import ending
from .opening import files_for

if TYPE_CHECKING:
    from ..build import Built
    from ..recipe import Recipe
    from ..training import FitResult
    from ..world import World

# Names the checkpoint of another loop that a run began from.
STARTED = "started_from.txt"


def train(
    load: Callable[[], Recipe],
    run_dir: Path,
    *,
    resume: bool = False,
    allow: Sequence[str] = (),
    horizon: str | None = None,
    start: tuple[Path, int | None] | None = None,
    timeout: float | None = None,
    quiet: bool = False,
) -> int:
    """Build what the recipe says, train it in `run_dir`, print what was reached. Returns the exit code.

    `start` is a checkpoint of another loop to go on from, and how many epochs it has done (None: as it says). Under
    torchrun this is one of several ranks, each of which may be silent for `timeout` seconds. With `quiet` nothing is
    printed but messages, on standard error.
    """
    from ..world import TIMEOUT_S, World

    size = 1
    try:
        with World.here(TIMEOUT_S if timeout is None else timeout) as world:
            size = world.size
            _train(world, world.agree(load), run_dir, resume, allow, horizon, start, quiet)
    except Stopped as stopped:
        many = ("torchrun", "--nproc-per-node", str(size), "-m") if size > 1 else ()
        go_on = typed(*many, "surefoot", *(["--"] if many else []), "resume", run_dir)
        resumable = Stopped(stopped.signal, f"{stopped}; go on with `{go_on}`")
        resumable.everybodys = stopped.everybodys
        raise resumable from None
    return 0


def _train(
    world: World,
    recipe: Recipe,
    run_dir: Path,
    resume: bool,
    allow: Sequence[str],
    horizon: str | None,
    start: tuple[Path, int | None] | None,
    quiet: bool,
) -> None:
    from ..build import build
    from ..planning import mistakes
    from ..training import fit
    from ..training.ranks import begun_by_this_job
    from ..training.start import start_from

    progress = make_progress(quiet=quiet) if world.rank == 0 else Progress()
    command = recipe.on_end if world.rank == 0 else None
    begun = lambda: progress.info.epochs > 0  # noqa: E731
    with ending.then(command, run_dir, progress.message, begun), contextlib.closing(progress):
        there = world.agree(lambda: _there(run_dir, resume or begun_by_this_job(run_dir)), on=0)
        built = world.agree(lambda: build(recipe, say=progress.message, started=there["weights"], world=world))
        built.schedule.on_horizon = horizon
        if not there["resumed"]:
            for finding in mistakes(built.schedule, built.steps_per_epoch, recipe.epochs):
                progress.message(f"{finding}")
        about, start_epoch = built.about, None
        if start is not None and not there["checkpoints"]:
            start_epoch = start_from(
                start[0],
                built.model,
                built.optimizer,
                built.schedule,
                built.train,
                steps_per_epoch=built.steps_per_epoch,
                done=start[1],
                say=progress.message,
            )
            about = replace(about, files={**about.files, STARTED: f"{start[0]}\n"})
        elif resume and there["started"] and not there["saved"]:
            raise UsageError(f"{run_dir}: was stopped before its first save; begin it again with train --from")
        settings = built.settings()
        changes = {"about": about, "start_epoch": start_epoch, "allow": allow, "progress": progress, "world": world}
        settings["run"] = replace(settings["run"], **changes)
        result = fit(built.model, built.loss, built.optimizer, built.train, **settings, run_dir=run_dir, resume=resume)
        world.first(lambda: progress.finish(summary(built, result)))


def _there(run_dir: Path, resume: bool) -> dict[str, Any]:
    """What rank 0 sees of the run directory before it is taken."""
    from ..checkpoint import read_about

    checkpoints = run_dir / "checkpoints"
    saved = any(checkpoints.glob("step-*"))
    conditions = (read_about(run_dir) or {}).get("conditions") if resume and saved else None
    return {
        "resumed": resume and run_dir.exists(),
        "checkpoints": checkpoints.exists(),
        "saved": saved,
        "started": (run_dir / STARTED).exists(),
        "weights": (conditions or {}).get("model.weights"),
    }


def summary(built: Built, result: FitResult) -> Summary:
    """The last table: what was reached, where it lies, what to try next."""
    assert result.run_dir is not None, "a run from the command line has a directory"
    rows = {name: figure(name, value) for name, value in result.metrics.items()}
    best = result.best
    name = built.recipe.checkpoint.keep_best if built.recipe.checkpoint else None
    if name is not None and best is not None and best.value is not None and best.epoch is not None:
        rows[f"best {name}"] = f"{figure(name, best.value)} in epoch {best.epoch + 1}"
    ended = " (stopped early)" if result.stopped_early else ""
    rows["trained"] = (
        f"{counted(result.epochs, 'epoch')}, {counted(result.steps, 'step')} in {duration(result.wall_s)}{ended}"
    )
    rows["run"] = str(result.run_dir)
    rows["model"] = str(result.run_dir / "model")
    rows["report"] = str(result.run_dir / "report.html")
    commands = [*_uses(built, result.run_dir)]
    commands.append((typed("surefoot", "resume", result.run_dir, *_longer(built, result)), "train on"))
    if built.recipe.tensorboard:
        commands.append((typed("tensorboard", "--logdir", result.run_dir), "curves in a browser"))
    return Summary(f"{built.recipe.name}: done", rows, commands)


def _uses(built: Built, run_dir: Path) -> Iterator[tuple[str, str]]:
    """The commands that use the model of this run, each with what it does; only those that work for its data."""
    from ..artifacts import needs_trust, read_info
    from ..artifacts.answers import kind_of
    from ..losses import accuracy_kind

    info = read_info(run_dir / "model")
    # Without a home there is no key that says whose model it is.
    trust = ["--trust-code"] if needs_trust(run_dir / "model") else []
    split = ["--split", "train"] if built.val is None else []
    by_class = info.classes and accuracy_kind(built.loss) == "classes"
    figures = "accuracy by class, confusion matrix" if by_class else "its figures on the data"
    yield typed("surefoot", "eval", run_dir, *split, *trust), figures
    if (taken := files_for(info)) is not None:
        file, what = taken
        does = "tell" if info.reads_text else "classify" if kind_of(info) == "softmax" else "its answers for"
        yield f"{typed('surefoot', 'predict', run_dir / 'model', *trust)} {file}", f"{does} {what}"
    # A program needs to know what it is called with; weights do not.
    to = "model.onnx" if info.input_shape is not None else "model.safetensors"
    yield typed("surefoot", "export", run_dir, "--to", to, *trust), "take the model elsewhere"


def _longer(built: Built, result: FitResult) -> list[str]:
    """The arguments of a resume that trains on."""
    stopping = built.recipe.early_stopping
    if result.stopped_early and stopping is not None:
        longer = [f"early_stopping.patience={2 * stopping.patience}"]
        if result.epochs < built.recipe.epochs:
            return longer
    else:
        longer = []
    horizon = built.schedule.horizon
    # A curve that was made for the run's length: training on needs a choice of what becomes of it.
    choice = ["--horizon", "stretch"] if horizon and horizon["lengths"] else []
    return [f"epochs={2 * built.recipe.epochs}", *longer, *choice]
