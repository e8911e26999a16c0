"""fit: live objects and plain arguments in, a trained model and its run directory out."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import rng
from ..artifacts.model_dir import info_of
from ..checkpoint import Change, Checkpointer, Restored, code_of, describe, flatten, read_about, run_conditions
from ..data import DataSplits, Loader
from ..errors import UsageError
from ..execution import Execution, prepare
from ..losses.hidden import hidden_state
from ..losses.objectives import as_objective
from ..metrics import RunningMetrics
from ..modes import autocast, enter_training
from ..schedules import Schedule
from ..schedules.as_schedule import as_schedule
from ..schedules.rebasing import overwritten, owns_rates
from ..schedules.registry import STEP
from ..schedules.run_length import refuse_too_short
from ..sharding import alike_anywhere
from ..step import StepOptions, TrainStep
from ..text import counted
from ..tracking import Progress, RunInfo, make_progress, result_html, write_report
from ..tracking.trackers import Feeds
from ..tracking.validation import MOST_CLASSES
from ..variables import hidden
from ..world import World
from ..wrapping import whole
from .about import completed, cut_back, save_model_of
from .checks import checked, give_shapes, look_over_first_batch, measuring
from .claim import claimed, write_texts
from .evaluation import evaluation_loader, training_loader
from .last_validation import LastValidation
from .loop import Loop
from .options import RunOptions
from .ranks import begin_together, begun_by_this_job, divide, outputs_only_read
from .records import Recorder
from .settings import asked_settings, choose_settings, use_settings
from .state import Best, Checkpoints, EarlyStopping, RunState
from .unfreezing import Unfreezing

RECORDS_AN_EPOCH = 50
# What is taken for an epoch's steps where nobody knows them.
STEPS_OF_A_STREAM = 1000


@dataclass(frozen=True)
class FitResult:
    """What a run reached in `epochs`, kept in `run_dir`; `stopped_early` says whether early stopping ended it.

    `metrics` holds the last epoch's values by name (``train/loss``, ``val/accuracy``), `best` the monitored
    metric's best value with its epoch, or None. `steps` are updates done, `wall_s` seconds, earlier sittings
    included. `average` is the model with averaged weights, in evaluation mode, where `ema_decay` was set: what was
    validated and saved.
    """

    epochs: int
    steps: int
    metrics: dict[str, float]
    best: Best | None
    stopped_early: bool
    run_dir: Path | None
    wall_s: float
    average: nn.Module | None = None

    def _repr_html_(self) -> str:
        return result_html(self.metrics, self.run_dir)


def fit(
    model: nn.Module,
    loss: Callable[..., Tensor] | None,
    optimizer: torch.optim.Optimizer,
    data: Any,
    *,
    epochs: int,
    val: Any = None,
    schedule: Any = None,
    batch_size: int | None = None,
    seed: int = 0,
    metrics: Any = "auto",
    run_dir: str | Path | None = None,
    resume: bool = False,
    step: StepOptions | None = None,
    run: RunOptions | None = None,
) -> FitResult:
    """Train `model` for `epochs` passes over `data`, validating on `val` after each.

    `data` and `val` are a Loader, a DataLoader of torch's, a Source, a torch Dataset of either kind, a pair
    ``(inputs (N, ...), targets (N, ...))``, or a DataSplits, which is both. What is not a loader yet is read in batches
    of `batch_size` (by default 64, or all of fewer samples), in an order that is a pure function of `seed` and epoch.
    `schedule` is a surefoot Schedule (scheduler, warmup) over the same optimizer, or a scheduler of torch's, then moved
    by step where its length is the run's in steps, else by its usual unit. `metrics` is ``"auto"`` (what suits the
    loss), or names of ours and of torchmetrics' classes, ``{"name": "F1Score", ...}`` with arguments and ``"as"``,
    objects of torchmetrics, functions of (outputs, targets): one, a list, or a mapping of names to them. `step` (a
    StepOptions) says how an update is made: gradient accumulation and clipping, precision, moving average. `run` (a
    RunOptions) says the rest: early stopping, checkpoints, what is shown, execution settings.

    A model that is in evaluation mode as a whole is put in training mode, with a message; one of which some modules are
    in training mode stays as it is, so that parts can be frozen in evaluation mode. Validation puts each module's mode
    back, so after fit the model is in the modes that it was trained in: call ``model.eval()`` before using it. An
    optimizer with `train()` and `eval()` of its own (a schedule-free one) is switched around validation, and stays in
    evaluation mode after the last epoch.

    With a `run_dir` the run is recorded there (``metrics.jsonl``, TensorBoard, checkpoints, the model); with
    `resume` a run that is there goes on, bit for bit as if it had never stopped, and a new one is begun where there
    is none. The first batch is looked over before anything is spent: findings are printed.

    Under torchrun, or with a world of several ranks in `run`, each calls fit with the same; `batch_size` counts the
    samples of all. Rank 0 alone writes and shows; the result is every rank's.

    Raises UsageError for what cannot be trained (all mistakes in the arguments at once), RunFailed for a run that
    cannot go on, Stopped after SIGTERM or SIGINT (the run directory then holds a checkpoint of the last step).

    >>> import torch
    >>> x = torch.randn(64, 3); y = (x.sum(1) > 0).long()
    >>> model = torch.nn.Linear(3, 2)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    >>> loss, quiet = torch.nn.CrossEntropyLoss(), RunOptions(progress=False)
    >>> result = fit(model, loss, optimizer, (x, y), epochs=2, batch_size=8, run=quiet)
    >>> result.steps
    16
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.enable_grad())  # whatever the caller has asked for
        options = StepOptions() if step is None else step
        run = RunOptions() if run is None else run
        world = stack.enter_context(World.here()) if run.world is None else run.world
        arguments = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "run_dir": run_dir, "resume": resume}
        epochs, batch_size, seed, resume = checked(model, loss, optimizer, options, run, **arguments)
        both = {"validates": val is not None, "run_dir": run_dir is not None}
        begin_together(world, run.parallel, model, epochs=epochs, resume=resume, metrics=metrics, **both)
        loss = as_objective(loss)
        about = run.about
        unfreezing = run.unfreeze or None
        if unfreezing and not isinstance(unfreezing, Unfreezing):
            unfreezing = Unfreezing(model, optimizer, unfreezing)
        progress = run.progress
        if world.rank > 0:
            progress = Progress()
        elif isinstance(progress, bool):
            progress = make_progress() if progress else Progress()
        for late in unfreezing.never(epochs) if unfreezing else ():
            progress.message(late)
        rng.seed_all(seed)
        loader = training_loader(data, batch_size, seed, model, progress.message)
        resume = resume or world.agree(lambda: begun_by_this_job(run_dir), on=0)
        recorded = world.agree(lambda: read_about(run_dir) or {} if resume and run_dir is not None else {}, on=0)
        in_pieces = world.size > 1 and run.parallel == "fsdp2"
        asked = world.agree(lambda: asked_settings(run, run_dir, recorded, optimizer, world))
        execution = asked.recorded
        elsewhere = not in_pieces or alike_anywhere(optimizer, asked.fused)
        known = recorded.get("conditions") or {}
        division = world.agree(lambda: divide(loader, world, run.micro_batches, known, elsewhere=elsewhere))
        about = completed(about, model, loader, loss)
        val = data if val is None and isinstance(data, DataSplits) and data.val is not None else val
        val_loader = None if val is None else evaluation_loader(val, model=model, say=progress.message)
        # Not known of a stream that only its end tells the length of.
        steps_per_epoch = None if loader.length is None else math.ceil(loader.length / options.grad_accum_steps)
        schedule = as_schedule(
            schedule,
            optimizer,
            epochs=epochs,
            steps_per_epoch=steps_per_epoch,
            validates=val is not None,
            say=progress.message,
            begun_by=recorded.get("schedule_by"),
        )

        def look() -> tuple[RunningMetrics, Checkpoints, EarlyStopping | None]:
            with autocast(loader.device, options.precision):
                look_over_first_batch(
                    model, loss, optimizer, loader, about.classes, run.lint_off, run.strict, progress, val_loader
                )
                give_shapes(model, loss, loader)
                if run_dir is not None:  # not only once it is trained
                    info_of(model, **about.of_model())
                return measuring(
                    model, loss, loader, val_loader, metrics, schedule, run.checkpoints, run.early_stopping, world
                )

        running, checkpoints, early_stopping = world.agree(look)
        begun = run.start_epoch or 0
        best = Best(checkpoints.mode, metric=checkpoints.keep_best)
        state = RunState(best=best, epoch=begun, step=begun * (steps_per_epoch or 0))
        if early_stopping is not None:
            state.patience = early_stopping.patience
            state.patience_best = Best(early_stopping.mode, early_stopping.min_delta, metric=early_stopping.monitor)
        settings = {
            "seed": seed,
            **{name: value for name, value in vars(options).items() if name != "on_nonfinite"},
            "log_every": run.log_every,
            # As with epochs, another patience is another end and not another run.
            "early_stopping": early_stopping and {**vars(early_stopping), "patience": None},
            "unfreeze": [list(item) for item in (unfreezing.plan if unfreezing else ())],
            "loss": type(loss).__name__,
        }
        if message := enter_training(model):
            progress.message(message)
        train_step = TrainStep(model, loss, optimizer, options, world=world, seed=seed)
        stack.callback(progress.close)
        stack.callback(loader.close)
        if val_loader is not None:
            stack.callback(val_loader.close)
        again = execution is not None
        if execution is None:
            steps = epochs * (steps_per_epoch or STEPS_OF_A_STREAM)
            execution = choose_settings(asked.spec, train_step, loader, steps, progress.message)
            execution = Execution.from_json(world.agree(execution.to_json, on=0))
        if in_pieces:  # measured whole, on copies
            world.agree(train_step.shard)
            stack.enter_context(outputs_only_read(loss))
        stack.enter_context(prepare(execution, model, optimizer))
        if not again:
            execution = use_settings(execution, train_step, loader, progress.message)

        def conditions() -> dict[str, Any]:
            return {
                **_described(loss, val_loader, checkpoints, running),
                **division,
                **about.conditions,
                **flatten("fit", settings),
                **flatten("execution", execution.to_json()),
            }

        checkpointer = None
        recorder = Recorder(None, tensorboard=False, progress=progress)
        if run_dir is not None:
            run_dir = Path(run_dir)
            # Ended after the claim, so that they know how the run has ended.
            trackers = run.trackers if world.rank == 0 else ()
            feeds = stack.enter_context(Feeds(run_dir, trackers, progress.message))
            claim = stack.enter_context(claimed(run_dir, world, resume=resume, texts=about.files, name=about.name))
            if world.rank == 0:
                recorder = Recorder(run_dir, tensorboard=run.events, progress=progress)
            stack.enter_context(recorder)
            objects = hidden_state(loss, model) | hidden(model=model, loss=loss, average=train_step.ema)
            if unfreezing:
                objects["unfreezing"] = unfreezing
            if train_step.ema is not None:
                objects["ema"] = train_step.ema
            checkpointer = stack.enter_context(
                Checkpointer(
                    claim.run,
                    **vars(checkpoints),
                    conditions=conditions(),
                    allow=run.allow,
                    journal=recorder.journal,
                    say=progress.message,
                    world=world,
                    model=model,
                    optimizer=optimizer,
                    schedule=schedule,
                    loader=loader,
                    step=train_step,
                    progress=state,
                    running=running,
                    **objects,
                )
            )
            for note in [*loader.notes, *(val_loader.notes if val_loader is not None else ())]:
                progress.message(note)
            restored = checkpointer.resume(
                functools.partial(_before_loading, epochs, run.allow, schedule, loader, unfreezing)
            )
            world.agree(lambda: _refuse_too_short(schedule, state, loader, epochs, options))
            schedule.adopt_groups()  # rates of another length of run are there from the first look on
            if again:  # not before: a captured graph holds the addresses of what was loaded
                use_settings(execution, train_step, loader, progress.message, begun=run_dir)
            if restored is not None:
                state.stopped_early = state.stopped_early and loader.position == 0
                _report_restored(restored, state, epochs, progress)
                world.first(lambda: write_texts(claim.run, about.files))
            elif run.start_epoch is not None:
                # What came from elsewhere is in the run from now on, wherever it is stopped.
                checkpointer.begin_at(state.step, state.epoch)
            facts: dict[str, Any] = {"conditions": checkpointer.conditions, "execution": execution.to_json()}
            facts |= {"schedule_by": schedule.by} | ({"processes": world.size} if world.size > 1 else {})
            if restored is not None:
                facts |= claim.resumed_at(state.step)
            world.first(lambda: claim.begin(**facts))
            feeds.start()
        else:
            world.agree(lambda: _refuse_too_short(schedule, state, loader, epochs, options))
            if world.size > 1:  # as with a run directory: an unseeded split gives each rank its own
                held = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
                run_conditions(held, world, conditions())
        progress.start(
            RunInfo(
                about.name,
                epochs,
                steps_per_epoch or 0,
                first_step=state.step,
                samples_per_step=loader.batch_size * options.grad_accum_steps,
                details={**about.details, "runs on": execution.describe()},
            )
        )
        save = (
            functools.partial(save_model_of, about, options.ema_decay is not None, run_dir, recorder)
            if run_dir is not None
            else None
        )
        last_validation = None
        if run_dir is not None and val_loader is not None:
            last_validation = LastValidation(run_dir, val_loader, about)

        def save_best(best: nn.Module, values: dict[str, float]) -> None:
            with whole(best):
                world.first(lambda: save and save("model/best", best, values))

        loop = Loop(
            step=train_step,
            loader=loader,
            val_loader=val_loader,
            schedule=schedule,
            state=state,
            running=running,
            recorder=recorder,
            checkpointer=checkpointer,
            epochs=epochs,
            log_every=run.log_every or max(1, round((steps_per_epoch or STEPS_OF_A_STREAM) / RECORDS_AN_EPOCH)),
            metrics=metrics,
            monitor=checkpoints.keep_best,
            early_stopping=early_stopping,
            unfreezing=unfreezing,
            classes=len(about.classes) if about.classes and len(about.classes) <= MOST_CLASSES else None,
            histograms=None if run_dir is None else run.histograms,
            save_best=save and save_best,
            last_validation=last_validation,
        )
        if run_dir is not None and restored is not None:
            back = functools.partial(cut_back, run_dir, state, restored.metrics, progress.message)
            if world.agree(back, on=0):
                save_best(loop.evaluated_model, restored.metrics)
        loop.run()
        if save is not None:
            assert checkpointer is not None and run_dir is not None
            # First what a resume needs, should the disk have no room for the model.
            checkpointer.finish()
            with whole(loop.evaluated_model):
                world.first(lambda: save("model", loop.evaluated_model, state.last))
            ended = checkpointer.conditions, state.step, state.wall_s()
            world.first(lambda: recorder.end(*ended))
            world.first(claim.done)
            world.first(lambda: write_report(run_dir, brief=about.brief))
        return FitResult(
            epochs=state.epoch,
            steps=state.step,
            metrics=dict(state.last),
            best=state.best if checkpoints.keep_best else None,
            stopped_early=state.stopped_early,
            run_dir=run_dir,
            wall_s=state.wall_s(),
            average=None if train_step.ema is None else train_step.ema.module.eval(),
        )


def _before_loading(
    epochs: int,
    allow: Sequence[str],
    schedule: Schedule,
    loader: Loader,
    unfreezing: Unfreezing | None,
    saved: Mapping[str, Any],
    changes: Sequence[Change],
) -> None:
    """Refuse what no resume can give; let the optimizer have the groups that it had by then."""
    vain = tuple(f"optimizer.{name}" for name in overwritten(schedule.scheduler))
    if without_effect := [str(change) for change in changes if vain and change.name.endswith(vain)]:
        owner = owns_rates(schedule.scheduler)
        raise UsageError(
            f"{owner} has rates of its own, so this would have no effect: {'; '.join(without_effect)}; leave it as it "
            f"was and change {owner}'s arguments, or start a new run"
        )
    # What was allowed is allowed. Without a recipe the schedule's arguments are no conditions: `schedule` allows them.
    schedule.accept_changes = bool({"all", "schedule"} & set(allow)) or any(
        change.name.startswith(("recipe.scheduler", "recipe.warmup")) for change in changes
    )
    # Other data may be more or fewer.
    loader.accept_changes = {
        c.name.rpartition(".")[2] if not c.name.startswith("data.") else "samples" for c in changes
    }
    progress = saved["progress"]
    done, part = progress["epoch"], saved["loader"]["position"] > 0 or progress["phase"] != "train"
    # Of an epoch that was begun the weights hold a part, which no epoch's metrics would tell.
    if done + part > epochs:
        raise UsageError(
            f"epochs: {epochs} is below the {done}{' and a part of one more' if part else ''} that the run has done; "
            f"give epochs=N of {done + part} or more",
            code="argument",
        )
    if unfreezing is not None:
        unfreezing.catch_up(saved)


def _described(
    loss: Any, val_loader: Loader | None, checkpoints: Checkpoints, running: RunningMetrics
) -> dict[str, Any]:
    """What of the arguments is neither kept by the checkpoint nor a setting of the step."""
    metrics = {} if running.objects is None else running.objects.given
    conditions = describe({"loss": loss} | ({} if val_loader is None else {"val": val_loader}))
    conditions |= describe({f"metrics.{name}": metric for name, metric in metrics.items()})
    conditions |= code_of([loss, *metrics.values()])
    if val_loader is not None:
        conditions["data.val"] = val_loader.source.fingerprint()
        conditions |= code_of([val_loader.source])
    if checkpoints.keep_best is not None:
        conditions |= {"checkpoint.keep_best": checkpoints.keep_best, "checkpoint.mode": checkpoints.mode}
    return conditions


def _refuse_too_short(schedule: Schedule, state: RunState, loader: Loader, epochs: int, options: StepOptions) -> None:
    left = 0 if state.stopped_early else epochs - state.epoch
    if schedule.by == STEP:
        if loader.length is None:
            return
        begun = loader.position if state.phase == "train" else loader.length
        left = left * math.ceil(loader.length / options.grad_accum_steps) - math.ceil(begun / options.grad_accum_steps)
    if schedule.hold_after is None:
        refuse_too_short(schedule.scheduler, left, schedule.by)


def _report_restored(restored: Restored, state: RunState, epochs: int, progress: Progress) -> None:
    for change in restored.changes:
        progress.message(f"going on inexactly: {change}")
    if state.best.value is None and state.best.metric is not None and state.epoch:
        progress.message(
            f"{state.best.metric}: the best is looked for from here on; until then model/best is the old one"
        )
    if state.stopped_early:
        more = f"give early_stopping a patience above {state.stale_epochs} to go on"
        progress.message(f"nothing to do: the run was stopped early, after epoch {state.epoch}; {more}")
    elif state.epoch >= epochs:
        progress.message(
            f"nothing to do: the run has trained its {counted(state.epoch, 'epoch')}; give epochs=N to train longer"
        )
