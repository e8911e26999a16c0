"""Batches of any form: stacked from samples, moved, given to models, joined again; through loader, fit and predict."""

from __future__ import annotations

import collections
import dataclasses

import numpy
import pytest
import torch
from torch import Tensor, nn

from surefoot import Loader, RunOptions, batches, evaluate, fit, objective, predict
from surefoot.data import as_source
from surefoot.errors import UsageError
from surefoot.losses import lint
from surefoot.preprocessing import Preprocessing
from surefoot.step import StepOptions, TrainStep


@dataclasses.dataclass
class Sample:
    x: Tensor
    y: Tensor
    number: int = 0


class Samples(torch.utils.data.Dataset):
    """Twenty samples, in the form that `make` gives them."""

    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 20

    def __getitem__(self, index):
        x = torch.arange(4.0) + index
        return self.make(x, x.sum().reshape(1), index)


FORMS = {
    "dataclass": Sample,
    "dictionary": lambda x, y, n: {"x": x, "y": y, "number": n},
    "dataclass in a tuple": lambda x, y, n: (Sample(x, y, n), n),
    "dataclass in a dictionary": lambda x, y, n: {"sample": Sample(x, y, n)},
    "nested": lambda x, y, n: {"inputs": {"x": x}, "rest": (y, n)},
}


def leaves(batch):
    if isinstance(batch, Tensor):
        return [batch]
    values = vars(batch).values() if dataclasses.is_dataclass(batch) else getattr(batch, "values", lambda: batch)()
    return [leaf for value in values for leaf in leaves(value)]


@pytest.mark.parametrize("make", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("workers", [0, 1])
def test_samples_of_any_form_make_batches_of_the_same_form(make, workers):
    loader = Loader(Samples(make), 4, shuffle=False, workers=workers)
    batch = batches.whole(next(iter(loader)))
    loader.close()
    assert type(batch) is type(make(torch.zeros(4), torch.zeros(1), 0))
    assert batches.size(batch) == 4 and all(len(leaf) == 4 for leaf in leaves(batch))
    assert any(torch.equal(leaf, torch.arange(4.0) + torch.arange(4)[:, None]) for leaf in leaves(batch))
    moved = batches.moved(batch, torch.device("meta"))
    assert type(moved) is type(batch) and all(leaf.is_meta for leaf in leaves(moved))


@pytest.mark.parametrize("execution", ["plain", "auto"])
def test_an_objective_trains_and_evaluates_on_dataclasses(execution):
    @objective
    def squared(model, batch):
        return (model(batch.x) - batch.y).square().mean()

    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    before = evaluate(model, squared, Samples(Sample)).metrics["loss"]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    fit(model, squared, optimizer, Samples(Sample), epochs=2, batch_size=4, run=RunOptions(execution=execution))
    assert evaluate(model, squared, Samples(Sample)).metrics["loss"] < before


def test_what_works_on_one_tensor_is_refused_for_other_inputs_and_not_left_out():
    def brighter(image):
        return image + 1

    for settings, name in (({"augment": [brighter]}, "augment"), ({"preprocessing": Preprocessing()}, "preprocessing")):
        loader = Loader(Samples(FORMS["dictionary"]), 4, **settings)
        with pytest.raises(UsageError, match=rf"data: {name}: the inputs of a batch are \{{x: \(4, 4\) float32"):
            next(iter(loader))


class Named(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, wide, deep):
        return self.layer(wide + deep)


def test_a_dictionary_of_arrays_is_data_whose_samples_are_dictionaries():
    generator = numpy.random.default_rng(0)
    data = {"wide": generator.normal(size=(20, 3)), "deep": torch.randn(20, 3), "label": [0, 1] * 10}
    torch.manual_seed(0)
    model = Named()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = fit(model, nn.CrossEntropyLoss(), optimizer, data, val=data, epochs=1, batch_size=4)
    assert {"train/accuracy", "val/accuracy"} <= set(result.metrics)
    expected = nn.CrossEntropyLoss()(
        model(torch.from_numpy(data["wide"]).float(), data["deep"]), torch.tensor(data["label"])
    )
    assert evaluate(model, nn.CrossEntropyLoss(), data).metrics["loss"] == pytest.approx(expected.item(), rel=1e-5)
    source = as_source(data)
    assert source.targets().tolist() == data["label"]
    changed = as_source(data | {"deep": data["deep"].clone().index_fill_(0, torch.tensor([7]), 0)})
    assert as_source(data).fingerprint() == source.fingerprint() != changed.fingerprint()


class Two(nn.Module):
    def forward(self, first, second):
        return {"sum": first + second, "parts": (first, second)}


def test_predict_takes_keywords_and_joins_outputs_of_any_form():
    first, second = torch.randn(10, 3), torch.randn(10, 3).double().numpy()
    outputs = predict(Two(), {"first": first, "second": second}, batch_size=4)
    assert torch.allclose(outputs["sum"], first + torch.from_numpy(second)) and torch.equal(outputs["parts"][0], first)
    with pytest.raises(UsageError, match="'first' 10 and 'second' 9 samples"):
        predict(Two(), {"first": first, "second": second[:9]})


Pair = collections.namedtuple("Pair", "first second")


@pytest.mark.parametrize(
    "make",
    [
        lambda t: Sample(t, 2 * t, None),
        lambda t: Pair(t, [2 * t]),
        lambda t: {"a": {"b": t}, "nothing": None},
        lambda t: collections.UserDict({"a": t}),
    ],
)
def test_outputs_of_any_form_are_joined_and_let_go_of_their_graph(make):
    t = torch.randn(5, 2, requires_grad=True)
    whole, parts = make(t), [make(t[:3]), make(t[3:])]
    joined = batches.joined([batches.detached(part) for part in parts])
    assert type(joined) is type(whole)
    for (place, ours), (name, theirs) in zip(batches.leaves(joined), batches.leaves(whole), strict=True):
        assert place == name
        if theirs is not None:
            assert torch.equal(ours, theirs) and not ours.requires_grad


def test_micro_batches_with_outputs_of_any_form_are_measured_as_one():
    def spread(outputs, targets):
        return (outputs["out"].squeeze(1) - targets).abs().mean()

    class Dictionary(nn.Linear):
        def forward(self, x):
            return {"out": super().forward(x)}

    def loss(outputs, targets):
        return (outputs["out"].squeeze(1) - targets).square().mean()

    torch.manual_seed(0)
    model = Dictionary(3, 1)
    step = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(grad_accum_steps=2))
    result = step([(torch.randn(4, 3), torch.randn(4)), (torch.randn(2, 3), torch.randn(2))])
    assert result.outputs["out"].shape == (6, 1) and not result.outputs["out"].requires_grad
    assert result.targets.shape == (6,) and spread(result.outputs, result.targets) > 0


def test_a_batch_that_the_model_cannot_take_is_named_beside_what_it_takes():
    model, data = Named(), {"wide": torch.zeros(4, 3), "deeper": torch.zeros(4, 3), "label": [0, 1, 0, 1]}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError) as error:
        fit(model, nn.CrossEntropyLoss(), optimizer, data, epochs=1, batch_size=4)
    assert "{wide: (4, 3) float32, deeper: (4, 3) float32, label: (4,) int64}" in str(error.value)
    assert "the model takes forward(wide, deep)" in str(error.value)


def test_the_lint_sees_the_inputs_of_a_dataclass_that_an_objective_takes():
    @objective
    def squared(model, batch):
        return (model(batch.x) - batch.y).square().mean()

    x = torch.randn(4, 3)
    x[2, 1] = torch.nan
    found = lint(nn.Linear(3, 1), squared, None, (Sample(x, torch.randn(4, 1), None),))
    assert [finding.name for finding in found] == ["nan-in-data"] and "first in sample 2" in str(found[0])


def test_outputs_that_do_not_fit_are_not_joined():
    assert batches.joined([torch.zeros(2, 3), torch.zeros(2, 4)]) is None
    assert batches.joined([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}]) is None
    assert batches.joined([torch.zeros(()), torch.zeros(())]) is None
    assert batches.joined([(torch.zeros(2), 1), (torch.zeros(2), 1)]) is None


class Graph:
    """As much of a graph of PyTorch Geometric as a call looks at; `dev.py libraries` has the real one."""

    num_graphs = 2
    edge_attr = None

    def __init__(self):
        self.x, self.edge_index = torch.ones(5, 3), torch.zeros(2, 4, dtype=torch.long)
        self.batch, self.y = torch.tensor([0, 0, 1, 1, 1]), torch.tensor([1, 0])


def test_a_graph_is_given_whole_or_by_the_names_that_forward_needs():
    graph = Graph()
    assert batches.size((graph,)) == 2 and batches.pair((graph,)) == (graph, graph.y)
    assert batches.call(lambda data: data, graph) is graph
    found = batches.call(lambda x, edge_index, batch=None, edge_attr="none": (x, edge_index, batch, edge_attr), graph)
    assert found == (graph.x, graph.edge_index, graph.batch, "none")
    with pytest.raises(TypeError, match="positions"):
        batches.call(lambda x, positions: 0, graph)
