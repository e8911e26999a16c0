"""The job of ../segmentation.py in the Trainer of transformers.

python segmentation_trainer.py [RUN]
"""

import os
import sys

import numpy
import torch
from PIL import Image
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.models import UNet

STATED = 0.85  # mean intersection over union, on held-out pictures


def scenes(count: int, seed: int, size: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Pictures uint8 (N, 3, 32, 32) and masks int64 (N, 32, 32); -100 at edges, where it is hard to say."""
    draw = torch.Generator().manual_seed(seed)

    def some(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(count, *shape, 1, 1, generator=draw)

    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    stripes = torch.sin(some(0.3, 1.5) * x + some(0.3, 1.5) * y + some(0, 6))[:, None]
    pictures = some(40, 110, 3) + 30 * stripes + some(-8, 8, 3)
    masks = torch.zeros(count, size, size, dtype=torch.int64)
    for label in (1, 2, 1):
        across, down = (x - some(4, 28)).abs(), (y - some(4, 28)).abs()
        far = (across**2 + down**2).sqrt() if label == 1 else torch.maximum(across, down * some(0.7, 1.4))
        inside = far - some(4, 8)
        pictures = torch.where(inside[:, None] < 0, some(160, 255, 3), pictures)
        masks = torch.where(inside.abs() < 0.4, -100, torch.where(inside < 0, label, masks))
    noise = 12 * torch.randn(pictures.shape, generator=draw)
    return (pictures + noise).clamp(0, 255).byte(), masks


def sheet(pictures: torch.Tensor, *masks: torch.Tensor) -> Image.Image:
    """A row of pictures, and a row for each of the masks."""
    colours = torch.tensor([[30, 30, 30], [240, 160, 30], [60, 130, 240], [255, 255, 255]], dtype=torch.uint8)
    rows = [pictures.permute(0, 2, 3, 1), *(colours[mask.where(mask >= 0, 3)] for mask in masks)]
    return Image.fromarray(torch.cat([torch.cat(list(row), dim=1) for row in rows]).numpy())


def draw(model: nn.Module, pictures: torch.Tensor, masks: torch.Tensor) -> None:
    """Ten pictures, their masks and the answers into segmented.png."""
    with torch.no_grad():
        answers = model.eval()(pictures[:10] / 255).argmax(1)
    sheet(pictures[:10], masks[:10], answers).save("segmented.png")


class Segmentation(nn.Module):
    """A U-Net that returns its loss."""

    def __init__(self):
        super().__init__()
        self.model, self.loss_of = UNet(classes=3, width=8, depth=2), nn.CrossEntropyLoss()

    def forward(self, pictures: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(pictures)
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def samples(pictures: torch.Tensor, masks: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"pictures": picture / 255, "labels": mask} for picture, mask in zip(pictures, masks, strict=True)]


def union_of(answers: EvalPrediction) -> dict[str, float]:
    """The mean intersection over union of the pixels that have a label."""
    labelled = answers.label_ids >= 0
    pairs = answers.label_ids[labelled] * 3 + answers.predictions.argmax(1)[labelled]
    counts = numpy.bincount(pairs, minlength=9).reshape(3, 3)
    right = counts.diagonal()
    return {"iou": float((right / (counts.sum(0) + counts.sum(1) - right)).mean())}


def main(run: str) -> float:
    """Train; returns the mean intersection over union on pictures that were not trained on."""
    torch.manual_seed(0)
    new, truth = scenes(200, seed=2)
    model = Segmentation()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=12,
        per_device_train_batch_size=25,
        per_device_eval_batch_size=25,
        learning_rate=5e-3,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=30,
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
        train_dataset=samples(*scenes(1000, seed=1)),
        eval_dataset=samples(new, truth),
        compute_metrics=union_of,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    draw(model.model, new, truth)
    return trainer.evaluate()["eval_iou"]


if __name__ == "__main__":
    union = main(sys.argv[1] if len(sys.argv) > 1 else "runs/segmentation")
    print(f"figure: intersection over union {union:.3f} (stated: at least {STATED})")
    sys.exit(not union >= STATED)
