"""The job of ../mnist_forward_forward.py in Lightning, with its manual optimization.

python mnist_forward_forward_lightning.py [RUN]
"""

import sys

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

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


class Layers(lightning.LightningModule):
    """The layers, each with its loss and optimizer."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Layer(784, 400), Layer(400, 400)])
        self.automatic_optimization = False

    def training_step(self, batch: list[torch.Tensor]) -> None:
        images, labels = batch
        wrong = (labels + torch.randint(1, 10, labels.shape)) % 10
        good, bad = labelled(images, labels), labelled(images, wrong)
        for layer, optimizer in zip(self.layers, self.optimizers(), strict=True):
            optimizer.zero_grad()
            loss = F.softplus(2 - layer.goodness(good)).mean() + F.softplus(layer.goodness(bad) - 2).mean()
            self.manual_backward(loss)
            optimizer.step()
            with torch.no_grad():  # the next layer sees what this one gives, and no gradient comes back
                good, bad = layer(good), layer(bad)
        self.log("loss", loss, on_step=False, on_epoch=True)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        return [torch.optim.Adam(layer.parameters(), lr=1e-3) for layer in self.layers]


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    lightning.seed_everything(0, verbose=False)
    data = garments(6000, 1000)
    train = TensorDataset(data.preprocessing(data.train.tensors[0]), data.train.tensors[1])
    model = Layers()
    trainer = lightning.Trainer(
        max_epochs=20,
        accelerator="cpu",
        logger=CSVLogger(run),
        callbacks=[ModelCheckpoint(run, save_last=True)],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(train, batch_size=100, shuffle=True), ckpt_path="last")
    images, labels = data.val.tensors
    images = data.preprocessing(images)
    votes = []
    with torch.no_grad():
        for label in range(10):
            hidden, total = labelled(images, torch.full_like(labels, label)), torch.zeros(len(images))
            for layer in model.layers:
                total, hidden = total + layer.goodness(hidden), layer(hidden)
            votes.append(total)
    return (torch.stack(votes, dim=1).argmax(1) == labels).float().mean().item()


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/mnist_forward_forward")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
