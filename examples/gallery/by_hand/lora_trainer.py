"""The job of ../lora.py in the Trainer of transformers.

python lora_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data.garments import garments
from surefoot.models import ViT

STATED = 0.70  # accuracy on held-out negatives, with at most a tenth of the numbers trained


class LowRank(nn.Module):
    """A weight (out, in) plus `up` (out, rank) @ `down` (rank, in), which is zero at first."""

    def __init__(self, weight: torch.Tensor, rank: int = 4):
        super().__init__()
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.up @ self.down


def adapters(model: nn.Module) -> list[nn.Linear]:
    """Freeze the model and put a LowRank beside each linear layer's weight; returns these layers."""
    model.requires_grad_(False)
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    for layer in layers:
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight))
    return layers


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


class Classifier(nn.Module):
    """A model that returns its loss."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.loss_of = model, nn.CrossEntropyLoss()

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(images)
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def samples(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def train(model: nn.Module, data: list[dict], val: list[dict], epochs: int, rate: float, run: str) -> None:
    """One run, of what can learn in the model."""
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=epochs,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=250,
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
        Classifier(model),
        arguments,
        train_dataset=data,
        eval_dataset=val,
        compute_metrics=accuracy_of,
        optimizers=(torch.optim.AdamW(trainable(model), lr=rate), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)


def main(run: str) -> float:
    """Train a model, then its adapters on negatives of other pictures; returns the merged model's accuracy."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    (images, labels), (new, truth), scaled = data.train.tensors, data.val.tensors, data.preprocessing
    model = ViT(patch=7, width=48, depth=2)
    train(model, samples(scaled(images), labels), samples(scaled(new), truth), 6, 4e-3, f"{run}/base")
    few, val = samples(scaled(255 - images[:2000]), labels[:2000]), samples(scaled(255 - new), truth)
    layers = adapters(model)
    learning, all_of_it = (sum(p.numel() for p in ps) for ps in (trainable(model), model.parameters()))
    train(model, few, val, 12, 1e-2, f"{run}/negatives")
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")  # merged
    torch.save(model.state_dict(), "merged.pt")
    print(f"{learning} of {all_of_it} numbers were trained")
    merged = ViT(patch=7, width=48, depth=2)
    merged.load_state_dict(torch.load("merged.pt"))
    with torch.no_grad():
        return (merged.eval()(scaled(255 - new)).argmax(1) == truth).float().mean().item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/lora")
    print(f"figure: accuracy on negatives {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
