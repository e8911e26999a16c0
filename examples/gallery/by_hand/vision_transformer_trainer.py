"""The job of ../vision_transformer.py in the Trainer of transformers.

python vision_transformer_trainer.py [RUN]
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
from surefoot.data.sources import TensorSource
from surefoot.models import ViT
from surefoot.preprocessing import Preprocessing

STATED = 0.88  # accuracy on held-out garments


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each moved by up to 2 pixels, and half of them mirrored."""
    windows = F.pad(images, (2, 2, 2, 2)).unfold(2, 28, 1).unfold(3, 28, 1)
    moved = windows[torch.arange(len(images)), :, *torch.randint(5, (2, len(images)))]
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, moved.flip(3), moved)


class Classifier(nn.Module):
    """A vision transformer that returns its loss; evaluated by its moving average, which its checkpoint holds too."""

    def __init__(self, preprocessing: Preprocessing):
        super().__init__()
        self.model, self.loss_of = ViT(patch=7, width=48, depth=3), nn.CrossEntropyLoss(label_smoothing=0.1)
        self.average = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.99)).requires_grad_(False)
        self.preprocessing = preprocessing

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        model, images = (self.model, augmented(images)) if self.training else (self.average, images)
        logits = model(self.preprocessing(images))
        return {"loss": self.loss_of(logits, labels), "logits": logits}


class Averaging(TrainerCallback):
    """Follows the model after each step."""

    def on_step_end(self, args, state, control, model, **others) -> None:
        model.average.update_parameters(model.model)


def samples(source: TensorSource) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"images": image, "labels": label} for image, label in zip(*source.tensors, strict=True)]


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=12,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=250,
        learning_rate=2e-3,
        weight_decay=0.05,
        lr_scheduler_type="cosine",
        warmup_steps=100,
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
        Classifier(data.preprocessing),
        arguments,
        train_dataset=samples(data.train),
        eval_dataset=samples(data.val),
        compute_metrics=accuracy_of,
        callbacks=[Averaging()],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/vision_transformer")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
