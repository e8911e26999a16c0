"""A polynomial of degree four, fitted to noisy points by a linear layer (pytorch/examples: regression).

Shows the shortest run there is: tensors, a model, a loss, an optimizer, one call.

    python regression.py [RUN]        # kill it at any instant and run it again
"""

import sys

import torch
from torch import nn

from surefoot import fit

STATED = 0.05  # the largest error of a coefficient


def points(count: int, coefficients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Powers x, x^2, x^3, x^4 of points in [-1, 1], (count, 4), and the polynomial's noisy values, (count, 1)."""
    x = torch.rand(count, 1) * 2 - 1
    powers = x ** torch.arange(1, 5)
    return powers, powers @ coefficients[:, None] + 0.5 + 0.02 * torch.randn(count, 1)


def main(run: str) -> float:
    """Train; returns the largest error of a coefficient."""
    torch.manual_seed(0)
    wanted = torch.tensor([1.5, -2.0, 0.7, 3.0])
    model = nn.Linear(4, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    fit(
        model,
        nn.SmoothL1Loss(),
        optimizer,
        points(2048, wanted),
        val=points(256, wanted),
        epochs=20,
        batch_size=64,
        run_dir=run,
        resume=True,
    )
    return (model.weight[0] - wanted).abs().max().item()


if __name__ == "__main__":
    error = main(sys.argv[1] if len(sys.argv) > 1 else "runs/regression")
    print(f"figure: largest error of a coefficient {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
