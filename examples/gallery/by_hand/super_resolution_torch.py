"""The job of ../super_resolution.py by hand; goes on from the last epoch that it finished.

python super_resolution_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 1.0  # decibels above bicubic interpolation, on held-out garments


class Enlarged(nn.Module):
    """(N, 1, H, W) to (N, 1, 2 H, 2 W): what is added to the interpolation."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, 4, 3, padding=1),
            nn.PixelShuffle(2),
        )

    def forward(self, small: torch.Tensor) -> torch.Tensor:
        return F.interpolate(small, scale_factor=2, mode="bicubic") + self.body(small)


def psnr(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture, in decibels."""
    return -10 * (outputs - targets).square().mean(dim=(1, 2, 3)).log10()


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 6) -> float:
    """Train; returns the gain over bicubic interpolation, in decibels, on pictures that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(3000, 300)
    large, truth = (source.tensors[0].float() / 255 for source in (data.train, data.val))
    loader = DataLoader(TensorDataset(F.avg_pool2d(large, 2), large), batch_size=32, shuffle=True)
    held_out = F.avg_pool2d(truth, 2)
    model, loss_of = Enlarged(), nn.MSELoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    begin, reached = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, reached = state["epoch"] + 1, state["psnr"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for inputs, targets in loader:
            loss = loss_of(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.item() * len(inputs)
        model.eval()
        with torch.no_grad():
            reached = psnr(model(held_out), truth).mean().item()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(large), "psnr": reached}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "psnr": reached}, run / "last.pt")
    return reached - psnr(F.interpolate(held_out, scale_factor=2, mode="bicubic"), truth).mean().item()


if __name__ == "__main__":
    gain = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/super_resolution"))
    print(f"figure: gain over interpolation {gain:.2f} dB (stated: at least {STATED})")
    sys.exit(not gain >= STATED)
