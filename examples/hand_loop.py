"""The tutorial's training loop, kept as it is, with the lines that make it resumable: each is marked (+).

    python examples/hand_loop.py runs/hand 4        # kill it at any instant and run it again: it goes on, bit for bit

The tutorial is https://pytorch.org/tutorials/beginner/introyt/trainingyt.html. Its DataLoader is surefoot's
Loader here, because a loader that can be gone on with in mid-epoch must know its place.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from surefoot.checkpoint import Checkpointer  # (+)
from surefoot.data import Loader
from surefoot.models import LeNet5
from surefoot.schedules import LinearWarmup, Schedule


def pictures(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images (count, 1, 28, 28) of ten kinds of bright patches in noise, and which kind each one is."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(10, (count,), generator=generator)
    images = torch.randn(count, 1, 28, 28, generator=generator)
    for image, target in zip(images, targets.tolist(), strict=True):
        row, column = divmod(target, 5)
        image[0, 4 + 12 * row : 10 + 12 * row, 1 + 5 * column : 6 + 5 * column] += 1.5
    return images, targets


def main(run: str, epochs: int, images: int = 512) -> nn.Module:
    """Train LeNet-5 for `epochs`, or what is left of them; returns the model."""
    torch.manual_seed(0)
    loader = Loader(pictures(images, seed=1), batch_size=4, seed=0)
    val_images, val_targets = pictures(128, seed=2)
    model = LeNet5()
    loss_fn = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0)
    schedule = Schedule(optimizer, plateau, LinearWarmup(optimizer, warmup_period=100))

    with Checkpointer(run, model=model, optimizer=optimizer, schedule=schedule, loader=loader) as saver:  # (+)
        saver.resume()  # (+)
        while loader.epoch < epochs:
            model.train()
            for inputs, targets in loader:
                optimizer.zero_grad()
                loss = loss_fn(model(inputs), targets)
                loss.backward()
                optimizer.step()
                schedule.step()
                saver.step()  # (+)
            model.eval()
            with torch.no_grad():
                val_loss = loss_fn(model(val_images), val_targets).item()
            schedule.epoch(val_loss)
            saver.epoch({"val/loss": val_loss})  # (+)
            print(f"epoch {loader.epoch - 1}: val/loss {val_loss:.3f}, lr {schedule.lrs[0]:g}", flush=True)
    return model


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "runs/hand", int(sys.argv[2]) if len(sys.argv) > 2 else 4)
