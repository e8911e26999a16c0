"""The job of ../vae.py in the Trainer of transformers; it records the bound, and its parts not.

python vae_trainer.py [RUN]
"""

import os
import sys

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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


class Pictures(Dataset):
    """The samples as dictionaries, whose keys are forward's arguments."""

    def __init__(self, images: torch.Tensor):
        self.images = images.float() / 255

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"images": self.images[index]}


class WithBound(nn.Module):
    """The autoencoder, which returns its loss."""

    def __init__(self):
        super().__init__()
        self.model = VAE()

    def forward(self, images: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        return {"loss": bound(self.model, images)["loss"]}


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


def main(run: str) -> float:
    """Train; returns the bound on pictures that were not trained on, and draws 64 new ones."""
    torch.manual_seed(0)
    data = garments(4000, 500)
    model = WithBound()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=12,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=Pictures(data.train.tensors[0]),
        eval_dataset=Pictures(data.val.tensors[0]),
        optimizers=(torch.optim.Adam(model.parameters(), lr=2e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    draw(model.model.decoder)
    return trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    nats = main(sys.argv[1] if len(sys.argv) > 1 else "runs/vae")
    print(f"figure: bound {nats:.1f} nats (stated: at most {STATED})")
    sys.exit(not nats <= STATED)
