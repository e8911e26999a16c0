"""A saved model comes back as it was, on any machine, and replacing it never leaves neither."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from surefoot import files
from surefoot.artifacts import export, import_weights, load_model, open_model, read_info, save_model, swap
from surefoot.errors import UsageError
from surefoot.models import MLP, LeNet5, SmallResNet
from surefoot.preprocessing import Preprocessing

CLASSES = [f"class {i}" for i in range(10)]


def full_info() -> dict:
    return {
        "preprocessing": Preprocessing(mean=(0.25,), std=(0.3,)),
        "classes": CLASSES,
        "input_shape": (1, 28, 28),
        "input_dtype": "uint8",
        "loss": {"name": "CrossEntropyLoss", "label_smoothing": 0.1},
        "metrics": {"val/accuracy": 0.9512345678901234, "val/loss": 0.31},
        "recipe_digest": "sha256:abc",
        "title": "garments",
    }


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return list(first) == list(second) and all(
        first[n].dtype == second[n].dtype and torch.equal(first[n], second[n]) for n in first
    )


@pytest.mark.parametrize("make", [LeNet5, lambda: SmallResNet(width=4), lambda: MLP(hidden=[8, 4])])
def test_a_registered_model_comes_back_without_any_code_of_the_caller(make, tmp_path):
    model = make()
    save_model(model, tmp_path / "model", **full_info())
    again = load_model(tmp_path / "model")
    assert type(again) is type(model) and not again.training
    assert same(model, again)
    batch = torch.randn(3, 1, 28, 28)
    assert torch.equal(model.eval()(batch), again(batch))


def test_everything_told_about_the_model_comes_back(tmp_path):
    save_model(LeNet5(), tmp_path / "model", **full_info())
    info = read_info(tmp_path / "model")
    for name, value in full_info().items():
        found = getattr(info, name)
        assert (list(found) if name == "classes" else found) == value, name
    assert info.versions["torch"] == torch.__version__
    assert info.model == {"name": "LeNet5", "args": {"classes": 10, "channels": 1}}


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_any_dtype_comes_back(dtype, tmp_path):
    model = SmallResNet(width=4).to(dtype)
    save_model(model, tmp_path / "model")
    assert same(model, load_model(tmp_path / "model"))


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_channels_last_comes_back(tmp_path, ending):
    model = SmallResNet(width=4).to(memory_format=torch.channels_last)
    if ending:
        export(model, tmp_path / "model.safetensors")
    else:
        save_model(model, tmp_path / "model")
    again = open_model(tmp_path / f"model{ending}").module
    assert same(model, again)
    weight = again.stages[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()


class Tied(nn.Module):
    def __init__(self, size: int = 6):
        super().__init__()
        self.arguments = {"size": size}
        self.embed = nn.Embedding(4, size)
        self.head = nn.Linear(size, 4, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


def test_tied_weights_are_written_once_and_stay_tied(tmp_path):
    model = Tied()
    save_model(model, tmp_path / "model")
    stored = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert list(stored) == ["embed.weight"]
    again = load_model(tmp_path / "model", model=Tied())
    assert again.head.weight is again.embed.weight
    assert same(model, again)


class Expanded(nn.Linear):
    """A buffer of several elements in one place."""

    def __init__(self):
        super().__init__(2, 3)
        self.register_buffer("scale", torch.tensor([1.5]).expand(3))

    def forward(self, x):
        return super().forward(x) * self.scale


def test_an_expanded_buffer_is_opened_with_each_of_its_elements(tmp_path):
    model = Expanded()
    model.scale = torch.arange(3.0)
    save_model(model, tmp_path / "model")
    assert same(model, load_model(tmp_path / "model", model=Expanded()))


@pytest.mark.parametrize("shape", [(1,) * 9, (100_000, 100_000), (None, 28)])
def test_a_sample_that_no_reader_would_take_is_refused_before_anything_is_written(tmp_path, shape):
    with pytest.raises(UsageError, match="shape"):
        save_model(LeNet5(), tmp_path / "model", input_shape=shape)
    assert not os.listdir(tmp_path)


def test_predictions_of_what_is_no_batch_are_refused_and_those_of_none_are_none(tmp_path):
    opened = open_model(save_model(MLP(in_features=4, hidden=[], classes=2), tmp_path / "model"))
    assert opened.predict(torch.zeros(0, 4)).shape == (0, 2)
    assert opened.predict(torch.zeros(5, 4), batch_size=2).shape == (5, 2)
    with pytest.raises(UsageError, match=r"batches \(N, \.\.\.\)"):
        opened.predict(torch.tensor(1.0))
    with pytest.raises(UsageError, match="raw"):
        opened.predict([1.0])
    for size in (0, -1, 2.5):
        with pytest.raises(UsageError, match="batch_size"):
            opened.predict(torch.zeros(5, 4), batch_size=size)


class Scaled(nn.Module):
    """A buffer that the state_dict leaves out, as rotary positions are."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("scale", torch.tensor([1.1, 2.2, 3.3]), persistent=False)

    def forward(self, x):
        return self.layer(x.to(self.layer.weight.dtype) * self.scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_buffers_that_no_file_holds_have_the_dtype_that_they_had(tmp_path, dtype, ending):
    model, x = Scaled().to(dtype).eval(), torch.randn(4, 3)
    where = tmp_path / f"model{ending}"
    if ending:
        export(model, where)
    else:
        save_model(model, where)
    assert torch.equal(open_model(where, trust_code=True).module(x), model(x))


class Conjugated(nn.Module):
    """Buffers that are one memory, read as it is, conjugated and negated."""

    def __init__(self):
        super().__init__()
        self.arguments = {}
        waves = torch.randn(3, dtype=torch.complex64)
        self.register_buffer("waves", waves)
        self.register_buffer("conjugated", waves.conj())
        self.register_buffer("phase", waves.imag)
        self.register_buffer("negated", waves.conj().imag)


@pytest.mark.parametrize("ending", ["", ".safetensors"])
def test_conjugated_and_negated_buffers_are_not_taken_for_the_memory_that_they_share(tmp_path, ending):
    model = Conjugated()
    if ending:
        export(model, tmp_path / f"model{ending}")
        again = import_weights(tmp_path / f"model{ending}", Conjugated()).model
    else:
        save_model(model, tmp_path / "model")
        again = load_model(tmp_path / "model", model=Conjugated())
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name


def test_a_class_of_ones_own_is_imported_only_when_trusted(tmp_path, monkeypatch):
    (tmp_path / "my_models.py").write_text(
        "from torch import nn\n"
        "class Mine(nn.Linear):\n"
        "    def __init__(self, wide):\n"
        "        super().__init__(wide, 2)\n"
        "        self.arguments = {'wide': wide}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_models

    save_model(my_models.Mine(3), tmp_path / "own")
    assert load_model(tmp_path / "own").in_features == 3  # this user's own
    shutil.copytree(tmp_path / "own", tmp_path / "model")
    with pytest.raises(UsageError, match=r"my_models:Mine.*--trust-code"):
        load_model(tmp_path / "model")
    assert load_model(tmp_path / "model", trust_code=True).in_features == 3
    described = json.loads((tmp_path / "own/model.json").read_text())
    for edited in ({"model": {"class": "os:system", "args": {"command": "false"}}}, {"seal": 3}, {"seal": "é"}):
        (tmp_path / "own/model.json").write_text(json.dumps(described | edited))
        with pytest.raises(UsageError, match="--trust-code"):
            load_model(tmp_path / "own")
    model = my_models.Mine(3)
    assert load_model(tmp_path / "model", model=model) is model
    save_model(model, tmp_path / "run/model/best")
    shutil.copytree(tmp_path / "run/model/best", tmp_path / "run/model/others")
    save_model(my_models.Mine(4), tmp_path / "run/model")  # which then is another directory
    assert load_model(tmp_path / "run/model/best").in_features == 3
    with pytest.raises(UsageError, match="--trust-code"):
        load_model(tmp_path / "run/model/others")


def test_trusted_code_that_is_not_there_is_told(tmp_path):
    save_model(nn.Linear(2, 2), tmp_path / "a", source=("no_such_module:Thing", {}))
    with pytest.raises(UsageError, match="no_such_module:Thing cannot be imported"):
        load_model(tmp_path / "a", trust_code=True)
    save_model(nn.Linear(2, 2), tmp_path / "b")
    with pytest.raises(UsageError, match="arguments of torch.nn.modules.linear:Linear were not saved"):
        load_model(tmp_path / "b", trust_code=True)


def test_all_differences_are_listed_at_once_and_the_model_is_untouched(tmp_path):
    save_model(nn.ModuleDict({"body": nn.Linear(3, 2), "norm": nn.BatchNorm1d(2)}), tmp_path / "model")
    other = nn.ModuleDict({"bodi": nn.Linear(3, 2), "norm": nn.BatchNorm1d(5).double()})
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        load_model(tmp_path / "model", model=other)
    said = str(caught.value)
    assert "missing: bodi.weight (float32 [2, 3]); did you mean 'body.weight'?" in said
    assert "unexpected: body.bias (float32 [2]); did you mean 'bodi.bias'?" in said
    assert "norm.running_mean: its shape is [2], the model's is [5]" in said
    assert said.count("norm.") == 4
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_another_dtype_in_a_model_passed_in_is_a_difference(tmp_path):
    save_model(MLP(in_features=2, hidden=[], classes=2), tmp_path / "model")
    with pytest.raises(UsageError, match="layers.0.weight: it holds float32, the model float64"):
        load_model(tmp_path / "model", model=MLP(in_features=2, hidden=[], classes=2).double())


def test_a_model_whose_own_loading_breaks_is_put_back(tmp_path):
    class Breaking(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)

        def load_state_dict(self, state, *args, **kwargs):
            self.a.load_state_dict({"weight": state["a.weight"], "bias": state["a.bias"]})
            raise RuntimeError("halfway")

    save_model(Breaking(), tmp_path / "model")
    other = Breaking()
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(UsageError, match="Breaking refused the weights: halfway"):
        load_model(tmp_path / "model", model=other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_arguments_are_known_only_where_there_is_nothing_to_know(tmp_path):
    class Plain(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)

    for number, (model, args) in enumerate(((Plain(), {}), (nn.Linear(2, 2), None))):
        save_model(model, tmp_path / str(number))
        assert read_info(tmp_path / str(number)).model["args"] == args


def test_arguments_may_be_numbers_of_numpy(tmp_path):
    class Sized(nn.Linear):
        def __init__(self):
            super().__init__(2, 2)
            sizes = {"wide": numpy.int64(2), "flag": numpy.bool_(True), "rates": (numpy.float32(0.5), [numpy.int8(3)])}
            self.arguments = sizes | {"name": "x", "array": None}

    save_model(Sized(), tmp_path / "own")
    expected = {"wide": 2, "flag": True, "rates": [0.5, [3]], "name": "x", "array": None}
    assert read_info(tmp_path / "own").model["args"] == expected
    source = ("mine:Net", {"wide": numpy.uint8(7)})
    save_model(nn.Linear(2, 2), tmp_path / "imported", source=source)
    assert read_info(tmp_path / "imported").model == {"class": "mine:Net", "args": {"wide": 7}}


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # torch's own, on importing its compiler
def test_wrapped_models_are_saved_as_themselves(tmp_path):
    model = LeNet5()
    save_model(nn.DataParallel(model), tmp_path / "model")
    assert same(load_model(tmp_path / "model"), model)
    save_model(torch.compile(model), tmp_path / "compiled")
    assert same(load_model(tmp_path / "compiled"), model)
    average = torch.optim.swa_utils.AveragedModel(nn.DataParallel(model))
    save_model(average, tmp_path / "average")
    assert same(load_model(tmp_path / "average"), model) and read_info(tmp_path / "average").averaged
    export(average, tmp_path / "average.pth")
    assert torch.load(tmp_path / "average.pth", weights_only=True).keys() == model.state_dict().keys()


@pytest.mark.parametrize(
    "model, said",
    [
        (nn.LazyLinear(3), "not initialised"),
        (nn.Linear(2, 2, device="meta"), "has no data"),
    ],
)
def test_what_cannot_be_saved_is_told_and_nothing_is_written(model, said, tmp_path):
    with pytest.raises(UsageError, match=said):
        save_model(model, tmp_path / "model")
    assert os.listdir(tmp_path) == []


def test_extra_state_that_would_need_pickle_is_refused(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"anything": object()}

        def set_extra_state(self, state):
            pass

    with pytest.raises(UsageError, match="_extra_state: .*without pickle"):
        save_model(Extra(1, 1), tmp_path / "model")


# ------------------------------------------------------------------------------------- on the disk


def test_replacing_keeps_what_else_is_there(tmp_path):
    one, two = LeNet5(), LeNet5()
    save_model(one, tmp_path / "model" / "best")
    save_model(one, tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine")
    save_model(two, tmp_path / "model")
    assert same(load_model(tmp_path / "model"), two)
    assert same(load_model(tmp_path / "model" / "best"), one)
    assert (tmp_path / "model" / "notes.txt").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["model"]


def test_directories_that_are_made_for_a_model_are_on_the_disk_with_it(tmp_path, monkeypatch):
    synced, fsync_directory = [], files.fsync_directory
    monkeypatch.setattr(files, "fsync_directory", lambda path: synced.append(Path(path)) or fsync_directory(path))
    save_model(nn.Linear(1, 1), tmp_path / "a/b/model")
    assert {tmp_path, tmp_path / "a", tmp_path / "a/b"} <= set(synced)


def test_directories_that_were_made_for_a_model_go_with_it_where_it_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "kept").mkdir()

    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.system, "write", full)
    with pytest.raises(OSError, match="No space left"):
        save_model(nn.Linear(1, 1), tmp_path / "kept/a/b/model")
    assert [*tmp_path.rglob("*")] == [tmp_path / "kept"]


def test_plots_of_one_name_are_refused_and_one_of_our_name_is_taken(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "loss.svg").write_text(folder)
    with pytest.raises(UsageError, match="plots: two of them have one name"):
        save_model(nn.Linear(1, 1), tmp_path / "m", plots=[tmp_path / "a/loss.svg", tmp_path / "b/loss.svg"])
    history = [{"kind": "epoch", "split": "train", "epoch": epoch, "loss": 1.0} for epoch in range(3)]
    save_model(nn.Linear(1, 1), tmp_path / "m", plots=[tmp_path / "a/loss.svg"], history=history)
    assert (tmp_path / "m/plots/loss.svg").read_text() == "a"
    assert (tmp_path / "m/README.md").read_text().count("plots/loss.svg") == 1


def test_a_directory_of_other_things_is_not_taken_over(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds files and no model"):
        save_model(LeNet5(), tmp_path)
    assert os.listdir(tmp_path) == ["thesis.tex"]


class Killed(BaseException):
    """What the process would have died of."""


@pytest.mark.parametrize("exchange", [True, False])
def test_a_kill_at_any_system_call_leaves_the_old_model_or_the_new(tmp_path, monkeypatch, exchange):
    old, new = MLP(in_features=2, hidden=[], classes=2), MLP(in_features=2, hidden=[], classes=2)
    if not exchange:
        monkeypatch.setattr(swap, "_exchange", lambda one, other: False)
    save_model(old, tmp_path / "start")
    outcomes = []
    for moment in range(200):
        case = tmp_path / str(moment)
        case.mkdir()
        shutil.copytree(tmp_path / "start", case / "model")
        finished = run_until(moment, lambda: save_model(new, case / "model"), monkeypatch)  # noqa: B023
        found = reopened(case / "model", exchange)
        assert same(found, new) or same(found, old)
        outcomes.append(same(found, new))
        if finished:
            break
    assert finished and outcomes[0] is False and outcomes[-1] is True
    assert outcomes == sorted(outcomes)
    assert len(outcomes) > 15


def run_until(moment: int, action, monkeypatch) -> bool:
    """Run `action` with every system call after number `moment` failing as if the process were gone."""
    count = 0

    class Dying(files.System):
        def __getattribute__(self, name):
            nonlocal count
            if not name.startswith("_"):
                count += 1
                if count > moment:
                    raise Killed
            return super().__getattribute__(name)

    with monkeypatch.context() as patch:
        patch.setattr(files, "system", Dying())
        # A process that is gone does not tidy up either.
        patch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
        try:
            action()
        except Killed:
            return False
    return True


def reopened(directory: Path, exchange: bool) -> nn.Module:
    if not exchange and not directory.exists():
        # Without an exchange a kill between two renames leaves the old one under a name beside it; the next
        # save brings it back first.
        with pytest.raises(UsageError, match="the model before it lies at .*old: rename it back"):
            load_model(directory)
        swap.remove_leftovers(directory)
    return load_model(directory)


def test_a_directory_that_another_process_clears_away_before_it_is_marked_is_made_again(tmp_path, monkeypatch):
    class Cleared(files.System):
        left = 2

        def mkdir(self, path):
            os.mkdir(path)
            if self.left:
                self.left -= 1
                swap.remove_leftovers(tmp_path / "model")

    monkeypatch.setattr(files, "system", Cleared())
    save_model(LeNet5(), tmp_path / "model")
    assert files.system.left == 0
    assert os.listdir(tmp_path) == ["model"] and isinstance(load_model(tmp_path / "model"), LeNet5)


def test_damage_is_found(tmp_path):
    save_model(LeNet5(), tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match="SHA-256"):
        load_model(tmp_path / "model")
    path.write_bytes(data[:-4])
    with pytest.raises(UsageError, match="it was cut"):
        load_model(tmp_path / "model")
    path.unlink()
    with pytest.raises(UsageError, match="is missing"):
        load_model(tmp_path / "model")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"format": "other"}, "not the description of a Surefoot model"),
        ({"format_version": 2}, "update it"),
        ({"format_version": True}, "format_version"),
        ({"model": {"name": "LeNet5"}}, "model: neither"),
        ({"model": {"name": "LeNet6", "args": {}}}, "not a model that this Surefoot knows"),
        ({"model": {"name": "LeNet5", "args": {"clases": 1}}}, "did you mean 'classes'"),
        ({"model": {"name": "LeNet5", "args": {"classes": 10**12}}}, "holds .* numbers; at most"),
        ({"model": {"name": "SmallResNet", "args": {"blocks": 10**12}}}, "above 64"),
        ({"model": {"name": "MLP", "args": {"hidden": [1] * 5000}}}, "longer than"),
        ({"model": {"name": "MLP", "args": {"in_features": 2**62}}}, "numbers|cannot be built"),
        ({"input": {"shape": [0]}}, "input.shape"),
        ({"input": {"shape": [2**20, 2**20]}}, "numbers a sample"),
        ({"classes": "ten"}, "classes"),
        ({"preprocessing": {"scale": "x"}}, "preprocessing"),
        ({"weights": {"file": "../other/model.safetensors"}}, "beside it"),
        ({"weights": {"file": "model.safetensors"}}, "bytes and sha256"),
    ],
)
def test_a_wrong_description_is_told(change, said, tmp_path):
    save_model(LeNet5(), tmp_path / "model")
    path = tmp_path / "model" / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=said) as caught:
        load_model(tmp_path / "model")
    assert "model.json" in str(caught.value)


def test_a_link_out_of_the_directory_is_not_followed(tmp_path):
    save_model(LeNet5(), tmp_path / "model")
    shutil.move(tmp_path / "model/model.safetensors", tmp_path / "elsewhere")
    os.symlink(tmp_path / "elsewhere", tmp_path / "model/model.safetensors")
    with pytest.raises(UsageError, match="symbolic link"):
        load_model(tmp_path / "model")


def test_a_metric_that_is_not_finite_does_not_break_the_json(tmp_path):
    save_model(LeNet5(), tmp_path / "model", metrics={"val/loss": float("nan")})
    assert read_info(tmp_path / "model").metrics == {"val/loss": None}


def test_the_weights_are_read_by_the_plain_library(tmp_path):
    model = LeNet5()
    save_model(model, tmp_path / "model")
    plain = safetensors.torch.load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(plain[name], value) for name, value in model.state_dict().items())
    with safetensors.safe_open(tmp_path / "model/model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_the_same_model_gives_the_same_bytes(tmp_path):
    model = SmallResNet(width=4)
    for name in "ab":
        save_model(model, tmp_path / name, **full_info())
    for name in ("model.safetensors", "model.json", "config.json", "README.md"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_naming_the_package_does_not_import_torch():
    code = "import sys, surefoot.artifacts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
