"""The job of ../mnist.py in the Trainer of transformers.

python mnist_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data import DataSplits
from surefoot.data.garments import garments
from surefoot.models import LeNet5

STATED = 0.95  # accuracy on held-out garments


class Pictures(Dataset):
    """The samples as dictionaries, whose keys are forward's arguments."""

    def __init__(self, data: DataSplits, part: str):
        images, self.labels = getattr(data, part).tensors
        self.images = data.preprocessing(images)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.images[index], "labels": self.labels[index]}


class Classifier(nn.Module):
    """LeNet-5, which returns its loss."""

    def __init__(self):
        super().__init__()
        self.model, self.loss_of = LeNet5(), nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(images)
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    model = Classifier()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=8,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=250,
        learning_rate=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Pictures(data, "train"),
        eval_dataset=Pictures(data, "val"),
        compute_metrics=accuracy_of,
        optimizers=(optimizer, None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
