"""The job of ../imagenet.py in the Trainer of transformers.

python imagenet_trainer.py [RUN]
"""

import math
import os
import random
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data import DataSplits
from surefoot.data.augment import RandomAffine, RandomHorizontalFlip
from surefoot.data.draws import Draws
from surefoot.data.image_folder import image_folder
from surefoot.models import SmallResNet

STATED = 0.85  # accuracy of the best epoch on pictures that were not trained on
SHAPES = {"triangle": 3, "square": 4, "star": 10, "circle": 40}  # corners


def draw(folder: Path, each: int = 300) -> None:
    """`folder`/SHAPE/NUMBER.png: a shape of any colour, size, turn and place, on darker lines."""
    dice = random.Random(0)
    for name, corners in SHAPES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            colours = [tuple(dice.randrange(light, light + 100) for _ in range(3)) for light in (0, 156, 50, 50, 50)]
            picture = Image.new("RGB", (48, dice.choice((40, 48, 56))), colours[0])
            pen = ImageDraw.Draw(picture)
            for colour in colours[2:]:
                pen.line([(dice.randrange(48), dice.randrange(48)) for _ in range(2)], colour, width=2)
            radius, turn = dice.uniform(11, 18), dice.uniform(0, math.tau)
            x, y = dice.uniform(19, 29), dice.uniform(17, 23)
            far = [radius * (0.45 if name == "star" and corner % 2 else 1) for corner in range(corners)]
            angles = [turn + math.tau * corner / corners for corner in range(corners)]
            outline = [(x + r * math.cos(a), y + r * math.sin(a)) for r, a in zip(far, angles, strict=True)]
            pen.polygon(outline, colours[1])
            picture.save(folder / name / f"{number:03}.png")


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each of them mirrored or not, turned and moved at random."""
    draws = Draws(int(torch.randint(2**31, ())), 0, torch.arange(len(images)))
    for transform in (RandomHorizontalFlip(), RandomAffine(degrees=15, translate=(0.05, 0.05))):
        images = transform(images, draws)
    return images


class Classifier(nn.Module):
    """A residual network with its augmentation and preprocessing, which returns its loss."""

    def __init__(self, data: DataSplits):
        super().__init__()
        self.model, self.preprocessing = SmallResNet(classes=4, channels=3, width=12), data.preprocessing
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)

    def forward(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(self.preprocessing(augmented(images) if self.training else images))
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def samples(images: torch.Tensor, labels: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"images": image, "labels": label} for image, label in zip(images, labels, strict=True)]


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(run: str) -> float:
    """Train; returns the best epoch's accuracy on the fifth of the pictures that was not trained on."""
    torch.manual_seed(0)
    draw(Path("pictures"))
    data = image_folder("pictures", size=32, val_share=0.2)
    model = Classifier(data)
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases_and_norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": biases_and_norms}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    steps = MultiStepLR(optimizer, milestones=[6 * 30, 9 * 30])  # an epoch has 30 batches
    schedule = ChainedScheduler([LinearLR(optimizer, 1 / 30, total_iters=29), steps])
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=10,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=100,
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
    trainer = Trainer(
        model,
        arguments,
        train_dataset=samples(*data.train.tensors),
        eval_dataset=samples(*data.val.tensors),
        compute_metrics=accuracy_of,
        optimizers=(optimizer, schedule),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.state.best_metric


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/imagenet")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
