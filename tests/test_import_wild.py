"""Files as others write them: each kind is made here by code, and read without anything of it being run."""

from __future__ import annotations

import argparse
import collections
import io
import json
import shlex
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy
import pytest
import safetensors.torch
import torch
from torch import nn

from surefoot.artifacts import import_weights, open_model, read_state
from surefoot.artifacts.formats import recognise
from surefoot.cli import main
from surefoot.errors import UsageError
from surefoot.models import MLP, LeNet5


class Config:
    """A foreign object, as omegaconf's and fastai's are: with state, items and methods of its own."""

    def __init__(self, value):
        self.value = value

    def __setstate__(self, state):
        raise AssertionError("an object of the file was made")

    def __getstate__(self):
        return {"value": self.value, "self": "x"}


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    return MLP(in_features=3, hidden=[2], classes=2).state_dict()


def small() -> MLP:
    return MLP(in_features=3, hidden=[2], classes=2)


def same(found: dict, state: dict) -> bool:
    return list(found) == list(state) and all(torch.equal(found[n], t) for n, t in state.items())


def renumbered(path: Path, to: Path) -> None:
    """The same archive with the record names of torch 1.6 to 1.9: addresses of up to 20 digits."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(to, "w") as new:
        data = old.read("a/data.pkl")
        for key in range(4):
            long = f"{94340341200128 + key:020d}"
            data = data.replace(b"X\x01\x00\x00\x00%d" % key, b"X\x14\x00\x00\x00" + long.encode())
        new.writestr("a/data.pkl", data)
        for name in old.namelist():
            if name.startswith("a/data/"):
                new.writestr(f"a/data/{94340341200128 + int(name[7:]):020d}", old.read(name))
        new.writestr("a/version", "3\n")


def test_storage_keys_of_twenty_digits_are_read(state, tmp_path):
    torch.save(state, tmp_path / "a.pth")
    renumbered(tmp_path / "a.pth", tmp_path / "old.pth")
    assert same(torch.load(tmp_path / "old.pth", weights_only=True), state)
    assert same(read_state(tmp_path / "old.pth").tensors, state)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_checkpoints_with_other_objects_give_their_tensors(zipped, protocol, state, tmp_path):
    checkpoint = {
        "args": argparse.Namespace(lr=0.1, names=["a"]),
        "best": numpy.float64(0.5),
        "mean": numpy.zeros(3),
        "seen": {1, 2},
        "frozen": frozenset("ab"),
        "counts": collections.defaultdict(list, a=[1]),
        "raw": b"\0\1",
        "config": Config({"net": [1, 2]}),
        "path": Path("x"),
        "type": Config,
        ("a", 1): 2,
        "state_dict": state,
    }
    torch.save(checkpoint, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped, pickle_protocol=protocol)
    found = read_state(tmp_path / "w.pth")
    assert same(found.tensors, state) and found.key == "state_dict"
    assert "args" in found.others and "argparse.Namespace" in found.foreign
    assert f"{__name__}.Config" in found.foreign


def test_nested_weights_are_found_and_named_by_a_path(state, tmp_path):
    other = {n: t + 1 for n, t in state.items()}
    optimizer = {"state": {0: {"exp_avg": torch.ones(1)}}, "param_groups": []}
    nested = {"model": {"state_dict": state, "args": {}}, "optimizer": optimizer, "epoch": 3}
    torch.save(nested, tmp_path / "chgnet.pth.tar")
    found = read_state(tmp_path / "chgnet.pth.tar")
    assert found.key == "model.state_dict" and found.others == ("optimizer", "epoch") and same(found.tensors, state)
    torch.save({"model": {"a.b": state, "ema": other}}, tmp_path / "two.pth")
    with pytest.raises(UsageError, match=r"several sets of weights \('model.a.b', 'model.ema'\)"):
        read_state(tmp_path / "two.pth")
    assert same(read_state(tmp_path / "two.pth", key="model.a.b").tensors, state)
    assert same(read_state(tmp_path / "two.pth", key="model.ema").tensors, other)


def test_prefixes_of_others_are_taken_by_name_and_advised(state, tmp_path):
    lightning = {"state_dict": {**{f"net.{n}": t for n, t in state.items()}, "criterion.weight": torch.ones(2)}}
    torch.save({**lightning, "pytorch-lightning_version": "2.4.0", "hyper_parameters": Config(1)}, tmp_path / "e.ckpt")
    with pytest.raises(UsageError, match="--prefix net. "):
        import_weights(tmp_path / "e.ckpt", small())
    with pytest.raises(UsageError, match="no name begins with 'nett.'; they begin with criterion., net."):
        import_weights(tmp_path / "e.ckpt", small(), prefix="nett")
    for prefix in ("net.", "net"):
        imported = import_weights(tmp_path / "e.ckpt", small(), prefix=prefix)
        assert same(imported.model.state_dict(), state) and "criterion" in imported.others


def test_an_averaged_model_is_read_without_its_counter(state, tmp_path):
    model = small()
    model.load_state_dict(state)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    averaged.update_parameters(model)
    torch.save(averaged.state_dict(), tmp_path / "swa.pth")
    assert "n_averaged" in read_state(tmp_path / "swa.pth").tensors
    imported = import_weights(tmp_path / "swa.pth", small())
    assert same(imported.model.state_dict(), state) and imported.prefix == "module."


def folder_of(path: Path, tensors: dict, ending: str, shards: int) -> Path:
    """A Hugging Face folder: one file, or several with their index."""
    path.mkdir()
    stem = "model" if ending == "safetensors" else "pytorch_model"
    save = safetensors.torch.save_file if ending == "safetensors" else torch.save
    if shards == 1:
        save(tensors, path / f"{stem}.{ending}")
        return path
    names, where = list(tensors), {}
    for i in range(shards):
        file = f"{stem}-{i + 1:05d}-of-{shards:05d}.{ending}"
        part = names[i::shards]
        save({n: tensors[n] for n in part}, path / file)
        where |= dict.fromkeys(part, file)
    (path / f"{stem}.{ending}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return path


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_folders_of_hugging_face_and_accelerate_are_read(ending, shards, state, tmp_path):
    folder = folder_of(tmp_path / "m", state, ending, shards)
    (folder / "optimizer.bin").write_bytes(b"\x80\x02}.")
    assert same(import_weights(folder, small()).model.state_dict(), state)
    if shards > 1:
        index = next(folder.glob("*.index.json"))
        assert set(read_state(index).tensors) == set(state)


def test_a_run_without_a_model_says_how_to_come_by_one(tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "run.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no final model yet; finish it with fit\(\.\.\., resume=True\)$"):
        read_state(run)
    (run / "recipe.yaml").write_text("")
    (run / "model" / "best").mkdir(parents=True)
    (run / "model" / "best" / "model.json").write_text("{}")
    with pytest.raises(
        UsageError, match=r"finish it with `surefoot resume \S+run`, or use its best model so far: \S+best$"
    ):
        read_state(run)


def test_folders_that_hold_something_else_say_what_they_are(tmp_path):
    for name, said in {
        "adapter_config.json": "an adapter of PEFT",
        "saved_model.pb": "SavedModel of TensorFlow",
        ".metadata": "dcp_to_torch",
        "best.pth": "name one of its files: best.pth",
        "model.json": "is not the description of a Surefoot model",
    }.items():
        folder = tmp_path / f"d_{name}"
        folder.mkdir()
        (folder / name).write_bytes(b"{}")
        with pytest.raises(UsageError, match=said):
            read_state(folder)
    adapter = {"base_model.model.q.lora_A.weight": torch.ones(1), "base_model.model.q.lora_B.weight": torch.ones(1)}
    safetensors.torch.save_file(adapter, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="an adapter of PEFT"):
        read_state(tmp_path / "adapter_model.safetensors")
    torch.save({**adapter, "base_model.model.q.base_layer.weight": torch.ones(2, 2)}, tmp_path / "wrapped.pth")
    with pytest.raises(UsageError, match="merge_and_unload"):
        import_weights(tmp_path / "wrapped.pth", nn.Linear(2, 2, bias=False))


def tar_of(value: dict[str, torch.Tensor]) -> bytes:
    """What torch.save wrote before 0.2, which torch.load still reads."""
    import pickle
    import struct

    class Pickler(pickle._Pickler):
        def persistent_id(self, thing):
            return str(1000 + thing) if type(thing) is int else None

    storages, tensors = io.BytesIO(), io.BytesIO()
    pickle.dump(len(value), storages, 2)
    pickle.dump(len(value), tensors, 2)
    for i, tensor in enumerate(value.values()):
        pickle.dump((i, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.contiguous().numpy().tobytes())
        pickle.dump((1000 + i, i, torch.FloatTensor), tensors, 2)
        shape = (*tensor.shape, *tensor.contiguous().stride(), 0)
        tensors.write(struct.pack(f"<ii{len(shape)}q", tensor.dim(), 0, *shape))
    pickle.dump([], storages, 2)
    main_part = io.BytesIO()
    Pickler(main_part, 2).dump({name: i for i, name in enumerate(value)})
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, data in (("sys_info", b""), ("pickle", main_part), ("tensors", tensors), ("storages", storages)):
            data = data if isinstance(data, bytes) else data.getvalue()
            head = tarfile.TarInfo(name)
            head.size = len(data)
            tar.addfile(head, io.BytesIO(data))
    return out.getvalue()


def test_the_tar_form_is_read_as_torch_reads_it(state, tmp_path):
    (tmp_path / "w.pth").write_bytes(tar_of(state))
    assert same(torch.load(tmp_path / "w.pth", weights_only=False), state)  # our own file: nothing foreign in it
    assert same(read_state(tmp_path / "w.pth").tensors, state)


def test_lazily_conjugated_and_negated_tensors_are_read_as_torch_reads_them(tmp_path):
    z = torch.tensor([1 + 2j, 3 - 4j])
    torch.save({"conj": z.conj(), "neg": z.clone().conj().imag, "plain": z.clone()}, tmp_path / "w.pth")
    torchs = torch.load(tmp_path / "w.pth", weights_only=True)
    assert torchs["conj"].is_conj() and torchs["neg"].is_neg()
    assert same(read_state(tmp_path / "w.pth").tensors, torchs)


@pytest.mark.parametrize("form", ["legacy", "tar"])
def test_older_forms_that_were_cut_or_changed_are_refused_or_read_never_worse(form, state, tmp_path):
    if form == "tar":
        data = tar_of(state)
    else:
        torch.save({"state_dict": state, "args": Config(1)}, out := io.BytesIO(), _use_new_zipfile_serialization=False)
        data = out.getvalue()
    path = tmp_path / "w.pth"
    path.write_bytes(data)
    assert same(read_state(path).tensors, state)
    end = len(data) if form == "legacy" else len(data.rstrip(b"\0"))
    for cut in range(0, end, max(1, end // 150)):
        path.write_bytes(data[:cut])
        with pytest.raises(UsageError):
            read_state(path)
    for at in range(0, end, max(1, end // 300)):
        changed = bytearray(data)
        changed[at] ^= 0x41
        path.write_bytes(changed)
        try:
            read_state(path)
        except UsageError:
            continue


def test_big_endian_archives_are_read_as_torch_reads_them(tmp_path):
    state = {"w": torch.arange(5.0), "c": torch.ones(2, dtype=torch.complex64), "i": torch.arange(3)}
    torch.save(state, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as old, zipfile.ZipFile(tmp_path / "big.pth", "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    torchs = torch.load(tmp_path / "big.pth", weights_only=True)
    assert same(read_state(tmp_path / "big.pth").tensors, torchs) and not torch.equal(torchs["i"], torch.arange(3))


def test_batch_norm_counters_that_old_files_lack_are_the_models_own(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    old = {n: t for n, t in model.state_dict().items() if "num_batches" not in n}
    torch.save(old, tmp_path / "w.pth")
    imported = import_weights(tmp_path / "w.pth", nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)))
    assert imported.kept == ("1.num_batches_tracked: not in the file; 0",) and imported.tensors == len(old)


def test_a_head_of_another_size_is_left_out_and_listed(tmp_path):
    torch.save(LeNet5(classes=7).state_dict(), tmp_path / "w.pth")
    with pytest.raises(UsageError, match=r'--except "fc3.\*"'):
        import_weights(tmp_path / "w.pth", "LeNet5")
    with pytest.raises(UsageError, match="except 'fd.*' matches no name"):
        import_weights(tmp_path / "w.pth", "LeNet5", except_=["fd.*"])
    found = [import_weights(tmp_path / "w.pth", "LeNet5", except_=["fc3.*"]) for _ in range(2)]
    assert found[0].tensors == 8
    assert found[0].kept == (
        "fc3.weight: not taken; the file has (float32 [7, 84]), the model (float32 [10, 84])",
        "fc3.bias: not taken; the file has (float32 [7]), the model (float32 [10])",
    )
    assert same(found[0].model.state_dict(), found[1].model.state_dict())


def test_halves_name_the_cast(state, tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn):
        torch.save({n: t.to(dtype) for n, t in state.items()}, tmp_path / "w.pth")
        with pytest.raises(UsageError, match="--cast"):
            import_weights(tmp_path / "w.pth", small())
        assert import_weights(tmp_path / "w.pth", small(), cast=True).tensors == 4


KINDS = {
    "page.pth": (b"\n <!DOCTYPE html><html>", "html", "web page"),
    "pointer.bin": (b"version https://git-lfs.github.com/spec/v1\noid", "lfs", "git lfs pull"),
    "model.h5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "hdf5", "h5py"),
    "model.gguf": (b"GGUF\3\0\0\0" + bytes(99), "gguf", "GGUF"),
    "model.tflite": (b"\x1c\0\0\0TFL3" + bytes(99), "tflite", "TensorFlow Lite"),
    "array.npy": (b"\x93NUMPY\1\0" + bytes(99), "npy", "NumPy array"),
    "nothing.pth": (b"", "empty", "did not finish"),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_no_file_of_weights_is_named_alike_by_every_verb(name, tmp_path, capsys):
    data, kind, said = KINDS[name]
    path = tmp_path / name
    path.write_bytes(data)
    assert recognise(path).kind == kind
    for argv in (
        ["import", str(path), "--model", "LeNet5", "--to", str(tmp_path / "to")],
        ["eval", str(path), "--model", "LeNet5", "--data", "garments"],
        ["export", str(path), "--model", "LeNet5", "--to", str(tmp_path / "x.pt2")],
        ["predict", str(path), "x.png", "--model", "LeNet5"],
    ):
        assert main(argv) == 2
        assert said in capsys.readouterr().err, argv
    assert not (tmp_path / "to").exists()


@pytest.mark.parametrize("name", ["page.pth", "model.gguf"])
def test_eval_looks_at_the_file_before_it_makes_data(name, tmp_path, monkeypatch):
    from surefoot.data import DATA

    def build(*_, **__):
        raise AssertionError("data were made")

    monkeypatch.setattr(DATA, "build", build)
    (tmp_path / name).write_bytes(KINDS[name][0])
    assert main(["eval", str(tmp_path / name), "--model", "LeNet5", "--data", "garments"]) == 2


def test_names_from_a_file_reach_the_terminal_escaped(state, tmp_path, capsys):
    evil = "\x1b[2J\x1b]0;x\x07"
    torch.save({evil: 1, "model": {n: t for n, t in LeNet5().state_dict().items()}}, tmp_path / "w.pth")
    assert main(["import", str(tmp_path / "w.pth"), "--model", "LeNet5", "--to", str(tmp_path / "m")]) == 0
    torch.save({evil: torch.ones(1), **state}, tmp_path / "x.pth")
    assert main(["import", str(tmp_path / "x.pth"), "--model", "LeNet5", "--to", str(tmp_path / "n")]) == 2
    assert main(["import", str(tmp_path / "x.pth"), "--model", "LeNet5", "--except", f"{evil}*"]) == 2
    said = capsys.readouterr()
    assert "\x1b" not in said.out + said.err and "\x07" not in said.out + said.err and "x1b[2J" in said.out + said.err


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_zip_files_of_others_are_named(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    numpy.savez(tmp_path / "arrays.npz", a=numpy.zeros(2))
    for name, member in (("net.keras", "model.weights.h5"), ("more.zip", "inside/w.txt")):
        with zipfile.ZipFile(tmp_path / name, "w") as file:
            file.writestr(member, b"x")
    for name, said in {
        "script.pt": r"TorchScript program.*torch.jit.load\('.*script.pt'",
        "arrays.npz": "numpy.load",
        "net.keras": "save_weights",
        "more.zip": "unzip",
    }.items():
        with pytest.raises(UsageError, match=said):
            read_state(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_the_message_for_torchscript_advises_works(tmp_path):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "script.pt")
    with pytest.raises(UsageError) as caught:
        read_state(tmp_path / "script.pt")
    advice = str(caught.value).split("make one: ")[1].replace("'weights.pth'", repr(str(tmp_path / "weights.pth")))
    exec(advice, {"torch": torch})
    assert list(read_state(tmp_path / "weights.pth").tensors) == ["weight", "bias"]


def test_an_own_class_or_a_recipe_says_what_the_weights_are_for(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    Path("wild_nets.py").write_text(
        "from torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self, n=2, wide=False):\n"
        "        super().__init__()\n        self.l = nn.Linear(4, n + 10 * wide)\n\n"
        "    def forward(self, x):\n        return self.l(x)\n"
    )
    torch.save(nn.Sequential(collections.OrderedDict(l=nn.Linear(4, 13))).state_dict(), "w.pth")
    assert main(["import", "w.pth", "--model", "wild_nets:Net", "n=3", "wide=true"]) == 0
    out = capsys.readouterr().out
    assert "2 tensors of wild_nets:Net" in out and "--trust-code" not in out
    sys.modules.pop("wild_nets")
    opened = open_model("w")
    assert opened.module.l.out_features == 13
    assert main(["import", "w.pth", "--model", "wild_nets:Net", "m=3", "--to", "x"]) == 2
    assert "unknown" in (said := capsys.readouterr().err) or "no argument" in said
    sys.modules.pop("wild_nets")
    assert import_weights("w.pth", "wild_nets:Net", arguments={"n": 13}).source == ("wild_nets:Net", {"n": 13})
    assert str(tmp_path) not in sys.path  # what was searched for the class is put back
    numpy.save("two.npy", numpy.zeros((2, 1, 28, 28), "uint8"))
    Path("r.yaml").write_text(
        "epochs: 1\nmodel: {name: LeNet5}\ndata: {name: garments, train_size: 64, val_size: 32}\n"
        "loss: CrossEntropyLoss\noptimizer: {name: SGD, lr: 0.1}\n"
    )
    torch.save(LeNet5().state_dict(), "l.pth")
    assert main(["import", "l.pth", "--model", "r.yaml"]) == 0
    run_printed(capsys)
    assert open_model("l").classes[0] == "T-shirt/top" and open_model("l").info.preprocessing_known


def test_a_model_that_a_module_holds_ready_made_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("ready_net.py").write_text("import torch\n\nnet = torch.nn.Linear(3, 2)\n")
    torch.save(nn.Linear(3, 2).state_dict(), "w.pth")
    assert main(["import", "w.pth", "--model", "ready_net:net"]) == 2
    assert "ready_net:net: is an object of Linear" in capsys.readouterr().err


def run_printed(capsys) -> list[str]:
    """Run the commands that `import` printed, as pasted, on two.npy; what they printed."""
    said = capsys.readouterr().out.splitlines()
    commands = [line[line.index("surefoot ") :] for line in said if "surefoot " in line]
    assert [command.split()[1] for command in commands] == ["eval", "predict"]
    outputs = []
    for command in commands:
        assert main(shlex.split(command.replace("IMAGE...", "two.npy"))[1:]) == 0, command
        outputs.append(capsys.readouterr().out)
    return outputs


def test_the_road_from_the_tutorials_last_line(tmp_path, monkeypatch, capsys):
    """Two commands on the file itself; and what `import` prints, as printed, gives the same numbers."""
    from surefoot.data import DATA

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(1)
    torch.save(LeNet5().state_dict(), "model_params.pth")
    splits = DATA.build("garments", {})
    numpy.save("two.npy", splits.val.tensors[0][:2].numpy())
    with torch.no_grad():
        model = LeNet5().eval()
        model.load_state_dict(torch.load("model_params.pth", weights_only=True))
        right = model(splits.preprocessing(splits.val.tensors[0])).argmax(1) == splits.val.tensors[1]
        first = model(splits.preprocessing(splits.val.tensors[0][:2])).argmax(1)

    def answer(*argv: str) -> tuple[object, str]:
        assert main([*argv, "--json"]) == 0
        said = capsys.readouterr()
        return json.loads(said.out), said.err

    found, said = answer("eval", "model_params.pth", "--model", "LeNet5", "--data", "garments")
    assert found["accuracy"] == pytest.approx(right.float().mean().item()) and "taken from the data set" in said
    rows, said = answer("predict", "model_params.pth", "two.npy", "--model", "LeNet5", "--data", "garments")
    classes = [row["predictions"][0]["class"] for row in rows]
    assert classes == [splits.classes[i] for i in first] and "taken from the data set" in said
    assert all(0 <= p["probability"] <= 1 for row in rows for p in row["predictions"])
    assert main(["predict", "model_params.pth", "two.npy", "--model", "LeNet5"]) == 2
    assert "does not say how raw data are prepared" in capsys.readouterr().err

    assert main(["import", "model_params.pth", "--model", "LeNet5"]) == 0
    out = capsys.readouterr().out
    assert "next, e.g.: surefoot eval model_params --data fashion_mnist" in out
    assert answer("eval", "model_params", "--data", "garments")[0]["loss"] == found["loss"]
    assert answer("predict", "model_params", "two.npy", "--data", "garments")[0] == rows
    assert main(["predict", "model_params", "two.npy"]) == 2
    assert "--data" in capsys.readouterr().err
    with pytest.raises(UsageError, match="does not say how raw data are prepared"):
        open_model("model_params")(splits.val.tensors[0][:2])

    assert main(["import", "model_params.pth", "--model", "LeNet5", "--data", "garments", "--to", "known"]) == 0
    evaluated, predicted = run_printed(capsys)
    assert f"{100 * found['accuracy']:.2f} %" in evaluated and predicted.startswith(f"two.npy[0]: {classes[0]} ")
    assert answer("predict", "known", "two.npy") == (rows, "")
