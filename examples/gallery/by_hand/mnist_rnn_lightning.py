"""The job of ../mnist_rnn.py in Lightning.

python mnist_rnn_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 0.85  # accuracy on held-out garments


class Rows(lightning.LightningModule):
    """28 rows of 28 pixels through an LSTM; the last row's state is classified."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.rnn = nn.LSTM(28, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 10)
        self.loss_of = nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(images[:, 0])
        return self.out(self.norm(states[:, -1]))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        loss = self.loss_of(self(images), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        images, labels = batch
        self.log("val/accuracy", (self(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=3e-3)


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(6000, 1000)
    train, val = (TensorDataset(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val))
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)
    trainer.fit(Rows(), *loaders, ckpt_path="last")
    return trainer.callback_metrics["val/accuracy"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_rnn")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
