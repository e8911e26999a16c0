"""The job of ../mnist.py in Lightning.

python mnist_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments
from surefoot.models import LeNet5

STATED = 0.95  # accuracy on held-out garments


class Classifier(lightning.LightningModule):
    """LeNet-5 with its loss, optimizer and schedule."""

    def __init__(self, steps: int):
        super().__init__()
        self.model, self.loss_of, self.steps = LeNet5(), nn.CrossEntropyLoss(), steps

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        loss = self.loss_of(self.model(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        images, labels = batch
        self.log("val/accuracy", (self.model(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)
        rises, falls = LinearLR(optimizer, 0.02, total_iters=50), CosineAnnealingLR(optimizer, self.steps - 50)
        schedule = SequentialLR(optimizer, [rises, falls], milestones=[50])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(run: str, epochs: int = 8) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(6000, 1000)
    train, val = (TensorDataset(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val))
    loader = DataLoader(train, batch_size=64, shuffle=True)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, monitor="val/accuracy", mode="max", save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(epochs * len(loader)), loader, DataLoader(val, batch_size=250), ckpt_path="last")
    return trainer.callback_metrics["val/accuracy"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
