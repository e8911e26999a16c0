"""The job of ../vae.py by hand; goes on from the last epoch that it finished.

python vae_torch.py [RUN]
"""

import json
import os
import sys
from collections import Counter
from pathlib import Path

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from surefoot.data.garments import garments

STATED = 310.0  # nats a picture, on held-out garments


class VAE(nn.Module):
    """Pictures (N, 1, 28, 28) to 16 numbers, as a Gaussian, and back to logits of pixels."""

    def __init__(self, hidden: int = 256, latent: int = 16):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, hidden), nn.ReLU(), nn.Linear(hidden, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, hidden), nn.ReLU(), nn.Linear(hidden, 784))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean, log_variance = self.encoder(images).chunk(2, dim=1)
        noise = torch.randn_like(mean) if self.training else torch.zeros_like(mean)
        return self.decoder(mean + noise * (log_variance / 2).exp()), mean, log_variance


def bound(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The negative evidence lower bound, in nats a picture, and its parts."""
    logits, mean, log_variance = model(images)
    pixels = F.binary_cross_entropy_with_logits(logits, images.flatten(1), reduction="sum") / len(images)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum() / len(images)
    return {"loss": pixels + divergence, "pixels": pixels, "divergence": divergence}


def draw(decoder: nn.Module) -> None:
    """64 new garments into generated.png."""
    with torch.no_grad():
        codes = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
        pictures = decoder(codes).sigmoid().reshape(8, 8, 28, 28)
    sheet = pictures.permute(0, 2, 1, 3).reshape(224, 224)
    Image.fromarray((sheet * 255).byte().numpy()).save("generated.png")


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 12) -> float:
    """Train; returns the bound on pictures that were not trained on, and draws 64 new ones."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = garments(4000, 500)
    train, val = (TensorDataset(source.tensors[0].float() / 255) for source in (data.train, data.val))
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    begin, reached = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, reached = state["epoch"] + 1, state["reached"]
    for epoch in range(begin, epochs):
        sums: Counter[str] = Counter()
        model.train()
        for (images,) in DataLoader(train, batch_size=64, shuffle=True):
            parts = bound(model, images)
            optimizer.zero_grad()
            parts["loss"].backward()
            optimizer.step()
            sums.update({f"train/{name}": part.item() * len(images) / len(train) for name, part in parts.items()})
        model.eval()
        with torch.no_grad():
            for (images,) in DataLoader(val, batch_size=64):
                parts = bound(model, images)
                sums.update({f"val/{name}": part.item() * len(images) / len(val) for name, part in parts.items()})
        reached = sums["val/loss"]
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, **sums}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "reached": reached}, run / "last.pt")
    draw(model.decoder)
    return reached


if __name__ == "__main__":
    nats = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/vae"))
    print(f"figure: bound {nats:.1f} nats (stated: at most {STATED})")
    sys.exit(not nats <= STATED)
