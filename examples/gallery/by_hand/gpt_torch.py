"""The job of ../gpt.py by hand; goes on from the last epoch that it finished.

python gpt_torch.py [RUN]
"""

import json
import math
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader

from surefoot.data.text import text
from surefoot.models import GPT

STATED = 5.5  # perplexity a letter, on the last tenth of the text


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


@torch.no_grad()
def write(model: nn.Module, classes: tuple[str, ...], count: int = 600, warmth: float = 0.8) -> None:
    """Letters that the model writes after "The ", into sampled.txt."""
    draw, tokens = torch.Generator().manual_seed(1), torch.tensor([classes.index(letter) for letter in "The "])
    for _ in range(count):
        logits = model(tokens[None, -64:])[0, :, -1]
        tokens = torch.cat([tokens, torch.multinomial((logits / warmth).softmax(0), 1, generator=draw)])
    with open("sampled.txt", "w") as file:
        file.write("".join(classes[token] for token in tokens.tolist()) + "\n")


def pairs(windows: tuple[torch.Tensor, torch.Tensor]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Windows of 64 letters with the letter after each."""
    return [(tokens.long(), following.long()) for tokens, following in zip(*windows, strict=True)]


def main(run: Path, epochs: int = 5) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 600 letters."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    data = text(length=64)
    loader = DataLoader(pairs(data.train.tensors), batch_size=32, shuffle=True)
    held_out = DataLoader(pairs(data.val.tensors), batch_size=64)
    model, loss_of = GPT(classes=len(data.classes), length=64, width=64, depth=2), nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    rises, falls = LinearLR(optimizer, 0.02, total_iters=50), CosineAnnealingLR(optimizer, epochs * len(loader) - 50)
    schedule = SequentialLR(optimizer, [rises, falls], milestones=[50])
    begin, perplexity = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begin, perplexity = state["epoch"] + 1, state["perplexity"]
    for epoch in range(begin, epochs):
        model.train()
        total, windows = 0.0, 0
        for tokens, following in loader:
            loss = loss_of(model(tokens), following)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            total, windows = total + loss.item() * len(tokens), windows + len(tokens)
        train_loss, total, windows = total / windows, 0.0, 0
        model.eval()
        with torch.no_grad():
            for tokens, following in held_out:
                total += loss_of(model(tokens), following).item() * len(tokens)
                windows += len(tokens)
        perplexity = math.exp(total / windows)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": train_loss, "perplexity": perplexity}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch, "perplexity": perplexity}, run / "last.pt")
    write(model.eval(), data.classes)
    return perplexity


if __name__ == "__main__":
    perplexity = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gpt"))
    print(f"figure: perplexity {perplexity:.2f} (stated: at most {STATED})")
    sys.exit(not perplexity <= STATED)
