"""The job of ../regression.py in Lightning.

python regression_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STATED = 0.05  # the largest error of a coefficient


def points(count: int, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers x, x^2, x^3, x^4 of points in [-1, 1], (count, 4), and the polynomial's noisy values, (count, 1)."""
    x = torch.rand(count, 1) * 2 - 1
    powers = x ** torch.arange(1, 5)
    return powers, powers @ coefficients[:, None] + 0.5 + 0.02 * torch.randn(count, 1)


class Polynomial(lightning.LightningModule):
    """A linear layer with its loss and optimizer."""

    def __init__(self):
        super().__init__()
        self.model, self.loss_of = nn.Linear(4, 1), nn.SmoothL1Loss()

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        powers, values = batch
        loss = self.loss_of(self.model(powers), values)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        powers, values = batch
        self.log("val/loss", self.loss_of(self.model(powers), values))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.05)


def main(run: str) -> float:
    """Train; returns the largest error of a coefficient."""
    lightning.seed_everything(0, verbose=False)
    wanted = torch.tensor([1.5, -2.0, 0.7, 3.0])
    train, val = TensorDataset(*points(2048, wanted)), TensorDataset(*points(256, wanted))
    model = Polynomial()
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=256)
    trainer.fit(model, *loaders, ckpt_path="last")
    return (model.model.weight[0] - wanted).abs().max().item()


if __name__ == "__main__":
    error = main(sys.argv[1] if len(sys.argv) > 1 else "runs/regression")
    print(f"figure: largest error of a coefficient {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
