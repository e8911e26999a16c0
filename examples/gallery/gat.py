"""Papers classified into four fields by attention over their citations (pytorch/examples: gat).

Shows training on one graph where most citations mislead: attention learns which neighbours not to listen to. Velickovic
and others (2017). The graph is drawn here: all cite magazines, which print words of any field
and have one of their own.

    python gat.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from surefoot import Checkpoints, RunOptions, fit, objective

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


@objective
def known_fields(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross entropy of the papers that are known in training, of all others in validation."""
    graph = {name: value[0] for name, value in batch.items()}
    asked = graph["known" if model.training else "asked"]
    outputs, fields = model(graph["words"], graph["near"])[asked], graph["field"][asked]
    right = (outputs.argmax(1) == fields).float().mean()
    return {"loss": F.cross_entropy(outputs, fields), "right": right}


def main(run: str) -> float:
    """Train on 200 known papers; returns the accuracy on the 400 others."""
    torch.manual_seed(0)
    graph = [papers()]
    model = GAT()
    result = fit(
        model,
        known_fields,
        torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4),
        graph,
        val=graph,
        epochs=150,
        run_dir=run,
        resume=True,
        run=RunOptions(checkpoints=Checkpoints(every="20 epochs")),
    )
    return result.metrics["val/right"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gat")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
