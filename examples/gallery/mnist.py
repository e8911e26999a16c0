"""A convolutional network classifies 28x28 pictures of garments (pytorch/examples: mnist).

Shows `fit` on pictures: a schedule under warmup, the best model kept, accuracy measured; and `evaluate` afterwards.
With SUREFOOT_DATA set it trains on Fashion-MNIST itself when it is called with --fashion. Leaves confusion.png.

    python mnist.py [--fashion] [RUN]
"""

import sys

import torch
from PIL import Image
from torch import nn

from surefoot import Checkpoints, LinearWarmup, Loader, RunOptions, Schedule, evaluate, fit
from surefoot.data.fashion_mnist import fashion_mnist
from surefoot.data.garments import garments
from surefoot.models import LeNet5

STATED = 0.95  # accuracy on held-out garments


def main(run: str, fashion: bool = False) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = fashion_mnist() if fashion else garments(6000, 1000)
    loader = Loader(data.train, batch_size=64, preprocessing=data.preprocessing)
    val = Loader(data.val, batch_size=250, shuffle=False, preprocessing=data.preprocessing)
    model = LeNet5()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    epochs = 8
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs * len(loader))
    result = fit(
        model,
        nn.CrossEntropyLoss(),
        optimizer,
        loader,
        val=val,
        epochs=epochs,
        schedule=Schedule(optimizer, cosine, LinearWarmup(optimizer, warmup_period=50), by="step"),
        run_dir=run,
        resume=True,
        run=RunOptions(checkpoints=Checkpoints(keep_best="val/accuracy")),
    )
    counts = evaluate(model, nn.CrossEntropyLoss(), val, confusion=10).confusion
    white = 255 * (1 - counts / counts.sum(dim=1, keepdim=True))
    Image.fromarray(white.byte().numpy()).resize((160, 160), Image.Resampling.NEAREST).save("confusion.png")
    return result.metrics["val/accuracy"]


if __name__ == "__main__":
    words = [word for word in sys.argv[1:] if word != "--fashion"]
    fashion = "--fashion" in sys.argv
    accuracy = main(words[0] if words else "runs/mnist", fashion)
    stated = 0.88 if fashion else STATED
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {stated})")
    sys.exit(not accuracy >= stated)
