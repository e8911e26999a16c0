"""A variational autoencoder draws new garments (pytorch/examples: vae).

Shows an objective: what is minimised is a function of model and batch, here the bound of Kingma and Welling (2013);
its two parts are recorded beside the loss. Leaves generated.png.

    python vae.py [RUN]
"""

import sys

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from surefoot import fit, objective
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


@objective
def bound(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """The negative evidence lower bound, in nats a picture."""
    logits, mean, log_variance = model(images)
    pixels = F.binary_cross_entropy_with_logits(logits, images.flatten(1), reduction="sum") / len(images)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum() / len(images)
    return {"loss": pixels + divergence, "pixels": pixels, "divergence": divergence}


def main(run: str) -> float:
    """Train; returns the bound on pictures that were not trained on, and draws 64 new ones."""
    torch.manual_seed(0)
    data = garments(4000, 500)
    images = [source.tensors[0].float() / 255 for source in (data.train, data.val)]
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    result = fit(
        model, bound, optimizer, (images[0],), val=(images[1],), epochs=12, batch_size=64, run_dir=run, resume=True
    )
    model.eval()
    with torch.no_grad():
        codes = torch.randn(64, 16, generator=torch.Generator().manual_seed(1))
        pictures = model.decoder(codes).sigmoid().reshape(8, 8, 28, 28)
    sheet = pictures.permute(0, 2, 1, 3).reshape(224, 224)
    Image.fromarray((sheet * 255).byte().numpy()).save("generated.png")
    return result.metrics["val/loss"]


if __name__ == "__main__":
    nats = main(sys.argv[1] if len(sys.argv) > 1 else "runs/vae")
    print(f"figure: bound {nats:.1f} nats (stated: at most {STATED})")
    sys.exit(not nats <= STATED)
