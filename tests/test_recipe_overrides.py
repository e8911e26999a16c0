"""Overrides: what stands on the command line changes a recipe, in its place."""

from __future__ import annotations

import pytest
from recipe_texts import (
    BASE,
    read,
    told,
)

from surefoot.text import shortened


def test_overrides_change_values_and_later_ones_win():
    recipe = read(BASE, "optimizer.lr=3e-4", "epochs=2", "epochs=5", "data.shuffle=false")
    assert (recipe.optimizer.part.args["lr"], recipe.epochs, recipe.data.shuffle) == (3e-4, 5, False)


def test_a_bare_name_becomes_a_mapping_when_an_argument_is_set():
    recipe = read(BASE, "loss.label_smoothing=0.1")
    assert recipe.loss[0].part.name == "CrossEntropyLoss" and recipe.loss[0].part.args == {"label_smoothing": 0.1}


def test_a_whole_section_is_replaced_by_its_name():
    assert read(BASE, "optimizer=SGD").optimizer.part.args == {}


@pytest.mark.parametrize(
    ("argument", "path", "value"),
    [
        ("optimizer.groups=[{match: '*.bias', lr: 1}]", "optimizer.groups.0.args", {"lr": 1}),
        ("early_stopping.patience=2", "early_stopping.patience", 2),
        ("execution.threads=1", "execution.threads", 1),
        ("data.normalize.mean=0.2", "data.normalize.mean", (0.2,)),
        ("data.normalize=null", "data.normalize", None),
        ("checkpoint=null", "checkpoint", None),
        ("checkpoint=", "checkpoint", None),
        ("name=a: b #c", "name", "a: b #c"),
        ("name='007'", "name", "007"),
        ("freeze=*.bias", "freeze", ("*.bias",)),
        ("freeze=[a, b]", "freeze", ("a", "b")),
        ("warmup={name: LinearWarmup, warmup_period: 5}", "warmup.part.args", {"warmup_period": 5}),
        ("model={import: my.models:Net, width: 3}", "model.part.args", {"width": 3}),
        ("checkpoint.every=500 steps", "checkpoint.every", "500 steps"),
    ],
)
def test_override_values_are_plain_scalars_or_flow_yaml(argument, path, value):
    found = read(BASE, argument)
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() else getattr(found, name)
    assert found == value


def test_list_items_are_reached_by_index():
    recipe = read(BASE + "  groups: [{match: a}, {match: b, lr: 1}]\n", "optimizer.groups.1.lr=2")
    assert [group.args for group in recipe.optimizer.groups] == [{}, {"lr": 2}]


@pytest.mark.parametrize(("word", "together"), [("true", False), ("together", True)])
def test_a_word_that_stands_for_a_section_becomes_one(word, together):
    board = read(BASE + f"tensorboard: {word}\n", "tensorboard.histograms=1 epoch").tensorboard
    assert (board.histograms, board.together) == ("1 epoch", together)
    resolved = read(read(BASE).to_yaml(), "tensorboard.histograms=2 epochs", "execution.threads=1")
    assert (resolved.tensorboard.histograms, resolved.execution.threads) == ("2 epochs", 1)


def test_an_override_of_an_aliased_value_changes_that_place_only():
    text = BASE.replace("lr: 0.1", "groups:\n  - &g {match: a, lr: 1}\n  - *g")
    recipe = read(text, "optimizer.groups.1.lr=2")
    assert [group.args["lr"] for group in recipe.optimizer.groups] == [1, 2]


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("optimizer.lr=abc", "optimizer.lr: the text 'abc' is not a number"),
        ("lr=0.1", "unknown key 'lr'; it belongs under 'optimizer': optimizer.lr"),
        ("optmizer.lr=0.1", "unknown key 'optmizer'; did you mean 'optimizer'?"),
        ("optimizer.momentun=0.1", "optimizer: SGD has no argument 'momentun'; did you mean 'momentum'?"),
        ("epochs", "not of the form key=value or section.key=value"),
        ("=3", "not of the form key=value"),
        ("a..b=3", "not of the form key=value"),
        ("epochs.x=3", "'epochs' is 3, and has no 'x' in it"),
        ("optimizer.groups.0.lr=3", "'optimizer.groups' has no item '0'; give the whole list: optimizer.groups=[...]"),
        ("epochs=[3", "not valid YAML"),
        ("model.0=3", "'model' is the text 'LeNet5', and has no '0' in it"),
        ("warmup.warmup_period=5", "warmup: no warmup is named; give its name, e.g. {name: LinearWarmup"),
        ("epochs=" + "9" * 5000, "a number of 5000 digits"),
        (".".join("a" * 50) + "=1", "names a key deeper than any recipe has"),
    ],
)
def test_a_wrong_override_is_told_with_its_text(argument, message):
    (found,) = told(BASE, argument)
    shown = repr(shortened(argument, 80))
    assert found.startswith(f"argument {shown}: {message}"), found


def test_an_index_beyond_the_list_is_told():
    (message,) = told(BASE + "freeze: [a]\n", "freeze.1=b")
    assert message == "argument 'freeze.1=b': 'freeze' is a list and has no item '1'; its items are 0 to 0"


def test_overrides_alone_can_make_a_recipe():
    given = ("epochs=1", "model=LeNet5", "data=garments", "loss=CrossEntropyLoss", "optimizer.name=SGD")
    assert read("", *given).optimizer.part.name == "SGD"
