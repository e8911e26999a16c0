"""The job of ../contrastive.py in Lightning.

python contrastive_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 0.80  # accuracy of the nearest of 2,000 neighbours, on held-out garments


def view(images: torch.Tensor) -> torch.Tensor:
    """Each picture shifted by up to three pixels, mirrored or not, brighter or darker, with noise."""
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


def same_picture(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Cross entropy of finding the other view of each picture among all views of the batch, at temperature 0.2."""
    codes = F.normalize(model.head(model(torch.cat([view(images), view(images)]))))
    likeness = (codes @ codes.T / 0.2).fill_diagonal_(-torch.inf)
    partner = torch.arange(2 * len(images)).roll(len(images))
    found = (likeness.argmax(1) == partner).float().mean()
    return {"loss": F.cross_entropy(likeness, partner), "found": found}


class Training(lightning.LightningModule):
    """The network with its loss and optimizer."""

    def __init__(self):
        super().__init__()
        self.model = Features()

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        parts = same_picture(self.model, batch[0])
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, on_step=False, on_epoch=True)
        return parts["loss"]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(run: str) -> float:
    """Train; returns the accuracy of the nearest neighbour among 2,000 pictures, by cosine."""
    lightning.seed_everything(0, verbose=False)
    data = garments(4000, 500)
    train, val = (source.tensors[0].float() / 255 for source in (data.train, data.val))
    training = Training()
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, DataLoader(TensorDataset(train), batch_size=128, shuffle=True), ckpt_path="last")
    model = training.model.eval()
    with torch.no_grad():
        known, asked = F.normalize(model(train[:2000])), F.normalize(model(val))
    nearest = data.train.targets()[:2000][(asked @ known.T).argmax(1)]
    return (nearest == data.val.targets()).float().mean().item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/contrastive")
    print(f"figure: accuracy of the nearest neighbour {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
