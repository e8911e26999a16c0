"""`surefoot verify`: equal runs are called equal, and a run that cannot be repeated is caught."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from surefoot.cli import main
from surefoot.proof import compare, comparison
from surefoot.tracking.tensorboard import WRONG, TensorBoard
from surefoot.tracking.wrong_pictures import Captioned

SMALL = ["data.train_size=320", "data.val_size=80", "data.batch_size=16", "epochs=3", "warmup.warmup_period=5"]
PLAIN = ["execution.threads=1", "execution.compile=false"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "run"
    assert main(["train", "quickstart", "--run", str(path), *SMALL, *PLAIN, "epochs=1"]) == 0
    return path


@pytest.fixture
def twin(run, tmp_path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "twin"))


def test_a_copy_is_identical(run, twin):
    assert compare(run, twin) == (None, 12)


def test_how_often_a_step_was_saved_does_not_count(run, twin):
    """A run that is stopped after its last update saves that step again when it goes on."""
    newest = max((twin / "checkpoints").glob("step-*"))
    newest.rename(newest.with_name(f"{newest.name}-10"))
    shutil.copytree(newest.with_name(f"{newest.name}-10"), newest.with_name(f"{newest.name}-9"))
    (newest.with_name(f"{newest.name}-9") / "model.safetensors").write_bytes(b"older")
    assert compare(run, twin)[0] is None


def test_times_do_not_count(run, twin):
    journal = twin / "metrics.jsonl"
    records = [json.loads(line) for line in journal.read_text().splitlines()]
    journal.write_text("".join(json.dumps(r | {"wall_s": 1.0}) + "\n" for r in records))
    assert compare(run, twin)[0] is None


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model/model.safetensors", "model/model.safetensors: fc3.weight: 1 of 840 values, by at most "),
        ("model/best/model.safetensors", "model/best/model.safetensors: fc3.weight: 1 of 840 values, by at most "),
        (
            "checkpoints/step-000000020/model.safetensors",
            "step 20, model.safetensors: fc3.weight: 1 of 840 values, by ",
        ),
        ("checkpoints/step-000000020/optimizer.safetensors", "step 20, optimizer.safetensors: rng/torch: 1 of "),
    ],
)
def test_one_bit_is_a_difference_and_its_place_is_told(run, twin, file, name):
    flip(twin / file)
    difference, _ = compare(run, twin)
    assert difference.startswith(name)


def test_a_field_of_the_state_is_named_by_its_place(run, twin):
    path = max((twin / "checkpoints").glob("step-*")) / "state.json"
    state = json.loads(path.read_text())
    state["objects"]["schedule"]["steps"] += 1
    path.write_text(json.dumps(state))
    assert compare(run, twin)[0] == "step 20, state.json: objects.schedule.steps: untouched has 20, killed has 21"


def test_a_field_that_is_null_differs_from_one_that_is_missing(run, twin):
    path = max((twin / "checkpoints").glob("step-*")) / "state.json"
    state = json.loads(path.read_text())
    state["objects"]["schedule"]["more"] = None
    path.write_text(json.dumps(state))
    told = "objects.schedule.more: untouched has no such field, killed has None"
    assert compare(run, twin)[0] == f"step 20, state.json: {told}"
    shutil.copy(max((run / "checkpoints").glob("step-*")) / "state.json", path)
    path = twin / "run.json"
    record = json.loads(path.read_text())
    record["conditions"]["more"] = None
    path.write_text(json.dumps(record))
    assert compare(run, twin)[0] == "run.json, conditions: more: untouched has no such field, killed has None"


def test_a_record_that_differs_is_told(run, twin):
    journal = twin / "metrics.jsonl"
    lines = journal.read_text().splitlines()
    third = json.loads(lines[2])
    lines[2] = json.dumps(third | {"loss": third["loss"] * (1 + 2**-50)})
    journal.write_text("\n".join(lines) + "\n")
    assert compare(run, twin)[0].startswith("metrics.jsonl, entry 3: untouched has")


def test_a_point_that_appears_twice_in_tensorboard_is_a_difference(run, twin):
    (events,) = (twin / "tensorboard").iterdir()
    events.write_bytes(events.read_bytes() + events.read_bytes())
    assert compare(run, twin)[0].startswith("tensorboard")


def test_the_points_of_runs_beside_one_another_in_tensorboard_are_compared(tmp_path):
    """With `tensorboard: together` the mean losses are in two directories below, which TensorBoard shows as runs."""
    board = TensorBoard(tmp_path / "tensorboard", started=0.0, together=True)
    board.write({"kind": "epoch", "split": "val", "epoch": 0, "step": 90, "loss": 0.5, "wall_s": 2.5})
    board.close()
    assert ("Validation/Training vs. Validation Loss", 1, "0.5") in comparison._points(tmp_path)


def test_pictures_in_tensorboard_are_compared(tmp_path):
    differing = []
    for name, shade in [("one", 0), ("other", 1)]:
        with TensorBoard(tmp_path / name / "tensorboard", started=0.0) as board:
            board.write_pictures([Captioned("a bag", bytes([shade]), 2, 2)], 3, 1.0)
        points = comparison._points(tmp_path / name)
        differing.append([point for point in points if point[:2] == (f"{WRONG}/a bag", 3)])
    (picture,), (other,) = differing
    assert picture[2].startswith("a picture of 2 x 2 with SHA-256 ") and other[2] != picture[2]


def test_a_killed_run_is_proved_identical(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["verify", "quickstart", *SMALL, *PLAIN, "checkpoint.every=7 steps", "--kills", "1", "--keep", "both"]
    assert main(words) == 0, "".join(capsys.readouterr())
    assert "identical: killed 1 time " in capsys.readouterr().out
    assert (tmp_path / "both" / "killed" / "model" / "model.safetensors").exists()


def test_a_run_that_cannot_be_repeated_is_caught(tmp_path, monkeypatch, capsys):
    """A loss with noise that no seed governs: every promise of exactness is void, and verify must say so."""
    looked_for = []
    monkeypatch.setattr("surefoot.proof.drive.find_culprits", lambda *_, **__: looked_for.append(1) or ["the reason"])
    assert main(_noisy(tmp_path, monkeypatch)) == 1
    out = capsys.readouterr().out
    assert re.search(r"(?m)^DIFFERENT.*: metrics\.jsonl, entry 1: .*\n  the reason$", out) and looked_for == [1]


@pytest.mark.slow  # six more runs
def test_the_line_that_makes_a_run_unrepeatable_is_named(tmp_path, monkeypatch, capsys):
    assert main(_noisy(tmp_path, monkeypatch)) == 1
    assert f"{tmp_path}/noisy.py:4: os.urandom()" in capsys.readouterr().out


def _noisy(folder: Path, monkeypatch) -> list[str]:
    """`surefoot verify` of a recipe whose loss has noise that no seed governs."""
    monkeypatch.chdir(folder)
    Path("noisy.py").write_text(
        "import os\nfrom torch.nn import functional as F\n"
        "def loss(outputs, targets):\n"
        "    return F.cross_entropy(outputs, targets) * (1 + int.from_bytes(os.urandom(2), 'big') / 2**20)\n"
    )
    words = ["loss={import: 'noisy:loss'}", "checkpoint.keep_best=val/loss", "--kills", "1"]
    return ["verify", "quickstart", *SMALL, *PLAIN, *words]


NAN = float("nan")
GAPS = [
    ([NAN, 1.0], [NAN, 3.0], torch.float32, "w: 1 of 2 values, by at most 2"),
    ([0.0, 1.0], [-0.0, 1.0], torch.float32, "w: 1 of 2 values, by at most 0"),
    ([float("inf"), 1.0], [0.0, 1.0], torch.float32, "w: 1 of 2 values, by at most inf"),
    ([1j, 1.0], [4j, 1.0], torch.complex64, "w: 1 of 2 values, by at most 3"),
]


@pytest.mark.parametrize(("mine", "theirs", "dtype", "told"), GAPS, ids=lambda value: str(value)[:20])
def test_values_are_counted_by_their_bytes(mine, theirs, dtype, told):
    sides = [
        comparison._Tensors(Path(), data=data, table={"w": torch.tensor(values, dtype=dtype)})
        for data, values in ((b"mine", mine), (b"theirs", theirs))
    ]
    assert sides[0].difference(sides[1], comparison.SIDES) == told
