"""The job of ../mnist_rnn.py by hand; goes on from the last epoch that it finished.

python mnist_rnn_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 0.85  # accuracy on held-out garments


class Rows(nn.Module):
    """28 rows of 28 pixels through an LSTM; the last row's state is classified."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.rnn = nn.LSTM(28, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(images[:, 0])
        return self.out(self.norm(states[:, -1]))


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 8) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(6000, 1000)
    train, val = (TensorDataset(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val))
    model, loss_of = Rows(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
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
        for images, labels in DataLoader(train, batch_size=64, shuffle=True):
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            total += loss.item() * len(labels)
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in DataLoader(val, batch_size=64):
                right += (model(images).argmax(1) == labels).sum().item()
        accuracy = right / len(val)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(train), "accuracy": accuracy}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "accuracy": accuracy}, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_rnn"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
