"""An LSTM classifies a picture that it reads row by row (pytorch/examples: mnist_rnn).

Shows a model of one's own in `fit`; nothing about recurrent models is special.

    python mnist_rnn.py [RUN]
"""

import sys

import torch
from torch import nn

from surefoot import StepOptions, fit
from surefoot.data.garments import garments

STATED = 0.85  # accuracy on held-out garments


class Rows(nn.Module):
    """28 rows of 28 pixels through an LSTM; the last row's state is classified."""

    def __init__(self, width: int = 64):
        super().__init__()
        self.rnn = nn.LSTM(28, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        states, _ = self.rnn(images[:, 0])
        return self.out(self.norm(states[:, -1]))


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    model = Rows()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        data,
        epochs=8,
        batch_size=64,
        step=StepOptions(max_grad_norm=1.0),
        run_dir=run,
        resume=True,
    )
    return result.metrics["val/accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_rnn")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
