"""The job of ../imagenet.py by hand; goes on from the last epoch that it finished.

python imagenet_torch.py [RUN]
"""

import json
import math
import os
import random
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn
from torch.optim.lr_scheduler import ChainedScheduler, LinearLR, MultiStepLR
from torch.utils.data import DataLoader, TensorDataset

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


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 10) -> float:
    """Train; returns the best epoch's accuracy on the fifth of the pictures that was not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    draw(Path("pictures"))
    data = image_folder("pictures", size=32, val_share=0.2)
    train, val = TensorDataset(*data.train.tensors), TensorDataset(*data.val.tensors)
    loader = DataLoader(train, batch_size=32, shuffle=True)
    model, loss_of = SmallResNet(classes=4, channels=3, width=12), nn.CrossEntropyLoss(label_smoothing=0.05)
    weights = [p for p in model.parameters() if p.ndim > 1]
    biases_and_norms = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": weights, "weight_decay": 5e-4}, {"params": biases_and_norms}]
    optimizer = torch.optim.SGD(groups, lr=0.05, momentum=0.9, nesterov=True)
    steps = MultiStepLR(optimizer, milestones=[6 * len(loader), 9 * len(loader)])
    schedule = ChainedScheduler([LinearLR(optimizer, 1 / 30, total_iters=29), steps])
    begin, best = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begin, best = state["epoch"] + 1, state["best"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = loss_of(model(data.preprocessing(augmented(images))), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(labels)
        model.eval()
        right = 0
        with torch.no_grad():
            for images, labels in DataLoader(val, batch_size=100):
                right += (model(data.preprocessing(images)).argmax(1) == labels).sum().item()
        accuracy = right / len(val)
        if accuracy > best:
            best = accuracy
            save(model.state_dict(), run / "best.pt")
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(train), "accuracy": accuracy}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch, "best": best}, run / "last.pt")
    return best


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/imagenet"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
