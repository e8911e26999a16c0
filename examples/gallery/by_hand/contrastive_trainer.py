"""The job of ../contrastive.py in the Trainer of transformers; it records the loss, and the share found not.

python contrastive_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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


class WithLoss(nn.Module):
    """The network, which returns its loss."""

    def __init__(self):
        super().__init__()
        self.model = Features()

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": same_picture(self.model, images)["loss"]}


def main(run: str) -> float:
    """Train; returns the accuracy of the nearest neighbour among 2,000 pictures, by cosine."""
    torch.manual_seed(0)
    data = garments(4000, 500)
    train, val = (source.tensors[0].float() / 255 for source in (data.train, data.val))
    training = WithLoss()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=8,
        per_device_train_batch_size=128,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        training,
        arguments,
        train_dataset=[{"images": image} for image in train],
        optimizers=(torch.optim.Adam(training.parameters(), lr=2e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    model = training.model.eval()
    with torch.no_grad():
        known, asked = F.normalize(model(train[:2000])), F.normalize(model(val))
    nearest = data.train.targets()[:2000][(asked @ known.T).argmax(1)]
    return (nearest == data.val.targets()).float().mean().item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/contrastive")
    print(f"figure: accuracy of the nearest neighbour {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
