"""The job of ../dcgan.py in Lightning, with its manual optimization.

python dcgan_lightning.py [RUN]
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

STATED = 0.12  # distance between the mean picture of real and of drawn garments


def generator() -> nn.Module:
    """Noise (N, 32) to pictures (N, 1, 28, 28) in -1..1."""
    return nn.Sequential(
        nn.Linear(32, 32 * 49),
        nn.Unflatten(1, (32, 7, 7)),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    """Pictures to logits (N, 1): real, or drawn."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(32 * 49, 1),
    )


class GAN(lightning.LightningModule):
    """Both networks with their losses and optimizers."""

    def __init__(self):
        super().__init__()
        self.drawer, self.judge = generator(), discriminator()
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor]) -> None:
        drawing, judging = self.optimizers()
        drawn = self.drawer(torch.randn(64, 32))
        real_logits, drawn_logits = self.judge(batch[0]), self.judge(drawn.detach())
        judge_loss = F.softplus(-real_logits).mean() + F.softplus(drawn_logits).mean()
        judging.zero_grad()
        self.manual_backward(judge_loss)
        judging.step()
        loss = F.softplus(-self.judge(drawn)).mean()
        drawing.zero_grad()
        self.manual_backward(loss)
        drawing.step()
        self.log_dict({"judge": judge_loss, "drawer": loss}, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        drawing = torch.optim.Adam(self.drawer.parameters(), lr=1e-3, betas=(0.5, 0.999))
        judging = torch.optim.Adam(self.judge.parameters(), lr=4e-4, betas=(0.5, 0.999))
        return [drawing, judging]


def main(run: str) -> float:
    """Train; returns how far the mean drawn picture is from the mean real one."""
    lightning.seed_everything(0, verbose=False)
    real = garments(3200, 10).train.tensors[0].float() / 127.5 - 1
    gan = GAN()
    trainer = lightning.Trainer(
        max_epochs=36,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(real), batch_size=64, shuffle=True, drop_last=True)
    trainer.fit(gan, loader, ckpt_path="last")
    gan.eval()
    with torch.no_grad():
        drawn = gan.drawer(torch.randn(500, 32, generator=torch.Generator().manual_seed(1)))
    sheet = drawn[:64].reshape(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
    Image.fromarray(((sheet + 1) * 127.5).byte().numpy()).save("generated.png")
    return (drawn.mean(0) - real.mean(0)).abs().mean().item() / 2


if __name__ == "__main__":
    distance = main(sys.argv[1] if len(sys.argv) > 1 else "runs/dcgan")
    print(f"figure: distance of the mean pictures {distance:.3f} (stated: at most {STATED})")
    sys.exit(not distance <= STATED)
