"""The job of ../snli.py by hand; goes on from the last epoch that it finished.

python snli_torch.py [RUN]
"""

import json
import os
import random
import sys
from pathlib import Path

import torch
from torch import nn
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


class Entailment(nn.Module):
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


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 8) -> float:
    """Train; returns the accuracy on pairs that were drawn from another seed."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    loader = DataLoader(TensorDataset(*columns(6000, seed=1)), batch_size=64, shuffle=True)
    premises, hypotheses, truth = columns(1000, seed=2)
    model, loss_of = Entailment(), nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    begin, accuracy = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, accuracy = state["epoch"] + 1, state["accuracy"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for premise, hypothesis, label in loader:
            loss = loss_of(model(premise, hypothesis), label)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            total += loss.item() * len(label)
        model.eval()
        with torch.no_grad():
            accuracy = (model(premises, hypotheses).argmax(1) == truth).float().mean().item()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / 6000, "accuracy": accuracy}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "accuracy": accuracy}, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/snli"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
