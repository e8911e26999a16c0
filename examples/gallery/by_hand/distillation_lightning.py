"""The job of ../distillation.py in Lightning.

python distillation_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments
from surefoot.models import MLP, LeNet5

STATED = 0.79  # the student's accuracy on held-out garments


def parts_of(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, teacher: nn.Module | None = None, warmth: float = 3.0
) -> dict[str, torch.Tensor]:
    """Cross entropy with the labels, and with a teacher the divergence from its softened answers; the accuracy."""
    outputs = model(images)
    loss = F.cross_entropy(outputs, labels)
    parts = {"loss": loss, "accuracy": (outputs.argmax(1) == labels).float().mean()}
    if teacher is not None:
        wanted = (teacher(images) / warmth).log_softmax(1)
        student = (outputs / warmth).log_softmax(1)
        soft = F.kl_div(student, wanted, log_target=True, reduction="batchmean") * warmth**2
        parts |= {"loss": 0.3 * loss + 0.7 * soft, "soft": soft}
    return parts


class Training(lightning.LightningModule):
    """A network with its loss and optimizer, and the teacher of it, if it has one."""

    def __init__(self, model: nn.Module, teacher: nn.Module | None = None):
        super().__init__()
        self.model, self.teacher = model, teacher

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        parts = parts_of(self.model, *batch, teacher=self.teacher)
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, on_step=False, on_epoch=True)
        return parts["loss"]

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        parts = parts_of(self.model, *batch, teacher=self.teacher)
        self.log_dict({f"val/{name}": part for name, part in parts.items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=2e-3)


def trained(training: Training, loaders: list[DataLoader], run: str, epochs: int, *callbacks: Callback) -> dict:
    """Train; returns what was measured last."""
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True), *callbacks],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, *loaders, ckpt_path="last")
    return trainer.callback_metrics


def main(run: str) -> float:
    """Train teacher and student; returns the student's accuracy on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(4000, 1000)
    train, val = (TensorDataset(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val))
    loaders = [DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)]
    teacher = LeNet5()
    trained(Training(teacher), loaders, f"{run}/teacher", 5)
    student = Training(MLP(hidden=(48,)), teacher.requires_grad_(False))
    return trained(student, loaders, f"{run}/student", 12, EMAWeightAveraging(decay=0.99))["val/accuracy"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/distillation")
    print(f"figure: the student's accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
