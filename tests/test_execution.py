"""The plan, its application, and that the fast eager update is the plain one to the bit."""

from __future__ import annotations

import copy
import ctypes
import math
import types

import pytest
import torch
from torch import nn

from surefoot.errors import UsageError
from surefoot.execution import Execution, make_backend, prepare
from surefoot.execution.direct import DirectUpdate
from surefoot.execution.eager import EagerStep
from surefoot.execution.settings import freed_memory_kept, set_layout, supports_fused
from surefoot.models import MODELS
from surefoot.nonfinite import NonFinite
from surefoot.step import StepOptions, TrainStep
from surefoot.step_result import StepResult


def lenet(seed=0):
    torch.manual_seed(seed)
    return MODELS.build("LeNet5", {})


def batches(count=4, size=4, seed=1):
    made = torch.Generator().manual_seed(seed)
    return [
        (torch.randn(size, 1, 28, 28, generator=made), torch.randint(0, 10, (size,), generator=made))
        for _ in range(count)
    ]


def same(a, b):
    """Equal to the bit, tensors in nested plain data included."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def fast_step(execution, model, loss, optimizer, example, **settings):
    step = TrainStep(model, loss, optimizer, StepOptions(**settings))
    step.backend = make_backend(execution, step, example)
    assert isinstance(step.backend, EagerStep)
    return step


def test_a_plan_survives_json_and_refuses_what_it_does_not_know():
    plan = Execution(
        threads=2, onednn=False, memory_format="channels_last", optimizer_impl="fused", compile="gradients"
    )
    assert Execution.from_json(plan.to_json()) == plan
    assert plan.describe() == "cpu, 2 threads, oneDNN off, channels_last, fused optimizer, compiled gradients"
    with pytest.raises(UsageError, match="unknown field speed"):
        Execution.from_json({"speed": 11})
    with pytest.raises(UsageError, match="threads: 0.*"):
        Execution(threads=0)
    with pytest.raises(UsageError, match="memory_format: 'nhwc' is not one of contiguous, channels_last"):
        Execution(memory_format="nhwc")


def test_prepare_puts_threads_and_onednn_back():
    before = torch.get_num_threads(), torch.backends.mkldnn.enabled
    with prepare(Execution(threads=2, onednn=False)):
        assert torch.get_num_threads() == 2
        assert not torch.backends.mkldnn.enabled
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == before
    with pytest.raises(KeyError), prepare(Execution(threads=3)):
        raise KeyError
    assert torch.get_num_threads() == before[0]


def test_a_layout_changes_strides_of_weights_gradients_and_state_together_and_no_number():
    model = lenet()
    optimizer = torch.optim.Adam(model.parameters())
    model(batches()[0][0]).sum().backward()
    optimizer.step()
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    parameters = list(model.parameters())
    set_layout(model, optimizer, "channels_last")
    weight = model.conv2.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert weight.grad.stride() == weight.stride()
    assert all(optimizer.state[weight][name].stride() == weight.stride() for name in ("exp_avg", "exp_avg_sq"))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert same(before, (model.state_dict(), optimizer.state_dict()))
    set_layout(model, optimizer, "contiguous")
    assert weight.is_contiguous() and optimizer.state[weight]["exp_avg"].is_contiguous()


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.05),
    "SGD with momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "SGD nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "SGD dampened, maximizing": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, dampening=0.1, maximize=True),
    "Adam": lambda p: torch.optim.Adam(p, lr=1e-2, weight_decay=1e-3),
    "Adam amsgrad": lambda p: torch.optim.Adam(p, lr=1e-2, amsgrad=True),
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=1e-3, momentum=0.5),
    "Adagrad": lambda p: torch.optim.Adagrad(p, lr=1e-2),
    "NAdam": lambda p: torch.optim.NAdam(p, lr=1e-3),
    "two groups": lambda p: (
        lambda ps: torch.optim.SGD(
            [{"params": ps[:4]}, {"params": ps[4:], "lr": 0.01, "momentum": 0.0}], lr=0.05, momentum=0.9
        )
    )(list(p)),
}


@pytest.mark.parametrize("impl", ["default", "for_loop", "foreach", "fused"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_direct_update_is_the_optimizers_own_to_the_bit(name, impl):
    model, other = lenet(), lenet()
    ours, theirs = OPTIMIZERS[name](model.parameters()), OPTIMIZERS[name](other.parameters())
    if impl == "fused" and not supports_fused(ours):
        pytest.skip("torch has no fused kernel for it")
    plan = Execution(optimizer_impl=impl)
    with prepare(plan, model, ours), prepare(plan, other, theirs):
        update = DirectUpdate(ours)
        for i, (inputs, targets) in enumerate(batches()):
            for m, o in ((model, ours), (other, theirs)):
                o.zero_grad()
                nn.functional.cross_entropy(m(inputs), targets).backward()
                if i == 1:
                    m.fc3.bias.grad = None  # a parameter that got no gradient this time
                o.param_groups[0]["lr"] = 0.01 * (i + 1)
            update()
            theirs.step()
            assert same(list(model.parameters()), list(other.parameters()))
    assert same(ours.state_dict(), theirs.state_dict())


def test_the_direct_update_sees_loaded_state_and_an_added_group():
    model, other = lenet(), lenet()
    made = [torch.optim.SGD([m.fc1.weight], lr=0.1, momentum=0.9, fused=True) for m in (model, other)]
    update = DirectUpdate(made[0])

    def both():
        for m, o in zip((model, other), made, strict=True):
            o.zero_grad()
            m(batches()[0][0]).square().sum().backward()
        update()
        made[1].step()
        assert same(model.state_dict(), other.state_dict())

    both()
    both()
    state = copy.deepcopy(made[1].state_dict())
    both()
    for o in made:
        o.load_state_dict(copy.deepcopy(state))
    both()
    for m, o in zip((model, other), made, strict=True):
        o.add_param_group({"params": [m.fc2.weight], "lr": 0.5})
    both()
    both()


def test_hooks_on_the_optimizer_are_called_as_torch_calls_them():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    update, called = DirectUpdate(optimizer), []
    optimizer.register_step_pre_hook(lambda *given: called.append(("before", given)))
    optimizer.register_step_post_hook(lambda *given: called.append(("after", given)))
    model(batches()[0][0]).sum().backward()
    optimizer.step()
    by_torch, called[:] = list(called), []
    update()
    assert called == by_torch == [("before", (optimizer, (optimizer,), {})), ("after", (optimizer, (optimizer,), {}))]


def test_a_scheduler_sees_that_the_optimizer_was_stepped():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    update = DirectUpdate(optimizer)
    model(batches()[0][0]).sum().backward()
    update()
    scheduler.step()  # would warn, and warnings are errors here
    assert scheduler.get_last_lr() == [pytest.approx(0.01)]


@pytest.mark.parametrize("settings", [{}, {"max_grad_norm": 0.5}, {"clip_value": 0.01}, {"precision": "bf16"}])
def test_the_fast_eager_step_is_the_plain_step_to_the_bit(settings):
    model, other = lenet(), lenet()
    ours, theirs = (torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9) for m in (model, other))
    plan = Execution(optimizer_impl="fused", onednn=False, precision=settings.get("precision", "float32"))
    loss = nn.CrossEntropyLoss()
    with prepare(plan, model, ours), prepare(plan, other, theirs):
        fast = fast_step(plan, model, loss, ours, batches()[0], **settings)
        plain = TrainStep(other, loss, theirs, StepOptions(**settings))
        for batch in [*batches(), *batches(1, size=3)]:
            a, b = fast([batch]), plain([batch])
            assert same(tuple(a), tuple(b))
            assert isinstance(a, StepResult) and not a.outputs.requires_grad
        micro = batches(2)
        assert same(tuple(fast(micro)), tuple(plain(micro)))
    assert same(model.state_dict(), other.state_dict())
    assert same(ours.state_dict(), theirs.state_dict())


def test_a_loss_that_is_not_finite_is_raised_before_anything_changes():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = fast_step(Execution(), model, nn.CrossEntropyLoss(), optimizer, batches()[0])
    before = copy.deepcopy(model.state_dict())
    inputs, targets = batches()[0]
    with pytest.raises(NonFinite) as raised:
        step([(inputs * math.inf, targets)])
    assert math.isnan(raised.value.value)
    assert same(before, model.state_dict())


def test_lbfgs_and_fp16_keep_the_plain_step():
    model = lenet()
    loss, batch = nn.CrossEntropyLoss(), batches()[0]
    lbfgs = TrainStep(model, loss, torch.optim.LBFGS(model.parameters()))
    assert make_backend(Execution(), lbfgs, batch) is None
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    fp16 = TrainStep(model, loss, sgd, StepOptions(precision="fp16"))
    assert make_backend(Execution(precision="fp16"), fp16, batch) is None
    assert make_backend(Execution(plain=True), TrainStep(model, loss, sgd), batch) is None


def test_a_step_that_somebody_patched_is_called_under_a_scheduler_too():
    model = lenet()
    model(batches()[0][0]).sum().backward()
    for scheduler_first in (True, False):
        optimizer, called = torch.optim.SGD(model.parameters(), lr=0.1, fused=True), []
        if scheduler_first:
            torch.optim.lr_scheduler.StepLR(optimizer, 1)
        optimizer.step = types.MethodType(lambda self, closure=None, called=called: called.append(self), optimizer)
        if not scheduler_first:
            torch.optim.lr_scheduler.StepLR(optimizer, 1)
        before = copy.deepcopy(model.state_dict())
        DirectUpdate(optimizer)()
        assert called == [optimizer] and same(before, model.state_dict())


class OwnZero(torch.optim.SGD):
    """Counts how often its gradients are dropped."""

    dropped = 0

    def zero_grad(self, set_to_none=True):
        self.dropped += 1
        super().zero_grad(set_to_none)


@pytest.mark.parametrize("settings", [{}, {"compile": "gradients"}], ids=str)
def test_a_zero_grad_of_ones_own_is_called(settings, monkeypatch):
    monkeypatch.setattr("surefoot.execution.compiled.by_inductor", lambda graph, arguments: graph)
    monkeypatch.setattr("surefoot.execution.compiled.compiler", lambda: "here")
    model, batch = lenet(), batches()[0]
    patched = torch.optim.SGD(model.parameters(), lr=0.1)
    calls, torchs = [], patched.zero_grad
    patched.zero_grad = lambda set_to_none=True: (calls.append(1), torchs(set_to_none))
    for optimizer in (OwnZero(model.parameters(), lr=0.1), patched):
        step = TrainStep(model, nn.CrossEntropyLoss(), optimizer)
        step.backend = make_backend(Execution(**settings), step, batch)
        for _ in range(3):
            step([batch])
        assert (len(calls) if optimizer is patched else optimizer.dropped) == 3


def test_bf16_takes_inputs_of_any_shape():
    class ByName(nn.Linear):
        def forward(self, batch):
            return super().forward(batch["x"])

    results = []
    for plain in (True, False):
        torch.manual_seed(0)
        model = ByName(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        batch = {"x": torch.ones(4, 3)}, torch.zeros(4, 2)
        settings = Execution(precision="bf16", plain=plain)
        step = TrainStep(model, nn.MSELoss(), optimizer, StepOptions(precision="bf16"))
        step.backend = make_backend(settings, step, batch)
        assert step([batch]).samples == 4
        results.append(model.weight)
    assert torch.equal(*results)


def test_everything_that_prepare_sets_is_put_back():
    model = lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    strides = [p.stride() for p in model.parameters()]
    flags = [dict(group) for group in (optimizer.defaults, *optimizer.param_groups)]
    with prepare(Execution(memory_format="channels_last", optimizer_impl="fused"), model, optimizer):
        assert [p.stride() for p in model.parameters()] != strides
        model(batches()[0][0]).sum().backward()
        optimizer.step()
    assert [p.stride() for p in model.parameters()] == strides
    assert [p.grad.stride() for p in model.parameters()] == strides
    assert [optimizer.state[p]["momentum_buffer"].stride() for p in model.parameters()] == strides
    assert [dict(group) for group in (optimizer.defaults, *optimizer.param_groups)] == flags
    step = TrainStep(model, nn.CrossEntropyLoss(), optimizer, StepOptions(precision="fp16"))
    assert step([batches()[0]]).samples  # GradScaler asks whether it is a fused one


def test_fused_is_refused_for_sparse_gradients_and_parameters_with_gaps():
    model = nn.Sequential(nn.EmbeddingBag(5, 2, sparse=True))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UsageError, match="fused takes no sparse gradients, which 0 gives"):
        prepare(Execution(optimizer_impl="fused"), model, optimizer).__enter__()
    for part, fits in ((slice(0, 2), False), (slice(0, 4), True)):
        assert supports_fused(torch.optim.SGD([nn.Parameter(torch.ones(4, 4)[:, part].t())], lr=0.1)) is fits


def test_fused_is_refused_where_torch_has_none():
    model = lenet()
    optimizer = torch.optim.RMSprop(model.parameters())
    with (
        pytest.raises(UsageError, match="RMSprop has no fused"),
        prepare(Execution(optimizer_impl="fused"), model, optimizer),
    ):
        raise AssertionError


class _MallInfo(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ["arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks"]] + [
        (name, ctypes.c_size_t) for name in ["fsmblks", "uordblks", "fordblks", "keepcost"]
    ]


def test_memory_is_not_mapped_anew_for_each_tensor_after_a_run():
    """A loop of one's own in the same process is as fast after `fit` as before."""
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError):
        pytest.skip("not glibc")
    mallinfo.restype = _MallInfo
    with freed_memory_kept():
        pass
    torch.empty(4 << 20, dtype=torch.uint8)  # freed at once: glibc would now keep blocks of this size
    before = mallinfo().hblks
    held = torch.empty(3 << 20, dtype=torch.uint8)
    assert mallinfo().hblks == before, f"{held.nbytes} bytes were mapped from the system"
