"""The job of ../mnist_forward_forward.py by hand; goes on from the last epoch that it finished.

python mnist_forward_forward_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 0.70  # accuracy on held-out garments


class Layer(nn.Linear):
    """A linear layer with an optimizer of its own."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # Only the direction of the layer before is seen: its length is the goodness, and would give the answer away.
        return F.relu(super().forward(F.normalize(inputs) * inputs.shape[1] ** 0.5))

    def goodness(self, inputs: torch.Tensor) -> torch.Tensor:
        return self(inputs).square().mean(dim=1)


def labelled(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Flat pictures (N, 784), each with its label's place among the first ten pixels set."""
    flat = images.flatten(1).clone()
    flat[:, :10] = F.one_hot(labels, 10) * flat.amax()
    return flat


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 20) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(6000, 1000)
    train = TensorDataset(data.preprocessing(data.train.tensors[0]), data.train.tensors[1])
    loader = DataLoader(train, batch_size=100, shuffle=True)
    layers = [Layer(784, 400), Layer(400, 400)]
    optimizers = [torch.optim.Adam(layer.parameters(), lr=1e-3) for layer in layers]
    begin = 0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        for part, part_state in zip([*layers, *optimizers], state["parts"], strict=True):
            part.load_state_dict(part_state)
        torch.set_rng_state(state["rng"])
        begin = state["epoch"] + 1
    for epoch in range(begin, epochs):
        for images, labels in loader:
            wrong = (labels + torch.randint(1, 10, labels.shape)) % 10
            good, bad = labelled(images, labels), labelled(images, wrong)
            for layer, optimizer in zip(layers, optimizers, strict=True):
                optimizer.zero_grad()
                loss = F.softplus(2 - layer.goodness(good)).mean() + F.softplus(layer.goodness(bad) - 2).mean()
                loss.backward()
                optimizer.step()
                with torch.no_grad():  # the next layer sees what this one gives, and no gradient comes back
                    good, bad = layer(good), layer(bad)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": loss.item()}) + "\n")
        state = {"parts": [part.state_dict() for part in [*layers, *optimizers]]}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch}, run / "last.pt")
    images, labels = data.val.tensors
    images = data.preprocessing(images)
    votes = []
    with torch.no_grad():
        for label in range(10):
            hidden, total = labelled(images, torch.full_like(labels, label)), torch.zeros(len(images))
            for layer in layers:
                total, hidden = total + layer.goodness(hidden), layer(hidden)
            votes.append(total)
    return (torch.stack(votes, dim=1).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_forward_forward"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
