"""The job of ../segmentation.py by hand; goes on from the last epoch that it finished.

python segmentation_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from surefoot.models import UNet

STATED = 0.85  # mean intersection over union, on held-out pictures


def scenes(count: int, seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 (N, 3, 32, 32) and masks int64 (N, 32, 32); -100 at edges, where it is hard to say."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=draw)

    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = torch.sin(some(0.3, 1.5) * x + some(0.3, 1.5) * y + some(0, 6))[:, None]
    pictures = some(40, 110, 3) + 30 * stripes + some(-8, 8, 3)
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    for label in (1, 2, 1):
        across, down = (x - some(4, 28)).abs(), (y - some(4, 28)).abs()
        far = (across**2 + down**2).sqrt() if label == 1 else torch.maximum(across, down * some(0.7, 1.4))
        inside = far - some(4, 8)
        pictures = torch.where(inside[:, None] < 0, some(160, 255, 3), pictures)
        masks = torch.where(inside.abs() < 0.4, -100, torch.where(inside < 0, label, masks))
    noise = 12 * torch.randn(pictures.shape, generator=draw)
    return (pictures + noise).clamp(0, 255).byte(), masks


def sheet(pictures: torch.Tensor, *masks: torch.Tensor) -> Image.Image:
    """A row of pictures, and a row for each of the masks."""
    colours = torch.tensor([[30, 30, 30], [240, 160, 30], [60, 130, 240], [255, 255, 255]], dtype=torch.uint8)
    rows = [pictures.permute(0, 2, 3, 1), *(colours[mask.where(mask >= 0, 3)] for mask in masks)]
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy())


def draw(model: nn.Module, pictures: torch.Tensor, masks: torch.Tensor) -> None:
    """Ten pictures, their masks and the answers into segmented.png."""
    with torch.no_grad():
        answers = model.eval()(pictures[:10] / 255).argmax(1)
    sheet(pictures[:10], masks[:10], answers).save("segmented.png")


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 12) -> float:
    """Train; returns the mean intersection over union on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    (pictures, masks), (new, truth) = scenes(1000, seed=1), scenes(200, seed=2)
    loader = DataLoader(TensorDataset(pictures / 255, masks), batch_size=25, shuffle=True)
    model, loss_of = UNet(classes=3, width=8, depth=2), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rises, falls = LinearLR(optimizer, 0.02, total_iters=30), CosineAnnealingLR(optimizer, epochs * len(loader) - 30)
    schedule = SequentialLR(optimizer, [rises, falls], milestones=[30])
    begin, union = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begin, union = state["epoch"] + 1, state["figure"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for inputs, targets in loader:
            loss = loss_of(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(inputs)
        model.eval()
        counts = torch.zeros(3, 3)
        with torch.no_grad():
            for inputs, targets in DataLoader(TensorDataset(new / 255, truth), batch_size=25):
                answers, labelled = model(inputs).argmax(1), targets >= 0
                pairs = targets[labelled] * 3 + answers[labelled]
                counts += torch.bincount(pairs, minlength=9).reshape(3, 3)
        right = counts.diagonal()
        union = (right / (counts.sum(0) + counts.sum(1) - right)).mean().item()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / 1000, "val": union}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch, "figure": union}, run / "last.pt")
    draw(model, new, truth)
    return union


if __name__ == "__main__":
    union = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/segmentation"))
    print(f"figure: intersection over union {union:.3f} (stated: at least {STATED})")
    sys.exit(not union >= STATED)
