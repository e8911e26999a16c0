"""The job of ../imagenet.py in Lightning.

python imagenet_lightning.py [RUN]
"""

import math
import random
import sys
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image, ImageDraw
from torch import nn
from torch.optim.lr_scheduler import LinearLR, MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

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


class Classifier(lightning.LightningModule):
    """A residual network with its preprocessing, loss, optimizer and schedule."""

    def __init__(self, data: DataSplits):
        super().__init__()
        self.model, self.preprocessing = SmallResNet(classes=4, channels=3, width=12), data.preprocessing
        self.loss_of = nn.CrossEntropyLoss(label_smoothing=0.05)

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        images, labels = batch
        loss = self.loss_of(self.model(self.preprocessing(augmented(images))), labels)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        images, labels = batch
        self.log("val/accuracy", (self.model(self.preprocessing(images)).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> tuple[list, list]:
        weights = [p for p in self.parameters() if p.ndim > 1]
        biases_and_norms = [p for p in self.parameters() if p.ndim == 1]
        groups = [{"params": weights, "weight_decay": 5e-4}, {"params": biases_and_norms}]
        optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
        warmup = {"scheduler": LinearLR(optimizer, 1 / 30, total_iters=29), "interval": "step"}
        return [optimizer], [warmup, MultiStepLR(optimizer, milestones=[6, 9])]


def main(run: str, epochs: int = 10) -> float:
    """Train; returns the best epoch's accuracy on the fifth of the pictures that was not trained on."""
    lightning.seed_everything(0, verbose=False)
    draw(Path("pictures"))
    data = image_folder("pictures", size=32, val_share=0.2)
    train, val = TensorDataset(*data.train.tensors), TensorDataset(*data.val.tensors)
    best = ModelCheckpoint(run, monitor="val/accuracy", mode="max", save_last=True)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[best],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=100)
    trainer.fit(Classifier(data), *loaders, ckpt_path="last")
    return best.best_model_score.item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/imagenet")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
