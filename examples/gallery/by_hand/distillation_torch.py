"""The job of ../distillation.py by hand; goes on from the last epoch that it finished.

python distillation_torch.py [RUN]
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments
from surefoot.models import MLP, LeNet5

STATED = 0.79  # the student's accuracy on held-out garments


def parts_of(
    model: nn.Module, images: torch.Tensor, labels: torch.Tensor, teacher: nn.Module | None = None, warmth: float = 3.0
) -> dict[str, torch.Tensor]:
    """Cross entropy with the labels, and with a teacher the divergence from its softened answers; the accuracy."""
    outputs = model(images)
    loss = F.cross_entropy(outputs, labels)
    parts = {"loss": loss, "accuracy": (outputs.argmax(1) == labels).float().mean()}
    if teacher is not None:
        wanted = (teacher(images) / warmth).log_softmax(1)
        student = (outputs / warmth).log_softmax(1)
        soft = F.kl_div(student, wanted, log_target=True, reduction="batchmean") * warmth**2
        parts |= {"loss": 0.3 * loss + 0.7 * soft, "soft": soft}
    return parts


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def trained(
    model: nn.Module, data: list[TensorDataset], run: Path, epochs: int, decay: float = 0.0, **teacher: nn.Module
) -> float:
    """Train; returns the accuracy, on data[1], of the weights' moving average."""
    run.mkdir(parents=True, exist_ok=True)
    averaged = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    begin, accuracy = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        averaged.load_state_dict(state["averaged"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, accuracy = state["epoch"] + 1, state["accuracy"]
    for epoch in range(begin, epochs):
        sums: Counter[str] = Counter()
        for images, labels in DataLoader(data[0], batch_size=64, shuffle=True):
            parts = parts_of(model, images, labels, **teacher)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            averaged.update_parameters(model)
            sums.update({f"train/{name}": part.item() * len(labels) / len(data[0]) for name, part in parts.items()})
        with torch.no_grad():
            for images, labels in DataLoader(data[1], batch_size=64):
                parts = parts_of(averaged, images, labels, **teacher)
                sums.update({f"val/{name}": part.item() * len(labels) / len(data[1]) for name, part in parts.items()})
        accuracy = sums["val/accuracy"]
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, **sums}) + "\n")
        state = {"model": model.state_dict(), "averaged": averaged.state_dict(), "optimizer": optimizer.state_dict()}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch, "accuracy": accuracy}, run / "last.pt")
    return accuracy


def main(run: Path) -> float:
    """Train teacher and student; returns the student's accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(4000, 1000)
    pictures = [TensorDataset(data.preprocessing(s.tensors[0]), s.tensors[1]) for s in (data.train, data.val)]
    teacher = LeNet5()
    trained(teacher, pictures, run / "teacher", epochs=5)
    teacher.requires_grad_(False)
    return trained(MLP(hidden=(48,)), pictures, run / "student", epochs=12, decay=0.99, teacher=teacher)


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/distillation"))
    print(f"figure: the student's accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
