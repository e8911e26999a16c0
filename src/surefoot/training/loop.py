"""The loop itself: epochs of updates, validation, records, checkpoints between steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from .. import generators, rng
from ..checkpoint import Checkpointer, Every
from ..data import Loader
from ..errors import RunFailed
from ..losses.hidden import hidden_state
from ..metrics import RunningMetrics
from ..metrics.hardest import MOST
from ..modes import set_mode
from ..nonfinite import NonFinite, first_not_finite
from ..schedules import Schedule
from ..step import Batch, TrainStep
from ..untouched import Buffers
from ..variables import Variables
from .evaluation import evaluate_on
from .last_validation import LastValidation
from .records import Recorder
from .state import EarlyStopping, RunState
from .unfreezing import Unfreezing

# A run in which this many updates in a row had to be skipped learns nothing and would never end by itself.
MOST_SKIPS_IN_A_ROW = 100


@dataclass
class Loop:
    """One run, from where its `state` stands to the last epoch. Every part is a live object of the floors below."""

    step: TrainStep
    loader: Loader
    val_loader: Loader | None
    schedule: Schedule
    state: RunState
    running: RunningMetrics
    recorder: Recorder
    checkpointer: Checkpointer | None
    epochs: int
    log_every: int
    metrics: Any = "auto"
    monitor: str | None = None
    early_stopping: EarlyStopping | None = None
    unfreezing: Unfreezing | None = None
    save_best: Callable[[nn.Module, dict[str, float]], None] | None = None
    classes: int | None = None
    histograms: Every | None = None
    last_validation: LastValidation | None = None

    def run(self) -> None:
        """Train until the last epoch is done or early stopping ends it. Raises Stopped after a signal."""
        state = self.state
        while state.epoch < self.epochs and not state.stopped_early:
            if state.phase != "validate":
                self.train_epoch()
            values = self.validate()
            self.finish_epoch(values)

    def train_epoch(self) -> None:
        """The updates that are left of this epoch, and its record."""
        state, step, schedule, running, loader = self.state, self.step, self.schedule, self.running, self.loader
        checkpointer, log_every, batches = self.checkpointer, self.log_every, loader.length
        any_is_last = batches is None or step.options.on_nonfinite == "skip"  # of the epoch's updates
        if self.unfreezing is not None:
            self.unfreezing.begin(state.epoch)
        # What has joined gets its rate before the first update, however that update is run.
        schedule.adopt_groups()
        set_mode(step.optimizer, training=True)
        of_epoch, first, then = loader.epoch, loader.position, loader.position
        for micro_batches in grouped(loader, step.options.grad_accum_steps) if state.phase == "train" else ():
            first, then = then, then + len(micro_batches)
            if loader.epoch != of_epoch:  # a stream has ended, and what it left is an update still
                state.phase = "record"
            try:
                result = step(micro_batches)
            except NonFinite as error:
                self.nonfinite(error, of_epoch, range(first, then))
                continue
            state.skipped_in_a_row = 0
            state.step += 1
            recorded = state.step % log_every == 0
            if recorded or any_is_last or loader.position == batches:
                # A record tells the rates that its update was done with, not those of the next.
                state.rates = schedule.lrs
            if result.updated:
                schedule.step()
            if result.parts:
                running.add_parts(result.parts)
            else:
                running.add(*result[:4], result.weight, result.numbers)
            if recorded:
                self.record_step(result.grad_norm)
            if self.histograms is not None:
                self.record_histograms(self.histograms, whole_epoch=loader.position == batches)
            if checkpointer is not None:
                checkpointer.step()
        self.require_finite_parameters()
        if self.histograms is not None and batches is None:
            self.record_epoch_histograms(self.histograms)
        means = running.result()
        self.record("epoch", "train", means)
        state.last = {f"train/{name}": value for name, value in means.items()}
        running.reset()
        state.phase = "validate"

    def record_step(self, grad_norm: Any) -> None:
        """The means since the last such record. This is where losses are read back from the device."""
        means = self.running.window()
        if grad_norm is not None:
            means["grad_norm"] = float(grad_norm)
        self.record("step", "train", means)
        if not math.isfinite(means["loss"]) and self.running.has_weight:  # else it is 0 / 0
            self.fail_nonfinite(f"the mean loss up to step {self.state.step} is {means['loss']}")
        if not self.step.checks:  # a gradient that was NaN under a finite loss shows here
            self.require_finite_parameters()

    def record_histograms(self, every: Every, *, whole_epoch: bool) -> None:
        """Histograms of weights and gradients, where they are due: before a checkpoint, which then knows of them."""
        state = self.state
        if every.after_step(state.step, 0.0) or (whole_epoch and every.after_epoch(state.epoch + 1, 0.0)):
            self.recorder.histograms(self.step.model, state.epoch, state.step, state.wall_s())

    def record_epoch_histograms(self, every: Every) -> None:
        """Those due by epoch, where no update has shown that it was the epoch's last."""
        if every.unit == "epochs":
            self.record_histograms(every, whole_epoch=True)

    def require_finite_parameters(self) -> None:
        """End the run where a parameter is NaN or infinite, before anything is saved as good."""
        if first_not_finite(self.step.model, self.step.world) is not None:
            self.fail_nonfinite(f"epoch {self.state.epoch + 1}, step {self.state.step}: an update overflowed")

    def validate(self) -> dict[str, float]:
        """One pass over the validation data; returns the epoch's values by name (``train/loss``, ``val/loss``)."""
        values = dict(self.state.last)
        set_mode(self.step.optimizer, training=False)
        if self.val_loader is not None:
            # A model that draws or counts even in evaluation must find all as it was, should the run be stopped in
            # here: it then begins this validation again.
            begin_again = before_pass(self.evaluated_model, self.step.loss) if self.checkpointer is not None else None
            # What the validation data draw, and in which order they come, depends on the epoch and not on how often
            # this process has validated.
            self.val_loader.seek(self.state.epoch)
            result = evaluate_on(
                self.val_loader,
                self.evaluated_model,
                self.step.loss,
                metrics=self.metrics,
                precision=self.step.options.precision,
                confusion=self.classes,
                between=lambda: self.stop_in_validation(begin_again),
                world=self.step.world,
                hardest=MOST if self.last_validation is not None else 0,
            )
            self.record("epoch", "val", result.metrics)
            if (last := self.last_validation) is not None:
                self.step.world.first(lambda: last.write(self.state.epoch, self.state.step, result))
            values |= {f"val/{name}": value for name, value in result.metrics.items()}
        self.state.last = values
        return values

    def stop_in_validation(self, begin_again: Callable[[], None] | None) -> None:
        """Between two validation batches: save and stop if a signal asks for it."""
        if self.checkpointer is not None and begin_again is not None and self.checkpointer.stop_requested:
            begin_again()
            self.checkpointer.stop()

    def finish_epoch(self, values: dict[str, float]) -> None:
        """The schedule's epoch, the best model, early stopping; then the next epoch."""
        state = self.state
        self.schedule.epoch(values.get(self.schedule.monitor) if self.schedule.needs_metric else None)
        if self.monitor is not None and state.best.improves(values[self.monitor], state.epoch) and self.save_best:
            self.save_best(self.evaluated_model, values)
        if self.early_stopping is not None:
            better = state.patience_best.improves(values[self.early_stopping.monitor], state.epoch)
            state.stale_epochs = 0 if better else state.stale_epochs + 1
            state.stopped_early = state.stale_epochs >= self.early_stopping.patience
        state.epoch += 1
        state.phase = "train"
        self.recorder.progress.epoch_done()
        if self.checkpointer is not None:
            self.checkpointer.epoch(values)

    @property
    def evaluated_model(self) -> nn.Module:
        """The moving average where there is one, else the model itself."""
        return self.step.model if self.step.ema is None else self.step.ema.module

    def record(self, kind: str, split: str, values: dict[str, float]) -> None:
        """Write one record of this moment."""
        state = self.state
        self.recorder.write(kind, split, state.epoch, state.step, values, state.rates, state.wall_s())

    def nonfinite(self, error: NonFinite, of_epoch: int, positions: range) -> None:
        """A loss or gradient that is NaN or infinite: skip the update and say so, or stop and keep the finite state."""
        which = positions if error.micro_batch is None else [positions[error.micro_batch]]
        where = self.loader.describe(of_epoch, which)
        what = f"epoch {self.state.epoch + 1}, step {self.state.step + 1}: {error} on {where}"
        if self.step.options.on_nonfinite == "stop":
            self.fail_nonfinite(what)
        self.state.skipped += 1
        self.state.skipped_in_a_row += 1
        if self.state.skipped_in_a_row >= MOST_SKIPS_IN_A_ROW:
            self.fail_nonfinite(f"{what}, as on the {self.state.skipped_in_a_row - 1} batches before it")
        self.recorder.progress.message(f"{what}; this update is skipped")
        if self.histograms is not None and self.loader.position == self.loader.length:
            self.record_epoch_histograms(self.histograms)
        if self.checkpointer is not None:
            self.checkpointer.check_signals()

    def fail_nonfinite(self, what: str) -> None:
        """End the run over a number that is not finite."""
        advice = "lower the learning rate, limit max_grad_norm, or look at these samples"
        if (bad := first_not_finite(self.step.model, self.step.world)) is not None:
            kept = f"the parameters are no longer finite ({bad}); what was saved before is kept"
        elif self.checkpointer is not None:
            # A record is made before its update is counted there.
            self.checkpointer.begin_at(self.state.step, self.state.epoch)
            kept = "the parameters are finite and saved; a resume goes on after this batch"
        else:
            kept = "the parameters are still finite"

        def fail() -> None:
            raise RunFailed(f"{what}; {kept}; {advice}")

        self.step.world.agree(fail)  # all ranks come here: one of them says it


def before_pass(model: nn.Module, loss: Any) -> Callable[[], None]:
    """What puts back random numbers, buffers and Python's values that a pass without training has drawn and written."""
    drawn, buffers = rng.get_state(), Buffers(model, *hidden_state(loss, model).values())
    own = [(each, generators.state_of(each)) for each in generators.held_by(model=model, loss=loss).values()]
    variables = Variables(model=model, loss=loss)
    buffers.note(always=True)

    def begin_again() -> None:
        rng.set_state(drawn)
        buffers.put_back()
        for generator, state in own:
            generators.put_state(generator, state)
        variables.go_back()

    return begin_again


def grouped(loader: Loader, size: int) -> Iterator[list[Batch]]:
    """The loader's batches in lists of `size`, the last list of an epoch perhaps shorter.

    That one too comes while the loader is in its epoch, where a checkpoint may be made of both; but for a stream,
    whose end only another look tells.
    """
    group: list[Batch] = []
    for batch in loader:
        group.append(batch)
        if len(group) == size or loader.position == loader.length:
            yield group
            group = []
    if group:
        yield group
