"""The moving average of weights, and optimizers with modes of their own."""

from __future__ import annotations

import io
import threading

import pytest
import torch
from torch import nn

import surefoot
from surefoot.errors import UsageError
from surefoot.moving_average import MovingAverage
from surefoot.step import StepOptions, TrainStep


class Positions(nn.Module):
    """Whole numbers in a buffer, a counter, a mask that lies in one place, and a buffer that is no state."""

    def __init__(self):
        super().__init__()
        self.register_buffer("position_ids", torch.arange(64))
        self.register_buffer("packed", torch.tensor([1.5, -2.0]).to(torch.float8_e4m3fn))
        self.register_buffer("mask", torch.ones(1, 4).expand(3, 4))
        self.register_buffer("seen", torch.zeros(1), persistent=False)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        self.seen += 1
        return self.norm(x) * self.mask[0]


def test_whole_and_8_bit_numbers_are_copied_and_the_rest_is_torchs_average():
    model = Positions()
    theirs = torch.optim.swa_utils.AveragedModel(
        nn.BatchNorm1d(4), multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9)
    )
    ours = MovingAverage(model, 0.9)
    for _ in range(5):
        model(torch.randn(8, 4))
        with torch.no_grad():
            model.norm.weight.add_(torch.randn(4))
        ours.update_parameters(model)
        theirs.update_parameters(model.norm)
    assert ours.module.position_ids.tolist() == list(range(64))
    assert ours.module.packed.float().tolist() == [1.5, -2.0]
    assert int(ours.module.norm.num_batches_tracked) == 5
    assert torch.equal(ours.module.norm.weight, theirs.module.weight)
    assert ours.module.seen.item() > 0
    assert ours.module.norm.running_mean.ne(model.norm.running_mean).all()


class Masked(nn.Module):
    """A mask and a frozen parameter with infinite numbers, and a buffer that the first pass makes."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
        self.register_buffer("center", None)
        self.bound = nn.Parameter(torch.tensor([torch.inf, 0.0]), requires_grad=False)

    def forward(self, x):
        if self.center is None:
            self.center = x.detach().mean(0)
        return self.layer(x - self.center).unsqueeze(1).add(self.mask).softmax(-1)[:, 1]


def test_infinite_numbers_of_a_mask_are_copied_and_a_buffer_that_a_pass_makes_is_taken_over():
    model = Masked()
    step = TrainStep(model, nn.MSELoss(), torch.optim.SGD([model.layer.weight], lr=0.1), StepOptions(ema_decay=0.9))
    for _ in range(3):
        step([(torch.randn(8, 3), torch.randn(8, 2))])
    average = step.ema.module
    assert torch.equal(average.mask, model.mask) and torch.equal(average.bound, model.bound)
    assert torch.equal(average.center, model.center)
    assert not torch.equal(average.layer.weight, model.layer.weight)


def test_a_buffer_of_another_shape_does_not_begin_the_average_again():
    class Keeps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.unused = nn.Linear(3, 2), nn.LazyLinear(2)
            self.register_buffer("last", torch.zeros(0))

        def forward(self, x):
            self.last = x.detach()
            return self.layer(x)

    model = Keeps()
    ours, expected = MovingAverage(model, 0.9), None
    for rows in (8, 8, 5, 8):  # an epoch's last batch is shorter
        model(torch.randn(rows, 3))
        with torch.no_grad():
            model.layer.weight.add_(1)
        ours.update_parameters(model)
        now = model.layer.weight.detach().clone()
        expected = now if expected is None else expected.lerp(now, 1 - 0.9)
        assert ours.module.last.shape == model.last.shape
    assert torch.equal(ours.module.layer.weight, expected)


def locked():
    model = nn.Linear(3, 2)
    model.lock, model.again = threading.Lock(), threading.RLock()
    return model


def kept_result():
    model = nn.Linear(3, 2)
    model.last = model(torch.ones(1, 3))
    return model


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.weight_norm(nn.Linear(3, 2)),
        lambda: nn.LazyLinear(2),
        locked,
        kept_result,
    ],
    ids=["the older weight_norm", "lazy", "locks", "a result with its graph"],
)
def test_what_deepcopy_refuses_can_be_followed(make):
    torch.manual_seed(0)
    model = make()
    result = surefoot.fit(
        model,
        nn.MSELoss(),
        torch.optim.SGD(model.parameters(), lr=0.1),
        (torch.randn(16, 3), torch.randn(16, 2)),
        val=(torch.randn(4, 3), torch.randn(4, 2)),
        epochs=1,
        batch_size=4,
        step=surefoot.StepOptions(ema_decay=0.5),
        run=surefoot.RunOptions(progress=False),
    )
    assert result.metrics["val/loss"] > 0 and not result.average.training


def test_fit_gives_the_average_that_it_validated_and_saved(tmp_path):
    data = torch.randn(16, 3), torch.randn(16, 2)
    for epochs in (2, 2, 3):  # also of a run that has ended, and of one that goes on
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 2), nn.Dropout())
        result = surefoot.fit(
            model,
            nn.MSELoss(),
            torch.optim.SGD(model.parameters(), lr=0.1),
            data,
            val=data,
            epochs=epochs,
            batch_size=4,
            run_dir=tmp_path / "run",
            resume=True,
            step=surefoot.StepOptions(ema_decay=0.9),
            run=surefoot.RunOptions(progress=False),
        )
        saved = surefoot.load_model(tmp_path / "run" / "model", model=nn.Sequential(nn.Linear(3, 2), nn.Dropout()))
        assert torch.equal(result.average[0].weight, saved[0].weight)
        assert not torch.equal(result.average[0].weight, model[0].weight)
        loss = nn.functional.mse_loss(result.average(data[0]), data[1]).item()
        assert loss == pytest.approx(result.metrics["val/loss"], rel=1e-5)


def test_what_cannot_be_copied_is_named():
    model = nn.Sequential(nn.Linear(3, 2))
    model[0].stream = io.TextIOWrapper(io.BytesIO())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(
        UsageError, match=r"ema_decay: the model cannot be copied: model\.0\.stream: TypeError: .*without ema_decay"
    ):
        TrainStep(model, nn.MSELoss(), optimizer, StepOptions(ema_decay=0.9))


class ScheduleFree(torch.optim.SGD):
    """As schedule-free optimizers do: the weights to train and those to use are not the same."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []
        for group in self.param_groups:
            group["train_mode"] = False

    def _switch(self, training, sign):
        self.calls.append("train" if training else "eval")
        for group in self.param_groups:
            if group["train_mode"] is not training:
                group["train_mode"] = training
                with torch.no_grad():
                    for p in group["params"]:
                        p.add_(sign)

    def train(self):
        self._switch(True, 1.0)

    def eval(self):
        self._switch(False, -1.0)

    def step(self, closure=None):
        assert self.param_groups[0]["train_mode"], "optimizer.train() was not called"
        self.calls.append("step")
        return super().step(closure)


def test_an_optimizers_own_modes_are_set_around_training_and_validation(tmp_path):
    results = []
    for stops in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(3, 2)
        data = torch.ones(16, 3), torch.ones(16, 2)
        for epochs in (1, 3) if stops else (3,):
            torch.manual_seed(0)
            model = nn.Linear(3, 2)
            optimizer = ScheduleFree(model.parameters(), lr=0.1)
            surefoot.fit(
                model,
                nn.MSELoss(),
                optimizer,
                data,
                val=data,
                epochs=epochs,
                batch_size=8,
                run_dir=tmp_path / f"run-{stops}",
                resume=stops,
                run=surefoot.RunOptions(progress=False, execution={"threads": 1, "compile": False}),
            )
        assert [c for c in optimizer.calls if c != "step"][-2:] == ["train", "eval"]
        assert not optimizer.param_groups[0]["train_mode"]
        saved = surefoot.load_model(tmp_path / f"run-{stops}" / "model", model=nn.Linear(3, 2))
        assert torch.equal(saved.weight, model.weight)
        results.append(model.weight.detach().clone())
    assert torch.equal(*results)


@pytest.mark.parametrize("execution", ["plain", {"threads": 1, "compile": False}])
def test_gradients_can_be_zeroed_in_place(execution):
    """What a batch does not reach is then updated with zeros: with momentum it goes on moving, as in torch."""

    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.calls = nn.Linear(3, 2), nn.Linear(3, 2), 0

        def forward(self, x):
            return self.first(x) if x[0, 0] > 0 else self.second(x)

    x = torch.randn(8, 3)
    x[:4, 0], x[4:, 0] = 1.0, -1.0
    moved = {}
    for set_to_none in (True, False):
        torch.manual_seed(0)
        model = Half()
        loader = surefoot.Loader(surefoot.data.as_source((x, torch.ones(8, 2))), 4, shuffle=False)
        weights = []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        optimizer.register_step_post_hook(lambda *_, w=weights, m=model: w.append(m.first.weight.detach().clone()))
        surefoot.fit(
            model,
            nn.MSELoss(),
            optimizer,
            loader,
            epochs=1,
            step=surefoot.StepOptions(set_to_none=set_to_none),
            run=surefoot.RunOptions(progress=False, execution=execution, lint_off=["all"]),
        )
        moved[set_to_none] = not torch.equal(weights[-2], weights[-1])
    assert moved == {True: False, False: True}
