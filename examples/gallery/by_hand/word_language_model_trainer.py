"""The job of ../word_language_model.py in the Trainer of transformers.

python word_language_model_trainer.py [RUN]
"""

import math
import os
import re
import sys
from collections import Counter
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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


class NextWord(nn.Module):
    """The LSTM with its state from batch to batch, which returns its loss."""

    def __init__(self, words: int):
        super().__init__()
        self.model, self.state = LSTM(words), None

    def train(self, mode: bool = True) -> nn.Module:
        # The Trainer calls `eval` before an evaluation and `train` before each step: the first one begins an epoch.
        if not (mode and self.training):
            self.state = None
        return super().train(mode)

    def forward(self, words: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits, self.state = self.model(words, self.state)
        return {"loss": F.cross_entropy(logits, labels)}


def columns(tokens: torch.Tensor, rows: int) -> list[dict[str, torch.Tensor]]:
    """Tokens (L,) to windows of 35 words with those after each, in batches of `rows` that go on in the next batch."""
    windows = tokens[: len(tokens) // rows * rows].reshape(rows, -1).unfold(1, 36, 35).transpose(0, 1).flatten(0, 1)
    return [{"words": window[:-1], "labels": window[1:]} for window in windows]


def main(run: str) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 100 words."""
    torch.manual_seed(0)
    words = re.findall(r"\w+|[^\w\s]+", "\n\n".join(topics[name] for name in sorted(topics)))
    vocabulary = ["<rare>", *(word for word, _ in Counter(words).most_common(1999))]
    number = {word: place for place, word in enumerate(vocabulary)}
    tokens = torch.tensor([number.get(word, 0) for word in words])
    held_out = len(tokens) // 10
    training = NextWord(len(vocabulary))
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=8,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=20,
        per_device_eval_batch_size=20,
        learning_rate=4e-3,
        lr_scheduler_type="reduce_lr_on_plateau",
        lr_scheduler_kwargs={"factor": 0.25, "patience": 0, "threshold_mode": "abs"},
        max_grad_norm=0.25,
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
        training,
        arguments,
        train_dataset=columns(tokens[:-held_out], 20),
        eval_dataset=columns(tokens[-held_out:], 20),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
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
    return math.exp(trainer.evaluate()["eval_loss"])


if __name__ == "__main__":
    reached = main(sys.argv[1] if len(sys.argv) > 1 else "runs/word_language_model")
    print(f"figure: perplexity {reached:.1f} (stated: at most {STATED})")
    sys.exit(not reached <= STATED)
