"""What the check for one GPU looks at: each section fills in what it finds, entry by entry."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
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
from surefoot.execution.limit import TookTooLong
from surefoot.losses.scoring import metric_options
from surefoot.metrics import RunningMetrics
from surefoot.models import GPT, LeNet5
from surefoot.step import StepOptions, TrainStep

TURN_S = 0.15
Found = dict[str, Any]


class Bench:
    """Where it runs, and on what."""

    def __init__(self, device: str, small: bool):
        self.device, self.small = torch.device(device), small
        self.gpu = self.device.type == "cuda"

    def forms(self) -> dict[str, Execution]:
        """The ways of running a step that are compared with the plain one; what takes longest is last."""
        make = functools.partial(Execution, device=self.device.type)
        if not self.gpu:
            return {"eager": make()}
        return {
            "eager": make(),
            "captured": make(cuda_graph=True),
            "compiled gradients": make(compile="gradients"),
            "compiled module": make(compile="module"),
        }

    def job(
        self, name: str, batch: int, small: bool | None = None
    ) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
        """A model, the same each time, and one batch."""
        torch.manual_seed(0)
        small = self.small if small is None else small
        model: nn.Module
        if name == "lenet":
            model, inputs, classes = LeNet5(), torch.randn(batch, 1, 28, 28), 10
        elif name == "resnet":
            model = ResNet18(4 if small else 64)
            inputs, classes = torch.randn(batch, 3, 32, 32), 10
        else:
            width, depth, length = (16, 1, 8) if small else (512, 8, 512)
            model = GPT(classes=256, length=length, width=width, depth=depth, heads=width // 8 if small else 8)
            inputs, classes = torch.randint(0, 256, (batch, length)), 256
        targets = torch.randint(0, classes, (batch, *inputs.shape[1:]) if name == "gpt" else (batch,))
        return model.to(self.device), (inputs.to(self.device), targets.to(self.device))

    def step(self, name: str, batch: int, small: bool | None = None, **options: Any) -> tuple[TrainStep, Any]:
        """A step as `fit` makes it, and one batch for it."""
        model, samples = self.job(name, batch, small)
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


@contextlib.contextmanager
def entry(found: Found, name: str) -> Iterator[None]:
    """An error of one entry is what was found of it; only the section's deadline ends the others too."""
    try:
        yield
    except TookTooLong:
        raise
    except CannotCompile as error:
        found[name] = f"refused: {error}"
    except Exception as error:  # whatever the device says
        found[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def environment(bench: Bench, found: Found) -> None:
    """What it runs on."""
    found |= {"surefoot": surefoot.__version__, "torch": torch.__version__, "python": platform.python_version()}
    if bench.gpu:
        major, minor = torch.cuda.get_device_capability(bench.device)
        found |= {"gpu": torch.cuda.get_device_name(bench.device), "capability": f"{major}.{minor}"}
        found |= {"cuda": str(torch.version.cuda), "cudnn": torch.backends.cudnn.version()}
        torch.ones(8, device=bench.device).sum().item()


def equal(bench: Bench, found: Found) -> None:
    """Each form of a step does what the plain one does, also where rates and momentum change, with dropout and bf16."""
    for form, execution in bench.forms().items():
        for precision in ("float32", "bf16"):
            for name in ("lenet", "gpt", "resnet"):
                where = f"{name}, {form}, {precision}"
                with entry(found, where):
                    # Small ones: what is compared does not hang on size, and what is compiled takes long.
                    step, batch = bench.step(name, 8, small=True, precision=precision)
                    found[where] = _compared(execution, step, batch)
        # OneCycleLR moves rate and momentum at each step.
        with entry(found, f"OneCycleLR, {form}"):
            found[f"OneCycleLR, {form}"] = _one_cycle(bench, execution)


def _compared(execution: Execution, step: TrainStep, batch: Any) -> str:
    with prepare(execution, step.model, step.optimizer):
        backend = make_backend(execution, step, batch, say=lambda _: None)
        return "plain" if backend is None else verify(step, backend, [batch]) or "equal"


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


def resumed(bench: Bench, found: Found) -> None:
    """A state that was loaded before a capture, or after it, is the one that is trained."""
    for form, execution in bench.forms().items():
        for order in ("load, then capture", "capture, then load"):
            with entry(found, f"{form}: {order}"):
                found[f"{form}: {order}"] = _resumed(bench, execution, order)


def _resumed(bench: Bench, execution: Execution, order: str) -> str:
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
            for _ in range(2):
                step([batch])
        step.model.load_state_dict(saved[0])
        step.optimizer.load_state_dict(saved[1])
        step.backend = step.backend or make_backend(execution, step, batch)
        for _ in range(5):
            step([batch])
    pairs = zip(whole.model.parameters(), step.model.parameters(), strict=True)
    off = max(float((a - b).detach().abs().max()) for a, b in pairs)
    return "equal" if off < (1e-4 if bench.gpu else 1e-12) else f"{off:.3g} apart"


def exact(bench: Bench, found: Found) -> None:
    """With deterministic algorithms a run that was stopped ends with the bits of one that was not."""
    # Epochs enough that a form is chosen: it is one of what a resume takes up again.
    whole, part, chosen = (60, 20, "auto") if bench.gpu else (3, 1, "plain")
    options = surefoot.RunOptions(progress=False, tensorboard=False, lint_off=["all"], execution=chosen)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        ends = []
        for sittings in ((whole,), (part, whole)):
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
                form = json.loads((Path(folder) / "run/run.json").read_text())["execution"]
                found[f"runs on, {len(sittings)} sittings"] = Execution.from_json(form).describe()
    finally:
        torch.use_deterministic_algorithms(before)
    same = all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    found[f"stopped after epoch {part} of {whole}"] = "the same bits" if same else "other bits"


def waits(bench: Bench, found: Found) -> None:
    """Where a stretch of steps, with its data and its metrics, waits for the device."""
    for form, execution in bench.forms().items():
        for options in ({}, {"max_grad_norm": 1.0}, {"ema_decay": 0.99}, {"grad_accum_steps": 2}):
            if options and execution.compile != "none":
                continue  # the optimizer's part is the same
            with entry(found, f"{form}, {options or 'plain'}"):
                found[f"{form}, {options or 'plain'}"] = _waits(bench, execution, options)


def _waits(bench: Bench, execution: Execution, options: dict[str, Any]) -> list[str]:
    model, (inputs, targets) = bench.job("lenet", 512)
    loader = Loader((inputs.cpu(), targets.cpu()), 32, seed=0, device=bench.device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.001, fused=bench.gpu)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(**options))
    running = RunningMetrics(**metric_options(step.loss), hold_bytes=20_000)
    with prepare(execution, model):
        if step.options.grad_accum_steps == 1:
            step.backend = make_backend(execution, step, loader.batch_at(0, 0))
        batches = iter(loader)
        _stretch(step, batches, running, 4)
        bench.wait()
        with warnings.catch_warnings(record=True) as caught, _watched(bench):
            warnings.simplefilter("always")
            _stretch(step, batches, running, 4)
    return sorted({f"{Path(w.filename).name}:{w.lineno}" for w in caught if "synchroniz" in str(w.message)})


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


def memory(bench: Bench, found: Found) -> None:
    """What choosing settings leaves behind on the device."""
    step, batch = bench.step("resnet", 16)
    held = [torch.cuda.memory_reserved() if bench.gpu else 0]
    choose_execution("auto", step, [batch], steps_expected=10_000, cache=False, say=lambda _: None)
    bench.wait()
    held.append(torch.cuda.memory_reserved() if bench.gpu else 0)
    found["bytes left"] = held[1] - held[0]


def save_pause(bench: Bench, found: Found) -> None:
    """How long a save holds training up, beside a copy on the device of the same bytes; and whether it is right."""
    width = 64 if bench.small else 4096
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(6))).to(bench.device)
    parameters = list(model.parameters())
    pauses = []
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        with Checkpointer(run, model=model, every="1 step", keep_last=1, say=lambda _: None) as saver:
            for _ in range(4):
                bench.wait()
                start = time.perf_counter()
                saver.step()
                pauses.append(time.perf_counter() - start)
                wanted = [p.detach().clone() for p in parameters]
                with torch.no_grad():
                    for p in parameters:
                        p.add_(1.0)  # what follows must not be in the file
                saver.wait()
        (last,) = run.glob("checkpoints/step-*")
        kept = list(surefoot.safe_tensors.load(last / "model.safetensors").tensors.values())
        same = sorted(float(t.double().sum()) for t in kept) == sorted(float(t.cpu().double().sum()) for t in wanted)
        found["what was saved"] = "as it was then" if same else "not as it was then"
    found["bytes"] = sum(p.nbytes for p in parameters)
    found["pause_ms, first"], found["pause_ms"] = 1e3 * pauses[0], 1e3 * min(pauses[1:])
    found["clone_ms"] = 1e3 * bench.seconds(lambda: [p.detach().clone() for p in parameters], 0.05)


# ------------------------------------------------------------------------------------------ speed

SIZES = [("lenet", 4), ("gpt", 32), ("resnet", 128), ("lenet", 64), ("lenet", 512)]


def speed(bench: Bench, found: Found, sizes: Any = SIZES) -> None:
    """Milliseconds a step, as "row | contender": first of all rows what compiles nothing, then each contender's."""
    rows = [(name, batch, precision) for precision in ("float32", "bf16") for name, batch in sizes]
    contenders: dict[str, Callable[..., float]] = {
        "hand": functools.partial(_by_hand, None),
        "plain": _plain,
        **{form: functools.partial(_in_form, e) for form, e in bench.forms().items() if e.compile == "none"},
        "chosen": _chosen,
    }
    compiled: dict[str, Callable[..., float]] = {}
    if bench.gpu:
        compiled["reduce-overhead"] = functools.partial(_by_hand, "reduce-overhead")
        compiled |= {form: functools.partial(_in_form, e) for form, e in bench.forms().items() if e.compile != "none"}
        compiled["torch.compile"] = functools.partial(_by_hand, "default")
    order = [(row, name) for row in rows for name in contenders] + [(row, name) for name in compiled for row in rows]
    for (name, batch, precision), contender in order:
        where = f"{name}, batch {batch}, {precision} | {contender}"
        with entry(found, where):
            run = (contenders | compiled)[contender]
            found[where] = round(1e3 * run(bench, name, 2 if bench.small else batch, precision), 4)


def _by_hand(mode: str | None, bench: Bench, name: str, batch: int, precision: str) -> float:
    torch.compiler.reset()
    model, (inputs, targets) = bench.job(name, batch)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    called = model if mode is None else torch.compile(model, mode=mode)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=precision == "bf16"):
            loss = nn.functional.cross_entropy(called(inputs), targets)
        loss.backward()
        optimizer.step()

    return bench.seconds(step)


def _plain(bench: Bench, name: str, batch: int, precision: str) -> float:
    step, samples = bench.step(name, batch, precision=precision)
    return bench.seconds(lambda: step.plain([samples]))


def _chosen(bench: Bench, name: str, batch: int, precision: str) -> float:
    step, samples = bench.step(name, batch, precision=precision)
    execution = choose_execution("auto", step, [samples], steps_expected=10_000, cache=False, say=lambda _: None)
    with prepare(execution, step.model, step.optimizer):
        return bench.seconds(functools.partial(make_backend(execution, step, samples) or step.plain, [samples]))


def _in_form(execution: Execution, bench: Bench, name: str, batch: int, precision: str) -> float:
    torch.compiler.reset()
    step, samples = bench.step(name, batch, precision=precision)
    execution = dataclasses.replace(execution, optimizer_impl="fused")  # as is chosen nearly always
    with prepare(execution, step.model, step.optimizer):
        backend = make_backend(execution, step, samples, say=lambda _: None)
        assert backend is not None
        return bench.seconds(functools.partial(backend, [samples]))
