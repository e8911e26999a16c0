"""The job of ../language_translation.py in Lightning.

python language_translation_lightning.py [RUN]
"""

import sys
from collections.abc import Iterator

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR
from torch.utils.data import DataLoader

STATED = 0.95  # share of numbers that were not trained on and are translated without an error
ONES = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
EINS = "ein zwei drei vier fuenf sechs sieben acht neun zehn elf zwoelf dreizehn vierzehn fuenfzehn sechzehn siebzehn"
TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
ZEHN = "zwanzig dreissig vierzig fuenfzig sechzig siebzig achtzig neunzig"


def english(n: int) -> list[str]:
    if n >= 100:
        big, name = (1000, "thousand") if n >= 1000 else (100, "hundred")
        return [*english(n // big), name, *english(n % big)]
    ones = ["", *ONES.split(), "eighteen", "nineteen"]
    words = [ones[n]] if n < 20 else [TENS.split()[n // 10 - 2], ones[n % 10]]
    return [word for word in words if word]


def german(n: int) -> list[str]:
    if n >= 100:
        big, name = (1000, "tausend") if n >= 1000 else (100, "hundert")
        return [*german(n // big), name, *german(n % big)]
    ones = ["", *EINS.split(), "achtzehn", "neunzehn"]
    if n < 20 or n % 10 == 0:
        return [word for word in [ones[n] if n < 20 else ZEHN.split()[n // 10 - 2]] if word]
    return [ones[n % 10], "und", ZEHN.split()[n // 10 - 2]]


ENGLISH, GERMAN = (
    ["<pad>", "<begin>", "<end>", *sorted({word for n in range(1, 2000) for word in say(n)})]
    for say in (english, german)
)


def sample(n: int) -> dict[str, torch.Tensor]:
    """A number: its English words, its German words begun, and the same ended, which is what is learned."""
    words = torch.tensor([ENGLISH.index(word) for word in english(n)])
    answer = [GERMAN.index(word) for word in german(n)]
    return {"words": words, "begun": torch.tensor([1, *answer]), "labels": torch.tensor([*answer, 2])}


def padded(samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Sentences of one length: words with 0, labels with -100, which the loss leaves out."""
    fill = {"words": 0, "begun": 0, "labels": -100}
    return {name: pad_sequence([s[name] for s in samples], True, fill[name]) for name in fill}


def batches(samples: list[dict[str, torch.Tensor]], size: int) -> Iterator[dict[str, torch.Tensor]]:
    """Batches of sentences of like length, other ones in another order each time."""
    order = sorted(torch.randperm(len(samples)).tolist(), key=lambda k: len(samples[k]["words"]))
    starts = torch.arange(0, len(samples), size)
    for start in starts[torch.randperm(len(starts))].tolist():
        yield padded([samples[k] for k in order[start : start + size]])


class Translator(nn.Module):
    """English words (N, S) and German ones so far (N, T) to logits of the next German word, (N, V, T)."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.english, self.german = nn.Embedding(len(ENGLISH), width), nn.Embedding(len(GERMAN), width)
        self.places = nn.Parameter(torch.randn(24, width) * 0.1)
        self.body = nn.Transformer(width, 4, 2, 2, 4 * width, dropout=0.0, batch_first=True)
        self.body.encoder.enable_nested_tensor = False  # a prototype of torch's, which warns
        self.out = nn.Linear(width, len(GERMAN))

    def forward(self, words: torch.Tensor, begun: torch.Tensor) -> torch.Tensor:
        empty = words == 0
        later = torch.ones(begun.shape[1], begun.shape[1], dtype=torch.bool).triu(1)
        source = self.english(words) + self.places[: words.shape[1]]
        target = self.german(begun) + self.places[: begun.shape[1]]
        hidden = self.body(source, target, tgt_mask=later, src_key_padding_mask=empty, memory_key_padding_mask=empty)
        return self.out(hidden).transpose(1, 2)


@torch.no_grad()
def translated(model: Translator, words: torch.Tensor) -> torch.Tensor:
    """English words (N, S) to German ones (N, 14), the likeliest at each place; 0 after the end."""
    begun, over = torch.ones(len(words), 1, dtype=torch.int64), torch.zeros(len(words), dtype=torch.bool)
    for _ in range(14):
        word = model(words, begun)[:, :, -1].argmax(1).masked_fill(over, 0)
        begun, over = torch.cat([begun, word[:, None]], dim=1), over | (word == 2)
    return begun[:, 1:]


class Training(lightning.LightningModule):
    """The translator with its batches, loss, optimizer and schedule."""

    def __init__(self, samples: list[dict[str, torch.Tensor]], epochs: int):
        super().__init__()
        self.model, self.loss_of = Translator(), nn.CrossEntropyLoss()
        self.samples, self.epochs = samples, epochs

    def train_dataloader(self) -> DataLoader:
        return DataLoader(list(batches(self.samples, 64)), batch_size=None)

    def training_step(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        loss = self.loss_of(self.model(batch["words"], batch["begun"]), batch["labels"])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.Adam(self.parameters(), lr=2e-3)
        warmup = {"scheduler": LinearLR(optimizer, 1 / 50, total_iters=49), "interval": "step"}
        return [optimizer], [warmup, CosineAnnealingLR(optimizer, T_max=self.epochs)]


def main(run: str, epochs: int = 12) -> float:
    """Train on 3,000 numbers below 10,000; returns the share of 300 others that is translated without an error."""
    lightning.seed_everything(0, verbose=False)
    numbers = (torch.randperm(9999, generator=torch.Generator().manual_seed(0)) + 1).tolist()
    training = Training([sample(n) for n in numbers[:3000]], epochs)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, ckpt_path="last")
    asked = padded([sample(n) for n in numbers[3000:3300]])
    wanted = F.pad(asked["labels"].clamp(min=0), (0, 14 - asked["labels"].shape[1]))
    return (translated(training.model.eval(), asked["words"]) == wanted).all(dim=1).float().mean().item()


if __name__ == "__main__":
    right = main(sys.argv[1] if len(sys.argv) > 1 else "runs/language_translation")
    print(f"figure: {right:.3f} of numbers translated (stated: at least {STATED})")
    sys.exit(not right >= STATED)
