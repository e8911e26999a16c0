"""The job of ../super_resolution.py in Lightning.

python super_resolution_lightning.py [RUN]
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

STATED = 1.0  # decibels above bicubic interpolation, on held-out garments


class Enlarged(lightning.LightningModule):
    """(N, 1, H, W) to (N, 1, 2 H, 2 W): what is added to the interpolation."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        return F.interpolate(small, scale_factor=2, mode="bicubic") + self.body(small)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = F.mse_loss(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.log("val/psnr", psnr(self(batch[0]), batch[1]).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def psnr(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture, in decibels."""
    return -10 * (outputs - targets).square().mean(dim=(1, 2, 3)).log10()


def main(run: str) -> float:
    """Train; returns the gain over bicubic interpolation, in decibels, on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(3000, 300)
    large = [source.tensors[0].float() / 255 for source in (data.train, data.val)]
    train, val = (TensorDataset(F.avg_pool2d(pictures, 2), pictures) for pictures in large)
    trainer = lightning.Trainer(
        max_epochs=6,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=32)
    trainer.fit(Enlarged(), *loaders, ckpt_path="last")
    small, truth = val.tensors
    bicubic = F.interpolate(small, scale_factor=2, mode="bicubic")
    return (trainer.callback_metrics["val/psnr"] - psnr(bicubic, truth).mean()).item()


if __name__ == "__main__":
    gain = main(sys.argv[1] if len(sys.argv) > 1 else "runs/super_resolution")
    print(f"figure: gain over interpolation {gain:.2f} dB (stated: at least {STATED})")
    sys.exit(not gain >= STATED)
