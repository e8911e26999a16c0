"""Weights from elsewhere: what torch.save writes is read, all differences are told at once, nothing else is run."""

from __future__ import annotations

import collections
import math
import pickle
import shutil
import zipfile
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from surefoot.artifacts import import_weights, open_model, pickled, read_state, save_model
from surefoot.artifacts.archive import archive_in, open_file
from surefoot.artifacts.importing import start_weights
from surefoot.errors import UsageError
from surefoot.models import MLP, LeNet5, SmallResNet


@pytest.fixture(scope="module")
def trained() -> LeNet5:
    torch.manual_seed(3)
    return LeNet5()


def fits(model: nn.Module, source: nn.Module) -> bool:
    one, other = model.state_dict(), source.state_dict()
    return list(one) == list(other) and all(torch.equal(one[n], other[n]) for n in one)


def tutorials_checkpoint(model: nn.Module) -> dict:
    """As the tutorials write it to go on later."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.randn(2, 1, 28, 28)).sum().backward()
    optimizer.step()
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3, 5])
    return {
        "epoch": 4,
        "model_state_dict": model.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "loss": torch.tensor(0.4),
        "note": "é",
    }


def test_the_tutorials_last_line_loads(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "model_params.pth")
    imported = import_weights(tmp_path / "model_params.pth", "LeNet5")
    assert fits(imported.model, trained)
    assert (imported.tensors, imported.key, imported.prefix, imported.others) == (10, None, "", ())
    assert not imported.model.training


def test_the_tutorials_checkpoint_loads_and_tells_what_it_left_aside(tmp_path):
    model = LeNet5()
    torch.save(tutorials_checkpoint(model), tmp_path / "checkpoint.pt")
    imported = import_weights(tmp_path / "checkpoint.pt", LeNet5())
    assert fits(imported.model, model)
    assert imported.key == "model_state_dict"
    assert imported.others == ("epoch", "optimizer_state_dict", "scheduler", "loss", "note")


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
def test_prefixes_of_wrappers_are_taken_off(prefix, trained, tmp_path):
    torch.save({prefix + n: t for n, t in trained.state_dict().items()}, tmp_path / "w.pth")
    imported = import_weights(tmp_path / "w.pth", LeNet5())
    assert fits(imported.model, trained) and imported.prefix == prefix


def test_a_prefix_that_the_model_has_itself_stays(tmp_path):
    model = nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 2)))
    torch.save(model.state_dict(), tmp_path / "w.pth")
    again = nn.Sequential(collections.OrderedDict(module=nn.Linear(2, 2)))
    assert import_weights(tmp_path / "w.pth", again).prefix == ""
    assert fits(again, model)


def test_a_plain_safetensors_file_loads(trained, tmp_path):
    safetensors.torch.save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert fits(import_weights(tmp_path / "w.safetensors", "LeNet5").model, trained)


def test_a_file_that_names_no_model_asks_for_one(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="does not name its model; say which one.*LeNet5"):
        import_weights(tmp_path / "w.pth")


def test_a_link_that_the_user_names_is_followed(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    (tmp_path / "latest.pth").symlink_to("w.pth")
    assert fits(import_weights(tmp_path / "latest.pth", "LeNet5").model, trained)


ALL_DTYPES = [getattr(torch, name) for name in pickled._DTYPE_BYTES]


def test_every_dtype_and_layout_that_torch_saves_is_read(tmp_path):
    state = {str(d): torch.zeros(2, 3, dtype=d) for d in ALL_DTYPES}
    base = torch.arange(24.0).reshape(2, 3, 2, 2)
    state |= {
        "view": base[1:, :, 1],
        "transposed": base.permute(3, 1, 0, 2),
        "channels_last": base.contiguous(memory_format=torch.channels_last),
        "scalar": torch.tensor(3),
        "empty": torch.empty(0, 7),
        "parameter": nn.Parameter(torch.ones(2)),
        "tied": base,
    }
    torch.save(state, tmp_path / "w.pth")
    found = read_state(tmp_path / "w.pth").tensors
    assert list(found) == list(state)
    for name, value in state.items():
        assert found[name].dtype == value.dtype and found[name].shape == value.shape
        assert found[name].stride() == value.stride()
        one, other = (t.detach().reshape(-1).view(torch.uint8) for t in (found[name], value))
        assert torch.equal(one, other), name
    assert found["tied"].data_ptr() == found["view"].data_ptr() - (12 + 2) * 4
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    old = read_state(tmp_path / "old.pth").tensors
    assert list(old) == list(state)
    for name, value in found.items():
        assert old[name].dtype == value.dtype and old[name].stride() == value.stride()
        assert torch.equal(*(t.reshape(-1).view(torch.uint8) for t in (old[name], value))), name


def test_every_value_that_a_checkpoint_may_hold_is_followed(tmp_path):
    plain = {
        "numbers": [1, -1, 255, 65536, 2**31, -(2**62), 2**100, 0.5, float("inf")],
        "others": [None, True, False, "text", (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {1: {2.5: []}}],
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cuda", 1),
        "milestones": collections.Counter([3, 3, 5]),
        "state": {"w": torch.ones(1)},
    }
    torch.save(plain, tmp_path / "w.pth")
    with open_file(tmp_path / "w.pth") as file:
        archive = archive_in(tmp_path / "w.pth", file)
        tree = pickled.Machine("w").run(archive.read("data.pkl", 10**6))
    for name in ("numbers", "others", "milestones"):
        assert tree[name] == plain[name]
    assert tree["size"] == (2, 3)
    assert isinstance(tree["state"]["w"], pickled.Stored)
    assert read_state(tmp_path / "w.pth").key == "state"


def test_a_tie_that_the_file_leaves_out_is_filled_in_and_a_broken_one_is_told(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
            self.head.weight = self.embed.weight

    model = Tied()
    safetensors.torch.save_model(model, tmp_path / "once.safetensors")
    again = import_weights(tmp_path / "once.safetensors", Tied()).model
    assert fits(again, model) and again.head.weight is again.embed.weight
    torch.save({"embed.weight": torch.zeros(3, 2), "head.weight": torch.ones(3, 2)}, tmp_path / "two.pth")
    with pytest.raises(UsageError, match="head.weight: the model ties it to embed.weight, the file gives two"):
        import_weights(tmp_path / "two.pth", Tied())


def test_all_differences_are_listed_at_once_and_the_model_is_untouched(trained, tmp_path):
    state = dict(trained.state_dict())
    state["conv_1.weight"] = state.pop("conv1.weight")
    state["fc3.bias"] = torch.zeros(7)
    state["fc2.bias"] = state["fc2.bias"].double()
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    model = LeNet5()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(UsageError) as caught:
        import_weights(tmp_path / "w.pth", model)
    assert [line.split("w.pth: ")[-1] for line in str(caught.value).splitlines()] == [
        "does not fit LeNet5; the model is as it was",
        "missing: conv1.weight (float32 [6, 1, 5, 5]); did you mean 'conv_1.weight'?",
        "unexpected: conv_1.weight (float32 [6, 1, 5, 5]); did you mean 'conv1.weight'?",
        "unexpected: extra (float32 [1])",
        "fc2.bias: it holds float64, the model float32",
        "fc3.bias: its shape is [7], the model's is [10]",
        "--cast (cast=True) takes its values in the model's dtype",
        'to take all but what has another shape: --except "fc3.*"',
    ]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


def test_other_dtypes_are_taken_on_request(trained, tmp_path):
    torch.save({n: t.double() for n, t in trained.state_dict().items()}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="holds float64, the model float32"):
        import_weights(tmp_path / "w.pth", "LeNet5")
    assert fits(import_weights(tmp_path / "w.pth", "LeNet5", cast=True).model, trained)


@pytest.mark.parametrize("cast", [False, True])
def test_a_cast_takes_no_complex_number_as_real_and_no_fraction_as_whole(tmp_path, cast):
    model = nn.Linear(2, 1)
    model.register_buffer("count", torch.tensor(3))
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = {"weight": torch.ones(1, 2) + 1j, "bias": torch.zeros(1), "count": torch.tensor(0.5)}
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        import_weights(tmp_path / "w.pth", model, cast=cast)
    assert [line.split("w.pth: ")[-1] for line in str(caught.value).splitlines()[1:]] == [
        "weight: it holds complex64, the model float32",
        "count: it holds float32, the model int64",
        "complex numbers are not taken as real ones, nor fractions as whole ones, nor numbers that the model's dtype "
        "is too narrow for: convert the file's",
    ]
    with pytest.raises(UsageError, match="weight: it holds complex64, the model float32"):
        start_weights(tmp_path / "w.pth", model)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    state = {"weight": torch.ones(1, 2).half(), "bias": torch.zeros(1), "count": torch.tensor(4.0)}
    torch.save(state, tmp_path / "w.pth")
    import_weights(tmp_path / "w.pth", model, cast=True)
    assert (model.weight.tolist(), int(model.count)) == ([[1, 1]], 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float8_e5m2])
@pytest.mark.parametrize("value", [[7e4, 1.0], [70_000, 1], [-1e300, 1.0]])
def test_a_cast_makes_no_number_infinite(tmp_path, value, dtype):
    model = nn.Module()
    model.register_buffer("a", torch.zeros(2).to(dtype))
    torch.save({"a": torch.from_numpy(numpy.array(value))}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match="nor numbers that the model's dtype is too narrow for"):
        import_weights(tmp_path / "w.pth", model, cast=True)
    with pytest.raises(UsageError, match="a: it holds"):
        start_weights(tmp_path / "w.pth", model)
    for held in (torch.tensor([5e4, math.inf]), torch.tensor([True, False]), torch.tensor([1, 2])):
        torch.save({"a": held}, tmp_path / "w.pth")
        import_weights(tmp_path / "w.pth", model, cast=True)
        assert torch.equal(model.a.to(torch.complex64), held.to(dtype).to(torch.complex64))


def test_a_file_for_a_very_different_model_does_not_fill_the_screen(tmp_path):
    torch.save({f"a{i}": torch.zeros(1) for i in range(500)}, tmp_path / "w.pth")
    with pytest.raises(UsageError) as caught:
        import_weights(tmp_path / "w.pth", SmallResNet(width=4))
    assert len(str(caught.value).splitlines()) < 50
    assert "and 480 more unexpected" in str(caught.value)


def test_several_sets_of_weights_are_asked_about(trained, tmp_path):
    torch.save({"net": trained.state_dict(), "ema": LeNet5().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r"several sets of weights \('net', 'ema'\); say which one with key='net'"):
        import_weights(tmp_path / "w.pth", "LeNet5")
    assert fits(import_weights(tmp_path / "w.pth", "LeNet5", key="net").model, trained)
    with pytest.raises(UsageError, match="no weights under 'nett'; did you mean 'net'.; entries that do: 'net', 'ema'"):
        import_weights(tmp_path / "w.pth", "LeNet5", key="nett")


@pytest.mark.parametrize(
    "value, said",
    [
        (torch.zeros(3), "holds one tensor, not a state_dict"),
        ([torch.zeros(3)], "holds a list, not a state_dict"),
        ({}, "holds no state_dict .* but nothing"),
        ({"a": 1, "w": torch.zeros(1)}, "entries that are no tensors: a"),
    ],
)
def test_what_holds_no_state_dict_is_told(value, said, tmp_path):
    torch.save(value, tmp_path / "w.pth")
    with pytest.raises(UsageError, match=said):
        import_weights(tmp_path / "w.pth", "LeNet5")


def test_a_whole_model_by_pickle_gives_its_state_dict_and_is_never_made(tmp_path):
    model = nn.Sequential(LeNet5(), nn.BatchNorm1d(10))
    model[1].register_buffer("hidden", torch.ones(3), persistent=False)
    for zipped in (True, False):
        torch.save(model, tmp_path / "whole.pth", _use_new_zipfile_serialization=zipped)
        state = read_state(tmp_path / "whole.pth")
        assert list(state.tensors) == list(model.state_dict())
        assert all(torch.equal(state.tensors[n], t) for n, t in model.state_dict().items())
        assert "surefoot.models.lenet.LeNet5" in state.foreign


def test_a_bare_pickle_is_refused(trained, tmp_path):
    (tmp_path / "w.pth").write_bytes(pickle.dumps(print))
    with pytest.raises(UsageError, match="is a bare pickle; loading it would run"):
        import_weights(tmp_path / "w.pth", "LeNet5")


def test_an_archive_that_was_cut_or_changed_is_refused_wherever_it_happened(trained, tmp_path):
    torch.save(MLP(in_features=3, hidden=[2], classes=2).state_dict(), tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    good = read_state(tmp_path / "w.pth").tensors
    for cut in range(0, len(data), 97):
        (tmp_path / "cut.pth").write_bytes(data[:cut])
        with pytest.raises(UsageError):
            read_state(tmp_path / "cut.pth")
    survived = 0
    for at in range(0, len(data), 13):
        changed = bytearray(data)
        changed[at] ^= 0x41
        (tmp_path / "bad.pth").write_bytes(changed)
        try:
            found = read_state(tmp_path / "bad.pth").tensors
        except UsageError:
            continue
        # Padding, dates and version numbers carry nothing; then the content must be what it was.
        survived += 1
        assert all(torch.equal(found[n], t) for n, t in good.items())
    assert survived < len(data) / 13 / 2


def test_a_file_that_was_saved_without_checksums_is_read(trained, tmp_path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(trained.state_dict(), tmp_path / "w.pth")
    finally:
        torch.serialization.set_crc32_options(before)
    assert fits(import_weights(tmp_path / "w.pth", "LeNet5").model, trained)


def test_zip64_archives_are_read(tmp_path):
    # Python's zipfile can be told to write the long form; torch writes it for files above 4 GB.
    torch.save({"w": torch.arange(5.0)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "long.pth", "w") as new:
        for name in old.namelist():
            with new.open(name, "w", force_zip64=True) as record:
                record.write(old.read(name))
    assert torch.equal(read_state(tmp_path / "long.pth").tensors["w"], torch.arange(5.0))


def test_renaming_a_file_does_not_matter(trained, tmp_path):
    torch.save(trained.state_dict(), tmp_path / "a.pth")
    shutil.copy(tmp_path / "a.pth", tmp_path / "weights")
    assert fits(import_weights(Path(tmp_path / "weights"), "LeNet5").model, trained)


def test_missing_files_and_directories_are_told(tmp_path):
    with pytest.raises(UsageError, match="no.pth: does not exist$"):
        import_weights(tmp_path / "no.pth", "LeNet5")
    with pytest.raises(UsageError, match="does not exist, nor does the directory .*there$"):
        import_weights(tmp_path / "there/no.pth", "LeNet5")
    (tmp_path / "best.pth").touch()
    with pytest.raises(UsageError, match="does not exist; did you mean 'best.pth'"):
        import_weights(tmp_path / "bets.pth", "LeNet5")
    (tmp_path / "best.pth").unlink()
    with pytest.raises(UsageError, match="no weights by a name that is known"):
        import_weights(tmp_path, "LeNet5")


def test_a_model_directory_takes_a_class_by_name(tmp_path, monkeypatch):
    (tmp_path / "named_net.py").write_text("import torch\n\n\ndef Net():\n    return torch.nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    save_model(nn.Linear(3, 2), tmp_path / "m")
    assert open_model(tmp_path / "m", "named_net:Net").predict(torch.zeros(1, 3)).shape == (1, 2)


@pytest.mark.parametrize("name", [":Net", "./net.py:Net", "..:Net", "net:"])
def test_what_is_no_module_and_name_is_told(trained, tmp_path, name):
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match="is not module:Name; give a file models/net.py as models.net:Name"):
        import_weights(tmp_path / "w.pth", name)


@pytest.mark.parametrize("name", ["math:pi", "object_net:net"])
def test_an_object_by_name_is_no_way_to_make_a_model(trained, tmp_path, monkeypatch, name):
    (tmp_path / "object_net.py").write_text("import torch\n\nnet = torch.nn.Linear(3, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=f"{name}: is an object of .*; name the class"):
        import_weights(tmp_path / "w.pth", name)


def test_names_that_the_file_alone_has_are_not_counted_as_taken_nor_as_missing(tmp_path):
    torch.save({**nn.Linear(2, 2).state_dict(), "head.a": torch.ones(1), "head.b": torch.ones(1)}, tmp_path / "w.pth")
    imported = import_weights(tmp_path / "w.pth", nn.Linear(2, 2), except_=["head.*"])
    assert imported.tensors == 2 and len(imported.kept) == 2


@pytest.mark.parametrize("strict", [True, False])
def test_what_modules_add_to_their_state_is_none_of_the_weights(tmp_path, strict):
    class Counting(nn.Linear):
        calls = 3

        def get_extra_state(self):
            return {"calls": self.calls}

        def set_extra_state(self, state):
            self.calls = state["calls"]

    model = nn.Sequential(Counting(2, 2), nn.Linear(2, 5))
    torch.save(nn.Sequential(Counting(2, 2), nn.Linear(2, 5 if strict else 4)).state_dict(), tmp_path / "w.pth")
    if strict:
        assert import_weights(tmp_path / "w.pth", model, except_=["0.*"]).tensors == 2
        assert import_weights(tmp_path / "w.pth", model).tensors == 4
    else:
        assert len(start_weights(tmp_path / "w.pth", model, strict=False).lines) == 3
    assert model[0].calls == 3
