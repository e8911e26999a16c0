"""The registry: names are suggested, arguments are checked against the class's own signature."""

from __future__ import annotations

from typing import Protocol, TypedDict

import pytest
import torch

from surefoot.errors import Problems, UsageError
from surefoot.registry import Entry, Range, Registry, argument_problems, as_given, did_you_mean

OPTIMIZERS = Registry(
    "optimizer",
    "optimizers",
    [
        Entry("SGD", "torch.optim:SGD", provided=("params",), limits={"lr": Range(low=0)}),
        Entry("AdamW", "torch.optim:AdamW", provided=("params",)),
    ],
)


def messages(name: str, arguments: dict) -> list[str]:
    return [p.message for p in OPTIMIZERS.problems(name, arguments)]


def test_a_misspelt_name_is_told_with_the_nearest_one():
    assert messages("sgd", {}) == ["unknown optimizer 'sgd'; did you mean 'SGD'? `surefoot list optimizers` shows all"]


def test_a_misspelt_argument_is_told_with_the_nearest_one():
    assert messages("SGD", {"momentun": 0.9}) == ["SGD has no argument 'momentun'; did you mean 'momentum'?"]


def test_an_argument_the_house_provides_cannot_be_given():
    assert "no argument 'params'" in messages("SGD", {"params": []})[0]


@pytest.mark.parametrize(
    "arguments",
    [{"lr": "fast"}, {"lr": True}, {"nesterov": 1}, {"lr": [0.1]}, {"foreach": "yes"}, {"lr": -1}],
)
def test_a_wrong_type_or_range_is_one_problem_at_that_argument(arguments):
    (problem,) = OPTIMIZERS.problems("SGD", arguments)
    assert problem.argument == next(iter(arguments))


@pytest.mark.parametrize("arguments", [{}, {"lr": 1}, {"lr": 0.1, "nesterov": False, "foreach": None}])
def test_right_arguments_have_no_problem(arguments):
    assert messages("SGD", arguments) == []


def test_a_tuple_argument_takes_a_list_of_its_length():
    assert messages("AdamW", {"betas": [0.9, 0.95]}) == []
    assert messages("AdamW", {"betas": [0.9]}) != []


def test_all_problems_come_at_once():
    with pytest.raises(Problems) as caught:
        OPTIMIZERS.build("SGD", {"lr": -1, "momentun": 0.9}, params=[])
    assert len(caught.value.problems) == 2


def test_what_the_class_refuses_is_a_usage_error():
    parameter = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(UsageError, match="SGD: .*[Nn]esterov"):
        OPTIMIZERS.build("SGD", {"lr": 0.1, "nesterov": True}, params=[parameter])


def test_nothing_near_suggests_nothing():
    assert did_you_mean("qqqq", ["SGD", "AdamW"]) == ""


def test_a_list_becomes_the_tensor_that_the_class_takes():
    losses = Registry("loss", "losses", [Entry("CrossEntropyLoss", "torch.nn:CrossEntropyLoss")])
    assert losses.build("CrossEntropyLoss", {"weight": [1, 2]}).weight.tolist() == [1.0, 2.0]
    assert losses.problems("CrossEntropyLoss", {"weight": ["a"]}) != []


class Options(TypedDict):
    size: int


class Draws(Protocol):
    def draw(self) -> float: ...


@pytest.mark.parametrize("annotation", [[int], {"a": int}, Options, list[Draws] | None], ids=str)
def test_an_annotation_that_says_nothing_of_values_lets_them_through(annotation):
    """As users write them; only their own code can tell."""

    def make(given): ...

    make.__annotations__ = {"given": annotation}
    assert argument_problems("make", make, {"given": [1]}) == []
    assert as_given({"given": [1]}, make) == {"given": [1]}


@pytest.mark.parametrize("weight", [[1, [2]], [[1, 2], [3]], [10**400]])
def test_a_list_that_makes_no_tensor_is_a_usage_error(weight):
    losses = Registry("loss", "losses", [Entry("CrossEntropyLoss", "torch.nn:CrossEntropyLoss")])
    with pytest.raises(UsageError, match="^weight: the list .* is no tensor; give numbers, in lists of one length$"):
        losses.build("CrossEntropyLoss", {"weight": weight})
