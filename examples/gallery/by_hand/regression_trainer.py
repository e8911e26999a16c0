"""The job of ../regression.py in the Trainer of transformers.

python regression_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

STATED = 0.05  # the largest error of a coefficient


def points(count: int, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers x, x^2, x^3, x^4 of points in [-1, 1], (count, 4), and the polynomial's noisy values, (count, 1)."""
    x = torch.rand(count, 1) * 2 - 1
    powers = x ** torch.arange(1, 5)
    return powers, powers @ coefficients[:, None] + 0.5 + 0.02 * torch.randn(count, 1)


class Points(Dataset):
    """The samples as dictionaries, whose keys are forward's arguments."""

    def __init__(self, powers: torch.Tensor, values: torch.Tensor):
        self.powers, self.values = powers, values

    def __len__(self) -> int:
        return len(self.powers)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"powers": self.powers[index], "labels": self.values[index]}


class Polynomial(nn.Module):
    """A linear layer, which returns its loss."""

    def __init__(self):
        super().__init__()
        self.model, self.loss_of = nn.Linear(4, 1), nn.SmoothL1Loss()

    def forward(self, powers: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        values = self.model(powers)
        return {"loss": self.loss_of(values, labels), "logits": values}


def main(run: str) -> float:
    """Train; returns the largest error of a coefficient."""
    torch.manual_seed(0)
    wanted = torch.tensor([1.5, -2.0, 0.7, 3.0])
    model = Polynomial()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=20,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=256,
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
        train_dataset=Points(*points(2048, wanted)),
        eval_dataset=Points(*points(256, wanted)),
        optimizers=(torch.optim.Adam(model.parameters(), lr=0.05), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return (model.model.weight[0] - wanted).abs().max().item()


if __name__ == "__main__":
    error = main(sys.argv[1] if len(sys.argv) > 1 else "runs/regression")
    print(f"figure: largest error of a coefficient {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
