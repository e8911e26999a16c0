"""A residual network learns from folders of pictures, one folder a class (pytorch/examples: imagenet).

Shows the image folder, with augmentation, weight decay on matrices only, warmup, steps of the rate, and the best model
kept. Where the folder comes from makes no difference: here 1,200 pictures of four shapes are drawn first.

    python imagenet.py [RUN]
"""

import math
import random
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

from surefoot import Checkpoints, LinearWarmup, Loader, RunOptions, Schedule, fit
from surefoot.data.augment import RandomAffine, RandomHorizontalFlip
from surefoot.data.image_folder import image_folder
from surefoot.models import SmallResNet
from surefoot.optimizers import param_groups

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


def main(run: str, epochs: int = 10) -> float:
    """Train; returns the best epoch's accuracy on the fifth of the pictures that was not trained on."""
    torch.manual_seed(0)
    draw(Path("pictures"))
    data = image_folder("pictures", size=32, val_share=0.2)
    augment = [RandomHorizontalFlip(), RandomAffine(degrees=15, translate=(0.05, 0.05))]
    loader = Loader(data.train, batch_size=32, augment=augment, preprocessing=data.preprocessing)
    model = SmallResNet(**data.sizes_for(SmallResNet), width=12)
    groups = param_groups(model, no_decay="norm_and_bias")
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[6, 9])
    result = fit(
        model,
        nn.CrossEntropyLoss(label_smoothing=0.05),
        optimizer,
        loader,
        val=Loader(data.val, batch_size=100, shuffle=False, preprocessing=data.preprocessing),
        epochs=epochs,
        schedule=Schedule(optimizer, steps, LinearWarmup(optimizer, warmup_period=30)),
        run_dir=run,
        resume=True,
        run=RunOptions(checkpoints=Checkpoints(keep_best="val/accuracy")),
    )
    return result.best.value


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/imagenet")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
