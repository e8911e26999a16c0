"""The job of ../siamese_network.py by hand; goes on from the last epoch that it finished.

python siamese_network_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from surefoot.data.garments import garments

STATED = 0.88  # accuracy on held-out pairs


class Pairs(Dataset):
    """Every picture with another: of the same class for even indices, of any other for odd ones."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, seed: int):
        draw = torch.Generator().manual_seed(seed)
        self.images = images.float() / 255
        same = torch.arange(len(labels)) % 2 == 0
        shift = torch.where(same, 0, torch.randint(1, 10, (len(labels),), generator=draw))
        # Labels are 0..9 in turn: index + 10 k is of the same class, + shift of the class so many further.
        turns = torch.randint(1, len(labels) // 10, (len(labels),), generator=draw)
        self.partners = (torch.arange(len(labels)) + 10 * turns + shift) % len(labels)
        self.same = (labels == labels[self.partners]).float()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        return self.images[index], self.images[self.partners[index]], self.same[index]


class Siamese(nn.Module):
    """One network for both pictures; the logit that they are of one class, (N,), from how far they are apart."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, 64),
        )
        self.out = nn.Linear(64, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.out((self.body(left) - self.body(right)).abs())[:, 0]


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 6) -> float:
    """Train; returns the accuracy on pairs of pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(6000, 1000)
    train, val = Pairs(*data.train.tensors, seed=1), Pairs(*data.val.tensors, seed=2)
    model, loss_of = Siamese(), nn.BCEWithLogitsLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    begin, accuracy = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, accuracy = state["epoch"] + 1, state["accuracy"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for left, right, same in DataLoader(train, batch_size=64, shuffle=True):
            loss = loss_of(model(left, right), same)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(same)
        model.eval()
        hits = 0
        with torch.no_grad():
            for left, right, same in DataLoader(val, batch_size=64):
                hits += ((model(left, right) > 0) == (same > 0.5)).sum().item()
        accuracy = hits / len(val)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(train), "accuracy": accuracy}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "accuracy": accuracy}, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/siamese_network"))
    print(f"figure: accuracy on pairs {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
