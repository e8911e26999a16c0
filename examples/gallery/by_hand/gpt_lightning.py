"""The job of ../gpt.py in Lightning.

python gpt_lightning.py [RUN]
"""

import math
import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader

from surefoot.data.text import text
from surefoot.models import GPT

STATED = 5.5  # perplexity a letter, on the last tenth of the text


@torch.no_grad()
def write(model: nn.Module, classes: tuple[str, ...], count: int = 600, warmth: float = 0.8) -> None:
    """Letters that the model writes after "The ", into sampled.txt."""
    draw, tokens = torch.Generator().manual_seed(1), torch.tensor([classes.index(letter) for letter in "The "])
    for _ in range(count):
        logits = model(tokens[None, -64:])[0, :, -1]
        tokens = torch.cat([tokens, torch.multinomial((logits / warmth).softmax(0), 1, generator=draw)])
    with open("sampled.txt", "w") as file:
        file.write("".join(classes[token] for token in tokens.tolist()) + "\n")


class NextLetter(lightning.LightningModule):
    """A GPT with its loss, optimizer and schedule."""

    def __init__(self, classes: int, steps: int):
        super().__init__()
        self.model, self.loss_of = GPT(classes=classes, length=64, width=64, depth=2), nn.CrossEntropyLoss()
        self.steps = steps

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        tokens, following = batch
        loss = self.loss_of(self.model(tokens), following)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        tokens, following = batch
        self.log("val/loss", self.loss_of(self.model(tokens), following))

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.AdamW(self.parameters(), lr=8e-3)
        rises, falls = LinearLR(optimizer, 0.02, total_iters=50), CosineAnnealingLR(optimizer, self.steps - 50)
        schedule = SequentialLR(optimizer, [rises, falls], milestones=[50])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def pairs(windows: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Windows of 64 letters with the letter after each."""
    return [(tokens.long(), following.long()) for tokens, following in zip(*windows, strict=True)]


def main(run: str, epochs: int = 5) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 600 letters."""
    lightning.seed_everything(0, verbose=False)
    data = text(length=64)
    loader = DataLoader(pairs(data.train.tensors), batch_size=32, shuffle=True)
    model = NextLetter(len(data.classes), epochs * len(loader))
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        gradient_clip_val=1.0,
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, loader, DataLoader(pairs(data.val.tensors), batch_size=64), ckpt_path="last")
    write(model.model.eval(), data.classes)
    return math.exp(trainer.callback_metrics["val/loss"].item())


if __name__ == "__main__":
    perplexity = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gpt")
    print(f"figure: perplexity {perplexity:.2f} (stated: at most {STATED})")
    sys.exit(not perplexity <= STATED)
