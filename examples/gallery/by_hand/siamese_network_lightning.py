"""The job of ../siamese_network.py in Lightning.

python siamese_network_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
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


class Siamese(lightning.LightningModule):
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
        self.out, self.loss_of = nn.Linear(64, 1), nn.BCEWithLogitsLoss()

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        return self.out((self.body(left) - self.body(right)).abs())[:, 0]

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        left, right, same = batch
        loss = self.loss_of(self(left, right), same)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        left, right, same = batch
        self.log("val/right", ((self(left, right) > 0) == (same > 0.5)).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=2e-3)


def main(run: str) -> float:
    """Train; returns the accuracy on pairs of pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(6000, 1000)
    train, val = Pairs(*data.train.tensors, seed=1), Pairs(*data.val.tensors, seed=2)
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)
    trainer.fit(Siamese(), *loaders, ckpt_path="last")
    return trainer.callback_metrics["val/right"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/siamese_network")
    print(f"figure: accuracy on pairs {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
