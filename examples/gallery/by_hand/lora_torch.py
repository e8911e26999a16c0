"""The job of ../lora.py by hand; goes on from the last epoch that it finished.

python lora_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.utils.data import DataLoader, TensorDataset

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


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@torch.no_grad()
def accuracy_of(model: nn.Module, val: TensorDataset) -> float:
    model.eval()
    batches = DataLoader(val, batch_size=250)
    return sum((model(images).argmax(1) == labels).sum().item() for images, labels in batches) / len(val)


def train(model: nn.Module, data: TensorDataset, val: TensorDataset, epochs: int, rate: float, run: Path) -> None:
    """One run, of what can learn in the model."""
    run.mkdir(parents=True, exist_ok=True)
    loss_of, optimizer = nn.CrossEntropyLoss(), torch.optim.AdamW(trainable(model), lr=rate)
    begin = 0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin = state["epoch"] + 1
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for images, labels in DataLoader(data, batch_size=64, shuffle=True):
            loss = loss_of(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(labels)
        entry = {"epoch": epoch, "loss": total / len(data), "accuracy": accuracy_of(model, val)}
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps(entry) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch}, run / "last.pt")


def main(run: Path) -> float:
    """Train a model, then its adapters on negatives of other pictures; returns the merged model's accuracy."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    (images, labels), (new, truth), scaled = data.train.tensors, data.val.tensors, data.preprocessing
    model = ViT(patch=7, width=48, depth=2)
    train(model, TensorDataset(scaled(images), labels), TensorDataset(scaled(new), truth), 6, 4e-3, run / "base")
    few, val = TensorDataset(scaled(255 - images[:2000]), labels[:2000]), TensorDataset(scaled(255 - new), truth)
    layers = adapters(model)
    learning, all_of_it = (sum(p.numel() for p in ps) for ps in (trainable(model), model.parameters()))
    train(model, few, val, 12, 1e-2, run / "negatives")
    for layer in layers:
        parametrize.remove_parametrizations(layer, "weight")  # merged
    save(model.state_dict(), Path("merged.pt"))
    print(f"{learning} of {all_of_it} numbers were trained")
    merged = ViT(patch=7, width=48, depth=2)
    merged.load_state_dict(torch.load("merged.pt"))
    return accuracy_of(merged, val)


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lora"))
    print(f"figure: accuracy on negatives {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
