"""The job of ../snli.py in Lightning.

python snli_lightning.py [RUN]
"""

import random
import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

STATED = 0.97  # accuracy on held-out pairs
WHO = {"man": "person", "woman": "person", "boy": "child", "girl": "child", "dog": "animal", "cat": "animal"}
DOES = {"runs": "moves", "walks": "moves", "jumps": "moves", "sleeps": "rests", "sits": "rests", "lies": "rests"}
WHERE = ["in a park", "on a beach", "near a house", "in the snow"]
HOW = ["with a friend", "with a red ball", "in the morning", "for an hour"]
WORDS = ["<pad>", *sorted(set(" ".join(["a no", *WHO, *WHO.values(), *DOES, *DOES.values(), *WHERE, *HOW]).split()))]


def pair(dice: random.Random) -> tuple[str, str, int]:
    """Two sentences, and what the second is to the first."""
    who, does, where, how = (dice.choice(list(words)) for words in (WHO, DOES, WHERE, HOW))
    first = f"a {who} {does} {where}" + dice.choice(["", " " + how])
    other = dice.choice([verb for verb in DOES if DOES[verb] != DOES[does]])
    somebody, something = dice.choice([who, WHO[who]]), dice.choice([does, DOES[does]])
    label = dice.randrange(3)
    if label == 0:
        return first, f"a {somebody} {something}" + dice.choice(["", " " + where]), 0
    if label == 1:
        added = dice.choice([word for word in HOW if word not in first])
        return first, f"a {somebody} {something} {added}", 1
    return first, dice.choice([f"a {somebody} {other} {where}", f"no {somebody} {something}"]), 2


def columns(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pairs as indices of words (N, 12), 0 where a sentence has ended, and their labels (N,)."""
    dice = random.Random(seed)
    first, second, label = zip(*(pair(dice) for _ in range(count)), strict=True)

    def numbered(sentences: tuple[str, ...]) -> torch.Tensor:
        rows = [[WORDS.index(word) for word in sentence.split()] for sentence in sentences]
        return torch.tensor([row + [0] * (12 - len(row)) for row in rows])

    return numbered(first), numbered(second), torch.tensor(label)


class Entailment(lightning.LightningModule):
    """Premise and hypothesis (N, 12) to logits of the three labels (N, 3)."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.out = nn.Sequential(nn.Linear(8 * width, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))

    def encoded(self, words: torch.Tensor) -> torch.Tensor:
        """The largest of each feature over a sentence's words."""
        states, _ = self.lstm(self.embedding(words))
        return states.masked_fill((words == 0)[:, :, None], -1.0).amax(1)

    def forward(self, premise: torch.Tensor, hypothesis: torch.Tensor) -> torch.Tensor:
        first, second = self.encoded(premise), self.encoded(hypothesis)
        return self.out(torch.cat([first, second, (first - second).abs(), first * second], dim=1))

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        premise, hypothesis, label = batch
        loss = F.cross_entropy(self(premise, hypothesis), label)
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        premise, hypothesis, label = batch
        self.log("val/accuracy", (self(premise, hypothesis).argmax(1) == label).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(run: str) -> float:
    """Train; returns the accuracy on pairs that were drawn from another seed."""
    lightning.seed_everything(0, verbose=False)
    train, val = (TensorDataset(*columns(count, seed)) for count, seed in ((6000, 1), (1000, 2)))
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        gradient_clip_val=5.0,
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loaders = DataLoader(train, batch_size=64, shuffle=True), DataLoader(val, batch_size=64)
    trainer.fit(Entailment(), *loaders, ckpt_path="last")
    return trainer.callback_metrics["val/accuracy"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/snli")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
