"""Which compiled forms are tried: none where compiling cannot pay, and the likeliest first."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from surefoot.execution import CannotCompile, Execution
from surefoot.execution.compiled import compile_step
from surefoot.execution.forms import compiled_forms
from surefoot.execution.measure import Bench, Trial
from surefoot.models import MODELS
from surefoot.step import TrainStep
from surefoot.untouched import Snapshot


def test_pools_are_tried_contiguous_where_eager_prefers_channels_last(monkeypatch):
    """Only there are they written out; unless the user fixed the layout."""
    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: None)
    model = MODELS.build("LeNet5", {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = (torch.zeros(64, 1, 28, 28), torch.zeros(64, dtype=torch.long))
    eager = Trial(Execution(memory_format="channels_last"), times=[0.002])
    with Bench(TrainStep(model, nn.CrossEntropyLoss(), optimizer), [batch]) as bench:
        assert compiled_forms({}, eager, 10**7, False, bench, print)[0] == {
            "compile": "gradients",
            "memory_format": "contiguous",
        }
        fixed = {"memory_format": "channels_last"}
        assert all("memory_format" not in form for form in compiled_forms(fixed, eager, 10**7, False, bench, print))
        assert compiled_forms({}, eager, 10, False, bench, print) == []


def forms_of(model, batch, seconds, fixed=None):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Bench(TrainStep(model, nn.CrossEntropyLoss(), optimizer), [batch]) as bench:
        return compiled_forms(fixed or {}, Trial(Execution(), times=[seconds]), 10**9, False, bench, print)


def test_compiling_is_not_begun_where_it_cannot_pay_unless_it_is_asked_for(monkeypatch):
    """Convolutions and BatchNorm in long steps; in a short one there is the dispatch to save."""
    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: None)
    model = MODELS.build("SmallResNet", {})
    batch = torch.zeros(4, 1, 28, 28), torch.zeros(4, dtype=torch.long)
    assert forms_of(model, batch, 0.06) == []
    assert forms_of(model, batch, 0.001)
    assert forms_of(model, batch, 0.06, {"compile": True})


def test_recurrent_layers_are_not_compiled_and_the_reason_names_the_layer(monkeypatch):
    monkeypatch.setattr("surefoot.execution.compiled.why_not", lambda *_: None)
    model = nn.Sequential(nn.Embedding(5, 4), nn.GRU(4, 3))
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(CannotCompile, match=r"1 is an nn\.GRU, whose kernels a graph cannot hold"):
        compile_step(step, (torch.zeros(2, 3, dtype=torch.long), torch.zeros(2, dtype=torch.long)))


def test_weights_that_a_recurrent_layer_looks_up_anew_are_no_change_of_the_forward_pass():
    layer = nn.LSTM(4, 3)
    before = Snapshot(layer)
    layer.flatten_parameters()
    layer._flat_weight_refs = []
    assert before.put_back() is None and layer._flat_weight_refs
