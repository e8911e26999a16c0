"""The job of ../gat.py in Lightning.

python gat_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

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


class Training(lightning.LightningModule):
    """The network with its loss and optimizer."""

    def __init__(self):
        super().__init__()
        self.model = GAT()

    def known_fields(self, graph: dict[str, torch.Tensor], part: str) -> torch.Tensor:
        """Cross entropy of the papers that are known in training, of all others in validation."""
        asked = graph["known" if part == "train" else "asked"]
        outputs, fields = self.model(graph["words"], graph["near"])[asked], graph["field"][asked]
        loss, right = F.cross_entropy(outputs, fields), (outputs.argmax(1) == fields).float().mean()
        self.log_dict({f"{part}/loss": loss, f"{part}/right": right}, on_step=False, on_epoch=True)
        return loss

    def training_step(self, graph: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.known_fields(graph, "train")

    def validation_step(self, graph: dict[str, torch.Tensor]) -> None:
        self.known_fields(graph, "val")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01, weight_decay=5e-4)


def main(run: str) -> float:
    """Train on 200 known papers; returns the accuracy on the 400 others."""
    lightning.seed_everything(0, verbose=False)
    graph = DataLoader([papers()], batch_size=None)
    trainer = lightning.Trainer(
        max_epochs=150,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True, every_n_epochs=20)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Training(), graph, graph, ckpt_path="last")
    return trainer.callback_metrics["val/right"].item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gat")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
