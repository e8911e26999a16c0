"""Do two pictures show the same kind of garment? (pytorch/examples: siamese_network)

Shows a model of two inputs: a sample is a dictionary, its keys are forward's arguments, and "target" is what the loss
compares with.

    python siamese_network.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.utils.data import Dataset

from surefoot import fit
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

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"left": self.images[index], "right": self.images[self.partners[index]], "target": self.same[index]}


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


def right(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """1 for each pair that is classified correctly."""
    return ((outputs > 0) == (targets > 0.5)).float()


def main(run: str) -> float:
    """Train; returns the accuracy on pairs of pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    train, val = Pairs(*data.train.tensors, seed=1), Pairs(*data.val.tensors, seed=2)
    model = Siamese()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    result = fit(
        model,
        nn.BCEWithLogitsLoss(),
        optimizer,
        train,
        val=val,
        epochs=6,
        batch_size=64,
        metrics={"right": right},
        run_dir=run,
        resume=True,
    )
    return result.metrics["val/right"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/siamese_network")
    print(f"figure: accuracy on pairs {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
