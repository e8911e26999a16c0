"""The job of ../gcn.py in the Trainer of transformers; of training it records the loss, not the accuracy.

python gcn_trainer.py [RUN]
"""

import os
import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

STATED = 0.84  # accuracy on nodes whose field was not known


def papers(count: int = 1200) -> dict[str, torch.Tensor]:
    """Words (N, 64), normalised neighbours (N, N), fields (N,), which fields are known (N,)."""
    field = torch.arange(count) % 4
    alike = field[:, None] == field[None, :]
    cites = torch.rand(count, count) < torch.where(alike, 0.012, 0.002)
    near = (cites | cites.T).float().fill_diagonal_(1.0)
    scale = near.sum(1).rsqrt()
    words = (torch.rand(count, 64) < torch.where(torch.arange(64) % 4 == field[:, None], 0.16, 0.08)).float()
    return {"words": words, "near": scale[:, None] * near * scale, "field": field, "known": torch.arange(count) < 80}


class GCN(nn.Module):
    """Words of a paper and of its neighbours, twice, with the loss; labels (1, N) are -100 where none is asked for."""

    def __init__(self, width: int = 32):
        super().__init__()
        self.first, self.second, self.drop = nn.Linear(64, width), nn.Linear(width, 4), nn.Dropout(0.5)

    def forward(self, words: torch.Tensor, near: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = F.relu(near @ self.first(self.drop(words)))
        logits = near @ self.second(self.drop(hidden))
        return {"loss": F.cross_entropy(logits[0], labels[0]), "logits": logits}


def right_of(answers: EvalPrediction) -> dict[str, float]:
    asked = answers.label_ids >= 0
    return {"right": float((answers.predictions.argmax(2) == answers.label_ids)[asked].mean())}


def main(run: str) -> float:
    """Train on 80 known papers; returns the accuracy on the 1,120 others."""
    torch.manual_seed(0)
    graph = papers()
    model = GCN()
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=60,
        per_device_train_batch_size=1,
        lr_scheduler_type="constant",
        max_grad_norm=0.0,
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
        model,
        arguments,
        train_dataset=[graph | {"labels": graph["field"].where(graph["known"], -100)}],
        eval_dataset=[graph | {"labels": graph["field"].where(~graph["known"], -100)}],
        compute_metrics=right_of,
        optimizers=(torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-3), None),
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_right"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gcn")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
