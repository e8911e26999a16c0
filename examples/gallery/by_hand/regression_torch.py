"""The job of ../regression.py by hand; goes on from the last epoch that it finished.

python regression_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

STATED = 0.05  # the largest error of a coefficient


def points(count: int, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers x, x^2, x^3, x^4 of points in [-1, 1], (count, 4), and the polynomial's noisy values, (count, 1)."""
    x = torch.rand(count, 1) * 2 - 1
    powers = x ** torch.arange(1, 5)
    return powers, powers @ coefficients[:, None] + 0.5 + 0.02 * torch.randn(count, 1)


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 20) -> float:
    """Train; returns the largest error of a coefficient."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    wanted = torch.tensor([1.5, -2.0, 0.7, 3.0])
    train, val = TensorDataset(*points(2048, wanted)), points(256, wanted)
    loader = DataLoader(train, batch_size=64, shuffle=True)
    model, loss_of = nn.Linear(4, 1), nn.SmoothL1Loss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
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
        for powers, values in loader:
            loss = loss_of(model(powers), values)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(values)
        model.eval()
        with torch.no_grad():
            reached = loss_of(model(val[0]), val[1]).item()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(train), "val/loss": reached}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch}, run / "last.pt")
    return (model.weight[0] - wanted).abs().max().item()


if __name__ == "__main__":
    error = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/regression"))
    print(f"figure: largest error of a coefficient {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
