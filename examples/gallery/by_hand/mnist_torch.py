"""The job of ../mnist.py by hand; goes on from the last epoch that it finished.

python mnist_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments
from surefoot.models import LeNet5

STATED = 0.95  # accuracy on held-out garments


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 8) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(6000, 1000)
    train, val = (TensorDataset(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val))
    loader = DataLoader(train, batch_size=64, shuffle=True)
    model, loss_of = LeNet5(), nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    rises, falls = LinearLR(optimizer, 0.02, total_iters=50), CosineAnnealingLR(optimizer, epochs * len(loader) - 50)
    schedule = SequentialLR(optimizer, [rises, falls], milestones=[50])
    begin, accuracy, best = 0, 0.0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begin, accuracy, best = state["epoch"] + 1, state["accuracy"], state["best"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in DataLoader(val, batch_size=250):
                right += (model(images).argmax(1) == labels).sum().item()
        accuracy = right / len(val)
        if accuracy > best:
            best = accuracy
            save(model.state_dict(), run / "best.pt")
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(train), "accuracy": accuracy}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        state |= {"rng": torch.get_rng_state(), "epoch": epoch, "accuracy": accuracy, "best": best}
        save(state, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
