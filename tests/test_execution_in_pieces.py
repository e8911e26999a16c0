"""Settings of a model under FSDP2: which there are, and that what would make other bits is refused."""

from __future__ import annotations

import inspect
import json
import warnings

import pytest
import torch
from ranks import run_ranks
from test_fit_exact_ranks import rows
from torch import nn
from torch.distributed.fsdp._fully_shard import _fsdp_state

import surefoot
from surefoot.errors import UsageError
from surefoot.execution import Execution, asked_in_pieces, choose, measure, require_in_pieces
from surefoot.execution.measure import Bench
from surefoot.models import GPT
from surefoot.sharding import alike_anywhere
from surefoot.step import TrainStep
from surefoot.world import World


def of(kind, **options):
    return kind([nn.Parameter(torch.ones(3))], lr=0.1, **options)


SGD, ADAMW = of(torch.optim.SGD), of(torch.optim.AdamW)
LEFT = {"memory_format": "contiguous", "compile": "none", "optimizer_impl": "default"}


@pytest.mark.parametrize(
    ("spec", "asked"),
    [
        ("auto", LEFT),
        ("plain", "plain"),
        ({"compile": True, "threads": 2}, {**LEFT, "compile": "module", "threads": 2}),
        ({"compile": "module"}, {**LEFT, "compile": "module"}),
        ({"optimizer_impl": "fused"}, {**LEFT, "optimizer_impl": "fused"}),
    ],
)
def test_what_is_fixed_for_a_model_in_pieces(spec, asked):
    assert asked_in_pieces(spec, ADAMW) == asked


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"compile": "gradients"}, "compile: gradients of a model in pieces are not one graph .*; leave it out"),
        ({"memory_format": "channels_last"}, "do not lie in channels_last"),
        ({"optimizer_impl": "fused"}, "torch has no fused SGD"),
    ],
)
def test_what_a_model_in_pieces_cannot_have_is_refused(spec, message):
    with pytest.raises(UsageError, match=f"^execution: .*{message}"):
        asked_in_pieces(spec, SGD)
    with pytest.raises(UsageError, match="^parallel: fsdp2: this run was begun with .*; go on with parallel: ddp"):
        require_in_pieces(Execution(**spec), SGD)


def test_fused_kernels_do_not_make_the_same_bits_of_other_pieces():
    assert alike_anywhere(ADAMW) and not alike_anywhere(ADAMW, fused=True)
    assert not alike_anywhere(of(torch.optim.AdamW, fused=True))


def fitted(world, folder, parallel, optimizer="AdamW", **more):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    run = surefoot.RunOptions(
        progress=False, micro_batches=4, tensorboard=False, world=world, parallel=parallel, lint_off=["all"], **more
    )
    made = getattr(torch.optim, optimizer)(net.parameters(), lr=0.01)
    arguments = {"epochs": 2, "batch_size": 8, "seed": 3, "run_dir": folder, "metrics": (), "run": run}
    surefoot.fit(net, nn.CrossEntropyLoss(), made, rows(32), resume=True, **arguments)
    return json.loads((folder / "run.json").read_text())["execution"]


def measured(world, folder):
    torch.set_num_threads(1)
    tried = []

    def tune(spec, step, *arguments, **options):
        table = own(spec, step, *arguments, **options)
        tried.append([all(type(p) is nn.Parameter for p in step.model.parameters()), spec, len(table.rows)])
        return table

    own = choose.tune
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choose, "tune", tune)
        patch.setattr(choose, "WORTH_MEASURING_STEPS", 1)
        return tried, fitted(world, folder, "fsdp2")


def test_settings_are_measured_before_a_model_is_cut(tmp_path):
    first, second = run_ranks(2, measured, tmp_path)
    assert first == second
    (whole, spec, rows), settings = first[0][0], first[1]
    assert whole and rows >= 1 and spec == {**LEFT, "threads": 1}
    assert settings["optimizer_impl"] == "default" and settings["memory_format"] == "contiguous"


def refused_in_pieces(world, folder, optimizer):
    torch.set_num_threads(1)
    with pytest.raises(UsageError) as caught:
        fitted(world, folder, "fsdp2", optimizer)
    return str(caught.value)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [("SGD", "torch has no fused SGD for parameters in pieces"), ("AdamW", "world.ranks: was any, is 2")],
)
def test_a_run_with_a_fused_optimizer_does_not_go_on_in_pieces(tmp_path, optimizer, message):
    assert fitted(World.alone(), tmp_path, "ddp", optimizer, execution={"optimizer_impl": "fused"})
    for told in run_ranks(2, refused_in_pieces, tmp_path, optimizer):
        assert message in told, told


def own_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs, targets)


def warned(world):
    torch.set_num_threads(1)
    said = []
    for loss in (nn.CrossEntropyLoss(), own_loss):
        torch.manual_seed(0)
        net = GPT(classes=5, length=4, width=8, depth=2, heads=2)
        tokens = torch.arange(32).view(8, 4) % 5
        run = surefoot.RunOptions(progress=False, world=world, parallel="fsdp2", lint_off=["all"])
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            optimizer = torch.optim.AdamW(net.parameters())
            surefoot.fit(net, loss, optimizer, (tokens, tokens), epochs=1, batch_size=8, run=run, metrics=())
        said.append(any("returned a view tensor" in str(each.message) for each in caught))
    return said


def test_torchs_warning_of_outputs_that_are_views_is_heard_only_where_a_loss_might_write_to_them():
    gives = "returned a view tensor" in inspect.getsource(_fsdp_state)  # torch 2.10 does not
    assert run_ranks(2, warned) == [[False, gives]] * 2


def test_nothing_is_measured_where_copies_of_the_model_would_not_fit(monkeypatch):
    monkeypatch.setattr(measure, "free_bytes", lambda device: 1000)
    net = nn.Linear(20, 20)
    step = TrainStep(net, nn.MSELoss(), torch.optim.SGD(net.parameters(), 0.1))
    batches, said = [(torch.ones(4, 20), torch.ones(4, 20))], []
    with (
        pytest.raises(UsageError, match=r"copies of the model would take .* GB of memory, of which .* are free"),
        Bench(step, batches),
    ):
        pass
    found = choose.choose_execution("auto", step, batches, steps_expected=1000, cache=False, say=said.append)
    assert found == choose.as_torch_would() and said[0].startswith("nothing is measured: copies of the model")
