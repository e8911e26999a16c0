"""All contenders of one job, in turn in one process: `contenders.py JOB TURNS NAME...` prints their times as JSON.

Each is written as its own documentation shows, with everything switched off that costs time (progress bars, logs,
checkpoints), on the same data, model and optimizer. Taking turns, they all have their share of whatever else the
machine does.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from work import JOBS, Job, Stopwatch, normalized

Run = Callable[[], Any]


def garments(pixels: torch.Tensor, labels: torch.Tensor) -> Dataset:
    """FashionMNIST with ToTensor and Normalize, operation for operation as torchvision has them."""
    import numpy
    from PIL import Image

    class Garments(Dataset):
        def __len__(self):
            return len(pixels)

        def __getitem__(self, index):
            picture, target = Image.fromarray(pixels[index, 0].numpy()), int(labels[index])
            array = torch.from_numpy(numpy.array(picture, numpy.uint8, copy=True))
            array = array.view(picture.size[1], picture.size[0], 1).permute((2, 0, 1)).contiguous()
            tensor = array.to(dtype=torch.float32).div(255).clone()
            mean = torch.as_tensor((0.5,), dtype=tensor.dtype).view(-1, 1, 1)
            std = torch.as_tensor((0.5,), dtype=tensor.dtype).view(-1, 1, 1)
            return tensor.sub_(mean).div_(std), target

    return Garments()


def timed(loader: Any, job: Job, body: Callable[[Any, Any], Any]) -> float:
    """Seconds a step of a loop whose body takes inputs and targets."""
    watch = Stopwatch(loader, job.steps, warm=max(1, job.steps // 10))
    for inputs, targets in watch:
        body(inputs, targets)
    return watch.per_step


def loader_of(job: Job) -> DataLoader:
    """What a careful hand would feed: everything normalised in memory once."""
    inputs, targets = job.samples()
    return DataLoader(TensorDataset(normalized(inputs), targets), batch_size=job.batch, shuffle=True)


def tutorial(job: Job) -> Run:
    """The tutorial's loop: 2 workers, each sample through PIL, ToTensor and Normalize; the loss read every step."""
    model, optimizer = job.make()
    loss_fn, data = nn.CrossEntropyLoss(), garments(*job.samples())
    running_loss = 0.0

    def body(inputs: Any, labels: Any) -> None:
        nonlocal running_loss
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()

    return lambda: timed(DataLoader(data, batch_size=job.batch, shuffle=True, num_workers=2), job, body)


def hand(job: Job) -> Run:
    """A loop by hand over DataLoader(TensorDataset)."""
    model, optimizer = job.make()
    loss_fn, loader = nn.CrossEntropyLoss(), loader_of(job)

    def body(inputs: Any, targets: Any) -> None:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()

    return lambda: timed(loader, job, body)


def lightning(job: Job) -> Run:
    """Lightning's Trainer, `barebones`."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import lightning as L

    model, optimizer = job.make()
    loader = loader_of(job)

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.loss = model, nn.CrossEntropyLoss()

        def training_step(self, batch, index):
            inputs, targets = batch
            return self.loss(self.model(inputs), targets)

        def configure_optimizers(self):
            return optimizer

    module = Module()

    def run() -> float:
        watch = Stopwatch(loader, job.steps, warm=max(1, job.steps // 10))
        L.Trainer(accelerator="cpu", max_epochs=1, barebones=True).fit(module, watch)
        return watch.per_step

    return run


def accelerate(job: Job) -> Run:
    """Accelerate's prepared loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(*job.make(), loader_of(job))
    loss_fn = nn.CrossEntropyLoss()

    def body(inputs: Any, targets: Any) -> None:
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()

    return lambda: timed(loader, job, body)


def ignite(job: Job) -> Run:
    """Ignite's supervised trainer."""
    from ignite.engine import create_supervised_trainer

    model, optimizer = job.make()
    trainer, loader = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss()), loader_of(job)

    def run() -> float:
        watch = Stopwatch(loader, job.steps, warm=max(1, job.steps // 10))
        trainer.run(watch, max_epochs=1, epoch_length=None)
        return watch.per_step

    return run


def classify(model: nn.Module, batch: Any) -> dict[str, Any]:
    """The same loss as an objective: a function of model and batch."""
    inputs, targets = batch
    outputs = model(inputs)
    return {"loss": nn.functional.cross_entropy(outputs, targets), "outputs": outputs, "targets": targets}


def chosen(job: Job, spec: Any, loss: Any = None):
    """The execution settings that a long run gets under `spec`, chosen on this machine now."""
    from surefoot.execution import choose_execution
    from surefoot.step import TrainStep

    model, optimizer = job.make()
    inputs, targets = job.samples(4 * job.batch)
    batches = list(zip(normalized(inputs).split(job.batch), targets.split(job.batch), strict=True))
    step = TrainStep(model, loss or nn.CrossEntropyLoss(), optimizer)
    say = lambda text: print(text, file=sys.stderr)  # noqa: E731
    return choose_execution(spec, step, batches, steps_expected=10**6, cache=False, say=say)


def surefoot_fit(job: Job, spec: Any, loss: Any = None) -> Run:
    """`surefoot.fit` on the samples as they are, settings chosen before; no run directory, no records on the way."""
    import surefoot
    from surefoot.preprocessing import Preprocessing
    from surefoot.tracking import Progress
    from surefoot.training import settings as module

    settings = chosen(job, spec, loss)
    inputs, targets = job.samples()
    preprocessing = Preprocessing(mean=(0.5,), std=(0.5,)) if inputs.dtype == torch.uint8 else None
    source = surefoot.TensorSource(inputs, targets)

    class Watched(surefoot.Loader):
        def __iter__(self):
            self.watch = Stopwatch(super().__iter__(), len(self), warm=max(1, len(self) // 10))
            return iter(self.watch)

    def run() -> float:
        # What `fit` would choose, without choosing anew each turn.
        module.choose_execution = lambda *_, **__: settings
        model, optimizer = job.make()
        loader = Watched(source, job.batch, preprocessing=preprocessing)
        options = surefoot.RunOptions(log_every=job.steps, progress=Progress(), lint_off=["all"])
        surefoot.fit(model, loss or nn.CrossEntropyLoss(), optimizer, loader, epochs=1, run=options)
        return loader.watch.per_step

    run.about, run.settings = settings.describe(), settings
    return run


def fit_and_bare_step(job: Job, spec: Any) -> Run:
    """The step alone, as `fit` runs it, and `fit`, in turn: what `fit` adds.

    The bare step goes over batches that are there already, as many as `fit` makes: no loader, metrics or records.
    """
    from surefoot.execution import make_backend, prepare
    from surefoot.step import TrainStep

    fit = surefoot_fit(job, spec)
    model, optimizer = job.make()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
    parts = zip(*(whole.split(job.batch) for whole in job.samples()), strict=True)
    batches = [[(normalized(inputs), targets)] for inputs, targets in parts]

    def run() -> tuple[float, float]:
        with prepare(fit.settings, model, optimizer):
            if step.backend is None:
                step.backend = make_backend(fit.settings, step, batches[0][0])
            watch = Stopwatch(batches, job.steps, warm=max(1, job.steps // 10))
            for batch in watch:
                step(batch)
        return watch.per_step, fit()

    run.about = fit.about
    return run


def fit_and_bare_loop(job: Job) -> Run:
    """`fit` with an objective, and a loop by hand that minimises the same, in turn, both under the settings of `fit`.

    The loop goes over batches that are there already, and does nothing but the update.
    """
    import surefoot
    from surefoot.execution import prepare

    fit = surefoot_fit(job, EAGER, surefoot.objective(classify))
    model, optimizer = job.make()
    parts = zip(*(whole.split(job.batch) for whole in job.samples()), strict=True)
    batches = [(normalized(inputs), targets) for inputs, targets in parts]

    def run() -> tuple[float, float]:
        with prepare(fit.settings, model, optimizer):
            watch = Stopwatch(batches, job.steps, warm=max(1, job.steps // 10))
            for batch in watch:
                optimizer.zero_grad()
                classify(model, batch)["loss"].backward()
                optimizer.step()
        return watch.per_step, fit()

    run.about = f"{fit.about}; an objective"
    return run


EAGER = {"compile": False}
CONTENDERS: dict[str, Callable[[Job], Run]] = {
    "tutorial": tutorial,
    "hand": hand,
    "lightning": lightning,
    "accelerate": accelerate,
    "ignite": ignite,
    "plain": lambda job: surefoot_fit(job, "plain"),
    "eager": lambda job: surefoot_fit(job, EAGER),
    "auto": lambda job: surefoot_fit(job, "auto"),
    "overhead eager": lambda job: fit_and_bare_step(job, EAGER),
    "overhead auto": lambda job: fit_and_bare_step(job, "auto"),
    "overhead objective": fit_and_bare_loop,
}


def main() -> None:
    """Make every contender, give each its turns, print what they took."""
    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr  # what a trainer prints must not mix with the answer
    job, turns, names = JOBS[sys.argv[1]], int(sys.argv[2]), sys.argv[3:]
    runs = {name: CONTENDERS[name](job) for name in names}
    seconds: dict[str, list[Any]] = {name: [] for name in names}
    for turn in range(turns + 1):
        for name, run in runs.items():
            began = time.perf_counter()
            took = run()
            print(f"{name}: a turn in {time.perf_counter() - began:.2f} s", file=sys.stderr)
            if turn:  # the first pays for caches and pages
                seconds[name].append(took)
    about = {name: getattr(run, "about", "") for name, run in runs.items()}
    print(json.dumps({"seconds": seconds, "about": about}), file=answers)


if __name__ == "__main__":
    main()
