"""What a resume refuses: other objects, other conditions, other code; what cannot be saved."""

from __future__ import annotations

import json

import pytest
import torch
from saving import model, saver_for
from torch import nn

from surefoot.arguments import plain
from surefoot.checkpoint import Change, Checkpointer, ConditionsChanged, code_of, object_states, scan
from surefoot.checkpoint.conditions import compare, environment, require_same
from surefoot.errors import UsageError


def test_a_finished_run_resumes_to_its_end(run_dir):
    with saver_for(run_dir) as saver:
        assert saver.resume() is None
        saver.step()
    assert json.loads((run_dir / "run.json").read_text())["status"] == "done"
    with saver_for(run_dir) as saver:
        assert saver.resume().step == 1


def test_starting_over_is_never_silent(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    with saver_for(run_dir) as saver, pytest.raises(UsageError, match="call resume"):
        saver.step()
    for status in scan(run_dir):
        for path in status.path.iterdir():
            path.unlink()
        status.path.rmdir()
    with saver_for(run_dir) as saver, pytest.raises(UsageError, match="its checkpoints are gone"):
        saver.resume()


def test_a_param_group_that_a_loop_added_is_to_be_added_before_resume(run_dir):
    def made(groups):
        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        optimizer = torch.optim.SGD(net[0].parameters(), lr=0.1)
        if groups == 2:
            optimizer.add_param_group({"params": net[1].parameters()})
        return Checkpointer(run_dir, model=net, optimizer=optimizer)

    with made(2) as saver:
        saver.resume()
        saver.step()
    with made(1) as saver, pytest.raises(UsageError, match=r"2 parameter groups .* 1 here; add .* before resume\(\)"):
        saver.resume()
    with made(2) as saver:
        assert saver.resume().step == 1


def test_all_differences_are_told_at_once_and_nothing_changes(run_dir):
    old = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with saver_for(run_dir, old) as saver:
        saver.step()
    new = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2, bias=False), nn.BatchNorm1d(2))
    before = [tensor.clone() for tensor in new.state_dict().values()]
    with saver_for(run_dir, new) as saver, pytest.raises(UsageError) as caught:
        saver.resume()
    text = str(caught.value)
    for told in (
        "'0.weight' is float32 (4, 3) in the checkpoint and float32 (5, 3) in the model",
        "'1.bias' is in the checkpoint and not in the model",
        "'2.running_mean' is in the model and not in the checkpoint",
        "optimizer: group 0 holds other parameters",
    ):
        assert told in text
    assert all(map(torch.equal, before, new.state_dict().values()))


def test_a_dtype_that_differs_is_refused(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    with saver_for(run_dir, model().double()) as saver, pytest.raises(UsageError, match=r"float32 .* float64"):
        saver.resume()


def test_a_state_that_an_object_refuses_in_its_own_way_leaves_all_as_they_were(run_dir):
    class Counter:
        def __init__(self, count):
            self.count = count

        def state_dict(self):
            return {"count": self.count}

        def load_state_dict(self, state):
            if state["count"] != self.count:
                raise AssertionError

    with saver_for(run_dir, box={"a": 1}, counter=Counter(2)) as saver:
        saver.step()
    box = {"a": 5}
    with saver_for(run_dir, box=box, counter=Counter(3)) as saver:
        with pytest.raises(UsageError, match="counter: its load_state_dict refused the checkpoint's state: Assertion"):
            saver.resume()
        assert box == {"a": 5}


def test_what_an_object_of_ours_refuses_is_told_in_its_own_words(run_dir):
    class Ours:
        def state_dict(self):
            return {"count": 1}

        def load_state_dict(self, state):
            raise UsageError("the run had 1 epoch", code="resume-length")

    with saver_for(run_dir, ours=Ours()) as saver:
        saver.step()
    with saver_for(run_dir, ours=Ours()) as saver, pytest.raises(UsageError) as caught:
        saver.resume()
    assert str(caught.value) == "the run had 1 epoch" and caught.value.code == "resume-length"


@pytest.mark.parametrize("place", ["groups", "frozen"])
def test_names_that_are_none_are_refused(place):
    net = model()
    objects = {"model": net, "optimizer": torch.optim.SGD(net.parameters(), lr=0.1)}
    tree = object_states.get_state(objects)
    if place == "groups":
        tree["optimizers"]["optimizer"]["groups"][0]["params"] = [[1], [2]]
    else:
        tree["modules"]["model"]["frozen"] = [[1]]
    assert len(object_states.problems(objects, tree)) == 1


def test_missing_and_surplus_objects_are_refused(run_dir):
    net = model()
    with Checkpointer(run_dir, model=net, scaler=torch.amp.GradScaler("cpu"), box={}, every="1 step") as saver:
        saver.step()
    with Checkpointer(run_dir, model=net, other={}) as saver, pytest.raises(UsageError) as caught:
        saver.resume()
    assert "other: its state is missing" in str(caught.value) and "scaler: the checkpoint holds" in str(caught.value)


def test_another_optimizer_is_refused(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    net = model()
    with (
        Checkpointer(run_dir, model=net, optimizer=torch.optim.AdamW(net.parameters())) as saver,
        pytest.raises(UsageError, match="is SGD in the checkpoint and AdamW here"),
    ):
        saver.resume()


def test_another_scheduler_is_refused(run_dir):
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    step, cosine = torch.optim.lr_scheduler.StepLR, torch.optim.lr_scheduler.CosineAnnealingLR
    with Checkpointer(run_dir, model=net, scheduler=step(optimizer, 2), every="1 step") as saver:
        saver.step()
    with (
        Checkpointer(run_dir, model=net, scheduler=cosine(optimizer, 2)) as saver,
        pytest.raises(UsageError, match="scheduler state differs"),
    ):
        saver.resume()


def test_untied_weights_are_refused(run_dir):
    def tied(same: bool) -> nn.Module:
        net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        if same:
            net[1].weight = net[0].weight
        return net

    with Checkpointer(run_dir, model=tied(True), every="1 step") as saver:
        saver.step()
    with Checkpointer(run_dir, model=tied(False)) as saver, pytest.raises(UsageError, match="tied names"):
        saver.resume()


@pytest.mark.parametrize(
    ("objects", "told"),
    [
        ({}, "nothing to save"),
        ({"thing": object()}, "has no state_dict"),
        ({"box": {"f": len}}, "objects/box/f: a builtins.builtin_function"),
        ({"model": nn.LazyLinear(2)}, "run one batch"),
        ({"box": {}, "conditions": {"a": [object()]}}, "conditions: a: ..object object at .* is no plain value"),
    ],
)
def test_what_cannot_be_saved_is_told_before_anything_is_written(run_dir, objects, told):
    with pytest.raises(UsageError, match=told):
        Checkpointer(run_dir, **objects)
    assert not run_dir.exists()


def test_changed_conditions_are_refused_field_by_field_and_allowed_by_name(run_dir):
    with saver_for(run_dir, conditions={"recipe.seed": 0, "data": "abc"}) as saver:
        saver.step()
    now = {"recipe.seed": 1, "data": "abd"}
    with saver_for(run_dir, conditions=now) as saver, pytest.raises(ConditionsChanged) as caught:
        saver.resume()
    assert "recipe.seed: was 0, is 1" in str(caught.value) and "data: was abc, is abd" in str(caught.value)
    assert "--allow data" in str(caught.value)
    lines: list[str] = []
    with saver_for(run_dir, conditions=now, allow=["recipe", "data"], say=lines.append) as saver:
        restored = saver.resume()
        saver.step()
    assert len(restored.changes) == 2 and "no longer exact" in lines[0]
    about = json.loads((run_dir / "run.json").read_text())
    assert about["inexact"] == ["data: was abc, is abd", "recipe.seed: was 0, is 1"]
    with saver_for(run_dir, conditions=now) as saver:  # once allowed, these are the run's conditions
        saver.resume()


def test_a_set_among_the_conditions_has_one_order():
    assert plain({"a": {"y", "x", "z"}, "b": frozenset({2, 1})}) == {"a": ["x", "y", "z"], "b": [1, 2]}


def test_what_to_type_is_quoted_for_a_shell():
    assert "--allow 'code.__main__:main.<locals>.Net'" in str(
        ConditionsChanged([Change("code.__main__:main.<locals>.Net", "a", "b")])
    )


def test_threads_are_a_condition(run_dir):
    with saver_for(run_dir) as saver:
        saver.step()
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        with saver_for(run_dir) as saver, pytest.raises(ConditionsChanged, match=f"threads: was {threads}"):
            saver.resume()
    finally:
        torch.set_num_threads(threads)


def test_conditions_compare_types_and_absence():
    changes = compare({"a": 1, "b": True, "c": [1, 2]}, {"a": 1.0, "b": True, "c": (1, 2), "d": None})
    assert [change.name for change in changes] == ["a", "d"]
    assert require_same({"x.y": 1, "z": 1}, {"x.y": 2, "z": 1}, ["x"])[0].now == 2
    assert len(require_same({"a.seed": 1, "b.seed": 1}, {"a.seed": 2, "b.seed": 2}, ["seed"])) == 2
    for near in ("x", "y", "xy."):
        with pytest.raises(ConditionsChanged):
            require_same({"xy": 1}, {"xy": 2}, [near])


def test_what_changes_bits_is_recorded():
    assert {"versions.torch", "threads", "flags.mkldnn", "flags.fp32_precision.mkldnn.matmul", "device.cpu"} <= set(
        environment()
    )


class Mine(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(1, 1)


def test_the_code_of_user_parts_is_recorded_and_torchs_is_not():
    found = code_of([Mine(), model, len])
    assert f"code.{__name__}.py" in found
    assert not any(name.startswith(("code.torch", "code.surefoot")) for name in found)
    assert all(len(digest) == 64 for digest in found.values())
