"""The job of ../mnist_rnn.py in the Trainer of transformers.

python mnist_rnn_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data.garments import garments

STATED = 0.85  # accuracy on held-out garments


class Rows(nn.Module):
    """28 rows of 28 pixels through an LSTM; the last row's state is classified. Returns its loss, too."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.rnn = nn.LSTM(28, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 10)
        self.loss_of = nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        states, _ = self.rnn(images[:, 0])
        logits = self.out(self.norm(states[:, -1]))
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def samples(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    train, val = (samples(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val))
    model = Rows()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=8,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        lr_scheduler_type="constant",
        max_grad_norm=1.0,
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
        train_dataset=train,
        eval_dataset=val,
        compute_metrics=accuracy_of,
        optimizers=(torch.optim.Adam(model.parameters(), lr=3e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_rnn")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
