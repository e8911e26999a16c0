"""One update: equal to plain torch bit for bit, and to one large batch when accumulated."""

from __future__ import annotations

import collections
import copy
import dataclasses
import warnings

import pytest
import torch
from torch import nn

from surefoot import RunOptions, objective
from surefoot.data import DatasetSource
from surefoot.errors import UsageError
from surefoot.nonfinite import NonFinite
from surefoot.step import StepOptions, TrainStep
from surefoot.training import fit, predict


def small_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.BatchNorm1d(16), nn.Linear(16, 4))


def batches(count: int, size: int = 8):
    generator = torch.Generator().manual_seed(5)
    for _ in range(count):
        yield torch.randn(size, 6, generator=generator), torch.randint(4, (size,), generator=generator)


def plain_torch(model, loss, optimizer, data, *, max_norm=None, clip_value=None, dtype=None) -> list[float]:
    """The loop as a tutorial writes it."""
    losses = []
    for inputs, targets in data:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            value = loss(model(inputs), targets)
        value.backward()
        if max_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), max_norm)
        if clip_value is not None:
            nn.utils.clip_grad_value_(model.parameters(), clip_value)
        optimizer.step()
        losses.append(value.item())
    return losses


def same(one: nn.Module, other: nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"max_grad_norm": 0.1}, {"max_norm": 0.1}),
        ({"max_grad_norm": 1e30}, {}),  # records the norm and changes no bit
        ({"clip_value": 0.01}, {"clip_value": 0.01}),
        ({"max_grad_norm": 0.1, "clip_value": 0.01}, {"max_norm": 0.1, "clip_value": 0.01}),
        ({"precision": "bf16"}, {"dtype": torch.bfloat16}),
    ],
)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_step_is_plain_torch_bit_for_bit(name, ours, theirs):
    model, oracle, loss = small_model(), small_model(), nn.CrossEntropyLoss()
    optimizer = getattr(torch.optim, name)(model.parameters(), lr=0.05)
    expected = plain_torch(oracle, loss, getattr(torch.optim, name)(oracle.parameters(), lr=0.05), batches(6), **theirs)
    step = TrainStep(model, loss, optimizer, StepOptions(**ours))
    assert [step([batch]).loss.item() for batch in batches(6)] == expected
    assert same(model, oracle)


def test_lbfgs_runs_its_closure():
    model, oracle, loss = nn.Linear(6, 4), nn.Linear(6, 4), nn.CrossEntropyLoss()
    oracle.load_state_dict(model.state_dict())
    step = TrainStep(model, loss, torch.optim.LBFGS(model.parameters(), lr=0.1))
    optimizer = torch.optim.LBFGS(oracle.parameters(), lr=0.1)
    for inputs, targets in batches(3):

        def closure(inputs=inputs, targets=targets):
            optimizer.zero_grad()
            value = loss(oracle(inputs), targets)
            value.backward()
            return value

        first = optimizer.step(closure)
        assert step([(inputs, targets)]).loss.item() == first.item()
    assert same(model, oracle)


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(),
        nn.CrossEntropyLoss(weight=torch.tensor([0.1, 2.0, 1.0, 0.5])),
        nn.CrossEntropyLoss(ignore_index=2),
        nn.CrossEntropyLoss(reduction="sum"),
    ],
    ids=["mean", "weighted", "ignoring", "sum"],
)
def test_accumulated_micro_batches_are_one_large_batch(loss):
    torch.manual_seed(0)
    model = nn.Linear(6, 4).double()
    whole = copy.deepcopy(model)
    ((inputs, targets),) = batches(1, size=11)
    inputs = inputs.double()
    if loss.weight is not None:
        loss = nn.CrossEntropyLoss(weight=loss.weight.double())
    # A short last micro-batch is where a mean of means goes wrong.
    micro = [(inputs[:4], targets[:4]), (inputs[4:8], targets[4:8]), (inputs[8:], targets[8:])]
    accumulated = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1))(micro)
    at_once = TrainStep(whole, loss, torch.optim.SGD(whole.parameters(), lr=0.1))([(inputs, targets)])
    torch.testing.assert_close(model.weight, whole.weight, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(accumulated.loss, at_once.loss, rtol=1e-12, atol=1e-14)
    assert accumulated.samples == at_once.samples == 11
    assert torch.equal(accumulated.targets, targets)


class PaddedPerBatch(torch.utils.data.Dataset):
    """Sequences that are padded to the longest of their batch; the collate function is this one's."""

    def __len__(self):
        return 22

    def __getitem__(self, i):
        return torch.arange(1, 3 + i % 7)

    @staticmethod
    def collate(samples):
        padded = nn.utils.rnn.pad_sequence(samples, batch_first=True)
        return padded, padded.masked_fill(padded == 0, -100)


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(20, 8), nn.Linear(8, 20)

    def forward(self, x):
        return self.out(self.embedding(x)).transpose(1, 2)


def test_micro_batches_of_several_lengths_count_as_one_batch():
    """What padding adds is ignored, so the epoch's numbers do not depend on how the batches were padded."""
    results = []
    for size, accumulate in ((4, 2), (8, 1)):
        torch.manual_seed(0)
        model = Tagger()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        source = DatasetSource(PaddedPerBatch(), collate=PaddedPerBatch.collate)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            fitted = fit(
                model,
                nn.CrossEntropyLoss(),
                optimizer,
                source,
                val=source,
                epochs=1,
                batch_size=size,
                step=StepOptions(grad_accum_steps=accumulate),
                run=RunOptions(progress=False, lint_off=["all"]),
            )
        results.append(fitted.metrics)
    assert results[0] == pytest.approx(results[1], rel=1e-6)
    names = ("loss", "accuracy", "perplexity")
    assert set(results[0]) == {f"{split}/{name}" for split in ("train", "val") for name in names}


@pytest.mark.parametrize("samples", [24, 22])
def test_outputs_with_time_first_are_accumulated_over_batches_of_two_sizes(samples):
    class Speech(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(5, 6)

        def forward(self, x):
            return self.layer(x).log_softmax(2).transpose(0, 1)

    inputs, targets = torch.randn(samples, 12, 5), torch.randint(1, 6, (samples, 4))
    batches = [
        (inputs[i : i + 4], targets[i : i + 4], torch.full((len(inputs[i : i + 4]),), 4)) for i in range(0, samples, 4)
    ]
    model = Speech()
    step = TrainStep(model, nn.CTCLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    results = [step(batches[i : i + 2]) for i in range(0, len(batches), 2)]
    assert sum(result.samples for result in results) == samples


def test_outputs_that_cannot_be_joined_are_named_by_predict():
    class TimeFirst(nn.Linear):
        def forward(self, x):
            return super().forward(x).transpose(0, 1)

    with pytest.raises(UsageError, match=r"cannot be joined to \(N, ...\): \(12, 2, 6\), \(12, 4, 6\); call the model"):
        predict(TimeFirst(5, 6), torch.randn(6, 12, 5), batch_size=4)


def test_predict_leaves_out_the_cache_of_a_causal_model():
    @dataclasses.dataclass
    class Output(collections.OrderedDict):  # as transformers have it: a mapping whose entries cannot be deleted
        logits: torch.Tensor | None = None
        past_key_values: object = None

        def __post_init__(self):
            self.update({name: value for name, value in vars(self).items() if value is not None})

    class Causal(nn.Linear):
        kind = Output

        def forward(self, x):
            return self.kind(logits=super().forward(x), past_key_values=object())

    model, inputs = Causal(5, 6), torch.randn(10, 5)
    for kind in (Output, dict):
        model.kind = kind
        outputs = predict(model, inputs, batch_size=4)
        assert type(outputs) is kind and list(outputs) == ["logits"]
        assert torch.allclose(outputs["logits"], nn.functional.linear(inputs, model.weight, model.bias))


def test_the_norm_before_clipping_is_told():
    model, loss = small_model(), nn.CrossEntropyLoss()
    (batch,) = batches(1)
    loss(model(batch[0]), batch[1]).backward()
    expected = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in model.parameters()]))
    model = small_model()
    result = TrainStep(model, loss, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(max_grad_norm=1e-3))(
        [batch]
    )
    torch.testing.assert_close(result.grad_norm, expected)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(bad):
    model = small_model().eval()
    before = copy.deepcopy(model)
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    (batch,) = batches(1)
    broken = (batch[0].clone().fill_(bad), batch[1])
    with pytest.raises(NonFinite) as caught:
        step([batch, broken])
    assert caught.value.micro_batch == 1
    assert same(model, before)


def test_an_overflow_in_fp16_skips_the_update_and_says_so():
    model = nn.Linear(6, 4)
    before = copy.deepcopy(model)
    step = TrainStep(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(precision="fp16")
    )
    (batch,) = batches(1)
    # The loss is finite; its gradients, multiplied by the scale, are beyond fp16's 65504.
    assert step([(batch[0] * 1000, batch[1])]).updated is False
    assert same(model, before)
    assert step([batch]).updated is True
    assert not same(model, before)


def test_the_moving_average_follows_the_parameters():
    model = nn.Linear(6, 4)
    step = TrainStep(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(ema_decay=0.9)
    )
    expected = None
    for batch in batches(4):
        step([batch])
        now = model.weight.detach().clone()
        expected = now if expected is None else expected * 0.9 + now * 0.1
    torch.testing.assert_close(step.ema.module.weight, expected)


def test_a_saved_state_of_other_settings_is_refused():
    model = nn.Linear(6, 4)
    plain = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    scaled = TrainStep(
        model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(precision="fp16")
    )
    scaled.load_state_dict(scaled.state_dict())
    with pytest.raises(UsageError, match="scaler"):
        scaled.load_state_dict(plain.state_dict())
    with pytest.raises(UsageError, match="scaler"):
        plain.load_state_dict(scaled.state_dict())


def test_an_unknown_precision_is_told():
    model = nn.Linear(6, 4)
    with pytest.raises(UsageError, match="float64"):
        TrainStep(model, nn.MSELoss(), torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(precision="float64"))


def test_numbers_of_some_micro_batches_are_means_over_those_and_what_has_no_weight_has_no_part():
    @objective
    def counted(model, batch):
        some = batch[1] > 0
        loss = (model(batch[0])[:, 0].square() * some).sum() / some.sum()
        rest = {"first": 3.0} if batch[0][0, 0] == 0 else {}
        return {"loss": loss, "weight": some.sum(), "share": some.double().sum() / some.sum(), **rest}

    model = nn.Linear(6, 1)
    step = TrainStep(model, counted, torch.optim.SGD(model.parameters(), lr=0.1), StepOptions(grad_accum_steps=3))
    inputs = torch.ones(3, 8, 6)
    inputs[0] = 0
    targets = torch.tensor([1, 1, 0]).unsqueeze(1).expand(3, 8)
    result = step(list(zip(inputs, targets, strict=True)))
    assert {name: float(value) for name, value in result.numbers.items()} == {"share": 1.0, "first": 3.0}


def test_an_update_in_fp16_for_which_no_micro_batch_has_any_weight_changes_nothing():
    @objective
    def weightless(model, batch):
        return {"loss": model(batch[0]).mean(), "weight": 0.0}

    model = nn.Linear(6, 4)
    before = copy.deepcopy(model)
    options = StepOptions(precision="fp16", grad_accum_steps=2, max_grad_norm=1.0)
    step = TrainStep(model, weightless, torch.optim.SGD(model.parameters(), lr=0.1), options)
    assert step(list(batches(2))).updated and same(model, before)


def test_a_buffer_made_in_inference_mode_is_a_buffer():
    model = small_model()
    with torch.inference_mode():
        model.register_buffer("table", torch.zeros(2))
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    assert all(step([batch]).updated for batch in batches(2))
