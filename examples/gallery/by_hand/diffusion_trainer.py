"""The job of ../diffusion.py in the Trainer of transformers.

python diffusion_trainer.py [RUN]
"""

import os
import sys

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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


class WithAverage(nn.Module):
    """The network, which returns its loss, or in evaluation that of its moving average."""

    def __init__(self):
        super().__init__()
        self.model = Denoiser()
        self.averaged = AveragedModel(self.model, multi_avg_fn=get_ema_multi_avg_fn(0.99)).requires_grad_(False)

    def forward(self, pictures: torch.Tensor, return_loss: bool = True) -> dict[str, torch.Tensor]:
        return {"loss": noise_prediction(self.model if self.training else self.averaged, pictures)}


class Averaging(TrainerCallback):
    """Updates the average after each step."""

    def on_step_end(self, args, state, control, model: WithAverage, **others) -> None:
        model.averaged.update_parameters(model.model)


def main(run: str) -> float:
    """Train; returns the validation loss, and draws 64 new garments."""
    torch.manual_seed(0)
    data = garments(3200, 320)
    train, val = (source.tensors[0].float() / 127.5 - 1 for source in (data.train, data.val))
    model = WithAverage()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=16,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        learning_rate=2e-3,
        weight_decay=0.01,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=50,
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
        train_dataset=[{"pictures": picture} for picture in train],
        eval_dataset=[{"pictures": picture} for picture in val],
        callbacks=[Averaging()],
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    draw(model.averaged)
    return trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    error = main(sys.argv[1] if len(sys.argv) > 1 else "runs/diffusion")
    print(f"figure: squared error of the noise {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
