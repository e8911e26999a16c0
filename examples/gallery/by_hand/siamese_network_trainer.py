"""The job of ../siamese_network.py in the Trainer of transformers.

python siamese_network_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"left": self.images[index], "right": self.images[self.partners[index]], "labels": self.same[index]}


class Siamese(nn.Module):
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

    def forward(self, left: torch.Tensor, right: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.out((self.body(left) - self.body(right)).abs())[:, 0]
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"right": float(((answers.predictions > 0) == (answers.label_ids > 0.5)).mean())}


def main(run: str) -> float:
    """Train; returns the accuracy on pairs of pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    model = Siamese()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=6,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Pairs(*data.train.tensors, seed=1),
        eval_dataset=Pairs(*data.val.tensors, seed=2),
        compute_metrics=accuracy_of,
        optimizers=(torch.optim.AdamW(model.parameters(), lr=2e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_right"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/siamese_network")
    print(f"figure: accuracy on pairs {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
