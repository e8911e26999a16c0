"""Surefoot on one GPU: right, without waits, exact on resume, and how fast; one JSON and one page in under six minutes.

    python3 dev.py cuda [--json FILE] [--seconds 345] [--only SECTION ...]
    PYTHONPATH=src python3 benchmarks/gpu.py ...       with a torch (2.10 or newer) that is there already

Each section has a deadline of its own; what did not end by then is said and the next one begins. `--device cpu` runs
the same logic on tiny models, which the tests do.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from work import ResNet18

import surefoot
from surefoot.checkpoint import Checkpointer
from surefoot.data import Loader
from surefoot.execution import CannotCompile, Execution, choose_execution, make_backend, prepare, verify
from surefoot.execution.limit import TookTooLong, limited
from surefoot.losses.scoring import metric_options
from surefoot.metrics import RunningMetrics
from surefoot.models import GPT, LeNet5
from surefoot.step import StepOptions, TrainStep

TURN_S = 0.15


class Bench:
    """Where it runs, and on what."""

    def __init__(self, device: str, small: bool):
        self.device, self.small = torch.device(device), small
        self.gpu = self.device.type == "cuda"

    def forms(self) -> dict[str, Execution]:
        """The ways of running a step that are compared with the plain one."""
        make = functools.partial(Execution, device=self.device.type)
        if not self.gpu:
            return {"eager": make()}
        return {
            "eager": make(),
            "captured": make(cuda_graph=True),
            "compiled gradients": make(compile="gradients"),
            "compiled module": make(compile="module"),
        }

    def job(self, name: str, batch: int) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
        """A model, the same each time, and one batch."""
        torch.manual_seed(0)
        model: nn.Module
        if name == "lenet":
            model, inputs, classes = LeNet5(), torch.randn(batch, 1, 28, 28), 10
        elif name == "resnet":
            model = ResNet18(4 if self.small else 64)
            inputs, classes = torch.randn(batch, 3, 32, 32), 10
        else:
            width, depth, length = (16, 1, 8) if self.small else (512, 8, 512)
            model = GPT(classes=256, length=length, width=width, depth=depth, heads=width // 8 if self.small else 8)
            inputs, classes = torch.randint(0, 256, (batch, length)), 256
        targets = torch.randint(0, classes, (batch, *inputs.shape[1:]) if name == "gpt" else (batch,))
        return model.to(self.device), (inputs.to(self.device), targets.to(self.device))

    def step(self, name: str, batch: int, **options: Any) -> tuple[TrainStep, Any]:
        """A step as `fit` makes it, and one batch for it."""
        model, samples = self.job(name, batch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        return TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(**options)), samples

    def wait(self) -> None:
        """Until the device has done all that it was given."""
        if self.gpu:
            torch.cuda.synchronize()

    def seconds(self, run: Callable[[], Any], turn_s: float = TURN_S) -> float:
        """Of one call: the lowest of five turns."""
        for _ in range(3):
            run()
        if self.small:
            turn_s = 0.0
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        calls = max(1, min(200, round(turn_s / 5 / max(time.perf_counter() - start, 1e-6))))
        times = []
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(calls):
                run()
            self.wait()
            times.append((time.perf_counter() - start) / calls)
        return min(times)


def environment(bench: Bench) -> dict[str, Any]:
    """What it runs on."""
    facts = {"surefoot": surefoot.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if bench.gpu:
        facts |= {"gpu": torch.cuda.get_device_name(bench.device), "cuda": str(torch.version.cuda)}
    return facts | {"passed": True}


def equal(bench: Bench) -> dict[str, Any]:
    """Each form of a step does what the plain one does, also where rates and momentum change, with dropout and bf16."""
    found: dict[str, Any] = {}
    for precision in ("float32", "bf16"):
        for form, execution in bench.forms().items():
            for name in ("lenet", "resnet", "gpt"):
                step, batch = bench.step(name, 8, precision=precision)
                found[f"{name}, {form}, {precision}"] = _compared(execution, step, batch)
    # OneCycleLR moves rate and momentum at each step.
    for form, execution in bench.forms().items():
        found[f"OneCycleLR, {form}"] = _one_cycle(bench, execution)
    return {"passed": all(text == "equal" for text in found.values()), "found": found}


def _compared(execution: Execution, step: TrainStep, batch: Any) -> str:
    try:
        with prepare(execution, step.model, step.optimizer):
            backend = make_backend(execution, step, batch, say=lambda _: None)
            return "plain" if backend is None else verify(step, backend, [batch]) or "equal"
    except CannotCompile as error:
        return f"refused: {error}"


def _one_cycle(bench: Bench, execution: Execution) -> str:
    ends = []
    for fast in (False, True):
        step, batch = bench.step("lenet", 8)
        schedule = torch.optim.lr_scheduler.OneCycleLR(step.optimizer, 0.05, total_steps=30)
        with prepare(execution, step.model, step.optimizer):
            step.backend = make_backend(execution, step, batch) if fast else None
            for _ in range(20):
                step([batch])
                schedule.step()
        ends.append([p.detach().clone() for p in step.model.parameters()])
    off = max(float((a - b).norm() / a.norm().clamp(min=1e-9)) for a, b in zip(*ends, strict=True))
    return "equal" if off < (0.05 if bench.gpu else 1e-6) else f"parameters are {off:.2%} apart after 20 steps"


def resumed(bench: Bench) -> dict[str, Any]:
    """A state that was loaded before a capture, or after it, is the one that is trained."""
    found: dict[str, Any] = {}
    for form, execution in bench.forms().items():
        for order in ("load, then capture", "capture, then load"):
            whole, batch = bench.step("lenet", 8)
            with prepare(execution, whole.model, whole.optimizer):
                whole.backend = make_backend(execution, whole, batch)
                for _ in range(5):
                    whole([batch])
                saved = copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict()))
                for _ in range(5):
                    whole([batch])
            step, _ = bench.step("lenet", 8)
            with prepare(execution, step.model, step.optimizer):
                if order == "capture, then load":
                    step.backend = make_backend(execution, step, batch)
                step.model.load_state_dict(saved[0])
                step.optimizer.load_state_dict(saved[1])
                step.backend = step.backend or make_backend(execution, step, batch)
                for _ in range(5):
                    step([batch])
            pairs = zip(whole.model.parameters(), step.model.parameters(), strict=True)
            off = max(float((a - b).detach().abs().max()) for a, b in pairs)
            found[f"{form}: {order}"] = "equal" if off < (1e-4 if bench.gpu else 1e-12) else f"{off:.3g} apart"
    return {"passed": all(text == "equal" for text in found.values()), "found": found}


def exact(bench: Bench) -> dict[str, Any]:
    """With deterministic algorithms a run that was stopped ends with the bits of one that was not."""
    before, execution = torch.are_deterministic_algorithms_enabled(), "auto" if bench.gpu else "plain"
    options = surefoot.RunOptions(progress=False, tensorboard=False, lint_off=["all"], execution=execution)
    torch.use_deterministic_algorithms(True)
    try:
        ends = []
        for sittings in ((3,), (1, 3)):
            with tempfile.TemporaryDirectory() as folder:
                for epochs in sittings:
                    torch.manual_seed(0)
                    model = LeNet5().to(bench.device)
                    data = torch.randn(256, 1, 28, 28), torch.arange(256) % 10
                    surefoot.fit(
                        model,
                        nn.CrossEntropyLoss(),
                        torch.optim.AdamW(model.parameters(), lr=0.001),
                        Loader(data, 32, seed=0, device=bench.device),
                        epochs=epochs,
                        run_dir=Path(folder) / "run",
                        resume=True,
                        run=options,
                    )
                ends.append([p.detach().cpu() for p in model.parameters()])
    finally:
        torch.use_deterministic_algorithms(before)
    same = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    return {"passed": same, "found": {"stopped after epoch 1 of 3": "the same bits" if same else "other bits"}}


def waits(bench: Bench) -> dict[str, Any]:
    """Where a stretch of steps, with its data and its metrics, waits for the device."""
    found: dict[str, Any] = {}
    for form, execution in bench.forms().items():
        for options in ({}, {"max_grad_norm": 1.0}, {"ema_decay": 0.99}, {"grad_accum_steps": 2}):
            model, (inputs, targets) = bench.job("lenet", 512)
            loader = Loader((inputs.cpu(), targets.cpu()), 32, seed=0, device=bench.device)
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, fused=bench.gpu)
            step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(**options))
            running = RunningMetrics(**metric_options(step.loss))
            with prepare(execution, model):
                step.backend = make_backend(execution, step, loader.batch_at(0, 0))
                batches = iter(loader)
                _stretch(step, batches, running, 4)
                with warnings.catch_warnings(record=True) as caught, _watched(bench):
                    warnings.simplefilter("always")
                    _stretch(step, batches, running, 4)
            places = sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})
            found[f"{form}, {options or 'plain'}"] = places
    return {"passed": not any(found.values()), "found": found}


class _watched:  # noqa: N801 (a context, named as one)
    """Within it torch warns of each wait for the GPU."""

    def __init__(self, bench: Bench):
        self.bench = bench

    def __enter__(self) -> None:
        if self.bench.gpu:
            torch.cuda.set_sync_debug_mode("warn")

    def __exit__(self, *_: object) -> None:
        if self.bench.gpu:
            torch.cuda.set_sync_debug_mode("default")


def _stretch(step: TrainStep, batches: Iterator[Any], running: RunningMetrics, updates: int) -> None:
    for _ in range(updates):
        result = step([next(batches) for _ in range(step.options.grad_accum_steps)])
        running.add(*result[:4], result.weight, result.numbers)


def memory(bench: Bench) -> dict[str, Any]:
    """What choosing settings leaves behind on the device."""
    step, batch = bench.step("resnet", 16)
    held = [torch.cuda.memory_reserved() if bench.gpu else 0]
    choose_execution("auto", step, [batch], steps_expected=10_000, cache=False, say=lambda _: None)
    bench.wait()
    held.append(torch.cuda.memory_reserved() if bench.gpu else 0)
    left = held[1] - held[0]
    return {"passed": left <= 64 << 20, "found": {"bytes left": left}}


def save_pause(bench: Bench) -> dict[str, Any]:
    """How long a save holds training up, beside a copy on the device of the same bytes."""
    width = 64 if bench.small else 4096
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(6))).to(bench.device)
    parameters = list(model.parameters())
    pauses = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpointer(Path(folder) / "run", model=model, every="1 step", keep_last=1, say=lambda _: None) as saver,
    ):
        for _ in range(3):
            bench.wait()
            start = time.perf_counter()
            saver.step()
            pauses.append(time.perf_counter() - start)
    clone = bench.seconds(lambda: [p.detach().clone() for p in parameters], 0.05)
    size = sum(p.nbytes for p in parameters)
    return {"passed": True, "found": {"bytes": size, "pause_ms": 1e3 * min(pauses), "clone_ms": 1e3 * clone}}


def speed(bench: Bench, *, rows: Any = None) -> Iterator[tuple[str, dict[str, float]]]:
    """Milliseconds a step: a loop by hand, torch.compile of its model, Surefoot's plain step and what it chooses."""
    sizes = [("lenet", 4), ("lenet", 64), ("lenet", 512), ("resnet", 128), ("gpt", 32)]
    for precision in ("float32", "bf16"):
        for name, batch in rows or sizes:
            yield f"{name}, batch {batch}, {precision}", _row(bench, name, 2 if bench.small else batch, precision)


def _row(bench: Bench, name: str, batch: int, precision: str) -> dict[str, float]:
    row: dict[str, float] = {}
    modes = (
        {"hand": None, "torch.compile": "default", "reduce-overhead": "reduce-overhead"}
        if bench.gpu
        else {"hand": None}
    )
    for label, mode in modes.items():
        model, (inputs, targets) = bench.job(name, batch)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
        called = model if mode is None else torch.compile(model, mode=mode)
        row[label] = bench.seconds(functools.partial(_by_hand, called, optimizer, inputs, targets, precision))
        torch.compiler.reset()
    step, samples = bench.step(name, batch, precision=precision)
    row["plain"] = bench.seconds(lambda: step.plain([samples]))
    spec = {"compile": True} if bench.gpu else "auto"
    chosen = choose_execution(spec, step, [samples], steps_expected=100_000, cache=False, say=lambda _: None)
    candidates = {chosen, *(bench.forms()["captured"],)} if bench.gpu else {chosen}
    for execution in candidates:
        with prepare(execution, step.model, step.optimizer):
            try:
                backend = make_backend(execution, step, samples, say=lambda _: None) or step.plain
            except CannotCompile:
                continue
            row[execution.describe()] = bench.seconds(functools.partial(backend, [samples]))
    return {label: 1e3 * seconds for label, seconds in row.items()}


def _by_hand(model: Any, optimizer: Any, inputs: Any, targets: Any, precision: str) -> None:
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = nn.functional.cross_entropy(model(inputs), targets)
    loss.backward()
    optimizer.step()


def all_speeds(bench: Bench) -> dict[str, Any]:
    """The rows of `speed` that ended in time."""
    found: dict[str, Any] = {}
    result = {"passed": True, "found": found}
    try:
        for name, row in speed(bench):
            found[name] = {label: round(ms, 4) for label, ms in row.items()}
    except TookTooLong:
        result["ended"] = "no time was left for more rows"
    return result


# Name, what it does, the most seconds that it has.
SECTIONS: dict[str, tuple[Callable[[Bench], dict[str, Any]], float]] = {
    "environment": (environment, 10),
    "equal": (equal, 70),
    "resumed": (resumed, 30),
    "exact": (exact, 25),
    "waits": (waits, 30),
    "memory": (memory, 20),
    "save_pause": (save_pause, 20),
    "speed": (all_speeds, 140),
}


def run(bench: Bench, names: list[str], seconds: float) -> dict[str, Any]:
    """Each section by its name: what it found, or how it ended."""
    end, results = time.monotonic() + seconds, {}
    for name in names:
        section, most = SECTIONS[name]
        start = time.monotonic()
        most = min(most, end - start)
        if most <= 0.1:
            results[name] = {"passed": False, "ended": "not run: no time was left"}
            continue
        try:
            with limited(most, name):
                result = section(bench)
        except TookTooLong as error:
            result = {"passed": False, "ended": str(error)}
        except Exception as error:  # a section must not take the others with it
            result = {"passed": False, "ended": f"{type(error).__name__}: {error}"}
        results[name] = result | {"seconds": round(time.monotonic() - start, 1)}
    return results


def page(results: dict[str, Any]) -> str:
    """The results as a page of text."""
    lines = []
    for name, result in results.items():
        lines.append(f"{'ok    ' if result['passed'] else 'FAILED'} {name} ({result.get('seconds', 0)} s)")
        if "ended" in result:
            lines.append(f"         {result['ended']}")
        facts = result.get("found") or {k: v for k, v in result.items() if k not in ("passed", "seconds", "ended")}
        lines += [f"         {key}: {value}" for key, value in facts.items() if value not in ("equal", [])]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Exit code 1 where a section did not pass."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, default=Path("cuda.json"))
    parser.add_argument("--seconds", type=float, default=345.0)
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    given = parser.parse_args(arguments)
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        print("cuda: torch sees no GPU here; --device cpu runs the same logic on tiny models")
        return 2
    results = run(Bench(given.device, small=given.device == "cpu"), given.only, given.seconds)
    given.json.write_text(json.dumps(results, indent=1) + "\n")
    print(page(results))
    print(f"written: {given.json}")
    return 0 if all(result["passed"] for result in results.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
