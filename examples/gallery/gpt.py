"""A GPT learns Python's language reference letter by letter, and writes on in its manner.

Shows next-token prediction by `fit`: windows of a text as data, cross entropy of every position, warmup and clipping,
and sampling from what was saved. Leaves sampled.txt.

    python gpt.py [RUN]
"""

import sys

import torch
from torch import nn

from surefoot import LinearWarmup, Loader, Schedule, StepOptions, fit, load_model
from surefoot.data.text import text
from surefoot.models import GPT

STATED = 5.5  # perplexity a letter, on the last tenth of the text


@torch.no_grad()
def sampled(model: nn.Module, tokens: torch.Tensor, count: int, warmth: float = 0.8) -> torch.Tensor:
    """`count` tokens that the model writes after `tokens` (L,)."""
    draw = torch.Generator().manual_seed(1)
    for _ in range(count):
        logits = model(tokens[None, -64:])[0, :, -1]
        tokens = torch.cat([tokens, torch.multinomial((logits / warmth).softmax(0), 1, generator=draw)])
    return tokens[-count:]


def main(run: str, epochs: int = 5) -> float:
    """Train; returns the perplexity on text that was not trained on, and writes 600 letters."""
    torch.manual_seed(0)
    data = text(length=64)
    loader = Loader(data.train, batch_size=32)
    model = GPT(**data.sizes_for(GPT), width=64, depth=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=8e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        loader,
        val=data.val,
        epochs=epochs,
        schedule=Schedule(optimizer, cosine, LinearWarmup(optimizer, warmup_period=50), by="step"),
        step=StepOptions(max_grad_norm=1.0),
        run_dir=run,
        resume=True,
    )
    writer = load_model(run)
    begin = torch.tensor([data.classes.index(letter) for letter in "The "])
    written = "".join(data.classes[token] for token in sampled(writer, begin, 600).tolist())
    with open("sampled.txt", "w") as file:
        file.write("The " + written + "\n")
    return result.metrics["val/perplexity"]


if __name__ == "__main__":
    perplexity = main(sys.argv[1] if len(sys.argv) > 1 else "runs/gpt")
    print(f"figure: perplexity {perplexity:.2f} (stated: at most {STATED})")
    sys.exit(not perplexity <= STATED)
