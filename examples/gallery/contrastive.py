"""Features learned without labels: two views of a picture against all others (SimCLR, Chen and others, 2020).

Shows an objective on inputs alone, with views drawn inside of it; labels are used at the end by neighbours.

    python contrastive.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from surefoot import fit, objective
from surefoot.data.garments import garments

STATED = 0.80  # accuracy of the nearest of 2,000 neighbours, on held-out garments


def view(images: torch.Tensor) -> torch.Tensor:
    """All shifted by up to three pixels, each mirrored or not, brighter or darker, with noise."""
    rows, columns = torch.randint(7, (2,)).tolist()
    shifted = F.pad(images, (3, 3, 3, 3))[:, :, rows : rows + 28, columns : columns + 28]
    mirrored = torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, shifted.flip(3), shifted)
    return mirrored * (0.7 + 0.6 * torch.rand(len(images), 1, 1, 1)) + 0.05 * torch.randn_like(images)


class Features(nn.Module):
    """Pictures to 64 features; in training a head makes of them what is compared."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 49, 64),
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Linear(64, 32))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images)


@objective
def same_picture(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross entropy of finding the other view of each picture among all views of the batch, at temperature 0.2."""
    codes = F.normalize(model.head(model(torch.cat([view(images), view(images)]))))
    likeness = (codes @ codes.T / 0.2).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * len(images)).roll(len(images))
    found = (likeness.argmax(1) == partner).float().mean()
    return {"loss": F.cross_entropy(likeness, partner), "found": found}


def main(run: str) -> float:
    """Train; returns the accuracy of the nearest neighbour among 2,000 pictures, by cosine."""
    torch.manual_seed(0)
    data = garments(4000, 500)
    images = [source.tensors[0].float() / 255 for source in (data.train, data.val)]
    model = Features()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    fit(model, same_picture, optimizer, (images[0],), epochs=8, batch_size=128, run_dir=run, resume=True)
    model.eval()
    with torch.no_grad():
        known, asked = F.normalize(model(images[0][:2000])), F.normalize(model(images[1]))
    nearest = data.train.targets()[:2000][(asked @ known.T).argmax(1)]
    return (nearest == data.val.targets()).float().mean().item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/contrastive")
    print(f"figure: accuracy of the nearest neighbour {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
