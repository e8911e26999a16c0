"""The job of ../tabular.py by hand; goes on from the last epoch that it finished.

python tabular_torch.py [RUN]
"""

import csv
import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, SequentialLR
from torch.utils.data import DataLoader, TensorDataset

from surefoot.models import TabularMLP

STATED = 0.93  # share of the rents' variance that is explained (R squared), on held-out flats
CITIES = {"Ulm": 10.0, "Bonn": 11.5, "Kiel": 9.0, "Jena": 8.5, "Berlin": 14.0, "Munich": 19.0}
HEATING = {"gas": 0.0, "oil": -0.5, "district": 0.4, "heat pump": 1.2}


def make(path: Path, rows: int = 4000) -> None:
    """Flats with their monthly rents: area times a price by city, year and heating; one area in twenty is missing."""
    draw = random.Random(0)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["number", "city", "area", "year", "heating", "balcony", "rent"])
        for number in range(rows):
            city, heating = draw.choice(list(CITIES)), draw.choice(list(HEATING))
            area, year, balcony = round(draw.uniform(20, 140), 1), draw.randint(1900, 2025), draw.random() < 0.4
            price = CITIES[city] + HEATING[heating] + balcony + abs(year - 1965) / 25
            rent = round(area * price * draw.uniform(0.95, 1.05))
            gap = draw.random() < 0.02
            out.writerow([number, city, "" if gap else area, year, heating, "yes" if balcony else "no", rent])


@dataclass
class Table:
    """Inputs (N, 5), two numbers and three indices, and rents (N, 1), of both parts; `sizes`: TabularMLP's."""

    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    sizes: dict


def read(path: Path) -> Table:
    """Areas and years scaled by the training rows' mean and deviation, gaps as 0; texts as indices among theirs."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    val, train = order[: len(rows) // 10], order[len(rows) // 10 :]
    columns, cardinalities = [], []
    for name in ("area", "year"):
        column = torch.tensor([float(row[name] or "nan") for row in rows])
        known = column[train][~column[train].isnan()]
        columns.append(((column - known.mean()) / known.std(correction=0)).nan_to_num(0.0))
    for name in ("city", "heating", "balcony"):
        values = sorted({rows[k][name] for k in train})
        numbers = {value: 1 + place for place, value in enumerate(values)}  # 0: not among the training rows
        columns.append(torch.tensor([float(numbers.get(row[name], 0)) for row in rows]))
        cardinalities.append(1 + len(values))
    inputs, rents = torch.stack(columns, dim=1), torch.tensor([[float(row["rent"])] for row in rows])
    sizes = {"numbers": 2, "cardinalities": cardinalities}
    sizes |= {"target_mean": rents[train].mean(0).tolist(), "target_std": rents[train].std(0).tolist()}
    return Table((inputs[train], rents[train]), (inputs[val], rents[val]), sizes)


def save(state: dict, path: Path) -> None:
    torch.save(state, path.with_suffix(".new"))
    os.replace(path.with_suffix(".new"), path)


def main(run: Path, epochs: int = 25) -> float:
    """Train; returns R squared on the tenth of the flats that was not trained on."""
    torch.manual_seed(0)
    run.mkdir(parents=True, exist_ok=True)
    make(Path("flats.csv"))
    data = read(Path("flats.csv"))
    loader = DataLoader(TensorDataset(*data.train), batch_size=64, shuffle=True)
    model, loss_of = TabularMLP(**data.sizes), nn.MSELoss()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    rises, falls = LinearLR(optimizer, 0.02, total_iters=50), CosineAnnealingLR(optimizer, epochs * len(loader) - 50)
    schedule = SequentialLR(optimizer, [rises, falls], milestones=[50])
    begin, explained = 0, 0.0
    if (run / "last.pt").exists():
        state = torch.load(run / "last.pt")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["rng"])
        begin, explained = state["epoch"] + 1, state["figure"]
    for epoch in range(begin, epochs):
        model.train()
        total = 0.0
        for inputs, targets in loader:
            loss = loss_of(model(inputs), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item() * len(inputs)
        model.eval()
        inputs, rents = data.val
        with torch.no_grad():
            left = (model(inputs) - rents).square().sum()
        explained = 1 - (left / (rents - rents.mean()).square().sum()).item()
        with open(run / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"epoch": epoch, "loss": total / len(data.train[0]), "val": explained}) + "\n")
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
        save(state | {"rng": torch.get_rng_state(), "epoch": epoch, "figure": explained}, run / "last.pt")
    return explained


if __name__ == "__main__":
    explained = main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/tabular"))
    print(f"figure: R squared {explained:.3f} (stated: at least {STATED})")
    sys.exit(not explained >= STATED)
