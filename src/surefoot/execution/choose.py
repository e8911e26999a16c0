"""Choosing how a step runs: what was asked for, else what was measured here before, else what is fastest now."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import Arguments
from ..errors import UsageError
from ..limits import MOST_THREADS
from ..micro_batches import MicroBatches
from ..step import TrainStep
from ..untouched import is_lazy, untouched
from ..wrapping import replicating
from . import cache as kept
from .compiled import why_not
from .forms import compile_seconds, compiled_forms, most_seconds
from .limit import TookTooLong, limited
from .machine import describe_machine, describe_work, digest
from .measure import MARGIN, Bench, Trial, fastest, race
from .settings import MEMORY_FORMATS, Execution, as_torch_would, supports_fused, unsafe_layout

# What measuring may take without compiling, and when a run is too short to measure anything for, in seconds.
BUDGET_S = 1.0
LONGEST_BUDGET_S = 5.0
WORTH_MEASURING_STEPS = 400

TOO_LONG = "compiling took too long"

FIELDS = ("threads", "onednn", "memory_format", "optimizer_impl", "compile")


@dataclass(frozen=True)
class Row:
    """A candidate, its time of a step in milliseconds (None: not run), and what was decided."""

    execution: Execution
    ms: float | None
    verdict: str


@dataclass(frozen=True)
class TuneTable:
    """What was tried, and what was chosen; not `sound` where something is held against each of them."""

    rows: tuple[Row, ...]
    best: Execution
    wall_s: float
    sound: bool = True

    def render(self) -> str:
        """The table as text, one candidate a line, the fastest first."""
        order = sorted(self.rows, key=lambda row: (row.ms is None, row.ms or 0.0))
        names = [row.execution.describe() for row in order]
        width = max(map(len, names), default=0)
        lines = [f"{'':{width}}  ms a step  "]
        for name, row in zip(names, order, strict=True):
            ms = "-" if row.ms is None else f"{row.ms:.3f}"
            lines.append(f"{name:{width}}  {ms:>9}  {row.verdict}".rstrip())
        lines.append(f"chosen: {self.best.describe()} ({self.wall_s:.1f} s of measuring)")
        return "\n".join(lines)


def asked_for(spec: Mapping[str, Any] | str | None) -> dict[str, Any]:
    """The fields that a recipe's `execution` fixes; what is ``auto`` is left out.

    >>> asked_for({"threads": 1, "onednn": "auto", "compile": False})
    {'threads': 1, 'compile': 'none'}
    """
    if spec is None or (isinstance(spec, str) and spec == "auto"):
        return {}
    if spec == "plain":
        return {"plain": True}
    if not isinstance(spec, Mapping):
        raise UsageError(f"execution: {spec!r} is neither auto nor plain nor a mapping of {', '.join(FIELDS)}")
    if unknown := sorted(map(str, set(spec) - set(FIELDS))):
        raise UsageError(f"execution: unknown key {', '.join(unknown)}; there are {', '.join(FIELDS)}")
    fixed = {name: value for name, value in spec.items() if not (isinstance(value, str) and value == "auto")}
    if "threads" in fixed:
        check = Arguments("execution: ")
        fixed["threads"] = check.whole("threads", fixed["threads"], low=1, high=MOST_THREADS)
        check.done()
    if fixed.get("compile") is False:
        fixed["compile"] = "none"
    Execution(**{k: v for k, v in fixed.items() if k != "compile" or v is not True})  # refuses what cannot be
    return fixed


def with_asked(recorded: Execution, spec: Mapping[str, Any] | str | None) -> Execution:
    """Recorded settings with what `spec` fixes otherwise.

    The form of a compiled step is chosen at the start of a run; later it can only be given up.

    >>> with_asked(Execution(threads=2, compile="gradients"), {"threads": 1, "compile": True}).describe()
    'cpu, 1 thread, oneDNN, compiled gradients'
    """
    fixed = asked_for(spec)
    if fixed.get("compile", "none") != "none":
        del fixed["compile"]
    if fixed.get("compile", recorded.compile) == "none" or fixed.get("plain"):
        fixed["compile"] = "none"
    return replace(recorded, **fixed)


def choose_execution(
    spec: Mapping[str, Any] | str | None,
    step: TrainStep,
    batches: Iterable[Sequence[Any]],
    *,
    steps_expected: int,
    cache: bool = True,
    say: Callable[[str], None] = print,
) -> Execution:
    """The settings for a run of `steps_expected` more steps on batches like `batches` (a few, of the full size).

    `spec` is ``"auto"``, ``"plain"`` (the step as it is read) or fixes some of `FIELDS`. What was chosen before for
    the same work on the same machine and versions is taken again. Otherwise candidates are timed on copies for about
    a second and checked against the plain step; compiling is tried where the run is long enough to earn it back. The
    objects of `step`, random numbers and the process's settings are left bit for bit as they were. `say` receives what
    a user should know.
    """
    fixed = asked_for(spec)
    plain = _plain(step, fixed)
    batches = list(batches)
    compiles = fixed.get("compile", "none") != "none"
    if reason := _not_measurable(step, batches, plain):
        if compiles:
            say(f"the step is not compiled: {reason}")
        return plain
    if (set(FIELDS) <= set(fixed) or steps_expected < WORTH_MEASURING_STEPS) and not compiles:
        return plain
    key, world = cache_key(fixed, step, batches[0], steps_expected), step.world
    kept_choice = world.agree(lambda: _kept(key, step, plain, say), on=0) if cache else None
    if isinstance(batches[0], MicroBatches):  # what is chosen must do for another number of processes, too
        fixed["threads"] = plain.threads
    if kept_choice is not None:
        choice = Execution.from_json(kept_choice)
        return replace(choice, threads=fixed.get("threads", choice.threads))
    try:
        table = tune(fixed, step, batches, steps_expected=steps_expected, say=say)
    except UsageError as error:  # no copies, no measuring
        say(f"nothing is measured: {error}")
        return plain
    # Of a form that was asked for and could not be made, the next run may find the compiler that this one lacked.
    if cache and table.sound and not (compiles and table.best.compile == "none"):
        world.first(lambda: remember(key, table, say))
    return table.best


def _kept(key: str, step: TrainStep, plain: Execution, say: Callable[[str], None]) -> dict[str, Any] | None:
    choice = kept.load(key, plain, say)
    if choice is None or (choice.compile != "none" and why_not(step.model) is not None):
        return None
    if unsafe_layout(choice, step.model):  # a choice of an earlier version
        return None
    return choice.to_json()


def cache_key(spec: Mapping[str, Any] | str | None, step: TrainStep, batch: Any, steps_expected: int) -> str:
    """The name under which the choice for this work, machine and length of run is kept.

    Of MicroBatches it tells how many make a batch, and not how many ranks have them: runs that are to end with the same
    bits take the same.
    """
    parts, machine = [], describe_machine(step.device)
    if isinstance(batch, MicroBatches):
        parts, batch = [batch.parts], batch[0]
        del machine["threads"]  # torchrun gives each of several processes one
    work = describe_work(step.model, step.loss, step.optimizer, batch)
    options = step.options
    limits = {"max_grad_norm": options.max_grad_norm, "clip_value": options.clip_value}
    long = _log2(steps_expected)  # a longer run may earn what a shorter one did not
    return digest(machine, work, asked_for(spec), options.precision, limits, options.set_to_none, long, *parts)


def remember(key: str, table: TuneTable, say: Callable[[str], None]) -> None:
    """Keep a choice for the next run."""
    facts = {row.execution.describe(): [row.ms, row.verdict] for row in table.rows}
    kept.save(key, table.best, {"tried": facts, "machine": describe_machine(torch.device(table.best.device))}, say)


def tune(
    spec: Mapping[str, Any] | str | None,
    step: TrainStep,
    batches: Iterable[Sequence[Any]],
    *,
    steps_expected: int | None = None,
    budget_s: float = BUDGET_S,
    thorough: bool = False,
    say: Callable[[str], None] = print,
) -> TuneTable:
    """Time the candidates and choose. With `thorough` each is checked, compiled ones included.

    `steps_expected` is what compiling has to be worth it for; None leaves it out unless `thorough`. `budget_s`
    (seconds) bounds timing, and with `thorough` all there is: compiling is tried in what is left. The choice is the row
    with the lowest time, or a simpler one within 3 % of it. Raises UsageError where there is no copy of the model.
    """
    began = time.perf_counter()
    fixed = asked_for(spec)
    plain = _plain(step, fixed)
    batches = list(batches)
    if reason := _not_measurable(step, batches, plain):
        say(f"nothing is measured: {reason}")
        return TuneTable((Row(plain, None, "chosen"),), plain, 0.0)
    # Rank 0 says what is tried; times are those of the slowest.
    plain = Execution.from_json(step.world.agree(plain.to_json, on=0))
    model, optimizer, device = step.model, step.optimizer, plain.device
    # The candidates run on copies; what a copy still shares with the original (a closure) is put back.
    with untouched(model, step.loss, optimizer), Bench(step, batches) as bench:
        timing_s = budget_s if not thorough else min(LONGEST_BUDGET_S, 0.3 * budget_s)
        trials = [Trial(e) for e in candidates(plain, fixed, model)]
        race(bench, trials, 0.6 * timing_s)
        best = _settle(bench, trials, thorough, say) or next((t for t in trials if t.execution == plain), trials[0])
        chosen = any(group.get("foreach") or group.get("fused") for group in optimizer.param_groups)
        if "optimizer_impl" not in fixed and not chosen and supports_fused(optimizer):
            # First, so that it is taken among equals: it is called without torch's wrappers.
            fused = Trial(replace(best.execution, optimizer_impl="fused"))
            trials.insert(0, fused)
            race(bench, [fused, best], 0.4 * timing_s)
            best = _settle(bench, [fused, best], thorough, say) or best
        if device == "cuda" and not isinstance(batches[0], MicroBatches):
            trial = Trial(replace(best.execution, cuda_graph=True))
            trials.append(trial)
            bench.check(trial)
            race(bench, [best, trial], 0.5)
            best = _settle(bench, [best, trial], thorough, say) or best
        eager = best
        for form in step.world.agree(lambda: compiled_forms(fixed, eager, steps_expected, thorough, bench, say), on=0):
            # A compiled form launches its own kernels; a graph that was captured is another candidate.
            trial = Trial(replace(eager.execution, cuda_graph=False, **form))
            trials.append(trial)
            left = budget_s - (time.perf_counter() - began)
            if thorough and compile_seconds(model) > left:
                trial.refused = f"not tried: compiling takes about {compile_seconds(model):.0f} s; give more seconds"
                continue
            say(f"compiling the step (about {compile_seconds(model):.0f} s, once)")
            bound = left if thorough else most_seconds(fixed, eager, steps_expected)
            # It may come in the instant after the check.
            with contextlib.suppress(TookTooLong), limited(bound, "compiling") as clock:
                bench.look(trial)
            if clock.up:  # whatever was made of the interrupt
                trial.refused = TOO_LONG
            bench.agree(trial)
            if trial.refused:
                say(f"the compiled step is not used: {trial.refused}")
                if trial.refused == TOO_LONG:
                    break
                continue
            race(bench, [best, trial], 0.5)
            if trial.refused:
                say(f"the compiled step is not used: {trial.refused}")
            elif "compile" in fixed and best is eager:
                best = trial
                if trial.seconds > eager.seconds * (1 + MARGIN):
                    times = f"{trial.seconds * 1e3:.3g} ms in place of {eager.seconds * 1e3:.3g}"
                    say(f"the compiled step that was asked for is slower here than the eager one: {times}")
            else:
                best = _settle(bench, [best, trial], thorough, say) or best
            if not thorough:
                break
        if fixed.get("compile", "none") == "none":  # one rule over the whole table, whatever was raced with what
            best = _settle(bench, [t for t in trials if t.times], thorough, say) or best
    if best.refused:
        say(f"nothing is measured: {best.refused}")
    rows = tuple(Row(t.execution, t.seconds * 1e3 if t.times else None, _verdict(t, best)) for t in trials)
    return TuneTable(rows, best.execution, time.perf_counter() - began, not best.refused)


def candidates(plain: Execution, fixed: Mapping[str, Any], model: nn.Module) -> list[Execution]:
    """Threads, oneDNN and layout in all combinations that can matter, the fewest threads first.

    On a busy machine a step on all threads can take a hundred times its time, waiting for a core; tried first it
    would leave no time for the others, and where two are as fast, fewer threads disturb and are disturbed less.
    """
    formats = [plain.memory_format]
    if "memory_format" not in fixed and any(p.dim() == 4 for p in model.parameters()):
        formats += [f for f in MEMORY_FORMATS if f != plain.memory_format]
    if plain.device != "cpu":
        return [replace(plain, memory_format=f) for f in formats]
    threads, most = [plain.threads], plain.threads
    if "threads" not in fixed:
        while most > 1:
            most = 2 if most == 3 else most // 2
            threads.append(most)
    onednn = [plain.onednn]
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if "onednn" not in fixed and available and _may_use_onednn(model):
        onednn.append(not plain.onednn)
    made = [
        replace(plain, threads=t, onednn=o, memory_format=f) for t in sorted(threads) for f in formats for o in onednn
    ]
    if "memory_format" in fixed:
        return made
    known = ("contiguous", plain.memory_format)
    return [e for e in made if (e.onednn or e.memory_format in known) and not unsafe_layout(e, model)]


def _settle(bench: Bench, trials: Sequence[Trial], thorough: bool, say: Callable[[str], None]) -> Trial | None:
    """The fastest whose gradients are right; the rest is checked as well only when it is to be shown."""
    if thorough:
        for trial in trials:
            bench.check(trial)
    while (best := fastest(trials)) is not None:
        if bench.check(best):
            return best
        say(f"{best.execution.describe()} is not used: {best.refused}")
    return None


def _plain(step: TrainStep, fixed: Mapping[str, Any]) -> Execution:
    settings = as_torch_would(step.device.type, step.options.precision, step.model)
    return replace(settings, **{**fixed, "compile": "none"})


def _verdict(trial: Trial, best: Trial) -> str:
    if trial.execution == best.execution:
        return "chosen"
    if trial.refused:
        return trial.refused if trial.refused.startswith("not tried") else f"thrown out: {trial.refused}"
    if not trial.times:
        return "not run: no time was left"
    return "gradients agree" if trial.checked else ""


def _not_measurable(step: TrainStep, batches: Sequence[Any], plain: Execution) -> str | None:
    """Why there is nothing but the plain step, as torch would run it; None where there is."""
    if plain.plain:
        return "the plain step is asked for"
    if step.options.precision == "fp16" or isinstance(step.optimizer, torch.optim.LBFGS):
        return "fp16 and L-BFGS have the plain step only"
    if (kind := replicating(step.model)) is not None:
        return f"a {kind} meets its replicas in every step, and is not timed on copies"
    divided = bool(batches) and isinstance(batches[0], MicroBatches)
    if step.options.grad_accum_steps > 1 and not divided:
        return "accumulated updates have the plain step only"
    if any(map(is_lazy, step.model.parameters())):
        return "the first batch of training makes this model's parameters"
    if not batches or not all(isinstance(part, Tensor) for part in (batches[0][0] if divided else batches[0])):
        return "its batches hold more than plain tensors"
    return None


def _may_use_onednn(model: nn.Module) -> bool:
    kinds = (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm, nn.RNNBase, nn.modules.pooling._MaxPoolNd)
    return any(isinstance(module, kinds) for module in model.modules())


def _log2(steps: int) -> int:
    return max(steps, 1).bit_length()
