"""The job of ../gat.py in the Trainer of transformers; of training it records the loss, not the accuracy.

python gat_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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
    """Two layers, four heads side by side, then one for the fields; the loss leaves out labels (1, N) of -100."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Attention(65, 8, heads=4), Attention(32, 4, heads=1)

    def forward(self, words: torch.Tensor, near: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.second(F.elu(self.first(words[0], near[0]).flatten(1)), near[0])[:, 0]
        return {"loss": F.cross_entropy(logits, labels[0]), "logits": logits[None]}


def right_of(answers: EvalPrediction) -> dict[str, float]:
    asked = answers.label_ids >= 0
    return {"right": float((answers.predictions.argmax(2) == answers.label_ids)[asked].mean())}


def main(run: str) -> float:
    """Train on 200 known papers; returns the accuracy on the 400 others."""
    torch.manual_seed(0)
    graph = papers()
    model = GAT()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=150,
        per_device_train_batch_size=1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_steps=20,
        save_total_limit=2,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=[graph | {"labels": graph["field"].where(graph["known"], -100)}],
        eval_dataset=[graph | {"labels": graph["field"].where(graph["asked"], -100)}],
        compute_metrics=right_of,
        optimizers=(torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-4), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_right"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gat")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
