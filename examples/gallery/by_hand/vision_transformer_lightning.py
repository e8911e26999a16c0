"""The job of ../vision_transformer.py in Lightning.

python vision_transformer_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments
from surefoot.models import ViT
from surefoot.preprocessing import Preprocessing

STATED = 0.88  # accuracy on held-out garments


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each moved by up to 2 pixels, and half of them mirrored."""
    windows = F.pad(images, (2, 2, 2, 2)).unfold(2, 28, 1).unfold(3, 28, 1)
    moved = windows[torch.arange(len(images)), :, *torch.randint(5, (2, len(images)))]
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, moved.flip(3), moved)


class Classifier(lightning.LightningModule):
    """A vision transformer with its loss, optimizer and schedule."""

    def __init__(self, preprocessing: Preprocessing, steps: int):
        super().__init__()
        self.model, self.loss_of = ViT(patch=7, width=48, depth=3), nn.CrossEntropyLoss(label_smoothing=0.1)
        self.preprocessing, self.steps = preprocessing, steps

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        loss = self.loss_of(self.model(self.preprocessing(augmented(images))), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        images, labels = batch
        self.log("val/accuracy", (self.model(self.preprocessing(images)).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> dict:
        matrices = {"params": [p for p in self.parameters() if p.dim() > 1], "weight_decay": 0.05}
        vectors = {"params": [p for p in self.parameters() if p.dim() <= 1], "weight_decay": 0.0}
        optimizer = torch.optim.AdamW([matrices, vectors], lr=2e-3)
        rises, falls = LinearLR(optimizer, 0.01, total_iters=100), CosineAnnealingLR(optimizer, self.steps - 100)
        schedule = SequentialLR(optimizer, [rises, falls], milestones=[100])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(run: str, epochs: int = 12) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(6000, 1000)
    loader = DataLoader(TensorDataset(*data.train.tensors), batch_size=64, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=CSVLogger(run),
        callbacks=[EMAWeightAveraging(decay=0.99), ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = Classifier(data.preprocessing, epochs * len(loader))
    trainer.fit(model, loader, DataLoader(TensorDataset(*data.val.tensors), batch_size=250), ckpt_path="last")
    return trainer.callback_metrics["val/accuracy"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/vision_transformer")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
