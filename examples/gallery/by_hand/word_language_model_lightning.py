"""The job of ../word_language_model.py in Lightning.

python word_language_model_lightning.py [RUN]
"""

import re
import sys
from collections import Counter
from pydoc_data.topics import topics

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchmetrics.text import Perplexity

STATED = 120.0  # perplexity a word, on the last tenth of the text
State = tuple[torch.Tensor, torch.Tensor]


class LSTM(nn.Module):
    """Words (N, T) and a state to logits (N, V, T) and the state after them; the embedding is the last layer."""

    def __init__(self, words: int, width: int = 96):
        super().__init__()
        self.embedding, self.drop = nn.Embedding(words, width), nn.Dropout(0.2)
        self.lstm = nn.LSTM(width, width, 2, batch_first=True, dropout=0.2)
        nn.init.normal_(self.embedding.weight, std=0.1)

    def forward(self, words: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        hidden, (h, c) = self.lstm(self.drop(self.embedding(words)), state)
        logits = F.linear(self.drop(hidden), self.embedding.weight)
        return logits.transpose(1, 2), (h.detach(), c.detach())


class NextWord(lightning.LightningModule):
    """The LSTM with its state from batch to batch, its loss, optimizer and schedule."""

    def __init__(self, words: int):
        super().__init__()
        self.model, self.perplexity = LSTM(words), Perplexity()

    def on_train_epoch_start(self) -> None:
        self.state = None

    def on_validation_epoch_start(self) -> None:
        self.state = None

    def training_step(self, window: torch.Tensor) -> torch.Tensor:
        logits, self.state = self.model(window[:, :-1], self.state)
        return F.cross_entropy(logits, window[:, 1:])

    def validation_step(self, window: torch.Tensor) -> None:
        logits, self.state = self.model(window[:, :-1], self.state)
        self.perplexity(logits.transpose(1, 2), window[:, 1:])
        self.log("val/perplexity", self.perplexity)

    def configure_optimizers(self) -> dict:
        optimizer = torch.optim.Adam(self.parameters(), lr=4e-3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val/perplexity"}}


def columns(tokens: torch.Tensor, rows: int) -> DataLoader:
    """Tokens (L,) to batches (rows, 36): windows of 35 words and the one after, each row going on in the next batch."""
    windows = tokens[: len(tokens) // rows * rows].reshape(rows, -1).unfold(1, 36, 35).transpose(0, 1).contiguous()
    return DataLoader(windows, batch_size=None)


def main(run: str) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 100 words."""
    lightning.seed_everything(0, verbose=False)
    words = re.findall(r"\w+|[^\w\s]+", "\n\n".join(topics[name] for name in sorted(topics)))
    vocabulary = ["<rare>", *(word for word, _ in Counter(words).most_common(1999))]
    number = {word: place for place, word in enumerate(vocabulary)}
    tokens = torch.tensor([number.get(word, 0) for word in words])
    held_out = len(tokens) // 10
    training = NextWord(len(vocabulary))
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        gradient_clip_val=0.25,
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(training, columns(tokens[:-held_out], 20), columns(tokens[-held_out:], 20), ckpt_path="last")
    draw, state, written = torch.Generator().manual_seed(1), None, [number["The"]]
    never = torch.tensor(
        [place for place, word in enumerate(vocabulary) if place == 0 or set(word) & set("|+")]
    )  # tables
    model = training.model.eval()
    for _ in range(100):
        logits, state = model(torch.tensor([written[-1:]]), state)
        chances = (logits[0, :, 0] / 0.8).softmax(0).index_fill(0, never, 0)
        written.append(int(torch.multinomial(chances, 1, generator=draw)))
    with open("sampled.txt", "w") as file:
        file.write(" ".join(vocabulary[token] for token in written) + "\n")
    return trainer.callback_metrics["val/perplexity"].item()


if __name__ == "__main__":
    reached = main(sys.argv[1] if len(sys.argv) > 1 else "runs/word_language_model")
    print(f"figure: perplexity {reached:.1f} (stated: at most {STATED})")
    sys.exit(not reached <= STATED)
