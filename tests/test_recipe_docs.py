"""docs/recipe.md and the JSON Schema say what the code does. `python tests/test_recipe_docs.py` renews the tables."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from recipe_tables import REST, SECTIONS, filled, table

from surefoot.recipe import json_schema, load_recipe, packaged_names, parse_recipe

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)


def completed(block: str) -> str:
    left_out = re.match(r"# keys: (.*)\n", block)
    return block + "".join(REST[key] + "\n" for key in (left_out[1].split() if left_out else ()))


def test_the_document_s_tables_are_those_of_the_code():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert filled(text) == text, "run `python tests/test_recipe_docs.py`"


def test_every_key_of_every_section_is_in_the_document():
    text = DOCUMENT.read_text(encoding="utf-8")
    for section in SECTIONS:
        assert table(section) in text


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_document_s_recipes_are_right(block):
    parse_recipe(completed(block), "example.yaml")


def test_the_document_s_python_runs():
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        for block in blocks("python"):
            exec(compile(block, str(DOCUMENT), "exec"), {})
    assert printed.getvalue().startswith("0.01 64 argument 'optimizer.lr=0.01'\nname: quickstart\n")


MISTAKEN = """\
epochs: 10
model: LeNet5
precision: fp32
optimizer:
  name: SGD
  lr: -0.1
loss: CrossEntropyLoss
data: garments
batch_size: 64
"""


def test_mistakes_are_told_as_the_document_shows_them():
    (shown,) = (block for block in blocks("text") if block.startswith("recipe.yaml:"))
    with pytest.raises(ValueError) as refused:
        parse_recipe(MISTAKEN, "recipe.yaml")
    assert str(refused.value) == shown.strip()


OVERRIDES = re.findall(r"^\| `'?([a-z_.0-9]+=.*?)'?` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("argument", OVERRIDES)
def test_the_document_s_overrides_work(argument):
    key = argument.partition("=")[0]
    text = "\n".join(REST.values()).replace("lr: 0.1", "lr: 0.1, groups: [{match: '*'}]")
    assert parse_recipe(text, "r.yaml", [argument]).where(key) == f"argument {argument!r}"


# --- The JSON Schema ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator():
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_schema_takes_every_packaged_recipe_and_its_dump(validator):
    for name in packaged_names():
        recipe = load_recipe(name)
        validator.validate(recipe.plain())
        # Not what the file says in YAML 1.1, but alike where the file holds nothing that differs.
        validator.validate(yaml.safe_load(Path(recipe.source).read_text(encoding="utf-8")))


@pytest.mark.parametrize("block", blocks("yaml"))
def test_the_schema_takes_the_document_s_recipes(validator, block):
    validator.validate(parse_recipe(completed(block), "example.yaml").plain())


BROKEN = [
    {"epochs": 0},
    {"epochs": "3"},
    {"epoch": 3},
    {"model": "LeNet"},
    {"model": {"name": "LeNet5", "clases": 3}},
    {"model": {"import": "a.b"}},
    {"data": {"name": "garments", "batch_size": 0}},
    {"data": {"name": "garments", "augment": "RandomCrop"}},
    {"loss": {"name": "CrossEntropyLoss", "label_smoothing": 2}},
    {"loss": []},
    {"optimizer": {"name": "SGD", "lr": -1}},
    {"optimizer": {"name": "SGD", "lr": "fast"}},
    {"optimizer": {"name": "SGD", "groups": [{"lr": 1}]}},
    {"scheduler": "StepLr"},
    {"scheduler": {"name": "StepLR"}},
    {"scheduler": {"name": "SequentialLR", "milestones": [1], "schedulers": ["StepLr"]}},
    {"warmup": {"name": "LinearWarmup", "warmup_period": 3, "by": "batch"}},
    {"ema": {"decay": 1}},
    {"checkpoint": {"keep_last": 0}},
    {"execution": {"threads": 0}},
    {"precision": "fp32"},
]


@pytest.mark.parametrize("change", BROKEN, ids=map(str, BROKEN))
def test_the_schema_refuses_what_the_parser_refuses(validator, change):
    whole = {**load_recipe("quickstart").plain(), **change}
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(whole)
    with pytest.raises(ValueError):
        parse_recipe(yaml.safe_dump(whole))


def test_the_schema_lists_names_arguments_and_defaults(validator):
    optimizer = validator.schema["$defs"]["OptimizerSection"]["anyOf"]
    assert "AdamW" in optimizer[0]["enum"]
    sgd = next(o for o in optimizer if o.get("properties", {}).get("name", {}).get("const") == "SGD")
    assert {"lr", "momentum", "groups", "no_decay"} <= set(sgd["properties"]) and "params" not in sgd["properties"]
    assert validator.schema["properties"]["seed"]["default"] == 0


if __name__ == "__main__":
    DOCUMENT.write_text(filled(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
