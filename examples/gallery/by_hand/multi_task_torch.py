"""The job of ../multi_task.py by hand; goes on from the last epoch that it finished.

python multi_task_torch.py [RUN]
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 0.87  # accuracy on held-out garments


class TwoHeads(nn.Module):
    """Pictures to classes (N, 10) and brightness (N,)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.classes, self.brightness = nn.Linear(512, 10), nn.Linear(512, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(images)
        return self.classes(features), self.brightness(features)[:, 0]


def both(model: nn.Module, batch: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross entropy, and ten times the squared error of the brightness; and the accuracy."""
    images, labels, brightness = batch
    classes, predicted = model(images)
    shown, light = F.cross_entropy(classes, labels), F.mse_loss(predicted, brightness)
    accuracy = (classes.argmax(1) == labels).float().mean()
    return {"loss": shown + 10 * light, "shown": shown, "light": light, "accuracy": accuracy}


def columns(images: torch.Tensor, labels: torch.Tensor) -> TensorDataset:
    scaled = images.float() / 255
    return TensorDataset(scaled, labels, scaled.mean(dim=(1, 2, 3)))


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 8) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(5000, 1000)
    train, val = columns(*data.train.tensors), columns(*data.val.tensors)
    model = TwoHeads()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    begin, accuracy = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, accuracy = state["epoch"] + 1, state["accuracy"]
    for epoch in range(begin, epochs):
        sums: Counter[str] = Counter()
        model.train()
        for batch in DataLoader(train, batch_size=64, shuffle=True):
            parts = both(model, batch)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            sums.update({f"train/{name}": part.item() * len(batch[0]) / len(train) for name, part in parts.items()})
        model.eval()
        with torch.no_grad():
            for batch in DataLoader(val, batch_size=64):
                parts = both(model, batch)
                sums.update({f"val/{name}": part.item() * len(batch[0]) / len(val) for name, part in parts.items()})
        accuracy = sums["val/accuracy"]
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, **sums}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "accuracy": accuracy}, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/multi_task"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
