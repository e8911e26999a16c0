"""The job of ../super_resolution.py in the Trainer of transformers.

python super_resolution_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data.garments import garments

STATED = 1.0  # decibels above bicubic interpolation, on held-out garments


class Enlarged(nn.Module):
    """(N, 1, H, W) to the loss and to (N, 1, 2 H, 2 W): what is added to the interpolation."""

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

    def forward(self, small: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        pictures = F.interpolate(small, scale_factor=2, mode="bicubic") + self.body(small)
        return {"loss": F.mse_loss(pictures, labels), "logits": pictures}


def psnr(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Peak signal-to-noise ratio of each picture, in decibels."""
    return -10 * (outputs - targets).square().mean(dim=(1, 2, 3)).log10()


def mean_psnr(answers: EvalPrediction) -> dict[str, float]:
    return {"psnr": psnr(torch.tensor(answers.predictions), torch.tensor(answers.label_ids)).mean().item()}


def samples(large: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"small": small, "labels": picture} for small, picture in zip(F.avg_pool2d(large, 2), large, strict=True)]


def main(run: str) -> float:
    """Train; returns the gain over bicubic interpolation, in decibels, on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(3000, 300)
    large = [source.tensors[0].float() / 255 for source in (data.train, data.val)]
    train, val = map(samples, large)
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=6,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=32,
        learning_rate=2e-3,
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
    trainer = Trainer(Enlarged(), arguments, train_dataset=train, eval_dataset=val, compute_metrics=mean_psnr)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    bicubic = F.interpolate(F.avg_pool2d(large[1], 2), scale_factor=2, mode="bicubic")
    return trainer.evaluate()["eval_psnr"] - psnr(bicubic, large[1]).mean().item()


if __name__ == "__main__":
    gain = main(sys.argv[1] if len(sys.argv) > 1 else "runs/super_resolution")
    print(f"figure: gain over interpolation {gain:.2f} dB (stated: at least {STATED})")
    sys.exit(not gain >= STATED)
