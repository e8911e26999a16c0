"""The job of ../gpt.py in the Trainer of transformers.

python gpt_trainer.py [RUN]
"""

import math
import os
import sys

import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from surefoot.data.text import text
from surefoot.models import GPT

STATED = 5.5  # perplexity a letter, on the last tenth of the text


@torch.no_grad()
def write(model: nn.Module, classes: tuple[str, ...], count: int = 600, warmth: float = 0.8) -> None:
    """Letters that the model writes after "The ", into sampled.txt."""
    draw, tokens = torch.Generator().manual_seed(1), torch.tensor([classes.index(letter) for letter in "The "])
    for _ in range(count):
        logits = model(tokens[None, -64:])[0, :, -1]
        tokens = torch.cat([tokens, torch.multinomial((logits / warmth).softmax(0), 1, generator=draw)])
    with open("sampled.txt", "w") as file:
        file.write("".join(classes[token] for token in tokens.tolist()) + "\n")


class NextLetter(nn.Module):
    """A GPT that returns its loss."""

    def __init__(self, classes: int):
        super().__init__()
        self.model, self.loss_of = GPT(classes=classes, length=64, width=64, depth=2), nn.CrossEntropyLoss()

    def forward(self, tokens: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.model(tokens)
        return {"loss": self.loss_of(logits, labels), "logits": logits}


def samples(windows: tuple[torch.Tensor, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
    """Windows of 64 letters with the letter after each."""
    return [{"tokens": tokens.long(), "labels": after.long()} for tokens, after in zip(*windows, strict=True)]


def main(run: str) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 600 letters."""
    torch.manual_seed(0)
    data = text(length=64)
    model = NextLetter(len(data.classes))
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=5,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=8e-3,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        max_grad_norm=1.0,
        prediction_loss_only=True,
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
        model, arguments, train_dataset=samples(data.train.tensors), eval_dataset=samples(data.val.tensors)
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    write(model.model.eval(), data.classes)
    return math.exp(trainer.evaluate()["eval_loss"])


if __name__ == "__main__":
    perplexity = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gpt")
    print(f"figure: perplexity {perplexity:.2f} (stated: at most {STATED})")
    sys.exit(not perplexity <= STATED)
