"""The job of ../distillation.py in the Trainer of transformers; it records the loss, and the divergence not.

python distillation_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data.garments import garments
from surefoot.models import MLP, LeNet5

STATED = 0.79  # the student's accuracy on held-out garments


class Classifier(nn.Module):
    """A network, in evaluation its weights' moving average, which returns its loss; its teacher, if it has one."""

    def __init__(self, model: nn.Module, decay: float = 0.0, teacher: nn.Module | None = None, warmth: float = 3.0):
        super().__init__()
        self.model, self.teacher, self.warmth = model, teacher, warmth
        self.averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)).requires_grad_(False)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(images) if self.training else self.averaged(images)
        loss = F.cross_entropy(logits, labels)
        if self.teacher is not None:
            wanted = (self.teacher(images) / self.warmth).log_softmax(1)
            student = (logits / self.warmth).log_softmax(1)
            soft = F.kl_div(student, wanted, log_target=True, reduction="batchmean") * self.warmth**2
            loss = 0.3 * loss + 0.7 * soft
        return {"loss": loss, "logits": logits}


class Averaging(TrainerCallback):
    """Updates the average after each step."""

    def on_step_end(self, args, state, control, model: Classifier, **others) -> None:
        model.averaged.update_parameters(model.model)


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def trained(model: Classifier, data: list[list[dict[str, torch.Tensor]]], run: str, epochs: int) -> float:
    """Train; returns the accuracy on data[1]."""
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=epochs,
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
        train_dataset=data[0],
        eval_dataset=data[1],
        compute_metrics=accuracy_of,
        callbacks=[Averaging()],
        optimizers=(torch.optim.Adam(model.model.parameters(), lr=2e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_accuracy"]


def main(run: str) -> float:
    """Train teacher and student; returns the student's accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(4000, 1000)
    pictures = [
        [{"images": image, "labels": label} for image, label in zip(data.preprocessing(images), labels, strict=True)]
        for images, labels in (data.train.tensors, data.val.tensors)
    ]
    teacher = LeNet5()
    trained(Classifier(teacher), pictures, f"{run}/teacher", epochs=5)
    student = Classifier(MLP(hidden=(48,)), 0.99, teacher.requires_grad_(False))
    return trained(student, pictures, f"{run}/student", epochs=12)


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/distillation")
    print(f"figure: the student's accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
