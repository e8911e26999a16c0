"""The job of ../diffusion.py in Lightning.

python diffusion_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import DataLoader, TensorDataset

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


def draw(model: nn.Module) -> None:
    """64 new garments into generated.png."""
    with torch.no_grad():
        sheet = sampled(model, 64).reshape(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
    Image.fromarray(((sheet.clamp(-1, 1) + 1) * 127.5).byte().numpy()).save("generated.png")


class Training(lightning.LightningModule):
    """The network with its loss, optimizer and schedule."""

    def __init__(self):
        super().__init__()
        self.model = Denoiser()

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        loss = noise_prediction(self.model, batch[0])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        self.log("val/loss", noise_prediction(self.model, batch[0]))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=2e-3)
        schedule = LinearLR(optimizer, 0.02, total_iters=50)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(run: str) -> float:
    """Train; returns the validation loss, and draws 64 new garments."""
    lightning.seed_everything(0, verbose=False)
    data = garments(3200, 320)
    train, val = (TensorDataset(source.tensors[0].float() / 127.5 - 1) for source in (data.train, data.val))
    training = Training()
    trainer = lightning.Trainer(
        max_epochs=16,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[EMAWeightAveraging(decay=0.99), ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=32, shuffle=True), DataLoader(val, batch_size=32)
    trainer.fit(training, *loaders, ckpt_path="last")
    draw(training.model)
    return trainer.callback_metrics["val/loss"].item()


if __name__ == "__main__":
    error = main(sys.argv[1] if len(sys.argv) > 1 else "runs/diffusion")
    print(f"figure: squared error of the noise {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
