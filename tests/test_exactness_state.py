"""What a resume brings back beside weights and optimizer: hidden generators, objectives, validation and more.

Each case trains once untouched, and once killed in the middle and resumed by objects built anew; the rest is equal
as bytes.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

import numpy
import pytest
import torch
from fit_arguments import fit_arguments
from test_exactness import Crash, left_behind, samples
from torch import nn
from torch.utils.data import Dataset

from surefoot.data import Loader
from surefoot.errors import Stopped
from surefoot.losses import WeightedSum
from surefoot.training import Checkpoints, fit

EPOCHS = 3


class Crashing(nn.Module):
    """Passes its input on, until its n-th call ends the run."""

    def __init__(self, at: int | None):
        super().__init__()
        self.calls, self._at = 0, at

    def forward(self, x):
        if self.training:
            self.calls += 1
            if self.calls == self._at:
                raise Crash
        return x


class Noise(nn.Module):
    """Adds what a generator of its own draws."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return x + 0.1 * self.draw(x.shape)


class Held:
    """Draws from a generator that is an attribute."""

    def __init__(self, generator):
        self.generator = generator

    def __call__(self, shape):
        if isinstance(self.generator, torch.Generator):
            return torch.randn(shape, generator=self.generator)
        if isinstance(self.generator, random.Random):
            return torch.full(shape, self.generator.random())
        return torch.from_numpy(self.generator.normal(size=tuple(shape))).float()


class Centred(nn.Module):
    """A loss with a buffer that it moves, and no parameter."""

    def __init__(self, persistent=True):
        super().__init__()
        self.register_buffer("centre", torch.zeros(3), persistent=persistent)

    def forward(self, outputs, targets):
        if outputs.requires_grad:
            self.centre.mul_(0.9).add_(outputs.detach().mean(0), alpha=0.1)
        return nn.functional.cross_entropy(outputs - self.centre, targets)


class Plainly:
    """A loss that is no module and holds one."""

    def __init__(self):
        self.parts = [Centred()]

    def __call__(self, outputs, targets):
        return self.parts[0](outputs, targets)


class Counting(nn.Module):
    """A buffer that is not persistent, and is part of the output."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(10), persistent=False)

    def forward(self, x):
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        return x - self.mean


class Grown(nn.Module):
    """Buffers that the first forward pass sets, resizes, or fills."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", None)
        self.register_buffer("seen", torch.empty(0))

    def forward(self, x):
        if self.training:
            self.scale = torch.ones(10) if self.scale is None else self.scale * 0.99
            self.seen = x.detach().mean(0) if not self.seen.numel() else 0.5 * self.seen
        return x * self.scale + 0.01 * self.seen if self.scale is not None else x


class Made(nn.Module):
    """A buffer that the first forward pass makes."""

    def forward(self, x):
        if not hasattr(self, "seen"):
            self.register_buffer("seen", torch.zeros(10), persistent=False)
        if self.training:
            self.seen = 0.5 * self.seen + 0.1 * x.detach().mean(0)
        return x - self.seen


class Drawing(Dataset):
    """Samples with noise out of `draw`."""

    def __init__(self, draw=torch.randn):
        self.inputs, self.targets = samples()
        self.draw = draw

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, index):
        return self.inputs[index] + 0.1 * self.draw((8,)), self.targets[index]


class PerOptimizer(torch.optim.SGD):
    """As MADGRAD: a state of the optimizer as a whole beside those of its parameters, of other shapes."""

    def __init__(self, parameters, lr):
        super().__init__(parameters, lr=lr)
        self.counted = 0
        self.state["k"] = torch.tensor([0])

    def step(self, closure=None):
        loss = super().step(closure)
        self.counted += 1
        self.state["k"] += 1
        for group in self.param_groups:
            group["passes"] = group.get("passes", 0) + 1
            group["lr"] = 0.05 / (1 + 0.1 * self.counted + 0.01 * float(self.state["k"]))
            for parameter in group["params"]:
                norm = self.state[parameter].setdefault("exp_avg_sq", torch.zeros((), dtype=torch.float64))
                norm += parameter.grad.square().sum()
                parameter.data.mul_(1 - 1e-4 * norm.item())
        return loss


PerOptimizer.__module__ = "somebody.elses"


def seeded(kind):
    return {
        "torch": lambda: torch.Generator().manual_seed(3),
        "random": lambda: random.Random(3),
        "Generator": lambda: numpy.random.default_rng(3),
        "RandomState": lambda: numpy.random.RandomState(3),
    }[kind]()


def plain(**changed):
    return {"layers": lambda: [], "loss": nn.CrossEntropyLoss, "data": samples, "val": samples, "fit": {}} | changed


CASES = {
    "validation data that draw": plain(val=Drawing),
    "shuffled validation": plain(val=lambda: Loader(Drawing(), 8, seed=3)),
    "a loss with a buffer": plain(loss=Centred),
    "a loss with a buffer that is not persistent": plain(loss=lambda: Centred(persistent=False)),
    "a sum with such a loss": plain(loss=lambda: WeightedSum([(0.5, Centred()), (1.0, nn.CrossEntropyLoss())])),
    "a loss that is no module": plain(loss=Plainly),
    "class weights": plain(loss=lambda: nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))),
    "buffers that are not persistent, averaged": plain(layers=lambda: [Counting()], fit={"ema_decay": 0.9}),
    "buffers that the first pass sets": plain(layers=lambda: [Grown()]),
    "a buffer that the first pass makes": plain(layers=lambda: [Made()]),
    "an optimizer of somebody else's": plain(optimizer=PerOptimizer),
} | {
    f"a generator in the {where}: {kind}": made(kind)
    for kind in ("torch", "random", "Generator", "RandomState")
    for where, made in {
        "model": lambda kind: plain(layers=lambda: [Noise(Held(seeded(kind)))]),
        "data": lambda kind: plain(data=lambda: Drawing(Held(seeded(kind)))),
        "averaged model": lambda kind: plain(layers=lambda: [Noise(Held(seeded(kind)))], fit={"ema_decay": 0.9}),
        "validation": lambda kind: plain(val=lambda: Drawing(Held(seeded(kind)))),
    }.items()
}


def train(run: Path, made, crash_at: int | None = None, wrap=lambda model: model, **changed):
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(8, 10), *made["layers"](), nn.ReLU(), nn.Linear(10, 3), Crashing(crash_at))
    model = wrap(inner)
    optimizer = made.get("optimizer", torch.optim.SGD)(model.parameters(), lr=0.05)
    arguments = {
        "epochs": EPOCHS,
        "val": made["val"](),
        "batch_size": 4,
        "log_every": 2,
        "run_dir": run,
        "resume": True,
        "checkpoints": Checkpoints("3 steps", keep_last=2, keep_best="val/loss"),
        "execution": {"compile": False},
        "tensorboard": False,
        "progress": False,
        "lint_off": ["all"],
    }
    return fit(
        model, made["loss"](), optimizer, made["data"](), **fit_arguments(**{**arguments, **made["fit"], **changed})
    )


@pytest.mark.parametrize("name", CASES)
def test_killed_and_resumed_equals_untouched(tmp_path, name):
    made = CASES[name]
    train(tmp_path / "untouched", made)
    for place in (8, 15):
        with pytest.raises(Crash):
            train(tmp_path / "resumed", made, place)
    train(tmp_path / "resumed", made)
    untouched, resumed = left_behind(tmp_path / "untouched"), left_behind(tmp_path / "resumed")
    for part in untouched:
        assert resumed[part] == untouched[part], part


class Evaluated(nn.Module):
    """Draws and counts in every pass; its n-th one in evaluation asks the run to stop."""

    def __init__(self, stop_at: int | None):
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.generator, self.in_evaluation, self._stop_at = seeded("torch"), 0, stop_at

    def forward(self, x):
        self.passes += 1
        if not self.training:
            self.in_evaluation += 1
            if self.in_evaluation == self._stop_at:
                signal.raise_signal(signal.SIGTERM)
        return x + 0.1 * torch.randn(x.shape, generator=self.generator) + 0.01 * self.passes


@pytest.mark.parametrize("ema", [None, 0.9])
def test_a_run_stopped_in_validation_begins_it_again_with_what_the_model_and_loss_had_then(tmp_path, ema):
    stop_at: list[int | None] = [None]
    layers = lambda: [Evaluated(stop_at[0])]  # noqa: E731
    made = plain(layers=layers, val=lambda: Loader(samples(), 8, shuffle=False), fit={"ema_decay": ema})
    train(tmp_path / "untouched", made, execution="plain")
    stop_at[0] = 8  # of 5 a validation
    with pytest.raises(Stopped):
        train(tmp_path / "resumed", made, execution="plain")
    stop_at[0] = None
    train(tmp_path / "resumed", made, execution="plain")
    untouched, resumed = left_behind(tmp_path / "untouched"), left_behind(tmp_path / "resumed")
    for part in untouched:
        assert resumed[part] == untouched[part], part


@pytest.mark.parametrize("ema", [None, 0.9])
def test_names_in_a_checkpoint_are_plain_whatever_wraps_the_model(tmp_path, ema):
    made = plain(fit={"ema_decay": ema})
    wraps = {
        "bare": lambda m: m,
        "DataParallel": nn.DataParallel,
        "compiled": lambda m: torch.compile(m, backend="eager"),
    }
    for name, wrap in wraps.items():
        train(tmp_path / name, made, wrap=wrap, epochs=1)
        assert train(tmp_path / name, made, epochs=2).epochs == 2
    train(tmp_path / "bare", made, wrap=nn.DataParallel, epochs=3)


def test_a_generator_in_a_batched_transform_is_refused():
    from surefoot.errors import UsageError

    class Jitter:
        batched = True

        def __init__(self):
            self.generator = torch.Generator()

        def __call__(self, inputs, draws):
            return inputs

    with pytest.raises(UsageError, match="transform.generator: .* draw from the `draws`"):
        Loader(samples(), 4, augment=[Jitter()])


def test_data_that_cannot_be_read_alike_are_told_before_the_first_step(tmp_path, capsys):
    import itertools

    counter = itertools.count()
    made = plain(data=lambda: Drawing(lambda shape: torch.full(shape, float(next(counter)))))
    train(tmp_path / "run", made, epochs=1, progress=True)
    assert "reads differently each time" in capsys.readouterr().out


class Shaking:
    """A transform of one sample, with a generator of its own."""

    def __init__(self):
        self.generator = torch.Generator()

    def __call__(self, sample):
        return sample + 0.1 * torch.randn(sample.shape, generator=self.generator)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_a_generator_in_data_or_transforms_draws_depends_on_seed_epoch_and_index_only(workers):
    def batches(position, **settings):
        made = Loader(Drawing(Held(seeded("Generator"))), 4, seed=1, augment=[Shaking()], **settings)
        made.seek(1, position)
        found = [inputs for inputs, _ in made]
        made.close()
        return found

    whole = batches(0)
    for position in (0, 7):
        rest = batches(position, workers=workers)
        assert all(map(torch.equal, rest, whole[position:])) and len(rest) == len(whole) - position
