"""Pictures of 14x14 become 28x28, sharper than by interpolation (pytorch/examples: super_resolution).

Shows pictures as targets, and a function of one's own as a metric. Shi and others (2016): four channels are
shuffled into pixels.

    python super_resolution.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from surefoot import fit
from surefoot.data.garments import garments

STATED = 1.0  # decibels above bicubic interpolation, on held-out garments


class Enlarged(nn.Module):
    """(N, 1, H, W) to (N, 1, 2 H, 2 W): interpolated, and details added."""

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


def main(run: str) -> float:
    """Train; returns the gain over bicubic interpolation, in decibels, on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(3000, 300)
    large = [source.tensors[0].float() / 255 for source in (data.train, data.val)]
    small = [F.avg_pool2d(pictures, 2) for pictures in large]
    model = Enlarged()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    result = fit(
        model,
        nn.MSELoss(),
        optimizer,
        (small[0], large[0]),
        val=(small[1], large[1]),
        epochs=6,
        batch_size=32,
        metrics={"psnr": psnr},
        run_dir=run,
        resume=True,
    )
    bicubic = F.interpolate(small[1], scale_factor=2, mode="bicubic")
    return result.metrics["val/psnr"] - psnr(bicubic, large[1]).mean().item()


if __name__ == "__main__":
    gain = main(sys.argv[1] if len(sys.argv) > 1 else "runs/super_resolution")
    print(f"figure: gain over interpolation {gain:.2f} dB (stated: at least {STATED})")
    sys.exit(not gain >= STATED)
