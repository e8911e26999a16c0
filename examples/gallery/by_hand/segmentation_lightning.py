"""The job of ../segmentation.py in Lightning.

python segmentation_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import JaccardIndex

from surefoot.models import UNet

STATED = 0.85  # mean intersection over union, on held-out pictures


def scenes(count: int, seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 (N, 3, 32, 32) and masks int64 (N, 32, 32); -100 at edges, where it is hard to say."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=draw)

    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = torch.sin(some(0.3, 1.5) * x + some(0.3, 1.5) * y + some(0, 6))[:, None]
    pictures = some(40, 110, 3) + 30 * stripes + some(-8, 8, 3)
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    for label in (1, 2, 1):
        across, down = (x - some(4, 28)).abs(), (y - some(4, 28)).abs()
        far = (across**2 + down**2).sqrt() if label == 1 else torch.maximum(across, down * some(0.7, 1.4))
        inside = far - some(4, 8)
        pictures = torch.where(inside[:, None] < 0, some(160, 255, 3), pictures)
        masks = torch.where(inside.abs() < 0.4, -100, torch.where(inside < 0, label, masks))
    noise = 12 * torch.randn(pictures.shape, generator=draw)
    return (pictures + noise).clamp(0, 255).byte(), masks


def sheet(pictures: torch.Tensor, *masks: torch.Tensor) -> Image.Image:
    """A row of pictures, and a row for each of the masks."""
    colours = torch.tensor([[30, 30, 30], [240, 160, 30], [60, 130, 240], [255, 255, 255]], dtype=torch.uint8)
    rows = [pictures.permute(0, 2, 3, 1), *(colours[mask.where(mask >= 0, 3)] for mask in masks)]
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy())


def draw(model: nn.Module, pictures: torch.Tensor, masks: torch.Tensor) -> None:
    """Ten pictures, their masks and the answers into segmented.png."""
    with torch.no_grad():
        answers = model.eval()(pictures[:10] / 255).argmax(1)
    sheet(pictures[:10], masks[:10], answers).save("segmented.png")


class Segmentation(lightning.LightningModule):
    """A U-Net with its loss, metric, optimizer and schedule."""

    def __init__(self, steps: int):
        super().__init__()
        self.model, self.loss_of, self.steps = UNet(classes=3, width=8, depth=2), nn.CrossEntropyLoss(), steps
        self.union = JaccardIndex("multiclass", num_classes=3, ignore_index=-100)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = self.loss_of(self.model(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.union(self.model(batch[0]).argmax(1), batch[1])
        self.log("val/iou", self.union, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=5e-3)
        rises, falls = LinearLR(optimizer, 0.02, total_iters=30), CosineAnnealingLR(optimizer, self.steps - 30)
        schedule = SequentialLR(optimizer, [rises, falls], milestones=[30])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(run: str, epochs: int = 12) -> float:
    """Train; returns the mean intersection over union on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    (pictures, masks), (new, truth) = scenes(1000, seed=1), scenes(200, seed=2)
    loader = DataLoader(TensorDataset(pictures / 255, masks), batch_size=25, shuffle=True)
    model = Segmentation(epochs * len(loader))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, DataLoader(TensorDataset(new / 255, truth), batch_size=25), ckpt_path="last")
    draw(model.model, new, truth)
    return trainer.callback_metrics["val/iou"].item()


if __name__ == "__main__":
    union = main(sys.argv[1] if len(sys.argv) > 1 else "runs/segmentation")
    print(f"figure: intersection over union {union:.3f} (stated: at least {STATED})")
    sys.exit(not union >= STATED)
