"""The job of ../time_sequence_prediction.py by hand; goes on from the last epoch that it finished.

python time_sequence_prediction_torch.py [RUN]
"""

import json
import os
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import nn

STATED = 0.02  # mean squared error over the 100 values after the end


class Forecast(nn.Module):
    """Values (N, T) to the next value after each, (N, T); `ahead` more are predicted from predictions."""

    def __init__(self, width: int = 24):
        super().__init__()
        self.first, self.second = nn.LSTMCell(1, width), nn.LSTMCell(width, width)
        self.out = nn.Linear(width, 1)

    def forward(self, values: torch.Tensor, ahead: int = 0) -> torch.Tensor:
        one = two = None
        predicted: list[torch.Tensor] = []
        for step in range(values.shape[1] + ahead):
            now = values[:, step : step + 1] if step < values.shape[1] else predicted[-1]
            one = self.first(now, one)
            two = self.second(one[0], two)
            predicted.append(self.out(two[0]))
        return torch.cat(predicted, dim=1)


def waves(count: int, length: int, seed: int) -> torch.Tensor:
    """Sine waves (count, length) of period 2 pi * 8, each begun somewhere else."""
    starts = torch.rand(count, 1, generator=torch.Generator().manual_seed(seed)) * 50
    return torch.sin((torch.arange(length) + starts) / 8)


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 8) -> float:
    """Train on 120 values; returns the error of the 100 that come after, of waves that were not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    model, loss_of = Forecast(), nn.MSELoss()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.8, max_iter=10)
    train = waves(32, 121, seed=1)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = loss_of(model(train[:, :-1]), train[:, 1:])
        loss.backward()
        return loss

    begin = 0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["epoch"] + 1
    for epoch in range(begin, epochs):
        loss = optimizer.step(closure)
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": loss.item()}) + "\n")
        save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": epoch}, run / "last.pt")
    test = waves(8, 221, seed=2)
    model.eval()
    with torch.no_grad():
        predicted = model(test[:, :120], ahead=100)[:, -100:]
    picture = Image.new("L", (660, 80), 255)
    for values, first, grey in ((test[0], 0, 190), (test[0, :121], 0, 90), (predicted[0], 121, 0)):
        points = [(3 * (first + k), 40 - 30 * value) for k, value in enumerate(values.tolist())]
        ImageDraw.Draw(picture).line(points, grey, width=2)
    picture.save("forecast.png")
    return (predicted - test[:, 120:-1]).square().mean().item()


if __name__ == "__main__":
    error = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/time_sequence_prediction"))
    print(f"figure: squared error of the forecast {error:.4f} (stated: at most {STATED})")
    sys.exit(not error <= STATED)
