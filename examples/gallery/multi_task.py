"""One network, two questions: what is shown, and how bright is it?

Shows several outputs and targets in one objective, each loss recorded by its name, and what the mean is over.

    python multi_task.py [RUN]
"""

import sys

import torch
from torch import nn
from torch.nn import functional as F

from surefoot import fit, objective
from surefoot.data.garments import garments

STATED = 0.87  # accuracy on held-out garments


class TwoHeads(nn.Module):
    """Pictures to classes (N, 10) and brightness (N,)."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 5, stride=2), nn.ReLU(), nn.Flatten()
        )
        self.classes, self.brightness = nn.Linear(512, 10), nn.Linear(512, 1)

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.body(images)
        return {"classes": self.classes(features), "brightness": self.brightness(features)[:, 0]}


@objective
def both(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Cross entropy, and ten times the squared error of the brightness; metrics are of `outputs` and `targets`."""
    outputs = model(batch["images"])
    shown = F.cross_entropy(outputs["classes"], batch["label"])
    light = F.mse_loss(outputs["brightness"], batch["brightness"])
    answers = {"outputs": outputs["classes"], "targets": batch["label"]}
    return {"loss": shown + 10 * light, "shown": shown, "light": light, **answers}


def main(run: str) -> float:
    """Train; returns the accuracy on pictures that were not trained on."""
    torch.manual_seed(0)
    data = garments(5000, 1000)

    def columns(images: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        scaled = images.float() / 255
        return {"images": scaled, "label": labels, "brightness": scaled.mean(dim=(1, 2, 3))}

    model = TwoHeads()
    result = fit(
        model,
        both,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        columns(*data.train.tensors),
        val=columns(*data.val.tensors),
        epochs=8,
        batch_size=64,
        metrics=["accuracy"],
        run_dir=run,
        resume=True,
    )
    return result.metrics["val/accuracy"]


if __name__ == "__main__":
    accuracy = main(sys.argv[1] if len(sys.argv) > 1 else "runs/multi_task")
    print(f"figure: accuracy {accuracy:.3f} (stated: at least {STATED})")
    sys.exit(not accuracy >= STATED)
