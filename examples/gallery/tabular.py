"""Rents predicted from a CSV of mixed columns: numbers, texts, gaps.

Shows a table read as it is: numbers scaled, texts as embeddings, missing values filled with the mean; a value that
training has not seen is known as such. The table is made here: flats.csv, 4,000 rows.

    python tabular.py [RUN]
"""

import csv
import random
import sys
from pathlib import Path

import torch
from torch import nn

from surefoot import LinearWarmup, Schedule, fit
from surefoot.data.tables import csv as csv_table
from surefoot.models import TabularMLP

STATED = 0.93  # share of the rents' variance that is explained (R squared), on held-out flats
CITIES = {"Ulm": 10.0, "Bonn": 11.5, "Kiel": 9.0, "Jena": 8.5, "Berlin": 14.0, "Munich": 19.0}
HEATING = {"gas": 0.0, "oil": -0.5, "district": 0.4, "heat pump": 1.2}


def make(path: Path, rows: int = 4000) -> None:
    """Flats with their monthly rents: area times a price by city, year and heating; one area in fifty is missing."""
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


def main(run: str, epochs: int = 25) -> float:
    """Train; returns R squared on the tenth of the flats that was not trained on."""
    torch.manual_seed(0)
    make(Path("flats.csv"))
    data = csv_table("flats.csv", "rent", drop="number", missing="mean")
    model = TabularMLP(**data.sizes_for(TabularMLP))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    result = fit(
        model,
        nn.MSELoss(),
        optimizer,
        data,
        epochs=epochs,
        batch_size=64,
        schedule=Schedule(optimizer, cosine, LinearWarmup(optimizer, warmup_period=50)),
        run_dir=run,
        resume=True,
    )
    return result.metrics["val/r2"]


if __name__ == "__main__":
    explained = main(sys.argv[1] if len(sys.argv) > 1 else "runs/tabular")
    print(f"figure: R squared {explained:.3f} (stated: at least {STATED})")
    sys.exit(not explained >= STATED)
