"""One contender in a process of its own: told how many steps to take, it answers with seconds a step.

    python contenders.py NAME BATCH_SIZE [PLAN]      then a number of steps a line on its standard input

Each is written as its own documentation shows, with everything switched off that costs time (progress bars, logs,
checkpoints), on the same data, model and optimizer.
"""

from __future__ import annotations

import json
import logging
import sys
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from work import Stopwatch, images, model_and_optimizer, normalized

Run = Callable[[int], float]


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


def tutorial(batch_size: int) -> Run:
    """The tutorial's loop: 2 workers, each sample through PIL, ToTensor and Normalize; the loss read every step."""
    model, optimizer = model_and_optimizer()
    loss_fn = nn.CrossEntropyLoss()
    data = garments(*images())

    def run(steps: int) -> float:
        loader = DataLoader(data, batch_size=batch_size, shuffle=True, num_workers=2)
        watch = Stopwatch(loader, steps, warm=steps // 10)
        running_loss = 0.0
        for inputs, labels in watch:
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_fn(outputs, labels)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
        return watch.per_step

    return run


def tensor_loader(batch_size: int) -> DataLoader:
    """What a careful hand would feed: everything normalised in memory once."""
    pixels, labels = images()
    return DataLoader(TensorDataset(normalized(pixels), labels), batch_size=batch_size, shuffle=True)


def hand(batch_size: int) -> Run:
    """A loop by hand over DataLoader(TensorDataset)."""
    model, optimizer = model_and_optimizer()
    loss_fn, loader = nn.CrossEntropyLoss(), tensor_loader(batch_size)

    def run(steps: int) -> float:
        watch = Stopwatch(loader, steps, warm=steps // 10)
        for inputs, labels in watch:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), labels)
            loss.backward()
            optimizer.step()
        return watch.per_step

    return run


def lightning(batch_size: int) -> Run:
    """Lightning's Trainer, `barebones`."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import lightning as L

    model, optimizer = model_and_optimizer()
    loader = tensor_loader(batch_size)

    class Module(L.LightningModule):
        def __init__(self):
            super().__init__()
            self.model, self.loss = model, nn.CrossEntropyLoss()

        def training_step(self, batch, index):
            inputs, labels = batch
            return self.loss(self.model(inputs), labels)

        def configure_optimizers(self):
            return optimizer

    module = Module()

    def run(steps: int) -> float:
        watch = Stopwatch(loader, steps, warm=steps // 10)
        trainer = L.Trainer(accelerator="cpu", max_epochs=1, barebones=True)
        trainer.fit(module, watch)
        return watch.per_step

    return run


def accelerate(batch_size: int) -> Run:
    """Accelerate's prepared loop."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer, loader = accelerator.prepare(*model_and_optimizer(), tensor_loader(batch_size))
    loss_fn = nn.CrossEntropyLoss()

    def run(steps: int) -> float:
        watch = Stopwatch(loader, steps, warm=steps // 10)
        for inputs, labels in watch:
            optimizer.zero_grad()
            loss = loss_fn(model(inputs), labels)
            accelerator.backward(loss)
            optimizer.step()
        return watch.per_step

    return run


def ignite(batch_size: int) -> Run:
    """Ignite's supervised trainer."""
    from ignite.engine import create_supervised_trainer

    model, optimizer = model_and_optimizer()
    trainer = create_supervised_trainer(model, optimizer, nn.CrossEntropyLoss())
    loader = tensor_loader(batch_size)

    def run(steps: int) -> float:
        watch = Stopwatch(loader, steps, warm=steps // 10)
        trainer.run(watch, max_epochs=1, epoch_length=None)
        return watch.per_step

    return run


def surefoot_plan(compiled: bool, batch_size: int):
    """The plan that a long run would get, chosen on this machine now."""
    from surefoot.execution import choose_execution
    from surefoot.step import TrainStep

    model, optimizer = model_and_optimizer()
    pixels, labels = images(4 * batch_size)
    batches = list(zip(normalized(pixels).split(batch_size), labels.split(batch_size), strict=True))
    return choose_execution(
        {"compile": compiled},
        TrainStep(model, nn.CrossEntropyLoss(), optimizer),
        batches,
        steps_expected=10**6,
        cache=False,
        say=lambda text: print(text, file=sys.stderr),
    )


def surefoot_fit(batch_size: int, compiled: bool = False) -> Run:
    """`surefoot.fit` on the same uint8 images, with its plan measured; no run directory, no records on the way."""
    import surefoot
    import surefoot.training.plan
    from surefoot.preprocessing import Preprocessing
    from surefoot.tracking import Progress

    plan = surefoot_plan(compiled, batch_size)
    # What `fit` would choose, without choosing anew each turn.
    surefoot.training.plan.choose_execution = lambda *_, **__: plan
    pixels, labels = images()

    class Watched(surefoot.Loader):
        def __iter__(self):
            self.watch = Stopwatch(super().__iter__(), len(self), warm=len(self) // 10)
            return iter(self.watch)

    def run(steps: int) -> float:
        model, optimizer = model_and_optimizer()
        count = steps * batch_size
        source = surefoot.TensorSource(pixels[:count], labels[:count])
        loader = Watched(source, batch_size, preprocessing=Preprocessing(mean=(0.5,), std=(0.5,)))
        surefoot.fit(
            model,
            nn.CrossEntropyLoss(),
            optimizer,
            loader,
            epochs=1,
            run=surefoot.RunOptions(log_every=steps, progress=Progress()),
        )
        return loader.watch.per_step

    run.about, run.chosen = plan.describe(), plan
    return run


def fit_and_bare_step(batch_size: int, compiled: bool = False) -> Callable[[int], tuple[float, float]]:
    """The step alone, as `fit` runs it, and `fit`, in turn in this process: what `fit` adds.

    The bare step goes over batches that are there already, as many as `fit` makes: no loader, metrics or records.
    """
    from surefoot.execution import make_backend, prepare
    from surefoot.step import TrainStep

    fit = surefoot_fit(batch_size, compiled)
    plan = fit.chosen
    model, optimizer = model_and_optimizer()
    loss = nn.CrossEntropyLoss()
    step = TrainStep(model, loss, optimizer)
    pixels, labels = images()
    pairs: list = []

    def bare(steps: int) -> float:
        if len(pairs) != steps:
            parts = zip(*(whole[: steps * batch_size].split(batch_size) for whole in (pixels, labels)), strict=True)
            pairs[:] = [[(normalized(inputs), targets)] for inputs, targets in parts]
        with prepare(plan, model, optimizer):
            if step.backend is None:
                step.backend = make_backend(plan, step, pairs[0][0])
            watch = Stopwatch(pairs, steps, warm=steps // 10)
            for batch in watch:
                step(batch)
        return watch.per_step

    def run(steps: int) -> tuple[float, float]:
        return bare(steps), fit(steps)

    run.about = fit.about
    return run


CONTENDERS: dict[str, Callable[[int], Callable[[int], Any]]] = {
    "tutorial": tutorial,
    "hand": hand,
    "lightning": lightning,
    "accelerate": accelerate,
    "ignite": ignite,
    "surefoot": surefoot_fit,
    "surefoot compiled": lambda batch_size: surefoot_fit(batch_size, compiled=True),
    "overhead": fit_and_bare_step,
    "overhead compiled": lambda batch_size: fit_and_bare_step(batch_size, compiled=True),
}


def main() -> None:
    """Serve until the input ends."""
    warnings.simplefilter("ignore")
    answers = sys.stdout
    sys.stdout = sys.stderr  # what a trainer prints must not mix with the answers
    run = CONTENDERS[sys.argv[1]](int(sys.argv[2]))
    print(json.dumps({"ready": getattr(run, "about", "")}), file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": run(int(line))}), file=answers, flush=True)


if __name__ == "__main__":
    main()
