"""The job of ../vae.py in Lightning.

python vae_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
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


class Training(lightning.LightningModule):
    """The autoencoder with its bound and optimizer."""

    def __init__(self):
        super().__init__()
        self.model = VAE()

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        parts = bound(self.model, batch[0])
        self.log_dict({f"train/{name}": part for name, part in parts.items()}, on_step=False, on_epoch=True)
        return parts["loss"]

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.log_dict({f"val/{name}": part for name, part in bound(self.model, batch[0]).items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(run: str) -> float:
    """Train; returns the bound on pictures that were not trained on, and draws 64 new ones."""
    lightning.seed_everything(0, verbose=False)
    data = garments(4000, 500)
    train, val = (TensorDataset(source.tensors[0].float() / 255) for source in (data.train, data.val))
    training = Training()
    trainer = lightning.Trainer(
        max_epochs=12,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)
    trainer.fit(training, *loaders, ckpt_path="last")
    draw(training.model.decoder)
    return trainer.callback_metrics["val/loss"].item()


if __name__ == "__main__":
    nats = main(sys.argv[1] if len(sys.argv) > 1 else "runs/vae")
    print(f"figure: bound {nats:.1f} nats (stated: at most {STATED})")
    sys.exit(not nats <= STATED)
