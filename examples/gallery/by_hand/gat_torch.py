"""The job of ../gat.py by hand; goes on from the last epoch that it finished.

python gat_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

STATED = 0.80  # accuracy on papers whose field was not known


def papers(count: int = 600, magazines: int = 100) -> dict[str, torch.Tensor]:
    """Words (N, 65), neighbours with oneself (N, N), fields (N,), which are known (N,) and which are asked for (N,)."""
    number = torch.arange(count + magazines)
    field, magazine = number % 4, number >= count
    often = torch.where(field[:, None] == field[None, :], 0.020, 0.004)
    cites = torch.rand(len(number), len(number)) < often.masked_fill(magazine, 0.10)
    many = torch.where(magazine, 0.6, 0.26)[:, None]
    words = torch.rand(len(number), 64) < torch.where(torch.arange(64) % 4 == field[:, None], many, 0.08)
    near = (cites | cites.T).fill_diagonal_(True)
    known = number < 200
    words = torch.cat([words, magazine[:, None]], dim=1).float()
    return {"words": words, "near": near, "field": field, "known": known, "asked": ~known & ~magazine}


class Attention(nn.Module):
    """Words (N, F) to (N, heads, width): each head's mean over neighbours, weighted by what both are."""

    def __init__(self, inputs: int, width: int, heads: int):
        super().__init__()
        self.heads, self.drop = heads, nn.Dropout(0.2)
        self.project = nn.Linear(inputs, heads * width, bias=False)
        self.source, self.target = nn.Parameter(torch.empty(heads, width)), nn.Parameter(torch.empty(heads, width))
        nn.init.xavier_uniform_(self.source)
        nn.init.xavier_uniform_(self.target)

    def forward(self, words: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        values = self.project(self.drop(words)).unflatten(1, (self.heads, -1))
        mine, theirs = (values * self.source).sum(2), (values * self.target).sum(2)
        scores = F.leaky_relu(mine[:, None] + theirs[None, :], 0.2).masked_fill(~near[:, :, None], -torch.inf)
        return torch.einsum("ijh,jhw->ihw", self.drop(scores.softmax(1)), values)


class GAT(nn.Module):
    """Two layers: four heads side by side, then one for the fields."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(65, 8, heads=4), Attention(32, 4, heads=1)

    def forward(self, words: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        return self.second(F.elu(self.first(words, near).flatten(1)), near)[:, 0]


def known_fields(model: nn.Module, graph: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross entropy of the papers that are known in training, of all others in validation."""
    asked = graph["known" if model.training else "asked"]
    outputs, fields = model(graph["words"], graph["near"])[asked], graph["field"][asked]
    right = (outputs.argmax(1) == fields).float().mean()
    return {"loss": F.cross_entropy(outputs, fields), "right": right}


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 150) -> float:
    """Train on 200 known papers; returns the accuracy on the 400 others."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    graph = papers()
    model = GAT()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4)
    begin, accuracy = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
        begin, accuracy = state["epoch"] + 1, state["accuracy"]
    for epoch in range(begin, epochs):
        model.train()
        train = known_fields(model, graph)
        optimizer.zero_grad()
        train["loss"].backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            val = known_fields(model, graph)
        accuracy = val["right"].item()
        numbers = {f"{part}/{name}": of[name].item() for part, of in (("train", train), ("val", val)) for name in of}
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, **numbers}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
        save(state | {"epoch": epoch, "accuracy": accuracy}, run / "last.pt")
    return accuracy


if __name__ == "__main__":
    accuracy = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gat"))
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
