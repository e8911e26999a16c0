"""The job of ../vision_transformer.py by hand; goes on from the last epoch that it finished.

python vision_transformer_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments
from surefoot.models import ViT

STATED = 0.88  # accuracy on held-out garments


def augmented(images: torch.Tensor) -> torch.Tensor:
    """Each moved by up to 2 pixels, and half of them mirrored."""
    windows = F.pad(images, (2, 2, 2, 2)).unfold(2, 28, 1).unfold(3, 28, 1)
    moved = windows[torch.arange(len(images)), :, *torch.randint(5, (2, len(images)))]
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, moved.flip(3), moved)


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 12) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(6000, 1000)
    loader = DataLoader(TensorDataset(*data.train.tensors), batch_size=64, shuffle=True)
    held_out, truth = data.val.tensors
    model, loss_of = ViT(patch=7, width=48, depth=3), nn.CrossEntropyLoss(label_smoothing=0.1)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.99))
    matrices = {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.05}
    vectors = {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0}
    optimizer = torch.optim.AdamW([matrices, vectors], lr=2e-3)
    rises, falls = LinearLR(optimizer, 0.01, total_iters=100), CosineAnnealingLR(optimizer, epochs * len(loader) - 100)
    schedule = SequentialLR(optimizer, [rises, falls], milestones=[100])
    begin, accuracy = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begin, accuracy = state["epoch"] + 1, state["accuracy"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = loss_of(model(data.preprocessing(augmented(images))), labels)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            average.update_parameters(model)
            total += loss.item() * len(labels)
        average.eval()
        with torch.no_grad():
            accuracy = (average(data.preprocessing(held_out)).argmax(1) == truth).float().mean().item()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / 6000, "accuracy": accuracy}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        state |= {"average": average.state_dict(), "rng": torch.get_rng_state(), "epoch": epoch, "accuracy": accuracy}
        save(state, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/vision_transformer"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
