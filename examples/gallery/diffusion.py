"""Garments out of noise, by a network that removes a little of it at a time (Ho and others, 2020).

Shows an objective that draws noise of its own, a moving average of the weights, and sampling with it.
Leaves generated.png.

    python diffusion.py [RUN]
"""

import sys

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from surefoot import LinearWarmup, Schedule, StepOptions, fit, objective
from surefoot.data.garments import garments

STATED = 0.14  # mean squared error of the predicted noise, on held-out garments
STEPS = 100
KEPT = torch.cos(torch.arange(1, STEPS + 1) / (STEPS + 1) * torch.pi / 2) ** 2  # of the picture's variance


class Denoiser(nn.Module):
    """Noisy pictures (N, 1, 28, 28) and their steps (N,) to the noise in them."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.time = nn.Sequential(nn.Embedding(STEPS, width), nn.Linear(width, 2 * width))
        self.enter = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 4, stride=2, padding=1)
        self.middle = nn.Sequential(
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.GroupNorm(8, 2 * width),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
        )
        self.up = nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1)
        self.leave = nn.Sequential(nn.GroupNorm(8, width), nn.SiLU(), nn.Conv2d(width, 1, 3, padding=1))

    def forward(self, noisy: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
        wide = self.enter(noisy)
        narrow = self.down(F.silu(wide)) + self.time(step)[:, :, None, None]
        return self.leave(wide + self.up(F.silu(narrow + self.middle(narrow))))


@objective
def noise_prediction(model: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """The mean squared error of the noise, at a random step for each picture."""
    step = torch.randint(STEPS, (len(pictures),))
    noise, kept = torch.randn_like(pictures), KEPT[step][:, None, None, None]
    return F.mse_loss(model(kept.sqrt() * pictures + (1 - kept).sqrt() * noise, step), noise)


def sampled(model: nn.Module, count: int) -> torch.Tensor:
    """New pictures, by DDIM (Song and others, 2020): each step predicts the clean picture, adds less noise."""
    pictures = torch.randn(count, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    for step in reversed(range(STEPS)):
        kept, before = KEPT[step], KEPT[step - 1] if step else torch.tensor(1.0)
        noise = model(pictures, torch.full((count,), step))
        clean = ((pictures - (1 - kept).sqrt() * noise) / kept.sqrt()).clamp(-1, 1)
        pictures = before.sqrt() * clean + (1 - before).sqrt() * noise
    return pictures


def main(run: str, epochs: int = 16) -> float:
    """Train; returns the validation loss, and draws 64 new garments."""
    torch.manual_seed(0)
    data = garments(3200, 320)
    pictures = [source.tensors[0].float() / 127.5 - 1 for source in (data.train, data.val)]
    model = Denoiser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    schedule = Schedule(optimizer, warmup=LinearWarmup(optimizer, warmup_period=50))
    result = fit(
        model,
        noise_prediction,
        optimizer,
        (pictures[0],),
        val=(pictures[1],),
        epochs=epochs,
        batch_size=32,
        schedule=schedule,
        step=StepOptions(ema_decay=0.99),
        run_dir=run,
        resume=True,
    )
    with torch.no_grad():
        sheet = sampled(result.average, 64).reshape(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
    Image.fromarray(((sheet.clamp(-1, 1) + 1) * 127.5).byte().numpy()).save("generated.png")
    return result.metrics["val/loss"]


if __name__ == "__main__":
    error = main(sys.argv[1] if len(sys.argv) > 1 else "runs/diffusion")
    print(f"figure: squared error of the noise {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
