"""Two networks against each other: a generator of garments and a discriminator (pytorch/examples: dcgan).

Shows the pieces in a loop of one's own, which `fit` is not for: two models, two optimizers, noise whose generator is
saved with them. Five lines make it resumable. Leaves generated.png.

    python dcgan.py [RUN]
"""

import sys

import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from surefoot import Checkpointer, Loader
from surefoot.data.garments import garments

STATED = 0.12  # distance between the mean picture of real and of drawn garments


def generator() -> nn.Module:
    """Noise (N, 32) to pictures (N, 1, 28, 28) in -1..1."""
    return nn.Sequential(
        nn.Linear(32, 32 * 49),
        nn.Unflatten(1, (32, 7, 7)),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1),
        nn.Tanh(),
    )


def discriminator() -> nn.Module:
    """Pictures to logits (N, 1): real, or drawn."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, stride=2, padding=1),
        nn.BatchNorm2d(32),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(32 * 49, 1),
    )


def main(run: str, epochs: int = 36) -> float:
    """Train; returns how far the mean drawn picture is from the mean real one."""
    torch.manual_seed(0)
    real = garments(3200, 10).train.tensors[0].float() / 127.5 - 1
    loader = Loader((real,), batch_size=64, drop_last=True)
    drawer, judge = generator(), discriminator()
    drawing = torch.optim.Adam(drawer.parameters(), lr=1e-3, betas=(0.5, 0.999))
    judging = torch.optim.Adam(judge.parameters(), lr=4e-4, betas=(0.5, 0.999))
    parts = {"drawer": drawer, "judge": judge, "drawing": drawing, "judging": judging, "loader": loader}
    with Checkpointer(run, **parts) as saver:
        saver.resume()
        while loader.epoch < epochs:
            for (pictures,) in loader:
                drawn = drawer(torch.randn(64, 32))
                real_logits, drawn_logits = judge(pictures), judge(drawn.detach())
                judge_loss = F.softplus(-real_logits).mean() + F.softplus(drawn_logits).mean()
                judging.zero_grad()
                judge_loss.backward()
                judging.step()
                loss = F.softplus(-judge(drawn)).mean()
                drawing.zero_grad()
                loss.backward()
                drawing.step()
                saver.step()
            saver.epoch({"judge": judge_loss.item(), "drawer": loss.item()})
    drawer.eval()
    with torch.no_grad():
        drawn = drawer(torch.randn(500, 32, generator=torch.Generator().manual_seed(1)))
    sheet = drawn[:64].reshape(8, 8, 28, 28).permute(0, 2, 1, 3).reshape(224, 224)
    Image.fromarray(((sheet + 1) * 127.5).byte().numpy()).save("generated.png")
    return (drawn.mean(0) - real.mean(0)).abs().mean().item() / 2


if __name__ == "__main__":
    distance = main(sys.argv[1] if len(sys.argv) > 1 else "runs/dcgan")
    print(f"figure: distance of the mean pictures {distance:.3f} (stated: at most {STATED})")
    sys.exit(not distance <= STATED)
