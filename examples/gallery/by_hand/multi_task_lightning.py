"""The job of ../multi_task.py in Lightning.

python multi_task_lightning.py [RUN]
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

STATED = 0.87  # accuracy on held-out garments


class TwoHeads(lightning.LightningModule):
    """Pictures to classes (N, 10) and brightness (N,)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.classes, self.brightness = nn.Linear(512, 10), nn.Linear(512, 1)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(images)
        return self.classes(features), self.brightness(features)[:, 0]

    def both(self, images: torch.Tensor, labels: torch.Tensor, brightness: torch.Tensor) -> dict[str, torch.Tensor]:
        """Cross entropy, and ten times the squared error of the brightness; and the accuracy."""
        classes, predicted = self(images)
        shown, light = F.cross_entropy(classes, labels), F.mse_loss(predicted, brightness)
        accuracy = (classes.argmax(1) == labels).float().mean()
        return {"loss": shown + 10 * light, "shown": shown, "light": light, "accuracy": accuracy}

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        parts = self.both(*batch)
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, on_step=False, on_epoch=True)
        return parts["loss"]

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.log_dict({f"val/{name}": part for name, part in self.both(*batch).items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def columns(images: torch.Tensor, labels: torch.Tensor) -> TensorDataset:
    scaled = images.float() / 255
    return TensorDataset(scaled, labels, scaled.mean(dim=(1, 2, 3)))


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(5000, 1000)
    train, val = columns(*data.train.tensors), columns(*data.val.tensors)
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)
    trainer.fit(TwoHeads(), *loaders, ckpt_path="last")
    return trainer.callback_metrics["val/accuracy"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/multi_task")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
