"""What `surefoot eval` says: figures of each class, label and target, from folders, tables, recipes; for machines."""

from __future__ import annotations

import csv
import functools
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from surefoot import Preprocessing, RunOptions, evaluate, fit, save_model
from surefoot.cli import main
from surefoot.cli.evaluate import _loss_of
from surefoot.data import Loader, table
from surefoot.errors import UsageError
from surefoot.losses import WeightedSum
from surefoot.metrics.by_class import by_class
from surefoot.metrics.tables import LabelCounts, TargetErrors
from surefoot.models import MODELS
from surefoot.training.about import loss_name


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Bright(nn.Module):
    """Classes dark, bright and none of them by a picture's first pixel."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([-1.0, 1.0, 0.0]))

    def forward(self, x):
        return (x.flatten(1)[:, :1] - 0.5) * self.weight


def pictures(folder, values):
    folder.mkdir(parents=True)
    for number, value in enumerate(values):
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(folder / f"{number}.png")


def evaluated(capsys, *words):
    assert main(["eval", "model", "--trust-code", *words]) == 0
    return capsys.readouterr().out


def bright(dtype="uint8"):
    about = {
        "classes": ["dark", "bright", "other"],
        "loss": "CrossEntropyLoss",
        "preprocessing": Preprocessing(mean=0, std=1),
    }
    save_model(Bright(), "model", input_shape=(1, 4, 4), input_dtype=dtype, **about)


@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_a_folder_has_its_classes_in_its_folders(here, dtype, capsys):
    bright(dtype)
    pictures(here / "photos" / "bright", [250, 240, 3])
    pictures(here / "photos" / "dark", [0, 1, 2, 200])
    report = json.loads(evaluated(capsys, "--data", "photos", "--json"))
    assert report["samples"] == 7 and report["accuracy"] == pytest.approx(5 / 7)
    assert report["confusion"] == [[3, 1, 0], [1, 2, 0], [0, 0, 0]]
    dark, light, other = report["by_class"]
    assert (dark["precision"], dark["recall"], dark["f1"]) == pytest.approx((3 / 4, 3 / 4, 3 / 4))
    assert light["f1"] == pytest.approx(2 / 3) and light["mistaken_for"] == "dark"
    assert (other["samples"], other["precision"], other["recall"], other["f1"]) == (0, None, None, None)
    text = evaluated(capsys, "--data", "photos")
    assert "F1" in text and "75.0 %" in text and "confusion matrix" in text


def test_a_folder_of_splits_gives_the_one_that_is_asked_for(here, capsys):
    bright()
    for split, values in (("train", [250, 250]), ("val", [3])):
        pictures(here / "photos" / split / "bright", values)
    for split, accuracy in (("val", 0), ("train", 1)):
        assert json.loads(evaluated(capsys, "--data", "photos", "--split", split, "--json"))["accuracy"] == accuracy


def test_csv_has_a_metric_what_it_is_of_and_its_value(here, capsys):
    bright()
    pictures(here / "photos" / "dark", [0, 1])
    assert evaluated(capsys, "--data", "photos", "--out", "figures.csv") == ""
    header, *rows = csv.reader(io.StringIO((here / "figures.csv").read_text()))
    assert header == ["metric", "of", "value"]
    assert ["accuracy", "", "1.0"] in rows and ["f1", "dark", "1.0"] in rows and ["precision", "bright", ""] in rows
    assert [row[0] for row in rows[:2]] == ["loss", "accuracy"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("brigth", "the folder 'brigth' is none of the model's 3 classes; did you mean 'bright'?"),
        ("zzz", "the folder 'zzz' is none of the model's 3 classes: dark, bright, other"),
    ],
)
def test_a_folder_that_is_no_class_is_one_message(here, folder, message, capsys):
    bright()
    pictures(here / "photos" / folder, [0])
    assert main(["eval", "model", "--trust-code", "--data", "photos", "--out", "figures.csv"]) == 2
    assert message in capsys.readouterr().err and not (here / "figures.csv").exists()


def test_a_folder_for_a_model_of_no_pictures_is_one_message(here, capsys):
    save_model(MODELS.build("MLP", {"in_features": 4, "classes": 2}), "model", input_shape=(4,), loss="MSELoss")
    pictures(here / "photos" / "a", [0])
    assert main(["eval", "model", "--data", "photos"]) == 2
    assert "tells no classes of pictures apart, so the folder photos means nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("loss", "by_hand"),
    [
        (
            "[{name: MSELoss, factor: 2.0}, {name: L1Loss, factor: 0.5}]",
            lambda e: 2 * (e**2).mean() + abs(e).mean() / 2,
        ),
        ("[{name: MSELoss, factor: 3.0}]", lambda e: 3 * (e**2).mean()),
        ("{import: 'own_loss:fourth'}", lambda e: (e**4).mean()),
    ],
    ids=["sum", "factor", "own"],
)
def test_a_table_is_evaluated_by_the_loss_that_the_model_was_trained_with(here, capsys, monkeypatch, loss, by_hand):
    monkeypatch.syspath_prepend(here)
    (here / "own_loss.py").write_text("def fourth(outputs, targets):\n    return ((outputs - targets) ** 4).mean()\n")
    x = np.random.default_rng(0).normal(size=(60, 2)).round(4)
    price = x[:, 0] - 2 * x[:, 1]
    rows = "".join(f"{a},{b},{y}\n" for (a, b), y in zip(x, price, strict=True))
    (here / "homes.csv").write_text("a,b,price\n" + rows)
    (here / "recipe.yaml").write_text(
        f"epochs: 1\nmodel: TabularMLP\nloss: {loss}\noptimizer: {{name: SGD, lr: 0.001}}\ntensorboard: false\n"
        "data: {name: csv, path: homes.csv, target: price, batch_size: 10}\nexecution: plain\n"
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()
    assert main(["predict", "run", "homes.csv", "--json"]) == 0
    errors = np.array([answer["values"]["price"] for answer in json.loads(capsys.readouterr().out)]) - price
    for path in ("run", "run/model"):
        assert main(["eval", path, "--data", "homes.csv", "--json"]) == 0
        printed = capsys.readouterr()
        report = json.loads(printed.out)
        assert report["by_target"][0]["mae"] == pytest.approx(np.abs(errors).mean(), rel=1e-4), (
            "numbers, and no classes"
        )
        if "code of its own" in printed.err:  # a model directory does not hold it
            assert path == "run/model" and "import" in loss and "the loss shown is MSELoss" in printed.err
            assert report["loss"] == pytest.approx((errors**2).mean(), rel=1e-4)
        else:
            assert report["loss"] == pytest.approx(by_hand(errors), rel=1e-4)


def test_a_regression_has_figures_of_each_target_of_a_table(here, capsys):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(60, 3))
    targets = np.stack([x @ [1, 2, 3], 100 + x[:, 0]], 1)
    lines = ["a,b,c,price,rent", *(",".join(f"{v:.6f}" for v in row) for row in np.hstack([x, targets]))]
    (here / "homes.csv").write_text("\n".join(lines) + "\n")
    (here / "recipe.yaml").write_text(
        "epochs: 2\nmodel: TabularMLP\nloss: MSELoss\noptimizer: {name: SGD, lr: 0.01}\ntensorboard: false\n"
        "data: {name: csv, path: homes.csv, target: [price, rent], batch_size: 10}\nexecution: plain\n"
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--data", "homes.csv", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [row["target"] for row in report["by_target"]] == ["price", "rent"]
    assert main(["predict", "run", "homes.csv", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["row"] for answer in answers] == list(range(60))
    for column, row in enumerate(report["by_target"]):
        outputs = np.array([answer["values"][row["target"]] for answer in answers])
        error = outputs - targets[:, column].round(6)
        assert row["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-4)
        assert row["rmse"] == pytest.approx(np.sqrt((error**2).mean()), rel=1e-4)
        assert row["r2"] == pytest.approx(
            1 - (error**2).sum() / ((targets[:, column] - targets[:, column].mean()) ** 2).sum(), rel=1e-3
        )
    assert main(["eval", "run"]) == 0
    out = capsys.readouterr().out
    assert "RMSE" in out and "price" in out and "rent" in out


def test_a_table_for_a_model_of_arrays_is_one_message(here, capsys):
    save_model(MODELS.build("MLP", {"in_features": 4, "classes": 2}), "model", input_shape=(4,), loss="MSELoss")
    (here / "rows.csv").write_text("a,b\n1,2\n")
    assert main(["predict", "model", "rows.csv"]) == 2
    assert "rows.csv: is a table, and the model was not trained on one" in capsys.readouterr().err


def test_errors_of_targets_do_not_depend_on_how_they_are_batched():
    torch.manual_seed(0)
    outputs, targets = torch.randn(50, 2), 1e4 + torch.randn(50, 2)
    whole, parts = TargetErrors(), TargetErrors()
    whole.update(outputs, targets)
    for first in range(0, 50, 7):
        parts.update(outputs[first : first + 7], targets[first : first + 7])
    for one, other in zip(whole.rows(()), parts.rows(()), strict=True):
        assert one.pop("target") == other.pop("target") and one == pytest.approx(other, rel=1e-9)


def test_parts_of_outputs_are_targets_by_their_names():
    errors = TargetErrors()
    errors.update({"a": torch.zeros(3, 1), "b": torch.zeros(3)}, {"a": torch.tensor([1.0, 1, 4]), "c": torch.zeros(3)})
    (row,) = errors.rows(())
    assert (row["target"], row["mae"], row["rmse"]) == ("a", 2, pytest.approx(6**0.5))
    assert row["r2"] == pytest.approx(1 - 18 / 6)


@pytest.mark.parametrize(("loss", "threshold"), [(nn.BCEWithLogitsLoss(), 0), (nn.BCELoss(), 0.5)])
def test_labels_are_counted_each_by_itself(loss, threshold):
    outputs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.3, 0.4]])
    outputs = outputs if threshold else outputs.logit()
    targets = torch.tensor([[1.0, 0], [0, 1], [1, 0]])
    counts = LabelCounts(threshold)
    evaluate(nn.Identity(), loss, (outputs, targets), metrics={"table": counts})
    first, second = counts.rows(["cat", "dog"])
    assert first == {"class": "cat", "samples": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert second == {"class": "dog", "samples": 1, "precision": None, "recall": 0.0, "f1": 0.0}


def test_figures_of_classes_are_those_of_the_definition():
    confusion = np.random.default_rng(0).integers(1, 9, (4, 4))
    for index, row in enumerate(by_class("abcd", confusion.tolist())):
        right = confusion[index, index]
        assert row["precision"] == pytest.approx(right / confusion[:, index].sum())
        assert row["recall"] == pytest.approx(right / confusion[index].sum())
        assert row["f1"] == pytest.approx(2 * row["precision"] * row["recall"] / (row["precision"] + row["recall"]))


def test_the_metrics_of_the_run_are_measured(here, capsys, monkeypatch):
    (here / "evaluate_things.py").write_text("def sure(outputs, targets):\n    return outputs.softmax(1).amax(1)\n")
    monkeypatch.syspath_prepend(str(here))
    (here / "recipe.yaml").write_text(
        "epochs: 1\nmodel: LeNet5\ndata: {name: garments, train_size: 20, val_size: 20, batch_size: 10}\n"
        "loss: CrossEntropyLoss\noptimizer: {name: SGD, lr: 0.1}\ntensorboard: false\nexecution: plain\n"
        'metrics: [accuracy, {import: "evaluate_things:sure"}]\n'
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()
    assert main(["eval", "run", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    recorded = [json.loads(line) for line in (here / "run" / "metrics.jsonl").read_text().splitlines()]
    values = next(record for record in recorded if record.get("split") == "val")
    assert report["sure"] == pytest.approx(values["sure"], rel=1e-5) and 0.1 < report["sure"] <= 1
    assert report["accuracy"] == values["accuracy"]


def test_data_without_their_option_and_blank_names_of_classes(here, capsys):
    about = {
        "classes": ["dark", " ", "other"],
        "loss": "CrossEntropyLoss",
        "preprocessing": Preprocessing(mean=0, std=1),
    }
    save_model(Bright(), "model", input_shape=(1, 4, 4), input_dtype="uint8", **about)
    pictures(here / "photos" / " ", [250])
    pictures(here / "photos" / "dark", [250])
    out = evaluated(capsys, "--data", "photos")
    assert "\n  ' '  " in out and "1 ' '" in out
    assert main(["predict", "model", "photos/dark/0.png", "--trust-code"]) == 0
    assert capsys.readouterr().out.startswith("photos/dark/0.png: ' ' ")
    with pytest.raises(SystemExit):
        main(["eval", "model", "photos"])
    assert "unrecognized arguments: photos; data are named by --data photos" in capsys.readouterr().err


def test_numbers_of_an_objective_are_measured_and_its_run_promises_no_matrix(here, capsys, monkeypatch):
    (here / "evaluate_objective.py").write_text(
        "def mine(model, batch):\n"
        "    outputs = model(batch[0])\n"
        "    error = outputs[:, 0] - batch[1]\n"
        "    return {'loss': error.square().mean(), 'mae': error.abs().mean()}\n"
    )
    monkeypatch.syspath_prepend(str(here))
    (here / "recipe.yaml").write_text(
        "epochs: 1\nmodel: LeNet5\ndata: {name: garments, train_size: 20, val_size: 20, batch_size: 10}\n"
        "optimizer: {name: SGD, lr: 0.001}\ntensorboard: false\nexecution: plain\n"
        'objective: {import: "evaluate_objective:mine"}\n'
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    assert "its figures on the data" in capsys.readouterr().out
    assert main(["eval", "run"]) == 0
    out = capsys.readouterr().out
    assert "  mae " in out and "  loss " in out and "confusion" not in out


def test_targets_and_labels_whose_number_changes_are_counted_as_one():
    errors, labels = TargetErrors(), LabelCounts(0)
    for width in (3, 1, 2):
        errors.update(torch.full((4, width), 2.0), torch.arange(4.0 * width).reshape(4, width))
        labels.update(torch.ones(4, width), torch.ones(4, width))
    (row,), (label,) = errors.rows(()), labels.rows(())
    assert row["samples"] == label["samples"] == 24 and label["f1"] == 1


@pytest.mark.parametrize("value", [0.1, 0.3, 1e6 / 3])
def test_targets_that_never_change_have_no_r2(value):
    errors = TargetErrors()
    for count in (7, 10, 3):
        errors.update(torch.zeros(count, dtype=torch.float64), torch.full((count,), value, dtype=torch.float64))
    assert errors.rows(())[0]["r2"] is None


def test_a_mean_beside_its_variance_has_the_figures_of_the_mean():
    mean, targets = torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [3.0], [4.0]])
    alone, both = TargetErrors(), TargetErrors()
    alone.update(mean, targets)
    both.update((mean, torch.ones(3, 1)), targets)
    assert both.rows(()) == alone.rows(()) != []


def test_wrong_arguments_of_evaluate_are_told_at_once():
    data = (torch.zeros(4, 3), torch.zeros(4).long())
    with pytest.raises(UsageError, match=r"(?s)hardest: 0 .*world: 3 was given; .*between: 3 was given"):
        evaluate(nn.Linear(3, 2), nn.CrossEntropyLoss(), data, hardest=0, world=3, between=3)


def test_targets_out_of_range_are_told_with_the_number_of_classes_wherever_they_come():
    inputs, targets = torch.randn(30, 3), torch.arange(30) % 2
    late = torch.where(torch.arange(30) < 20, targets, targets + 5)
    loss = nn.CrossEntropyLoss()
    for data, batch in ((targets + 5, 0), (late, 2)):
        with pytest.raises(
            UsageError, match=rf"data: batch {batch}: .* go from 5 to 6; the model has 2 outputs, .* 0 to 1"
        ):
            evaluate(nn.Linear(3, 2), loss, (inputs, data), batch_size=10)
    with pytest.raises(RuntimeError, match="cannot be multiplied"):  # the model's own error stays as it is
        evaluate(nn.Linear(4, 2), loss, (inputs, targets))
    for val in (targets + 5, late):  # those of validation, at the start and in the first epoch
        model = nn.Linear(3, 2)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        with pytest.raises(UsageError, match="targets go from . to 6; the model has 2 outputs"):
            fit(model, loss, sgd, (inputs, targets), val=(inputs, val), epochs=1, run=RunOptions(progress=False))


def test_a_sum_of_losses_that_fit_was_given_is_saved_with_its_factors(here, capsys):
    (here / "rows.csv").write_text("a,b\n" + "".join(f"{k / 10},{k / 7}\n" for k in range(20)))
    rows = table({"a": [k / 10 for k in range(20)], "b": [k / 7 for k in range(20)]}, "b", val_share=0)
    model = MODELS["MLP"].load()(in_features=1, hidden=[4], classes=1)
    loss = WeightedSum([(0.25, nn.MSELoss()), (3.0, nn.L1Loss())])
    fit(
        model,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.01),
        rows,
        epochs=1,
        run_dir="run",
        run=RunOptions(progress=False),
    )
    assert main(["eval", "run/model", "--data", "rows.csv", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    figures = report["by_target"][0]
    assert report["loss"] == pytest.approx(figures["rmse"] ** 2 / 4 + 3 * figures["mae"], rel=1e-4)


def _far(first, second):
    return 2 * (first - second).abs().sum(-1)


@pytest.mark.parametrize(
    ("loss", "saved"),
    [
        (nn.CrossEntropyLoss(), "CrossEntropyLoss"),
        (nn.HuberLoss(delta=0.25), {"name": "HuberLoss", "delta": 0.25}),
        (nn.SmoothL1Loss(beta=1), "SmoothL1Loss"),
        (functools.partial(F.huber_loss, delta=0.25), {"name": "HuberLoss", "delta": 0.25}),
        (nn.MSELoss(reduction="sum"), {"name": "MSELoss", "reduction": "sum"}),
        (
            nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 4.0]), ignore_index=1, label_smoothing=0.25),
            {"name": "CrossEntropyLoss", "weight": [1.0, 2.0, 4.0], "ignore_index": 1, "label_smoothing": 0.25},
        ),
        (
            WeightedSum([(2.0, nn.HuberLoss(delta=0.25)), (1.0, nn.L1Loss())]),
            [{"name": "HuberLoss", "delta": 0.25, "factor": 2.0}, {"name": "L1Loss", "factor": 1.0}],
        ),
        (nn.TripletMarginWithDistanceLoss(), "TripletMarginWithDistanceLoss"),
        (
            nn.TripletMarginWithDistanceLoss(distance_function=_far, margin=2.0),
            {"name": "TripletMarginWithDistanceLoss", "margin": 2.0, "not_kept": ["distance_function"]},
        ),
        (nn.AdaptiveLogSoftmaxWithLoss(4, 10, [2]), "AdaptiveLogSoftmaxWithLoss"),
    ],
)
def test_the_plain_arguments_of_a_loss_are_saved_with_a_model_and_make_the_same_loss(loss, saved, capsys):
    assert loss_name(loss) == saved
    if "Adaptive" in str(saved):
        return
    again = _loss_of(SimpleNamespace(path="m", info=SimpleNamespace(loss=json.loads(json.dumps(saved)), columns=None)))
    assert ("distance_function of its own, not in the file" in capsys.readouterr().err) == ("not_kept" in str(saved))
    if "Triplet" not in str(saved):
        classes = "CrossEntropy" in str(saved)
        torch.manual_seed(0)
        outputs, targets = torch.randn(20, 3), torch.arange(20) % 3 if classes else torch.randn(20, 3)
        assert torch.equal(again(outputs, targets), loss(outputs, targets))


def test_a_model_of_fit_is_evaluated_with_the_delta_that_it_was_trained_with(here, capsys):
    (here / "rows.csv").write_text("a,b\n" + "".join(f"{k / 10},{k / 7}\n" for k in range(20)))
    rows = table({"a": [k / 10 for k in range(20)], "b": [k / 7 for k in range(20)]}, "b", val_share=0)
    model = MODELS["MLP"].load()(in_features=1, hidden=[4], classes=1)
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    run = RunOptions(progress=False)
    fit(model, nn.HuberLoss(delta=0.125), sgd, rows, epochs=1, run_dir="run", run=run)
    assert main(["eval", "run/model", "--data", "rows.csv", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    prepared = Loader(rows.train, 20, shuffle=False, preprocessing=rows.preprocessing)
    expected = evaluate(model, nn.HuberLoss(delta=0.125), prepared).metrics["loss"]
    assert report["loss"] == pytest.approx(expected, rel=1e-4)
    assert expected != pytest.approx(evaluate(model, nn.HuberLoss(), prepared).metrics["loss"], rel=1e-2)


@pytest.mark.parametrize("loss", ["CrossEntropyLoss, weight: balanced", "BCEWithLogitsLoss, pos_weight: balanced"])
def test_a_table_is_evaluated_with_the_balanced_weights_of_training(here, capsys, loss):
    x = np.random.default_rng(0).normal(size=80).round(4)
    rows = [f"{a},{int(a > 1)}\n" for a in x]
    (here / "train.csv").write_text("a,rare\n" + "".join(rows[:60]))
    (here / "other.csv").write_text("a,rare\n" + "".join(rows[60:]))
    task = "classes" if "Cross" in loss else "numbers"
    (here / "recipe.yaml").write_text(
        f"epochs: 1\nmodel: TabularMLP\nloss: {{name: {loss}}}\noptimizer: {{name: SGD, lr: 0.1}}\ntensorboard: false\n"
        f"data: {{name: csv, path: train.csv, val: other.csv, target: rare, task: {task}, batch_size: 10}}\n"
        "execution: plain\n"
    )
    assert main(["train", "recipe.yaml", "--run", "run"]) == 0
    capsys.readouterr()

    def evaluated(*argv):
        assert main(["eval", *argv, "--json"]) == 0
        printed = capsys.readouterr()
        return json.loads(printed.out)["loss"], printed.err

    weighted, _ = evaluated("run")
    assert evaluated("run", "--data", "other.csv") == (pytest.approx(weighted, rel=1e-6), "")
    plain, said = evaluated("run/model", "--data", "other.csv")
    assert plain != pytest.approx(weighted, rel=1e-2) and "not in the file; the loss shown is without them" in said
    (here / "train.csv").unlink()
    again, said = evaluated("run", "--data", "other.csv")
    assert again == pytest.approx(plain, rel=1e-6) and "cannot be read; the loss shown is without them" in said
