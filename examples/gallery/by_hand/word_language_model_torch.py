"""The job of ../word_language_model.py by hand; goes on from the last epoch that it finished.

python word_language_model_torch.py [RUN]
"""

import json
import math
import os
import re
import sys
from collections import Counter
from pathlib import Path
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn import functional as F

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


def columns(tokens: torch.Tensor, rows: int) -> torch.Tensor:
    """Tokens (L,) to (steps, rows, 36): windows of 35 words and the one after, each row going on in the next step."""
    return tokens[: len(tokens) // rows * rows].reshape(rows, -1).unfold(1, 36, 35).transpose(0, 1).contiguous()


@torch.no_grad()
def perplexity(model: LSTM, windows: torch.Tensor) -> float:
    model.eval()
    state, total = None, 0.0
    for window in windows:
        logits, state = model(window[:, :-1], state)
        total += F.cross_entropy(logits, window[:, 1:]).item()
    model.train()
    return math.exp(total / len(windows))


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 8) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 100 words."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    words = re.findall(r"\w+|[^\w\s]+", "\n\n".join(topics[name] for name in sorted(topics)))
    vocabulary = ["<rare>", *(word for word, _ in Counter(words).most_common(1999))]
    number = {word: place for place, word in enumerate(vocabulary)}
    tokens = torch.tensor([number.get(word, 0) for word in words])
    held_out = len(tokens) // 10
    train, val = columns(tokens[:-held_out], 20), columns(tokens[-held_out:], 20)
    model = LSTM(len(vocabulary))
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.25, patience=0)
    begin = 0
    if (run / "last.pt").exists():
        saved = torch.load(run / "last.pt")
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        plateau.load_state_dict(saved["plateau"])
        torch.set_rng_state(saved["rng"])
        begin = saved["epoch"] + 1
    for epoch in range(begin, epochs):
        state = None
        for window in train:
            logits, state = model(window[:, :-1], state)
            loss = F.cross_entropy(logits, window[:, 1:])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
            optimizer.step()
        reached = perplexity(model, val)
        plateau.step(reached)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "perplexity": reached}) + "\n")
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "plateau": plateau.state_dict()}
        save(saved | {"rng": torch.get_rng_state(), "epoch": epoch}, run / "last.pt")
    draw, state, written = torch.Generator().manual_seed(1), None, [number["The"]]
    never = torch.tensor(
        [place for place, word in enumerate(vocabulary) if place == 0 or set(word) & set("|+")]
    )  # tables
    model.eval()
    for _ in range(100):
        logits, state = model(torch.tensor([written[-1:]]), state)
        chances = (logits[0, :, 0] / 0.8).softmax(0).index_fill(0, never, 0)
        written.append(int(torch.multinomial(chances, 1, generator=draw)))
    with open("sampled.txt", "w") as file:
        file.write(" ".join(vocabulary[token] for token in written) + "\n")
    return perplexity(model, val)


if __name__ == "__main__":
    reached = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/word_language_model"))
    print(f"figure: perplexity {reached:.1f} (stated: at most {STATED})")
    sys.exit(not reached <= STATED)
