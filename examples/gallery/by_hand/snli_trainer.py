"""The job of ../snli.py in the Trainer of transformers.

python snli_trainer.py [RUN]
"""

import os
import random
import sys

import torch
from torch import nn
from torch.nn import functional as F
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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


def samples(count: int, seed: int) -> list[dict]:
    """Pairs as indices of words (12,), 0 where a sentence has ended; the keys are forward's arguments."""
    dice = random.Random(seed)

    def numbered(sentence: str) -> list[int]:
        row = [WORDS.index(word) for word in sentence.split()]
        return row + [0] * (12 - len(row))

    pairs = (pair(dice) for _ in range(count))
    return [{"premise": numbered(first), "hypothesis": numbered(second), "labels": k} for first, second, k in pairs]


class Entailment(nn.Module):
    """Premise and hypothesis (N, 12) to the loss and logits of the three labels (N, 3)."""

    def __init__(self, width: int = 48):
        super().__init__()
        self.embedding = nn.Embedding(len(WORDS), width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.out = nn.Sequential(nn.Linear(8 * width, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 3))

    def encoded(self, words: torch.Tensor) -> torch.Tensor:
        """The largest of each feature over a sentence's words."""
        states, _ = self.lstm(self.embedding(words))
        return states.masked_fill((words == 0)[:, :, None], -1.0).amax(1)

    def forward(self, premise: torch.Tensor, hypothesis: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        first, second = self.encoded(premise), self.encoded(hypothesis)
        logits = self.out(torch.cat([first, second, (first - second).abs(), first * second], dim=1))
        return {"loss": F.cross_entropy(logits, labels), "logits": logits}


def accuracy_of(answers: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((answers.predictions.argmax(1) == answers.label_ids).mean())}


def main(run: str) -> float:
    """Train; returns the accuracy on pairs that were drawn from another seed."""
    torch.manual_seed(0)
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=8,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=2e-3,
        lr_scheduler_type="constant",
        max_grad_norm=5.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    train, val = samples(6000, seed=1), samples(1000, seed=2)
    trainer = Trainer(Entailment(), arguments, train_dataset=train, eval_dataset=val, compute_metrics=accuracy_of)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/snli")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
