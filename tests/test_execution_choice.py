"""The choice: what it respects, what it throws out, what it remembers, and that measuring leaves no trace."""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import signal
import threading
from dataclasses import replace

import numpy
import pytest
import torch
from torch import nn

from surefoot import Loader, RunOptions, fit, rng
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.execution import (
    CannotCompile,
    Execution,
    TuneTable,
    as_torch_would,
    choose_execution,
    evaluation_batch,
    tune,
)
from surefoot.execution import cache as kept
from surefoot.execution.choose import _settle, cache_key, candidates
from surefoot.execution.limit import TookTooLong, limited
from surefoot.execution.machine import describe_work, digest
from surefoot.execution.measure import Bench, Trial, fastest, race
from surefoot.execution.settings import compile_options, prepare
from surefoot.execution.verify import Observed, first_difference
from surefoot.models import MODELS
from surefoot.step import StepOptions, TrainStep


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def work(size=4):
    torch.manual_seed(0)
    model = MODELS.build("LeNet5", {})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    pairs = [(torch.randn(size, 1, 28, 28), torch.randint(0, 10, (size,))) for _ in range(2)]
    return {"step": TrainStep(model, nn.CrossEntropyLoss(), optimizer), "batches": pairs}


def replaced(step, **options):
    return TrainStep(step.model, step.loss, step.optimizer, StepOptions(**options))


def choose(spec="auto", steps=1000, **changes):
    said = []
    made = work() | changes
    return choose_execution(spec, steps_expected=steps, say=said.append, **made), said


def identical(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b) and a.stride() == b.stride()
    if isinstance(a, dict):
        return list(a) == list(b) and all(identical(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(identical, a, b))
    return a == b


def test_measuring_leaves_no_trace():
    made = work()
    model, optimizer = made["step"].model, made["step"].optimizer
    model.conv1.weight.grad = torch.ones_like(model.conv1.weight)
    optimizer.step()
    threads, onednn = torch.get_num_threads(), torch.backends.mkldnn.enabled

    def everything():
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        tensors = [p.detach().clone() for p in model.state_dict().values()]
        return copy.deepcopy((tensors, optimizer.state_dict(), rng.get_state())), grads

    before, parameters = everything(), list(model.parameters())
    table = tune("auto", budget_s=0.3, say=lambda text: None, **made)
    (state, grads), (state_after, grads_after) = before, everything()
    assert identical(state, state_after)
    for a, b in zip(grads, grads_after, strict=True):
        assert (a is None) == (b is None) and (a is None or torch.equal(a, b))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert (torch.get_num_threads(), torch.backends.mkldnn.enabled) == (threads, onednn)
    assert len(table.rows) > 2


def test_the_table_tells_each_candidate_its_time_and_what_was_decided():
    rows = tune("auto", budget_s=0.2, say=lambda text: None, **work())
    text = rows.render()
    assert "ms a step" in text and text.count("chosen") == 2
    assert all(row.execution.describe() in text for row in rows.rows)
    empty = TuneTable((), Execution(), 0.0).render()
    assert "chosen: cpu, 1 thread, oneDNN" in empty


def test_what_a_recipe_fixes_is_kept():
    plan, _ = choose({"threads": 1, "onednn": True, "memory_format": "auto", "compile": False})
    assert (plan.threads, plan.onednn, plan.compile) == (1, True, "none")
    fixed = {"threads": 2, "onednn": False, "memory_format": "channels_last", "optimizer_impl": "foreach"}
    plan, _ = choose(fixed | {"compile": False})
    assert plan == Execution(**fixed)
    with pytest.raises(UsageError, match="unknown key thread"):
        choose({"thread": 1})
    with pytest.raises(UsageError, match="neither auto nor plain nor a mapping"):
        choose("fast")
    with pytest.raises(UsageError, match="compile: 'step' is not one of none, gradients, module"):
        choose({"compile": "step"})
    with pytest.raises(UsageError, match="threads: 0 is not a whole number of 1 or more"):
        choose({"threads": 0})
    with pytest.raises(UsageError, match="compile: 1 is not one of"):
        choose({"compile": 1})


class Moves(nn.Module):
    """Each update in training moves what the next one is made of: a codebook among its buffers, a counter."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.updates = nn.Linear(784, 16), nn.Linear(16, 10), 0
        self.register_buffer("book", torch.ones(16))

    def forward(self, images):
        self.updates += 1
        hidden = self.first(images.flatten(1)) - self.book * math.sin(self.updates)
        with torch.no_grad():
            self.book.mul_(0.9).add_(hidden.mean(0), alpha=0.1)
        return self.last(hidden)


@pytest.mark.parametrize("what", ["a parameter of no optimizer", "a state of its own", "spectral norm"])
def test_what_updates_move_is_held_against_nothing(what):
    """A copy that was timed has made other updates than the one that it is compared with."""
    torch.manual_seed(0)
    model = Moves() if what == "a state of its own" else MODELS.build("LeNet5", {})
    if what == "spectral norm":
        for name in ("fc1", "fc2"):
            torch.nn.utils.parametrizations.spectral_norm(getattr(model, name))
    parameters = [p for p in model.parameters() if p.dim() == 1 or what != "a parameter of no optimizer"]
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(parameters, lr=0.01))
    made = work() | {"step": step}
    said = []
    table = tune({"compile": False}, **made, budget_s=0.5, thorough=True, say=said.append)
    assert said == [] and not [row.verdict for row in table.rows if "thrown out" in row.verdict]


def test_compiling_is_tried_where_it_is_asked_for_and_falls_back_with_a_word(monkeypatch):
    def refuses(*args, **settings):
        raise CannotCompile("a reason")

    monkeypatch.setattr("surefoot.execution.backends.compile_step", refuses)
    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: None)
    monkeypatch.setattr("torch.compile", refuses)
    # The layout is fixed: where the race preferred another, which hangs on the load, there would be a form more.
    for _ in range(2):  # again in the next run, which may have what this one lacks
        plan, said = choose({"compile": True, "memory_format": "contiguous"}, steps=1)
        assert plan.compile == "none"
        assert sum("compiling the step (about 10 s, once)" in text for text in said) == 2
        assert sum("the compiled step is not used: a reason" in text for text in said) == 2
    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: "there is no compiler")
    assert choose({"compile": True, "threads": 1}, steps=1)[1] == ["the step is not compiled: there is no compiler"]


def test_compiling_is_tried_by_itself_only_where_the_run_earns_it(monkeypatch):
    tried = []
    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: None)
    monkeypatch.setattr(
        "surefoot.execution.backends.compile_step", lambda *_, **settings: tried.append(settings) or 1 / 0
    )
    with monkeypatch.context() as dear:
        dear.setattr("surefoot.execution.forms.COMPILE_S", 1e9)
        choose(steps=10**6)
    assert tried == []
    choose(steps=10**9)
    assert tried


def test_compiling_is_given_up_when_it_takes_longer_than_it_would_save(monkeypatch):
    """And what the process had on its timer is there again."""

    left = []

    def endless(*args, **settings):
        left.append(signal.getitimer(signal.ITIMER_REAL)[0])
        signal.raise_signal(signal.SIGALRM)  # what the timer does when the time is up

    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: None)
    monkeypatch.setattr("surefoot.execution.forms.LONGEST_COMPILE_S", 1e5)
    # A model with pools that is faster with its channels last has one form more to try, for which no time is left.
    forms = [{"compile": "gradients"}] * 2
    monkeypatch.setattr("surefoot.execution.choose.compiled_forms", lambda *_: forms)
    monkeypatch.setattr("surefoot.execution.backends.compile_step", endless)
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, 1e6)
    try:
        plan, said = choose(steps=10**9)
        assert plan.compile == "none"
        assert sum("the compiled step is not used: compiling took too long" in text for text in said) == 1
        assert len(left) == 1 and 0 < left[0] <= 1e5
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 1e5
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_what_was_asked_for_may_take_its_time_and_so_may_other_threads():
    with limited(None, "this"):
        assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    with pytest.raises(TookTooLong, match="this took more than 0 s"), limited(0.01, "this"):
        while True:
            signal.pause()

    def work():
        with limited(0.01, "this"):
            seen.append(signal.getitimer(signal.ITIMER_REAL))

    seen = []
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(0, 0)] and signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_interrupt_that_comes_after_the_end_is_none_and_anothers_timer_goes_on():
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    clock = iter([0.0, 600.0, 600.0, 2000.0])
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("surefoot.execution.limit.time.monotonic", lambda: next(clock))
            signal.setitimer(signal.ITIMER_REAL, 1000)
            with limited(100, "this"):
                interrupt = signal.getsignal(signal.SIGALRM)
            assert 300 < signal.getitimer(signal.ITIMER_REAL)[0] <= 400
            assert interrupt(signal.SIGALRM, None) is None
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            signal.setitimer(signal.ITIMER_REAL, 1000)
            with limited(100, "this"):
                pass
            assert 0 <= signal.getitimer(signal.ITIMER_REAL)[0] < 1  # it was due meanwhile
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_short_run_is_not_measured():
    plan, _ = choose(steps=20)
    assert plan == as_torch_would()


def test_the_choice_is_kept_for_the_same_work_and_no_other(monkeypatch):
    first, _ = choose({"threads": 1, "compile": False})
    files = list(kept.directory().glob("*.json"))
    assert len(files) == 1
    # What is in the file is what is taken: another choice written there comes back.
    data = json.loads(files[0].read_text())
    assert Execution.from_json(data["execution"]) == first
    data["execution"] = replace(first, optimizer_impl="for_loop").to_json()
    files[0].write_text(json.dumps(data))
    fixed = {"threads": 1, "compile": False}
    assert choose(fixed)[0].optimizer_impl == "for_loop"
    assert choose(fixed, batches=work(size=5)["batches"])[0].optimizer_impl != "for_loop"
    monkeypatch.setattr("surefoot.execution.machine.__version__", "0.0.0")
    assert choose(fixed)[0].optimizer_impl != "for_loop"


def kept_choice(**changes):
    return json.dumps({"format": kept.FORMAT, "execution": Execution(**changes).to_json()})


DAMAGE = {
    "empty": "",
    "cut": "{",
    "a list": "[]",
    "another format": '{"format": 99, "execution": {}}',
    "no threads": json.dumps({"format": kept.FORMAT, "execution": {"threads": -1}}),
    "huge threads": kept_choice(threads=100_000),
    "another device": kept_choice(device="evil"),
    "another precision": kept_choice(precision="bf16"),
    "deep": "[" * 60_000,
    "large": " " * (kept.MOST_BYTES + 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_kept_choice_that_cannot_be_believed_is_measured_again(damage):
    spec = {"threads": 1, "compile": False}
    choose(spec)
    file = next(kept.directory().glob("*.json"))
    file.write_text(DAMAGE[damage])
    plan, said = choose(spec)
    assert plan.threads == 1 and json.loads(file.read_text())["execution"] == plan.to_json()
    assert any("measured anew" in text for text in said) or damage == "another format"


@pytest.mark.parametrize("kind", ["a FIFO", "a link to a device", "a link to a file", "a directory"])
def test_only_a_regular_file_is_read(kind, tmp_path):
    spec = {"threads": 1, "compile": False}
    choose(spec)
    file = next(kept.directory().glob("*.json"))
    right = file.read_text()
    file.unlink()
    if kind == "a FIFO":
        os.mkfifo(file)
    elif kind == "a directory":
        file.mkdir()
    else:
        (tmp_path / "target").write_text(right)
        file.symlink_to("/dev/zero" if kind == "a link to a device" else tmp_path / "target")
    _, said = choose(spec)
    assert any("measured anew" in text for text in said)


def test_what_is_kept_can_be_forgotten():
    choose({"threads": 1, "compile": False})
    other = kept.directory() / "notes.json"
    other.write_text("{}")
    assert kept.forget() == 1
    assert list(kept.directory().iterdir()) == [other]


def test_tune_keeps_its_choice_for_the_next_run(capsys):
    fixed = ["execution={threads: 1, compile: none}", "data.train_size=64", "data.val_size=16", "data.batch_size=8"]
    assert main(["tune", "quickstart", *fixed, "--seconds", "0.5"]) == 0
    (file,) = kept.directory().glob("*.json")
    assert "kept: the next run of this recipe begins with it" in capsys.readouterr().out
    assert main(["tune", "--forget"]) == 0
    assert not file.exists() and "1 kept choice removed" in capsys.readouterr().out


@pytest.mark.parametrize("spec", [{"threads": 1}, {"threads": 1, "compile": False}])
def test_the_choice_is_the_lowest_row_or_a_simpler_one_as_good(monkeypatch, spec):
    """Also where the winner of the first race falls behind in the second: its first turns were lucky."""

    def time(self, trial, steps=None):
        e = trial.execution
        lucky = not e.onednn and e.optimizer_impl != "fused"
        ms = 0.8 + 0.4 * (len(trial.times) > 2) if lucky else 0.84 if e.memory_format == "channels_last" else 1.0
        trial.times.append(ms / 1000)

    monkeypatch.setattr(Bench, "time", time)
    table = tune(spec, budget_s=600, say=lambda text: None, **work())
    chosen = next(row for row in table.rows if row.verdict == "chosen")
    sound = [row.ms for row in table.rows if row.ms is not None and "thrown out" not in row.verdict]
    assert chosen.ms <= 1.03 * min(sound) + 1e-9
    assert chosen.execution.memory_format == "channels_last" and chosen.ms == pytest.approx(0.84)


def test_tune_begins_no_compilation_for_which_there_is_no_time(monkeypatch):
    monkeypatch.setattr("surefoot.execution.forms.why_not", lambda *_: None)
    monkeypatch.setattr("surefoot.execution.backends.compile_step", lambda *_, **__: pytest.fail("was compiled"))
    table = tune({"threads": 1}, budget_s=0.5, thorough=True, steps_expected=10**9, say=lambda text: None, **work())
    verdicts = [row.verdict for row in table.rows if row.execution.compile != "none"]
    assert verdicts and all(v.startswith("not tried: compiling takes about 10 s") for v in verdicts)


def test_what_there_is_only_a_plain_step_for_is_not_measured():
    for options in ({"precision": "fp16"}, {"grad_accum_steps": 2}):
        step = TrainStep(nn.Linear(2, 2), nn.MSELoss(), torch.optim.SGD([torch.zeros(1)], lr=1), StepOptions(**options))
        batch = (torch.zeros(2, 2), torch.zeros(2, 2))
        chosen, said = choose({"compile": True}, step=step, batches=[batch])
        assert chosen.compile == "none" and "the step is not compiled" in said[0]
    assert choose("plain")[0] == replace(as_torch_would(), plain=True)


def test_a_model_without_a_copy_is_not_measured_and_says_so():
    made = work()
    made["step"].model.handle = open(os.devnull)  # noqa: SIM115
    with made["step"].model.handle:
        chosen, said = choose(**made)
    assert chosen == as_torch_would()
    assert said[0].startswith("nothing is measured: the model cannot be copied: model.handle: TypeError")


def test_where_no_batch_is_finite_nothing_is_measured_or_kept(tmp_path):
    made = work()
    made["step"] = replaced(made["step"], on_nonfinite="skip")
    for images, _ in made["batches"]:
        images.fill_(float("nan"))
    random = torch.get_rng_state()
    chosen, said = choose(**made)
    assert chosen == as_torch_would() and said == ["nothing is measured: the loss is nan"]
    assert not list((tmp_path / "cache").rglob("*.json"))
    assert torch.equal(torch.get_rng_state(), random)


def test_a_batch_that_is_not_finite_is_left_out_of_measuring():
    made = work()
    made["batches"][0][0].fill_(float("nan"))
    with Bench(**made) as bench:
        assert len(bench.batches) == 1 and bench.batches[0] is made["batches"][1]
        assert math.isfinite(float(bench.expected[0].losses[0]))
        trial = Trial(Execution())
        bench.time(trial)
        assert bench.check(trial) and trial.times


def test_a_candidate_whose_loss_is_nan_where_eagers_is_not_is_thrown_out():
    class Overflows(nn.Linear):
        def forward(self, x):
            return super().forward(x) if torch.backends.mkldnn.enabled else super().forward(x) * float("nan")

    model = Overflows(4, 3)
    batch = torch.randn(8, 4), torch.randint(3, (8,))
    trial = Trial(Execution(onednn=False))
    with Bench(TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)), [batch]) as bench:
        assert not bench.check(trial)
    assert trial.refused == (
        "it differs from eager by more than rounding: it says: the loss is nan, where eager says: all is finite"
    )


def test_a_cache_that_cannot_be_written_is_said_and_no_error(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    _, said = choose()
    assert any("not kept for the next run" in text for text in said)


def test_an_edited_forward_is_other_work():
    class A(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    class B(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 3

    B.__qualname__ = A.__qualname__
    digests = []
    for kind in (A, B):
        model = kind(3, 3)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        digests.append(digest(describe_work(model, nn.MSELoss(), optimizer, (torch.zeros(2, 3), torch.zeros(2, 3)))))
    assert digests[0] != digests[1]


@pytest.mark.parametrize("rate", [1, 0.1, numpy.float32(0.1), torch.tensor(0.1)])
@pytest.mark.parametrize("value", [numpy.ones(3), torch.ones(3)])
def test_groups_may_hold_rates_and_values_of_any_kind(rate, value):
    model = nn.Linear(3, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    optimizer.param_groups[0]["own"] = value
    batch = torch.zeros(2, 3), torch.zeros(2, 3)
    step = TrainStep(model, nn.MSELoss(), optimizer)
    assert json.dumps(describe_work(model, nn.MSELoss(), optimizer, batch))
    with Bench(step, [batch]) as bench:
        assert [float(copied.optimizer.param_groups[0]["lr"]) for copied in bench._copies.values()] == [0.0]
    assert optimizer.param_groups[0]["lr"] is rate


class Views(nn.Module):
    """Stands no channels_last: `view` wants contiguous activations."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4 * 6 * 6, 10)

    def forward(self, x):
        return self.linear(self.conv(x).view(len(x), -1))


def test_a_candidate_that_fails_is_thrown_out_with_the_reason():
    model = Views()
    made = {
        "step": TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1)),
        "batches": [(torch.randn(4, 3, 8, 8), torch.randint(0, 10, (4,)))],
    }
    table = tune({"onednn": True}, budget_s=5.0, say=lambda text: None, **made)
    (verdict,) = {r.verdict for r in table.rows if r.execution.memory_format == "channels_last"}
    assert verdict.startswith("thrown out: it fails: RuntimeError: view size is not compatible")
    assert table.best.memory_format == "contiguous"


class WrongWithoutOneDNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.linear = nn.Linear(2 * 6 * 6, 3)

    def forward(self, x):
        y = self.conv(x)
        if not torch.backends.mkldnn.enabled:
            y = y.detach()
        return self.linear(y.flatten(1))


def test_a_candidate_with_wrong_gradients_is_thrown_out_by_the_parameters_name():
    torch.manual_seed(0)
    model = WrongWithoutOneDNN()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    pairs = [(torch.randn(4, 1, 8, 8), torch.randint(0, 3, (4,)))]
    right, wrong = Trial(Execution(), [1.0]), Trial(Execution(onednn=False), [0.1])
    said = []
    with Bench(TrainStep(model, nn.CrossEntropyLoss(), optimizer), pairs) as bench:
        assert _settle(bench, [right, wrong], False, said.append) is right
    assert said == [
        "cpu, 1 thread, oneDNN off is not used: it differs from eager by more than rounding: "
        f"the gradient of conv.weight is missing where eager has a 2-norm of {norm(bench, 'conv.weight'):.3g}"
    ]


def norm(bench, name):
    return float(bench.expected[0].gradients[0][name].norm())


def test_among_equals_the_first_is_taken():
    plain, other = Trial(Execution(threads=1), [1.0, 1.0]), Trial(Execution(threads=2), [0.99, 0.99])
    assert fastest([plain, other]) is plain
    other.times = [0.9, 0.9]
    assert fastest([plain, other]) is other
    other.refused = "wrong"
    assert fastest([plain, other]) is plain
    plain.refused = "wrong"
    assert fastest([plain, other]) is None


def test_a_race_keeps_to_its_budget():
    """Every candidate gets its first turn while there is time; the first one always."""
    made = work()
    calls = []

    class Counting(Bench):
        def time(self, trial, steps=None):
            calls.append(trial)
            trial.times.append(1.0)

    with Counting(**made) as bench:
        trials = [Trial(Execution(threads=1)), Trial(Execution(threads=2))]
        race(bench, trials, budget_s=0.0)
        assert calls == trials[:1]


def gradients(loss, by_name):
    return Observed([torch.tensor(loss)], gradients=[by_name])


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"w": torch.zeros(3)}, "all zeros"),
        ({"w": torch.ones(3) * 1.01}, "off by 1.00%"),
        ({"w": None}, "the gradient of w is missing"),
        ({"w": torch.full((3,), torch.nan)}, "the gradient of w is off by nan"),
        ({"w": torch.ones(2)}, "has shape (2,) where eager has (3,)"),
        ({"w": torch.ones(3), "v": torch.ones(1)}, "the gradient of v is there where eager has none"),
    ],
)
def test_a_difference_names_the_parameter(found, words):
    expected = gradients(1.0, {"w": torch.ones(3), "v": None})
    assert words in first_difference(expected, gradients(1.0, found))


def test_what_one_of_the_two_refuses_is_a_difference():
    sound, refused = gradients(1.0, {"w": torch.ones(3)}), Observed(refused="the loss is nan")
    assert first_difference(sound, refused) == "it says: the loss is nan, where eager says: all is finite"
    assert first_difference(refused, sound) == "it says: all is finite, where eager says: the loss is nan"


def test_rounding_is_no_difference_and_another_loss_is():
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(100, generator=generator)
    expected = gradients(1.0, {"w": grad, "silent": torch.full((4,), 1e-9)})
    rounded = {"w": grad * (1 + 1e-5), "silent": -torch.full((4,), 1e-9)}
    assert first_difference(expected, gradients(1.00001, rounded)) is None
    assert "the loss is 1.1" in first_difference(expected, gradients(1.1, expected.gradients[0]))


@pytest.mark.parametrize(
    ("convolution", "unsound"),
    [
        (nn.Conv2d(4, 8, 1, stride=2), True),
        (nn.Conv2d(4, 8, 1, stride=(1, 2)), True),
        (nn.Conv2d(16, 8, 1, stride=2), False),
        (nn.Conv2d(4, 8, 1), False),
        (nn.Conv2d(4, 8, 3, stride=2), False),
        (nn.LazyConv2d(8, 1, stride=2), False),
    ],
)
def test_channels_last_is_neither_tried_nor_taken_where_onednn_writes_beyond_its_memory(convolution, unsound):
    """Where it is wrong (a CPU without AVX-512, torch 2.13) the process dies: one that dies cannot be compared."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), convolution)
    cpu, gpu = Execution(), Execution(device="cuda")
    layouts = [{e.memory_format for e in candidates(plain, {}, model)} for plain in (cpu, gpu)]
    assert layouts == [{"contiguous"} if unsound else {"contiguous", "channels_last"}, {"contiguous", "channels_last"}]
    assert compile_options(model) == ({"layout_optimization": False} if unsound else None)
    refused = pytest.raises(UsageError, match="1 is a strided 1x1 convolution") if unsound else contextlib.nullcontext()
    with refused, prepare(Execution(memory_format="channels_last"), model):
        pass
    with prepare(Execution(memory_format="channels_last", onednn=False), model):
        assert model[0].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_choice_of_that_layout_by_an_earlier_version_is_not_taken():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 1, stride=2), nn.Flatten(), nn.LazyLinear(3))
    batch = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
    model(batch[0])
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    fixed = {"threads": 1, "onednn": True}
    key = cache_key(fixed, step, batch, 1000)
    kept.save(key, Execution(threads=1, memory_format="channels_last"), {"tried": {}, "machine": {}}, print)
    assert kept.load(key, as_torch_would(), print).memory_format == "channels_last"
    chosen, _ = choose(fixed, step=step, batches=[batch])
    assert chosen.memory_format == "contiguous"


def test_candidates_are_those_that_can_matter():
    plain = Execution(threads=4)
    convolution, linear = MODELS.build("LeNet5", {}), nn.Linear(3, 3)
    threads = [e.threads for e in candidates(plain, {}, linear)]
    assert threads == [1, 2, 4]  # a busy machine is no place to begin with all of its threads
    assert plain in candidates(plain, {}, convolution)
    assert {e.memory_format for e in candidates(plain, {}, convolution)} == {"contiguous", "channels_last"}
    assert {e.memory_format for e in candidates(plain, {}, linear)} == {"contiguous"}
    assert [e.threads for e in candidates(plain, {"threads": 4}, linear)] == [4]


def test_evaluation_takes_large_batches_that_fit_the_cache_and_leaves_no_trace():
    model = MODELS.build("LeNet5", {})
    state = torch.get_rng_state()
    assert evaluation_batch(model, torch.zeros(1, 1, 28, 28)) == 512
    assert model.training and torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks for m in model.modules())
    assert evaluation_batch(nn.Conv2d(3, 64, 3, padding=1), torch.zeros(1, 3, 224, 224)) == 16


def test_a_candidate_that_raises_an_error_without_text_is_thrown_out():
    class Picky(nn.Linear):
        def forward(self, x):
            if not torch.backends.mkldnn.enabled:
                raise AssertionError
            return super().forward(x)

    model = Picky(4, 3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = torch.randn(8, 4), torch.randint(3, (8,))
    trial = Trial(Execution(onednn=False))
    with Bench(TrainStep(model, nn.CrossEntropyLoss(), optimizer), [batch]) as bench:
        bench.time(trial)
    assert trial.refused == "it fails: AssertionError"


def test_a_step_that_fails_on_a_later_batch_is_not_measured():
    made = work()
    made["batches"][1] = (made["batches"][1][0], torch.full((4,), 10))
    assert choose(**made)[1] == ["nothing is measured: the step fails: IndexError: Target 10 is out of bounds."]


def in_channels_last(channels=8):
    layers = nn.Conv2d(3, channels, 3), nn.ReLU(), nn.Conv2d(channels, 4, 1, stride=2), nn.Flatten(), nn.Linear(64, 3)
    return nn.Sequential(*layers).to(memory_format=torch.channels_last)


@pytest.mark.parametrize("spec", ["auto", "plain", {"threads": 1}, {"onednn": False}])
def test_a_model_in_channels_last_is_trained_so_unless_another_layout_is_asked_for_or_faster(spec):
    model = in_channels_last(channels=16)  # as many as oneDNN's 1x1 convolution is sound with
    pair = (torch.zeros(2, 3, 9, 9), torch.zeros(2, dtype=torch.int64))
    step = TrainStep(model, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.1))
    chosen, _ = choose(spec, steps=10, step=step, batches=[pair])
    assert chosen.memory_format == "channels_last"
    assert choose({"memory_format": "contiguous"}, steps=10, step=step, batches=[pair])[0].memory_format == "contiguous"
    assert {e.memory_format for e in candidates(chosen, {}, model)} == {"contiguous", "channels_last"}
    assert chosen in candidates(chosen, {"threads": 1, "onednn": False}, model)


def test_a_model_lies_as_torch_has_it_while_it_is_lazy_and_where_onednn_would_write_beyond_its_memory():
    assert as_torch_would(model=in_channels_last(channels=16)).memory_format == "channels_last"
    assert as_torch_would(model=in_channels_last(channels=4)).memory_format == "contiguous"
    assert as_torch_would(model=nn.LazyConv2d(3, 3)).memory_format == "contiguous"


def test_a_model_in_channels_last_gets_the_bits_of_a_plain_loop():
    images, labels = torch.randn(24, 3, 9, 9).to(memory_format=torch.channels_last), torch.randint(0, 3, (24,))

    def made():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 3, 7), nn.Flatten())
        model = model.to(memory_format=torch.channels_last)
        return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), nn.CrossEntropyLoss()

    model, optimizer, loss = made()
    options = RunOptions(progress=False, execution="plain")
    fit(model, loss, optimizer, Loader((images, labels), batch_size=8), epochs=2, run=options)
    by_hand, optimizer, loss = made()
    loader = Loader((images, labels), batch_size=8)
    while loader.epoch < 2:
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss(by_hand(inputs), targets).backward()
            optimizer.step()
    for one, other in zip(model.state_dict().values(), by_hand.state_dict().values(), strict=True):
        assert torch.equal(one, other) and one.stride() == other.stride()
