"""The job of ../tabular.py in the Trainer of transformers.

python tabular_trainer.py [RUN]
"""

import csv
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from transformers import EvalPrediction, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

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


class Rents(nn.Module):
    """The perceptron, which returns its loss."""

    def __init__(self, **sizes):
        super().__init__()
        self.model, self.loss_of = TabularMLP(**sizes), nn.MSELoss()

    def forward(self, flats: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        rents = self.model(flats)
        return {"loss": self.loss_of(rents, labels), "logits": rents}


def samples(inputs: torch.Tensor, rents: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    """Dictionaries, whose keys are forward's arguments."""
    return [{"flats": flat, "labels": rent} for flat, rent in zip(inputs, rents, strict=True)]


def explained_by(answers: EvalPrediction) -> dict[str, float]:
    left, rents = answers.predictions - answers.label_ids, answers.label_ids
    return {"r2": float(1 - (left**2).sum() / ((rents - rents.mean()) ** 2).sum())}


def main(run: str) -> float:
    """Train; returns R squared on the tenth of the flats that was not trained on."""
    torch.manual_seed(0)
    make(Path("flats.csv"))
    data = read(Path("flats.csv"))
    model = Rents(**data.sizes)
    arguments = TrainingArguments(
        output_dir=run,
        num_train_epochs=25,
        per_device_train_batch_size=64,
        per_device_eval_batch_size=64,
        learning_rate=5e-3,
        weight_decay=0.01,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        max_grad_norm=0.0,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=2,
        logging_strategy="epoch",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=samples(*data.train),
        eval_dataset=samples(*data.val),
        compute_metrics=explained_by,
    )
    trainer.train(resume_from_checkpoint=get_last_checkpoint(run) if os.path.isdir(run) else None)
    return trainer.evaluate()["eval_r2"]


if __name__ == "__main__":
    explained = main(sys.argv[1] if len(sys.argv) > 1 else "runs/tabular")
    print(f"figure: R squared {explained:.3f} (stated: at least {STATED})")
    sys.exit(not explained >= STATED)
