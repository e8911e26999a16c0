"""Learning without backpropagation: each layer learns to like true labels (pytorch/examples: mnist_forward_forward).

Shows a loop of one's own with an optimizer for each layer. Hinton (2022): a layer's goodness, the mean square of its
activations, should be high for a picture with its label written into it, and low with a wrong one.

    python mnist_forward_forward.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from surefoot import Checkpointer, Journal, Loader
from surefoot.data.garments import garments

STATED = 0.70  # accuracy on held-out garments


class Layer(nn.Linear):
    """A linear layer with an optimizer of its own."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        # Only the direction of the layer before is seen: its length is the goodness, and would give the answer away.
        return F.relu(super().forward(F.normalize(inputs) * inputs.shape[1] ** 0.5))

    def goodness(self, inputs: torch.Tensor) -> torch.Tensor:
        return self(inputs).square().mean(dim=1)


def labelled(images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Flat pictures (N, 784), each with its label's place among the first ten pixels set."""
    flat = images.flatten(1).clone()
    flat[:, :10] = F.one_hot(labels, 10) * flat.amax()
    return flat


def main(run: str, epochs: int = 20) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(6000, 1000)
    loader = Loader(data.train, batch_size=100, preprocessing=data.preprocessing)
    layers = [Layer(784, 400), Layer(400, 400)]
    optimizers = [torch.optim.Adam(layer.parameters(), lr=1e-3) for layer in layers]
    parts = {f"layer_{number}": layer for number, layer in enumerate(layers)}
    parts |= {f"optimizer_{number}": optimizer for number, optimizer in enumerate(optimizers)}
    with Journal(run) as journal, Checkpointer(run, journal=journal, loader=loader, **parts) as saver:
        saver.resume()
        while loader.epoch < epochs:
            for images, labels in loader:
                wrong = (labels + torch.randint(1, 10, labels.shape)) % 10
                good, bad = labelled(images, labels), labelled(images, wrong)
                for layer, optimizer in zip(layers, optimizers, strict=True):
                    optimizer.zero_grad()
                    loss = F.softplus(2 - layer.goodness(good)).mean() + F.softplus(layer.goodness(bad) - 2).mean()
                    loss.backward()
                    optimizer.step()
                    with torch.no_grad():  # the next layer sees what this one gives, and no gradient comes back
                        good, bad = layer(good), layer(bad)
                saver.step()
            journal.epoch(loader.epoch - 1, {"loss": loss}, step=saver.steps)
            saver.epoch({"loss": loss.item()})
    images, labels = data.val.tensors
    images = data.preprocessing(images)
    votes = []
    with torch.no_grad():
        for label in range(10):
            hidden, total = labelled(images, torch.full_like(labels, label)), torch.zeros(len(images))
            for layer in layers:
                total, hidden = total + layer.goodness(hidden), layer(hidden)
            votes.append(total)
    return (torch.stack(votes, dim=1).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_forward_forward")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
