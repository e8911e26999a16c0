"""Batches of any form: stacked from samples, moved, given to models, joined again; through loader, fit and predict."""

from __future__ import annotations

import dataclasses

import numpy
import pytest
import torch
from torch import Tensor, nn

from surefoot import Loader, RunOptions, batches, evaluate, fit, objective, predict
from surefoot.data import as_source
from surefoot.errors import UsageError
from surefoot.preprocessing import Preprocessing


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
    with pytest.raises(UsageError, match="tensors hold 10 and 9 samples"):
        predict(Two(), {"first": first, "second": second[:9]})


def test_outputs_that_do_not_fit_are_not_joined():
    assert batches.joined([torch.zeros(2, 3), torch.zeros(2, 4)]) is None
    assert batches.joined([{"a": torch.zeros(2)}, {"b": torch.zeros(2)}]) is None
    assert batches.joined([torch.zeros(()), torch.zeros(())]) is None
    assert batches.joined([(torch.zeros(2), 1), (torch.zeros(2), 1)]) is None
