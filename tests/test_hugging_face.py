"""Recipe data `hugging_face` without its library; with it, `python3 dev.py libraries` trains on such data."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from surefoot.cli import main
from surefoot.data import DATA
from surefoot.data.hugging_face import _reason, hugging_face, refuse_gaps
from surefoot.errors import UsageError

RECIPE = """
model: SmallResNet
data: {{name: hugging_face, path: {path}, inputs: image, targets: label, batch_size: 8}}
loss: CrossEntropyLoss
optimizer: {{name: Adam, lr: 0.001}}
epochs: 1
"""


def test_a_missing_library_is_one_message_with_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(path=tmp_path))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--run", str(tmp_path / "run")]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"surefoot: {tmp_path}/recipe.yaml:3:") and message.count("\n") == 1
    assert 'needs the library datasets, which is missing; pip install "surefoot[datasets]"' in message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("path", ["./nowhere", "/nowhere/at/all", "rows.parquet", "~/nowhere/rows"])
def test_a_path_that_is_not_there_is_no_name_of_the_hub(path):
    with pytest.raises(UsageError, match="there is no such directory or file"):
        DATA.build("hugging_face", {"path": path, "inputs": "image"})
    with pytest.raises(UsageError, match="there is no such directory or file"):
        hugging_face(Path("nowhere/at/all", path), "image")


@pytest.mark.parametrize(
    "arguments", [{"channels": 2}, {"size": 0}, {"val_share": 1.0}, {"inputs": 3}, {"trust_remote_code": True}]
)
def test_arguments_that_cannot_be_are_refused(arguments):
    with pytest.raises(UsageError):
        DATA.build("hugging_face", {"path": ".", "inputs": "image", **arguments})


@pytest.mark.parametrize(
    "gap", [[[1.0, 2.0], [None, 1.0]], [[1.0, 2.0], [1.0, float("nan")]], [[1.0], None], [0.5, float("nan")],
            [1, None], [0.5, 1e39], [0.5, float("-inf")], [[[1.0]], [[2.0], [None]]], [[1], [None, 2]], ["a", None]],
    ids=str,
)  # fmt: skip
def test_a_gap_at_any_depth_is_refused_with_its_column_and_its_row(gap):
    pyarrow = pytest.importorskip("pyarrow")
    fine = pyarrow.array(gap[:1], pyarrow.array(gap).type)
    refuse_gaps(pyarrow.chunked_array([fine, fine]), "x")
    column = pyarrow.chunked_array([fine, fine, pyarrow.array(gap), pyarrow.array(gap)])
    with pytest.raises(UsageError, match="column 'x' has no value, .* in 2 rows; the first is row 3, counted from 0"):
        refuse_gaps(column, "x")


def test_a_file_that_cannot_be_read_is_told_with_the_cause():
    class DatasetGenerationError(Exception):
        """As the library's."""

    error = DatasetGenerationError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("JSON parse error: Invalid value. in row 1")
    assert _reason(error) == "ValueError: JSON parse error: Invalid value. in row 1"
    assert _reason(StopIteration()) == "there are no rows in it"
