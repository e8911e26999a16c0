"""Numbers that are not finite: seen before anything changes, never saved as good."""

from __future__ import annotations

import copy

import pytest
import torch
from fit_arguments import fit_arguments
from torch import nn

import surefoot
from surefoot.data import epoch_order
from surefoot.errors import RunFailed
from surefoot.nonfinite import NonFinite
from surefoot.step import StepOptions, TrainStep
from surefoot.torch_compat import all_finite

BAD = 170  # the sample whose gradient is NaN, in the order of epoch 0


class Root(nn.Module):
    """|Wx|: at x = 0 the loss is finite and the gradient NaN. With a BatchNorm, whose buffers each pass changes."""

    def __init__(self):
        super().__init__()
        self.layer, self.norm, self.out = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(1), nn.Linear(1, 2)

    def forward(self, x):
        return self.out(self.norm(self.layer(x).pow(2).sum(1, keepdim=True).sqrt()))


def data(bad=BAD):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(320, 4, generator=generator), torch.randint(0, 2, (320,), generator=generator)
    x[epoch_order(320, 0, 0)[bad]] = 0
    return x, y


def train(run_dir=None, bad=BAD, **settings):
    torch.manual_seed(0)
    model = Root()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    settings = {"epochs": 1, "batch_size": 16, "progress": False, "run_dir": run_dir, "lint_off": ["all"]} | settings
    return surefoot.fit(model, nn.CrossEntropyLoss(), optimizer, data(bad), **fit_arguments(**settings)), model


@pytest.mark.parametrize("options", [{}, {"max_grad_norm": 1.0}, {"clip_value": 0.1}, {"grad_accum_steps": 2}])
@pytest.mark.parametrize("execution", ["plain", "auto"])
def test_a_batch_with_a_nan_gradient_is_skipped_and_leaves_nothing_behind(options, execution):
    result, model = train(on_nonfinite="skip", execution=execution, **options)
    assert all(bool(t.isfinite().all()) for t in (*model.parameters(), *model.buffers()))
    whole = 20 // options.get("grad_accum_steps", 1)
    assert result.steps == whole - 1
    assert int(model.norm.num_batches_tracked) == result.steps * options.get("grad_accum_steps", 1)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d(3), nn.InstanceNorm1d(3, track_running_stats=True)])
def test_running_statistics_are_those_before_the_batch_that_is_skipped_not_those_of_the_start(norm):
    """Batch normalization writes them without a new version of the tensor."""
    torch.manual_seed(0)
    model = nn.Sequential(norm, nn.Flatten(), nn.Linear(15, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(on_nonfinite="skip"))
    inputs, targets = torch.randn(8, 3, 5), torch.randint(2, (8,))
    for factor in (1.0, 2.0):
        step([(factor * inputs, targets)])
    before = copy.deepcopy(dict(model.named_buffers()))
    with pytest.raises(NonFinite):
        step([(inputs * float("nan"), targets)])
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


@pytest.mark.filterwarnings("ignore:.*torch.jit", "ignore:.*legacy TorchScript", "ignore:.*Profiler record")
def test_running_statistics_of_a_scripted_model_are_those_before_the_batch_too():
    model = torch.jit.script(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)))
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01))
    step([(torch.randn(4, 3), torch.zeros(4, dtype=torch.long))])
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    with pytest.raises(NonFinite):
        step([(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long))])
    assert before["1.num_batches_tracked"] == 1
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


class OnGraph(nn.Linear):
    """Spreads its outputs over the edges of a graph, a sparse buffer."""

    def __init__(self):
        super().__init__(3, 2)
        self.register_buffer("graph", torch.eye(4).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.graph, super().forward(x))


def test_a_model_with_a_sparse_buffer_is_told_of_a_loss_that_is_not_finite():
    model = OnGraph()
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.01))
    with pytest.raises(NonFinite, match="the loss is nan"):
        step([(torch.full((4, 3), float("nan")), torch.zeros(4, dtype=torch.long))])
    assert torch.equal(model.graph.to_dense(), torch.eye(4))


def test_a_run_stops_before_the_parameters_change_and_goes_on_after_the_batch(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(
        RunFailed, match=r"the gradient of layer\.weight is not finite on samples \[.*parameters are finite and saved"
    ):
        train(run)
    result, model = train(run, resume=True)
    assert result.steps == 19 and bool(model.layer.weight.isfinite().all())


def test_no_model_is_saved_from_a_nan_in_the_last_update(tmp_path):
    run = tmp_path / "run"
    with pytest.raises(RunFailed, match="not finite"):
        train(run, bad=-1)
    assert not (run / "model").exists()


def test_an_update_that_overflows_is_never_saved_and_the_checkpoint_before_it_is_resumed(tmp_path):
    run = tmp_path / "run"
    good = surefoot.Checkpoints(every="1 steps")

    class Overflows(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure=None):
            super().step()
            parameter = self.param_groups[0]["params"][0]
            if self.state[parameter]["momentum_buffer"].ne(0).any() and Overflows.updates == 7:
                parameter[0, 0] = torch.inf
            Overflows.updates += 1

    def go(updates, **settings):
        Overflows.updates = updates
        torch.manual_seed(0)
        model = Root()
        optimizer = Overflows(model.parameters(), lr=0.01, momentum=0.9)
        return surefoot.fit(
            model,
            nn.CrossEntropyLoss(),
            optimizer,
            data(BAD),
            **fit_arguments(
                epochs=1,
                batch_size=16,
                progress=False,
                run_dir=run,
                checkpoints=good,
                on_nonfinite="skip",
                execution="plain",
                lint_off=["all"],
                **settings,
            ),
        )

    with pytest.raises(
        RunFailed,
        match="step 8: model.layer.weight is NaN or infinite, so this is not saved; the checkpoint of step 7 is kept",
    ):
        go(0)
    assert go(8, resume=True).steps == 19


def test_a_hand_written_loop_saves_nothing_that_is_not_finite(tmp_path):
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    told = "step 2: model.weight is NaN or infinite, .* the checkpoint of step 1 is kept"
    saver = surefoot.Checkpointer(tmp_path / "run", every="1 steps", background=False, model=model, optimizer=optimizer)
    with pytest.raises(RunFailed, match=told), saver:
        saver.resume()
        saver.step()
        with torch.no_grad():
            model.weight.fill_(torch.nan)
        saver.step()


def test_lbfgs_is_put_back_where_a_later_evaluation_is_not_finite():
    class Cliff(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.calls = nn.Parameter(torch.tensor([3.0])), 0

        def forward(self, x):
            self.calls += 1
            return self.weight * x * (torch.nan if self.calls in (3, 8) else 1)

    model = Cliff()
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=4)
    step = TrainStep(model, nn.MSELoss(), optimizer)
    batch = [(torch.ones(1, 1), torch.zeros(1, 1))]
    with pytest.raises(NonFinite):
        step(batch)
    assert model.weight.item() == 3.0 and not optimizer.state_dict()["state"]
    step(batch)
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    model.calls = 7
    with pytest.raises(NonFinite):
        step(batch)
    assert str(before) == str((model.state_dict(), optimizer.state_dict()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("scratch", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_every_number_is_looked_at_and_none_is_changed(bad, scratch, dtype):
    tensors = [torch.randn(3, 4).to(dtype), torch.randn(5).to(dtype), torch.full((2,), 3e38).to(dtype)]
    before = copy.deepcopy(tensors)
    assert all_finite(tensors, scratch)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors, strict=True))
    tensors[1][4] = bad
    assert not all_finite(tensors, scratch)
    assert all_finite([]) and all_finite([torch.tensor([1])])


def test_sparse_gradients_are_looked_at_and_trained(capsys):
    def bag():
        torch.manual_seed(0)
        return nn.EmbeddingBag(50, 8, sparse=True)

    x, y = torch.randint(0, 50, (64, 5)), torch.randint(0, 8, (64,))
    results = []
    for execution in ("plain", {"threads": 1, "compile": False}):
        model = bag()
        optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.05)
        result = surefoot.fit(
            model,
            nn.CrossEntropyLoss(),
            optimizer,
            (x, y),
            epochs=1,
            batch_size=8,
            run=surefoot.RunOptions(progress=False, execution=execution),
        )
        results.append((result.metrics, model.weight))
    assert results[0][0] == results[1][0] and torch.equal(results[0][1], results[1][1])
    assert not all_finite([torch.sparse_coo_tensor([[0]], [torch.nan], (3,), check_invariants=True)])
    for limit in ("max_grad_norm", "clip_value"):
        model = bag()
        optimizer = torch.optim.SparseAdam(model.parameters(), lr=0.05)
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(**{limit: 1.0}))
        with pytest.raises(surefoot.UsageError, match=f"{limit}: torch cannot clip sparse gradients"):
            step([(x, y)])


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, lambda p, lr: torch.optim.SGD(p, lr=lr, fused=True)])
def test_a_gradient_that_is_nan_at_any_scale_of_fp16_is_no_overflow(optimizer):
    model = Root()
    with torch.no_grad():
        model.layer.weight.zero_()
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer(model.parameters(), 0.1), StepOptions(precision="fp16"))
    batch = data()[0][:16], data()[1][:16]
    updated = []
    with pytest.raises(NonFinite, match="the gradient of layer.weight is not finite"):
        while len(updated) < 60:
            updated.append(step([batch]).updated)
    assert len(updated) == 40 and not any(updated)  # the scale went from 2**16 to 2**-24 meanwhile
    assert not model.layer.weight.any()
