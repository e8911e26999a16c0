"""Commands that docs/saving.md and docs/data.md print for files run as printed, on runs and files of those names."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from surefoot import Preprocessing, save_model
from surefoot.cli import main
from surefoot.models import UNet

DOCS = Path(__file__).resolve().parents[1] / "docs"
REST = "optimizer: {name: SGD, lr: 0.01}\nepochs: 1\nexecution: plain\n"
PETS = f"""
model: {{name: ViT, patch: 8, width: 8, depth: 1, heads: 2}}
data: {{name: image_folder, dir: photos, size: 16, batch_size: 4, val_share: 0.25}}
loss: CrossEntropyLoss
{REST}"""
HOMES = f"""
model: {{name: TabularMLP, hidden: [4]}}
data: {{name: csv, path: homes_2026.csv, target: price, batch_size: 8, val_share: 0.25}}
loss: MSELoss
{REST}"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where runs/pets, runs/homes and runs/roads lie, with the files that the commands name."""
    here = tmp_path_factory.mktemp("commands")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        draws = np.random.default_rng(0)
        for number in range(16):
            kind = Path("photos") / ("cat", "dog")[number % 2]
            kind.mkdir(parents=True, exist_ok=True)
            pixels = draws.integers(0, 128, (16, 16, 3), np.uint8) + 100 * (number % 2)
            Image.fromarray(pixels.astype(np.uint8)).save(kind / f"{number}.png")
        Image.fromarray(draws.integers(0, 256, (20, 30, 3), np.uint8)).save("cat.png")
        np.save("rows.npy", draws.integers(0, 256, (2, 3, 16, 16), np.uint8))
        rows = "".join(f"{30 + k},{('Ulm', 'Bonn')[k % 2]},{100 + k}.5\n" for k in range(24))
        for name in ("homes_2026.csv", "rows.csv"):
            Path(name).write_text(f"area,city,price\n{rows}")
        pyarrow = pytest.importorskip("pyarrow.parquet")
        pyarrow.write_table(pytest.importorskip("pyarrow.csv").read_csv("rows.csv"), "other.parquet")
        for name, recipe in (("pets", PETS), ("homes", HOMES)):
            Path(f"{name}.yaml").write_text(recipe)
            assert main(["train", f"{name}.yaml", "--run", f"runs/{name}"]) == 0
        about = {"loss": "CrossEntropyLoss", "preprocessing": Preprocessing(mean=0, std=1)}
        save_model(UNet(2, width=2, depth=1), "runs/roads/model", input_shape=(3, 16, 16), input_dtype="uint8", **about)
    return here


def commands(page: str, pattern: str) -> list[str]:
    text = (DOCS / page).read_text("utf-8")
    return re.findall(pattern, text, re.M)


PRINTED = commands("saving.md", r"^\$ (.*surefoot (?:predict|eval) runs/(?:pets|roads|homes).*)$")
PRINTED += commands("data.md", r"^    (surefoot (?:predict|eval) RUN .*)$")


def test_all_of_them_are_found():
    assert len(PRINTED) >= 9 and {line.split()[1] for line in PRINTED if "|" not in line} == {"predict", "eval"}


@pytest.mark.parametrize("line", PRINTED)
def test_a_printed_command_runs(folder, line, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    listing, _, command = line.replace("RUN", "runs/homes").rpartition(" | ")
    if listing:
        assert listing == "find photos -name '*.png'"
        files = "".join(f"{path}\n" for path in sorted(Path("photos").rglob("*.png")))
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(files.encode())))
    words = shlex.split(command)[1:]
    assert main(words) == 0
    out, error = capsys.readouterr()
    assert "Traceback" not in error
    if "--json" in words:
        answers = [json.loads(row) for row in out.splitlines()] if out.startswith("{") else json.loads(out)
        assert len(answers) == 16 and {"path", "row", "predictions"} <= answers[0].keys()
    elif "--out" in words:
        with open(words[words.index("--out") + 1], newline="") as file:
            header, *rows = csv.reader(file)
        expected = {"photos": ["path", "row", "class", "probability"], "rows.csv": ["path", "row", "price"]}
        assert rows and header == expected.get(words[2], header)
    elif "--masks" in words:
        assert len(list(Path("masks").rglob("*.png"))) == 16
    else:
        assert out.strip()
