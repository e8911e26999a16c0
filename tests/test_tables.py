"""Tables as data: columns encoded, split and saved with the model; what a file that is no such table is told."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys

import numpy
import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
import torch
from command_runs import resumed_alike

import surefoot
from surefoot.artifacts import read_info
from surefoot.build import build
from surefoot.cli import main
from surefoot.data import DATA, table
from surefoot.data.table_rows import labelled_rows, rows
from surefoot.data.tables import csv, parquet
from surefoot.errors import UsageError
from surefoot.models import TabularMLP
from surefoot.recipe import parse_recipe
from surefoot.table_columns import TableColumns

HOUSES = "id,area,rooms,city,garden,price\n"
RECIPE = """
model: {{name: TabularMLP, hidden: [8]}}
data: {{name: csv, path: {path}, target: {target}, drop: [id], batch_size: 8}}
loss: {loss}
optimizer: {{name: Adam, lr: 0.01}}
epochs: 2
execution: plain
"""


def house(k: int) -> str:
    return (
        f"{k},{30 + 7 * k % 90}.5,{k % 4 + 1},{('Ulm', 'Bonn', 'Kiel')[k % 3]},{str(k % 2 == 0).lower()},{900 + k}.25\n"
    )


@pytest.fixture
def houses(tmp_path):
    path = tmp_path / "houses.csv"
    path.write_text(HOUSES + "".join(map(house, range(40))))
    return path


def written(tmp_path, text: str | bytes, name: str = "table.csv") -> str:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_numbers_come_first_and_categories_are_indices_of_the_training_rows_values(houses):
    splits = csv(str(houses), "price", drop=["id"])
    columns = splits.train.columns
    assert columns.names == ["area", "rooms", "garden", "city"] and columns.categories == {
        "city": ("Bonn", "Kiel", "Ulm")
    }
    inputs, targets = splits.train.tensors
    assert inputs.dtype == targets.dtype == torch.float32
    assert (inputs.shape, targets.shape, len(splits.val)) == ((36, 4), (36, 1), 4)
    assert splits.classes is None and set(inputs[:, 3].tolist()) == {1.0, 2.0, 3.0}
    row = int((targets[:, 0] == 900.25).nonzero()) if 900.25 in targets else None
    assert row is None or inputs[row].tolist() == [30.5, 1.0, 1.0, 3.0]
    prepared = splits.preprocessing(inputs)
    assert torch.equal(prepared[:, 3], inputs[:, 3])
    assert torch.allclose(prepared[:, :3].mean(0), torch.zeros(3), atol=1e-5)
    assert torch.allclose(prepared[:, :3].std(0, correction=0), torch.ones(3), atol=1e-5)


def test_the_split_is_drawn_by_the_seed_named_in_a_column_or_a_file_of_its_own(houses, tmp_path):
    one, again, other = (csv(str(houses), "price", seed=seed) for seed in (0, 0, 1))
    assert one.val.fingerprint() == again.val.fingerprint() != other.val.fingerprint()
    every = torch.cat([one.train.tensors[1], one.val.tensors[1]]).flatten()
    assert sorted(every.tolist()) == [900.25 + k for k in range(40)]
    assert csv(str(houses), "price", val_share=0).val is None
    second = csv(str(houses), "price", val=written(tmp_path, HOUSES + "1,5.0,2,Rom,true,3.5\n"))
    assert (len(second.train), second.val.tensors[0].tolist()) == (40, [[1.0, 5.0, 2.0, 1.0, 0.0]])  # Rom was not seen
    columns = {"a": [1, 2, None, 4], "y": [0.5, 1, None, 3], "part": ["train", "val", "test", "train"]}
    by_column = table(columns, "y", split="part")
    with pytest.raises(UsageError, match="data: row 4: 'y' has no value"):
        table(columns | {"y": [0.5, 1, None, None]}, "y", split="part")
    with pytest.raises(UsageError, match="split: each row that trains lacks a value"):
        table(columns | {"y": [None, 1, 2, None]}, "y", split="part", missing="drop")
    assert (by_column.train.tensors[0].tolist(), by_column.val.tensors[0].tolist()) == ([[1.0], [4.0]], [[2.0]])


@pytest.mark.parametrize(
    ("values", "task", "classes"),
    [
        (["dog", "cat", "dog", "emu"], "auto", ("cat", "dog", "emu")),
        ([10, 9, 10, 2], "auto", ("2", "9", "10")),
        ([True, False, True, True], "auto", ("false", "true")),
        ([10, 9, 10, 2], "numbers", None),
        ([0.5, 1.0, 2.0, 3.0], "auto", None),
        ([1.0, 2.0, 2.0, 1.0], "classes", ("1", "2")),
        (list(range(21)), "auto", None),
    ],
)
def test_targets_are_classes_or_numbers(values, task, classes):
    splits = table({"a": range(len(values)), "y": values}, "y", task=task, val_share=0)
    assert splits.classes == classes
    targets = splits.train.targets()
    if classes is None:
        assert targets.dtype == torch.float32 and targets.tolist() == [[float(v)] for v in values]
    else:
        assert [classes[t] for t in targets.tolist()] == [str(v if task == "auto" else int(v)).lower() for v in values]


def test_several_targets_are_numbers_side_by_side():
    splits = table({"a": [1.5, 2], "y": [1, 2], "z": [0.5, 0]}, ["y", "z"], val_share=0)
    assert splits.train.targets().tolist() == [[1, 0.5], [2, 0]] and splits.sizes["outputs"] == 2


def test_missing_values_are_named_or_become_what_is_said(tmp_path):
    path = written(tmp_path, "a,c,y\n1,x,1.5\n,y,2.5\n5,,3.5\n3,x,\n")
    with pytest.raises(UsageError) as error:
        csv(path, "y")
    assert f"{path}: line 3: 'a' has no value (1 value missing in this column); give missing: mean" in str(error.value)
    assert f"{path}: line 4: 'c' has no value" in str(error.value)
    with pytest.raises(UsageError, match="line 5: 'y' has no value .* missing: drop leaves such rows out"):
        csv(path, "y", missing="mean")
    assert csv(path, "y", missing="drop", val_share=0).train.tensors[0].tolist() == [[1.0, 1.0]]
    filled = csv(written(tmp_path, "a,c,y\n1,x,1.5\n,y,2.5\n5,,3.5\n"), "y", missing="mean", val_share=0)
    assert filled.train.tensors[0].tolist() == [[1.0, 1.0], [3.0, 2.0], [5.0, 0.0]]
    with pytest.raises(UsageError, match="each row lacks a value"):
        csv(written(tmp_path, "a,b,y\n1,,2\n,1,3\n"), "y", missing="drop")


@pytest.mark.parametrize(
    "text",
    [
        "\ufeffa,b,y\n1,x,2.5\n2,z,3.5\n",
        "a,b,y\r\n1,x,2.5\r\n2,z,3.5\r\n",
        "a, b, y\n1, x, 2.5\n2, z, 3.5\n",
        '\na,"b",y\n1,"x",2.5\n\n2,z,3.5',
    ],
)
def test_marks_line_ends_spaces_and_quotes_change_nothing(tmp_path, text):
    splits = csv(written(tmp_path, text), "y", val_share=0)
    assert splits.train.tensors[0].tolist() == [[1.0, 1.0], [2.0, 2.0]] and splits.train.targets().tolist() == [
        [2.5],
        [3.5],
    ]


def test_other_separators_decimals_encodings_and_nulls_are_said(tmp_path):
    text = "größe;ort;y\n1,5;Köln;2,5\n?;Ulm;1,0\n"
    path = written(tmp_path, text.encode("latin-1"))
    form = {"separator": ";", "decimal": ",", "encoding": "latin-1", "nulls": "?"}
    splits = csv(path, "y", val_share=0, missing="mean", **form)
    assert splits.train.tensors[0].tolist() == [[1.5, 1.0], [1.5, 2.0]]
    assert rows(path, splits.train.columns).tolist() == splits.train.tensors[0].tolist()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; a table begins with a line of its columns' names"),
        ("\n \n", "is empty"),
        ("a,b,y\n", "has no rows"),
        ("a,b,y\n1,2,3\n1,2\n", "line 3: Expected 3 columns, got 2: 1,2; each line needs the columns"),
        ("a,b,y\n1,2,3,4\n", "line 2: Expected 3 columns, got 4"),
        ("a;b;y\n1;2;3\n", 'its columns are separated by ";"; give separator: ";"'),
        ("a\tb\ty\n1\t2\t3\n", r'separated by "\\t"; give separator: "\\t"'),
        ("1,2,3\n4,5,6\n", "its first line holds numbers; put a line of the columns' names before it"),
        ("a,a,y\n1,2,3\n", "'a' stands twice among the columns' names"),
        ("a,yy,b\n1,2,3\n", "target: there is no column 'y'; did you mean 'yy'"),
        ("a,b\n1,2\n", "target: there is no column 'y'; the columns are a, b"),
        ("y\n1\n2\n", "has no column beside its targets"),
        ("a,y\n1,\n2,\n", "column 'y' has no value in any row; name the column to learn"),
        ("a,b,y\n1,,3.5\n2,,4\n", r"column 'b' has no value in any row; leave it out \(drop: \[b\]\)"),
        ("a,y\n1,2\n3,2\n", "'y' is '2' in every row; there is nothing to tell apart"),
        (",a,y\n0,1,2.5\n", r"a column has no name \(the index that pandas writes\?\); leave it out"),
        ('a,y\n"1,234",2.5\n"5,678",3\n7,4\n', "line 2: 'a' is '1,234', a number with thousands separators"),
        ('a,y\n"1,5",2.5\n"5,678",3\n7,4\n', "line 2: 'a' is '1,5', with a decimal comma; give decimal: ','"),
        ('a,y\n1,"1,234"\n2,"5,678"\n', "'y' is '1,234', a number with thousands separators"),
        ("a,y\n1,2.5\n2,3\nold,4\n", "line 4: 'a' is 'old', in a column of numbers; mend it"),
        ("a,y\n2020-01-01,2.5\n", "column 'a' holds date32.*, which is neither numbers nor texts"),
        ("a,y\n1,2.5\ninf,3\n", "line 3: 'a' is inf, which is no float32"),
        ("a,y\n1,2.5\n1e300,3\n", r"line 3: 'a' is 1e\+300, which is no float32"),
        (
            "a,y\n1000000001,2.5\n1000000002,3\n",
            "column 'a' differs by 0.5 around 1e.09, which float32 cannot tell apart",
        ),
        (
            "a,y\n" + "".join(f"name {k},2.5\n" for k in range(60)),
            "'a' holds 60 texts in 60 rows, which are no categories",
        ),
        ("a,y\n1,é\n2,u\n".encode("latin-1"), "is not utf-8 .*; give its encoding, e.g. encoding: latin-1"),
        ("é,y\n1,2\n".encode("latin-1"), "is not utf-8"),
        ("a,y\n1,2\n".encode("utf-16"), "is UTF-16; save it as UTF-8, or give encoding: utf-16"),
        (b"\x00\x01\x02,y\n1,2.5\n", ""),
    ],
)
def test_a_file_that_is_no_such_table_is_told(tmp_path, text, message):
    path = written(tmp_path, text)
    try:
        csv(path, "y", val_share=0)
    except UsageError as error:
        assert message and __import__("re").search(message, str(error)), str(error)
    else:
        assert not message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "{tmp}"}, "path: .* is a directory; give a file in it"),
        ({"path": "{tmp}/huoses.csv"}, "path: .* does not exist; did you mean 'houses.csv'"),
        ({"path": "/dev/null"}, "path: /dev/null is no ordinary file"),
        ({"target": "prize"}, "target: there is no column 'prize'; did you mean 'price'"),
        ({"target": []}, "target: no column is named"),
        ({"target": ["price", "price"]}, "target: 'price' stands twice; name each column once"),
        ({"drop": ["idd"], "categories": ["citty"]}, "drop: there is no column 'idd'.*\n.*categories: .* 'citty'"),
        ({"split": "city"}, "split: 'city' is Ulm, Bonn, Kiel; the rows to learn from have 'train' there"),
        ({"split": "city", "val": "{tmp}/houses.csv"}, "split: val is a table of its own"),
        ({"val": "{tmp}/few.csv"}, "few.csv: there is no column 'area'"),
        ({"target": ["price", "city"]}, "of several targets each is a number, and 'city' holds classes"),
        ({"missing": "zero"}, "missing: .*'zero' is not one of 'refuse', 'mean', 'drop'"),
        ({"task": "regression"}, "task: "),
        ({"val_share": 1}, "val_share: 1 is not below 1"),
        ({"separator": ", "}, "separator: ', ' is not one character"),
        ({"encoding": "utf-9"}, "is not utf-9"),
    ],
)
def test_arguments_that_cannot_be_are_told(houses, tmp_path, arguments, message):
    written(tmp_path, "b,price\n1,2\n", "few.csv")
    said = {"path": str(houses), "target": "price", "drop": ["id"], **arguments}
    said = {k: v.format(tmp=tmp_path) if isinstance(v, str) else v for k, v in said.items()}
    with pytest.raises(UsageError, match=message):
        DATA.build("csv", said)


def test_parquet_and_frames_are_read_as_a_csv_is(houses, tmp_path):
    text = csv(str(houses), "price", drop=["id"])
    whole = pyarrow.csv.read_csv(houses)
    pyarrow.parquet.write_table(whole, tmp_path / "houses.parquet")
    for splits in (parquet(str(tmp_path / "houses.parquet"), "price", drop=["id"]), table(whole, "price", drop=["id"])):
        assert all(map(torch.equal, splits.train.tensors, text.train.tensors))
        assert splits.train.columns.to_json() | {"csv": {}} == text.train.columns.to_json() | {"csv": {}}
        assert rows(houses, splits.train.columns).shape == (40, 4)
    coded = whole.set_column(3, "city", whole["city"].dictionary_encode())
    assert torch.equal(table(coded, "price", drop=["id"]).train.tensors[0], text.train.tensors[0])
    with pytest.raises(UsageError, match="is no Parquet file"):
        parquet(str(houses), "price")
    with pytest.raises(UsageError, match="data: int is no table"):
        table(3, "price")


def test_numbers_that_are_named_as_categories_are_texts_everywhere(tmp_path):
    path = written(tmp_path, "zip,y\n01234,1.5\n89073,2.5\n,3.5\n")
    splits = csv(path, "y", categories="zip", missing="mean", val_share=0)
    assert splits.train.columns.categories == {"zip": ("01234", "89073")}
    first = written(tmp_path, "k,y\nA1,1.5\n02,2\nB,3\nC,4\n", "first.csv")
    second = csv(first, "y", val=written(tmp_path, "k,y\n02,1.5\n", "second.csv"))
    assert second.val.tensors[0].tolist() == [[1.0]] == rows(written(tmp_path, "k\n02\n"), second.val.columns).tolist()
    floats = table(
        {"k": [1.0, float("nan"), 2.0], "y": [1.5, 2, 3]}, "y", categories=["k"], missing="mean", val_share=0
    )
    assert floats.train.tensors[0].tolist() == [[1.0], [0.0], [2.0]] and floats.train.columns.categories["k"] == (
        "1",
        "2",
    )


def test_rows_are_encoded_by_what_the_model_was_saved_with(houses, tmp_path):
    columns = csv(str(houses), "price", drop=["id"]).train.columns
    again = TableColumns.from_json(json.loads(json.dumps(columns.to_json())))
    assert again == columns and again.names == columns.names
    batch = rows(written(tmp_path, "city,garden,rooms,area\nRom,true,2,50\nUlm,false,1,60.5\n"), again)
    assert batch.tolist() == [[50.0, 2.0, 1.0, 0.0], [60.5, 1.0, 0.0, 3.0]]
    source = labelled_rows(houses, again, None)
    assert source.targets().tolist() == [[900.25 + k] for k in range(40)]
    for text, message in [
        ("city,garden,rooms\nUlm,true,2\n", "there is no column 'area'"),
        ("city,garden,rooms,area\nUlm,true,2,\n", "line 2: 'area' has no value"),
        ("city,garden,rooms,area\nUlm,true,2,big\n", "line 2: 'area' is 'big', which is no number"),
    ]:
        with pytest.raises(UsageError, match=message):
            rows(written(tmp_path, text), again)


def test_unknown_classes_are_told(tmp_path):
    path = written(tmp_path, "a,y\n1,dog\n2,cat\n")
    columns = csv(path, "y", val_share=0).train.columns
    assert labelled_rows(path, columns, ("cat", "dog")).targets().tolist() == [1, 0]
    for values in (("01", "02"), ("True", "False"), ("1", "x")):
        path = written(tmp_path, "a,y\n1,{}\n2,{}\n".format(*values))
        splits = csv(path, "y", val_share=0, task="classes")
        assert torch.equal(labelled_rows(path, splits.train.columns, splits.classes).targets(), splits.train.targets())
    path = written(tmp_path, "a,y\n1,dog\n2,cat\n")
    with pytest.raises(UsageError, match="line 3: 'y' is 'emu', which is none of the classes"):
        csv(path, "y", val=written(tmp_path, "a,y\n1,dog\n2,emu\n", "val.csv"))


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"classes": 1},
        {"csv": {"x": "y"}},
        {"numbers": [{"name": "a"}]},
        {"numbers": [{"name": [], "mean": 1}]},
        {"numbers": [{"name": "a", "mean": 10**400}]},
        {"categories": [{"name": {}, "values": []}]},
        {"numbers": 3},
        {"targets": [1]},
        {"categories": [{"name": "area", "values": []}]},
        {"missing": "no"},
    ],
)
def test_a_description_that_is_none_is_refused(change):
    data = TableColumns({"area": 1.5}, {"city": ("Ulm",)}, ("price",), False).to_json()
    with pytest.raises(UsageError, match="columns"):
        TableColumns.from_json(data | change)


def test_the_vocabulary_is_part_of_the_fingerprint():
    one, other = (table({"a": ["x", word], "y": [0.5, 1]}, "y", val_share=0).train for word in ("y", "z"))
    assert torch.equal(one.tensors[0], other.tensors[0]) and one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize(("target", "loss"), [("price", "MSELoss"), ("city", "CrossEntropyLoss")])
def test_a_recipe_trains_on_a_table_resumes_exactly_and_saves_its_columns(houses, tmp_path, target, loss):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=houses, target=target, loss=loss))
    resumed_alike(recipe, tmp_path)
    info = read_info(tmp_path / "run" / "model")
    assert info.columns == build(parse_recipe(recipe.read_text(), "recipe.yaml")).train.source.columns
    assert info.model["args"]["numbers"] == len(info.columns.numbers)
    assert (info.classes is None) == (target == "price")
    moved = houses.rename(tmp_path / "moved.csv")  # the same data elsewhere are the same
    assert main(["resume", str(tmp_path / "part"), "epochs=3", f"data.path={moved}"]) == 0
    moved.rename(houses)
    # Another vocabulary is other data, whatever the numbers are.
    houses.write_text(houses.read_text().replace("Bonn", "Brno"))
    assert main(["resume", str(tmp_path / "part"), "epochs=4", f"data.path={houses}"]) == 2


def test_what_would_take_categories_for_numbers_is_told(houses):
    text = RECIPE.format(path=houses, target="price", loss="MSELoss")
    mlp = text.replace("TabularMLP", "MLP")
    with pytest.raises(UsageError, match="MLP would take categories for numbers .city.; give TabularMLP, or leave"):
        build(parse_recipe(mlp, "recipe.yaml"))
    model = build(parse_recipe(mlp.replace("[id]", "[id, city]"), "recipe.yaml")).model
    assert (model.arguments["in_features"], model.arguments["classes"]) == (3, 1)
    with pytest.raises(UsageError, match="data.normalize: a table's columns are normalised by their own mean and std"):
        build(
            parse_recipe(
                text.replace("batch_size: 8", "batch_size: 8, normalize: {mean: 0.5, std: 0.5}"), "recipe.yaml"
            )
        )
    assert (
        build(
            parse_recipe(text.replace("batch_size: 8", "batch_size: 8, normalize: null"), "recipe.yaml")
        ).about.preprocessing
        is None
    )


def test_an_embedding_stands_for_each_category_and_outputs_have_the_targets_scale():
    torch.manual_seed(0)
    model = TabularMLP(numbers=2, cardinalities=[3, 7], outputs=2, target_mean=[100.0, -5.0], target_std=[10.0, 1.0])
    assert [tuple(e.weight.shape) for e in model.embeddings] == [(3, 3), (7, 5)]
    assert all(not e.weight[0].any() and e.weight[1:].all() for e in model.embeddings)
    one, other = torch.tensor([[0.5, 1, 1, 2]]), torch.tensor([[0.5, 1, 2, 2]])
    assert not torch.equal(model(one), model(other)) and abs(model(one)[0, 0] - 100) < 30
    model(torch.cat([one, other])).square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in model.parameters())
    with pytest.raises(IndexError):
        model(torch.tensor([[0.5, 1, 3, 2]]))
    wide = TabularMLP(cardinalities=[1000])
    with pytest.raises(ValueError, match="bfloat16 cannot hold the indices of 1000 categories"):
        wide(torch.zeros(1, 2, dtype=torch.bfloat16))
    for arguments in ({"numbers": 0}, {"hidden": [0]}, {"cardinalities": [0]}, {"outputs": 2, "target_mean": [1.0]}):
        with pytest.raises(ValueError, match="needed|need 2 numbers"):
            TabularMLP(**arguments)


def test_without_pyarrow_one_line_says_what_to_install(houses, tmp_path):
    (tmp_path / "r.yaml").write_text(RECIPE.format(path=houses, target="price", loss="MSELoss"))
    code = (
        "import sys; sys.modules['pyarrow'] = None\nfrom surefoot.cli import main\nsys.exit(main(['check', 'r.yaml']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert 'which is missing; pip install "surefoot[tables]"' in done.stderr and "Traceback" not in done.stderr


def test_rows_of_a_table_are_preprocessed_by_column():
    from surefoot.preprocessing import Preprocessing

    p = Preprocessing(scale=None, mean=(1, 2), std=(3, 4))
    raw = torch.tensor([[4.0, 10.0], [1.0, 2.0]])
    assert p(raw).tolist() == [[1, 2], [0, 0]] == p.module()(raw).tolist() and p(raw[0]).tolist() == [1, 2]
    with pytest.raises(UsageError, match=r"\(N, 2\) of a table"):
        p(torch.zeros(3, 3))
    assert numpy.isfinite(p(raw).numpy()).all()


def test_a_saved_model_is_evaluated_and_exported_for_rows_of_other_files(houses, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=houses, target="city", loss="CrossEntropyLoss"))
    run = str(tmp_path / "run")
    assert main(["train", str(recipe), "--run", run, "epochs=1", "data.val_share=0"]) == 0
    onnx = str(tmp_path / "model.onnx")
    assert main(["export", run, "--to", onnx]) == 0

    def figures(*words: str) -> dict:
        capsys.readouterr()
        assert main(["eval", *words, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    own = figures(run, "--split", "train")
    assert (own["samples"], own["classes"]) == (40, ["Bonn", "Kiel", "Ulm"])
    for report in (figures(run, "--data", str(houses)), figures(onnx, "--data", str(houses))):
        assert report["split"] == str(houses) and report["confusion"] == own["confusion"]
        assert report["loss"] == pytest.approx(own["loss"], rel=1e-5)
    houses.write_text(houses.read_text().replace("Bonn", "Brno"))
    for words, message in [
        ([run, "--split", "train"], "or their vocabularies are others than those that it was trained on"),
        ([run, "--data", str(houses)], "line 3: 'city' is 'Brno', which is none of the classes"),
    ]:
        assert main(["eval", *words]) == 2 and message in capsys.readouterr().err


def test_a_model_of_no_table_takes_none(houses, tmp_path, capsys):
    from surefoot import save_model
    from surefoot.models import MLP

    save_model(MLP(in_features=4, hidden=[], classes=2), tmp_path / "model")
    assert main(["eval", str(tmp_path / "model"), "--data", str(houses)]) == 2
    assert "was not trained on a table" in capsys.readouterr().err


@pytest.mark.parametrize(("target", "loss"), [("price", "MSELoss"), ("city", "CrossEntropyLoss")])
def test_predict_answers_for_each_row_of_a_file(houses, tmp_path, capsys, target, loss):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(path=houses, target=target, loss=loss))
    run = str(tmp_path / "run")
    assert main(["train", str(recipe), "--run", run, "epochs=1"]) == 0
    assert f"predict {run}/model FILE.csv" in capsys.readouterr().out
    bare = written(tmp_path, "city,garden,rooms,area,price\nUlm,true,2,50,1.5\nBonn,false,1,60.5,2.5\n", "new.csv")
    second = str(tmp_path / "second.parquet")
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(bare), second)
    assert main(["predict", f"{run}/model", bare, second, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [(row["path"], row["row"]) for row in answers] == [(p, r) for p in (bare, second) for r in (0, 1)]
    values = [list(row["values"].values()) if target == "price" else row["predictions"] for row in answers]
    assert values[:2] == values[2:] and values[0] != values[1]
    assert target == "price" or {p["class"] for p in values[0]} == {"Bonn", "Kiel", "Ulm"}
    assert (
        main(["predict", f"{run}/model", bare, written(tmp_path, "q\n1.5\n", "no.csv"), str(tmp_path / "x.csv")]) == 2
    )
    error = capsys.readouterr().err
    assert "no.csv: there is no column 'area'" in error and "x.csv does not exist" in error


def test_fit_and_evaluate_take_a_tables_splits_prepared(houses):
    splits = table(pyarrow.csv.read_csv(houses), "price", drop=["id"])
    torch.manual_seed(0)
    model = TabularMLP(**splits.sizes_for(TabularMLP), hidden=[8])
    optimizer, loss = torch.optim.Adam(model.parameters(), lr=0.01), torch.nn.MSELoss()
    result = surefoot.fit(
        model, loss, optimizer, splits, epochs=2, batch_size=8, run=surefoot.RunOptions(progress=False)
    )
    prepared = splits.preprocessing(splits.val.tensors[0]), splits.val.tensors[1]
    expected = loss(model.eval()(prepared[0]), prepared[1]).item()
    assert result.metrics["val/loss"] == pytest.approx(expected, rel=1e-5)
    assert surefoot.evaluate(model, loss, splits).metrics["loss"] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(UsageError, match="this DataSplits has no samples to validate on"):
        surefoot.evaluate(model, loss, table({"a": [1.5, 2], "y": [1, 2]}, "y", val_share=0))


def test_a_frame_is_told_what_makes_inputs_and_targets_of_it(houses):
    frame, model = pyarrow.csv.read_csv(houses), torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match=r"a Table was given; give .inputs, targets., or splits = surefoot.data.table"):
        surefoot.fit(model, torch.nn.MSELoss(), optimizer, frame, epochs=1)


def test_a_column_of_weights_draws_the_rows_and_is_no_input(tmp_path):
    """By name in Python and in a recipe; another column of weights is another run."""
    text = "a,often,price\n" + "".join(f"{k},{int(k % 4 == 0)},{k}.5\n" for k in range(40))
    path = written(tmp_path, text)
    splits = csv(path, "price", weights="often", val_share=0.25)
    assert splits.train.columns.names == ["a"] and len(splits.train.aside["often"]) == 30
    loader = surefoot.Loader(splits.train, 10, weights="often", num_samples=300)
    assert {int(x) % 4 for inputs, _ in loader for x in inputs[:, 0]} == {0}
    recipe = RECIPE.format(path=path, target="price", loss="MSELoss").replace("drop: [id]", "weights: often")
    built = build(parse_recipe(recipe))
    assert built.model(torch.zeros(2, 1)).shape == (2, 1)
    drawn = torch.cat([built.train.source.tensors[0][built.train.indices_at(0, k), 0] for k in range(len(built.train))])
    assert set(drawn.long().remainder(4).tolist()) == {0}
    other = csv(written(tmp_path, text.replace(",1,", ",2,"), "b.csv"), "price", weights="often", val_share=0.25)
    assert other.train.fingerprint() != splits.train.fingerprint()
    half = splits.train.subset(slice(0, 10))
    assert torch.equal(half.aside["often"], splits.train.aside["often"][:10])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("oftne", "weights: there is no column 'oftne'.*did you mean 'often'"),
        ("city", "line 2: 'city' is 'Ulm', which is no number"),
        ("a", "weights: number 3 is nan"),
    ],
)
def test_a_column_that_cannot_weigh_is_told(tmp_path, name, message):
    text = "a,often,city,price\n" + "".join(f"{'' if k == 3 else 1},1,Ulm,{k}.5\n" for k in range(9))
    with pytest.raises(UsageError, match=message):
        surefoot.Loader(
            csv(written(tmp_path, text), "price", weights=name, drop=["a"], val_share=0).train, 3, weights=name
        )


def test_a_column_of_one_number_is_taken_whatever_its_mean_rounds_to():
    splits = table({"a": [0.1] * 7, "b": [1.5, 2, 3, 4, 5, 6, 7], "y": [0.5, 1, 2, 3, 4, 5, 6]}, "y", val_share=0)
    assert splits.preprocessing.std[0] == 1.0


@pytest.mark.parametrize("other", ["1.0,0\n2.00,0\n3,0\n1.5,0\n", "1,0\n2,0\n3.0,0\n1.5,0\n"])
@pytest.mark.parametrize("values", [["1", "2", "3"], ["1.0", "2.0", "3.0"]])
def test_a_whole_number_is_the_same_category_with_and_without_a_point(tmp_path, values, other):
    columns = TableColumns({"a": 0.0}, {"code": tuple(values)}, ("y",), False)
    (tmp_path / "new.csv").write_text("code,a\n" + other)
    assert rows(tmp_path / "new.csv", columns)[:, 1].tolist() == [1, 2, 3, 0]


def test_a_truth_value_is_the_same_category_in_every_kind_of_file(tmp_path):
    columns = {"k": [True, False, True], "a": [1.5, 2, 3], "y": [0.5, 1, 2]}
    frame = table(columns, "y", categories="k", val_share=0)
    (tmp_path / "new.csv").write_text("k,a,y\nTrue,1.5,0.5\nFALSE,2,1\ntrue,3,2\n")  # as pandas and a spreadsheet do
    assert torch.equal(rows(tmp_path / "new.csv", frame.train.columns), frame.train.tensors[0])
    text = csv(str(tmp_path / "new.csv"), "y", categories="k", val_share=0)
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "new.parquet")
    codes = dict(enumerate(text.train.columns.categories["k"], 1))
    read = [codes[int(index)] for index in rows(tmp_path / "new.parquet", text.train.columns)[:, 1]]
    assert [word.lower() for word in read] == ["true", "false", "true"]


@pytest.mark.parametrize("infinite", [float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_an_infinite_number_is_no_class_and_no_category(infinite, dtype):
    values = numpy.array([0, 1, infinite, 1], dtype=dtype)
    with pytest.raises(UsageError, match=f"data: row 3: 'y' is {infinite}, which is no class or category; mend it"):
        table({"a": [1.5, 2, 3, 4], "y": values}, "y", task="classes", val_share=0)
    with pytest.raises(UsageError, match=f"data: row 3: 'c' is {infinite}, which is no class or category; mend it"):
        table({"a": [1.5, 2, 3, 4], "c": values, "y": [0, 1, 0, 1]}, "y", categories="c", val_share=0)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_a_number_is_one_category_whatever_stands_beside_it(tmp_path, dtype):
    values = numpy.array([0.0, -0.0, 1.5, 1024], dtype=dtype)
    path = tmp_path / "new.parquet"
    splits = table({"c": values, "y": [0.5, 1, 2, 3]}, "y", categories="c", val_share=0)
    assert splits.train.columns.categories == {"c": ("0", "1.5", "1024")}
    assert splits.train.tensors[0].flatten().tolist() == [1, 1, 2, 3]
    pyarrow.parquet.write_table(pyarrow.table({"c": numpy.array([-0.0, 1024], dtype=dtype)}), path)
    assert rows(path, splits.train.columns).flatten().tolist() == [1, 3]
    assert rows(written(tmp_path, "c\n-0.0\n1024.0\n0\n"), splits.train.columns).flatten().tolist() == [1, 3, 1]
    large = table({"c": [1e12, 0.5], "y": [0.5, 1]}, "y", categories="c", val_share=0).train.columns
    assert large.categories["c"] == ("0.5", "1000000000000")


@pytest.mark.parametrize("values", [[["x"], ["y"]], [datetime.date(2026, 1, 2), None], [{"k": 1}, None], [b"x", b"y"]])
def test_what_is_no_text_and_no_number_where_a_category_was_is_told(tmp_path, values):
    columns = table({"c": ["x", "y"], "y": [0.5, 1]}, "y", val_share=0).train.columns
    pyarrow.parquet.write_table(pyarrow.table({"c": values}), tmp_path / "new.parquet")
    with pytest.raises(UsageError, match="row 1: 'c' holds .*; expected texts or whole numbers, as it was trained"):
        rows(tmp_path / "new.parquet", columns)


def test_a_name_of_two_lines_is_a_category_like_any_other(tmp_path):
    (tmp_path / "t.csv").write_bytes(b'"the\r\ncode",a,y\r\n01,1.5,2.5\r\n1,2,3.5\r\n02,3,4.25\r\n')
    splits = csv(str(tmp_path / "t.csv"), "y", categories=["the\r\ncode"], val_share=0)
    assert splits.train.columns.categories == {"the\r\ncode": ("01", "1", "02")}


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_row_is_called_by_the_line_at_which_it_begins(tmp_path, end):
    path = tmp_path / "t.csv"
    path.write_bytes(end.join([b"a,note,y", b'1.5,"of', b'two",2.5', b"", b'2,"an', b'other",1.5', b",third,0.5", b""]))
    with pytest.raises(UsageError, match="t.csv: line 7: 'a' has no value"):
        csv(str(path), "y", drop="note", val_share=0)
    with pytest.raises(UsageError, match="t.csv: line 7: 'a' has no value"):
        rows(path, TableColumns({"a": 0.0}, {}, ("y",), False))


def test_dates_and_times_where_numbers_were_are_told(tmp_path):
    text = "a,c,y\n1.5,u,2.5\n2.5,v,3.5\n"
    columns = csv(written(tmp_path, text), "y", val_share=0).train.columns
    for value, shown in (("2020-01-01", "2020-01-01"), ("12:30:00", "12:30:00")):
        path = written(tmp_path, f"a,c,y\n,u,1\n{value},u,1\n", "new.csv")
        with pytest.raises(UsageError, match=f"new.csv: line 3: 'a' is {shown}, which is no number"):
            rows(path, columns)
        with pytest.raises(UsageError, match=f"new.csv: line 3: 'a' is {shown}, which is no number"):
            csv(written(tmp_path, text), "y", val=path)
        path = written(tmp_path, f"a,c,y\n1,u,{value}\n", "new.csv")
        with pytest.raises(UsageError, match=f"new.csv: line 2: 'y' is {shown}, which is no number"):
            labelled_rows(path, columns, None)
    pyarrow.parquet.write_table(pyarrow.table({"a": ["1", "2"], "c": ["u", "v"]}), tmp_path / "new.parquet")
    with pytest.raises(UsageError, match="row 1: 'a' is '1', which is no number"):
        rows(tmp_path / "new.parquet", columns)


@pytest.mark.parametrize("values", [["50", "60", "70"], ["1_000", "2_000", "3_000"]])
def test_texts_that_are_written_as_numbers_are_told(values):
    numbers, message = [1.5, 2, 3], f"row 1: '.' is '{values[0]}', a text that is written as a number; give numbers"
    with pytest.raises(UsageError, match=f"{message}.*categories"):
        table({"a": values, "y": numbers}, "y")
    with pytest.raises(UsageError, match=f"{message}.*of a target task: classes"):
        table({"a": numbers, "y": values}, "y")
    assert len(table({"a": numbers, "y": values}, "y", task="classes").classes) == 3
    assert table({"a": values, "y": numbers}, "y", categories="a").train.columns.cardinalities[0] > 2


def test_numbers_too_small_for_float32_are_told():
    with pytest.raises(UsageError, match="'a' differs by .*e-51 around .*, which float32 cannot tell .* another unit"):
        table({"a": [0, 1e-50, 2e-50], "y": [1.5, 2, 3]}, "y", val_share=0)


def test_a_tables_columns_may_be_tensors():
    splits = table({"a": torch.arange(4), "y": torch.rand(4, requires_grad=True)}, "y", val_share=0)
    assert splits.train.tensors[0].flatten().tolist() == [0, 1, 2, 3] and splits.classes is None
