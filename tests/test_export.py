"""An export computes what the model computes, and needs none of our code: shown in processes that lack it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from surefoot.artifacts import LoadedModel, export, load_model, open_model, save_model
from surefoot.artifacts import exporting as exporting_module
from surefoot.artifacts.info import describe_model
from surefoot.errors import RunFailed, UsageError
from surefoot.models import MLP, LeNet5, SmallResNet
from surefoot.preprocessing import Preprocessing

CLASSES = [f"class {i}" for i in range(10)]
FORMATS = ["safetensors", "pth", "pt", "pt2", "onnx"]

# Importing torch's exporter and the deprecated things inside it warns; nobody who exports can act on it.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def needs_onnx(name: str) -> None:
    if name == "onnx":
        for package in ("onnx", "onnxruntime", "onnxscript"):
            pytest.importorskip(package)


@pytest.fixture(scope="module")
def batch() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (9, 1, 28, 28), dtype=torch.uint8, generator=generator)


def saved(model: nn.Module, where: Path) -> Path:
    return save_model(
        model,
        where,
        preprocessing=Preprocessing(mean=(0.3,), std=(0.4,)),
        classes=CLASSES,
        input_shape=(1, 28, 28),
        input_dtype="uint8",
        loss="CrossEntropyLoss",
        title="garments",
    )


@pytest.fixture(scope="module")
def directory(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    model = SmallResNet(width=4)
    model(torch.randn(32, 1, 28, 28))  # running statistics that are not the initial ones
    return saved(model, tmp_path_factory.mktemp("saved") / "model")


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_models_own_probabilities(name, directory, batch, tmp_path):
    needs_onnx(name)
    expected = open_model(directory).predict(batch)
    assert torch.allclose(expected.sum(1), torch.ones(9)) and expected.min() >= 0
    result = export(directory, tmp_path / f"m.{name}", batch=batch)
    assert result.largest_difference <= (1e-5 if name == "onnx" else 0.0)
    samples = 9 if name in ("pt2", "onnx") else 0  # weights are compared bit by bit
    assert (result.samples, result.real, result.bytes) == (samples, True, os.path.getsize(tmp_path / f"m.{name}"))
    if name in ("pth", "pt"):
        told = {"preprocessing": Preprocessing(mean=0.3, std=0.4), "classes": CLASSES}
        again = open_model(tmp_path / f"m.{name}", SmallResNet(width=4), **told)
    else:
        again = open_model(tmp_path / f"m.{name}", trust_code=name == "pt2")
    assert list(again.classes) == CLASSES
    for count in (9, 1, 4):
        found = again.predict(batch[:count])
        # Bare weights do not tell their loss, so that nothing says that the outputs are logits.
        found = found.softmax(1) if name in ("pth", "pt") else found
        assert torch.allclose(found, expected[:count], atol=1e-6)
    assert os.listdir(tmp_path) == [f"m.{name}"]


@pytest.mark.parametrize(
    "make, name",
    [
        (LeNet5, "pt2"),
        (LeNet5, "onnx"),
        (lambda: MLP(hidden=[8], dropout=0.5), "pt2"),
        (lambda: MLP(hidden=[8], dropout=0.5), "onnx"),
        (lambda: LeNet5().double(), "pt2"),
        (lambda: SmallResNet(width=4).bfloat16().to(memory_format=torch.channels_last), "pt2"),
    ],
)
def test_the_registered_models_export_as_programs(make, name, batch, tmp_path):
    needs_onnx(name)
    saved(make(), tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / f"m.{name}", batch=batch).largest_difference < 1e-6


def test_a_live_model_is_exported_and_stays_as_it_is(batch, tmp_path):
    model = SmallResNet(width=4).train()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    about = describe_model(model, preprocessing=Preprocessing())
    for name in ("safetensors", "pt2"):
        export(model, tmp_path / f"m.{name}", batch=batch, info=about)
    assert model.training
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert tuple(open_model(tmp_path / "m.pt2", trust_code=True).input_shape) == (1, 28, 28)


def test_without_samples_random_ones_are_drawn_and_it_says_so(directory, tmp_path):
    result = export(directory, tmp_path / "m.pt2")
    assert not result.real and "random samples" in str(result)
    assert "bit by bit" in str(export(directory, tmp_path / "m.safetensors"))


def test_tied_weights_stay_tied_through_every_form(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x).mean(1))

    model, tokens = Tied(), torch.tensor([[0, 1, 2], [3, 4, 0]])
    for name in ("safetensors", "pth", "pt2"):
        assert export(model, tmp_path / f"m.{name}", batch=tokens).largest_difference == 0
    assert torch.equal(open_model(tmp_path / "m.pt2", trust_code=True)(tokens), model(tokens))
    again = Tied()
    again.load_state_dict(torch.load(tmp_path / "m.pth", weights_only=True))
    assert torch.equal(again(tokens), model(tokens))
    open_model(tmp_path / "m.safetensors", again)
    assert again.head.weight is again.embed.weight


class Attention(nn.Module):
    """A bit of everything that vision models are made of."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 7, stride=7)
        self.norm = nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Dropout(0.1), nn.Linear(16, 8), nn.SiLU())
        self.position = nn.Parameter(torch.randn(16, 8))
        self.head = nn.Linear(8, 10)

    def forward(self, x):
        n = x.shape[0]
        x = self.patches(x).reshape(n, 8, 16).transpose(1, 2) + self.position
        x = x + self.attention(*[self.norm(x)] * 3, need_weights=False)[0]
        x = torch.cat([x, F.relu(self.mix(x), inplace=True)], dim=1)
        first, second = x.chunk(2, dim=1)
        return self.head(first.amax(1) + second.mean(1))


class Recurrent(nn.Module):
    """The last state of a GRU or LSTM."""

    def __init__(self, kind):
        super().__init__()
        self.cells, self.head = kind(4, 8, batch_first=True), nn.Linear(8, 2)

    def forward(self, x):
        return self.head(self.cells(x)[0][:, -1])


class ClassToken(nn.Module):
    """A learned token before each sequence, as vision transformers have."""

    def __init__(self):
        super().__init__()
        self.token, self.head = nn.Parameter(torch.zeros(1, 1, 4)), nn.Linear(4, 2)

    def forward(self, x):
        return self.head(torch.cat([self.token.expand(len(x), -1, -1), x], 1).mean(1))


class Windows(nn.Module):
    """Attention within windows, many to a sample, as Swin has."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 2)
        self.bias = nn.Parameter(torch.randn(2, 4, 4))

    def forward(self, x):
        samples, *shape = x.shape[0], 4, 8
        windows = x.view(samples, 2, 2, 2, 2, 8).transpose(2, 3).contiguous().view(-1, *shape)
        q, k, v = (part.view(windows.shape[0], 4, 2, 4).transpose(1, 2) for part in self.qkv(windows).chunk(3, -1))
        found = F.scaled_dot_product_attention(q, k, v, self.bias.unsqueeze(0))
        found = found.transpose(1, 2).contiguous().reshape(windows.shape[0], 4, -1).contiguous()
        return self.head(found.view(samples, -1, 8).mean(1))


class UNet(nn.Module):
    """Down, up and a skip; the output is as large as the input."""

    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, 2, 1), nn.ConvTranspose2d(4, 4, 2, 2)
        self.last = nn.Conv2d(7, 2, 3, padding=1)

    def forward(self, x):
        deep = F.interpolate(F.pad(self.down(x), (1, 1, 1, 1)), scale_factor=2.0, mode="nearest")[..., 2:-2, 2:-2]
        return self.last(torch.cat([x, deep + self.up(self.down(x))], 1))


class Several(nn.Module):
    """Two inputs, two outputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Embedding(5, 3)

    def forward(self, x, index):
        return self.a(x) + self.b(index), {"sum": x.sum(1)}


class Pair(nn.Module):
    """One argument that holds two inputs, as data of ((a, b), target) give it."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, pair):
        return self.layer(pair[0] - pair[1])


def normed(how):
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    how(model[0])
    return model


_NORM = nn.utils.parametrizations
GENERAL = {
    "gru": (lambda: Recurrent(nn.GRU), lambda: torch.randn(5, 6, 4)),
    "lstm": (lambda: Recurrent(nn.LSTM), lambda: torch.randn(5, 6, 4)),
    "class-token": (ClassToken, lambda: torch.randn(5, 6, 4)),
    "windows": (Windows, lambda: torch.randn(5, 4, 4, 8)),
    "unet": (UNet, lambda: torch.randn(5, 3, 8, 8)),
    "several": (Several, lambda: (torch.randn(5, 4), torch.randint(5, (5,)))),
    "weight-norm": (lambda: normed(_NORM.weight_norm), lambda: torch.randn(5, 4)),
    "spectral-norm": (lambda: normed(_NORM.spectral_norm), lambda: torch.randn(5, 4)),
    "orthogonal": (lambda: normed(_NORM.orthogonal), lambda: torch.randn(5, 4)),
}


@pytest.mark.parametrize("ending", ["pt2", "safetensors"])
@pytest.mark.parametrize(
    "batch",
    [torch.randn(5, 3, dtype=torch.complex64), torch.ones(5, 3, dtype=torch.uint16), torch.randn(5, 3, *[1] * 8)],
    ids=["complex", "uint16", "nine dimensions"],
)
def test_a_form_of_input_that_no_description_holds_is_left_out(ending, batch, tmp_path):
    class Any(nn.Linear):
        def forward(self, x):
            return super().forward((x.real if x.is_complex() else x.float()).flatten(1))

    model = Any(3, 2)
    export(model, tmp_path / f"m.{ending}", batch=batch)
    opened = open_model(tmp_path / f"m.{ending}", None if ending == "pt2" else Any(3, 2), trust_code=True)
    assert torch.allclose(opened(batch), model(batch))
    assert opened.info.input_dtype == ("float32" if batch.dtype is torch.float32 else None)


def test_one_memory_in_two_dtypes_is_no_pth_and_says_which(tmp_path):
    model = nn.Linear(2, 2)
    model.register_buffer("numbers", torch.arange(4.0))
    model.register_buffer("bits", model.numbers.view(torch.int32)[1:])
    said = "^bits: shares its memory with numbers, as torch.int32 where that is torch.float32, .* export a .safetensors"
    with pytest.raises(UsageError, match=said):
        export(model, tmp_path / "model.pth")
    assert list(tmp_path.iterdir()) == []
    export(model, tmp_path / "model.safetensors")
    model.bits = model.bits.clone()
    export(model, tmp_path / "model.pth")
    assert torch.equal(torch.load(tmp_path / "model.pth", weights_only=True)["bits"], model.bits)


@pytest.mark.parametrize("ending", ["pt2", "onnx", "safetensors", "pth"])
@pytest.mark.parametrize("name", GENERAL)
def test_models_of_every_kind_are_exported_and_run(name, ending, tmp_path):
    needs_onnx(ending)
    torch.manual_seed(0)
    make, draw = GENERAL[name]
    model, batch = make().eval(), draw()
    to = tmp_path / f"m.{ending}"
    if (name, ending) == ("orthogonal", "onnx"):
        with pytest.raises(UsageError, match=r"cannot be written as ONNX: .*; export .pt2 instead"):
            export(model, to, batch=batch)
        return
    result = export(model, to, batch=batch)
    assert result.largest_difference < 1e-5
    if ending in ("safetensors", "pth"):
        export(model, to)  # weights need no forward pass and no shape
        return
    parts = batch if isinstance(batch, tuple) else (batch,)
    loaded = open_model(to, trust_code=True)
    for count in (1, 2, 5):
        with torch.no_grad():
            expected = tree_leaves(model(*(p[:count] for p in parts)))
        found = tree_leaves(loaded(*(p[:count] for p in parts)))
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_pair_goes_to_forward_as_training_gives_it(ending, tmp_path):
    needs_onnx(ending)
    model, a, b = Pair().eval(), torch.randn(5, 4), torch.randn(5, 4)
    assert export(model, tmp_path / f"m.{ending}", batch=(a, b)).largest_difference < 1e-5
    with torch.no_grad():
        expected = model((a, b))
    assert torch.allclose(open_model(tmp_path / f"m.{ending}", trust_code=True)(a, b), expected, atol=1e-5)
    save_model(model, tmp_path / ending)
    assert torch.equal(open_model(tmp_path / ending, Pair())(a, b), expected)


def test_the_instance_is_passed_to_export_by_name(tmp_path):
    save_model(Recurrent(nn.GRU), tmp_path / "m")
    export(tmp_path / "m", tmp_path / "m.safetensors", model=Recurrent(nn.GRU))


def test_a_file_of_ones_own_class_opens_with_trust_or_an_instance(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(
        "from torch import nn\nclass Net(nn.Module):\n    def __init__(self, n=2):\n        super().__init__()\n"
        "        self.l = nn.Linear(4, n)\n    def forward(self, x):\n        return self.l(x)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import my_nets

    save_model(my_nets.Net(3), tmp_path / "m", source=("my_nets:Net", {"n": 3}))
    export(tmp_path / "m", tmp_path / "m.safetensors", trust_code=True)
    assert open_model(tmp_path / "m.safetensors", trust_code=True)(torch.zeros(2, 4)).shape == (2, 3)
    assert open_model(tmp_path / "m.safetensors", my_nets.Net(3)).module is not None
    with pytest.raises(UsageError, match="--trust-code"):
        open_model(tmp_path / "m.safetensors")


def test_a_batch_that_is_none_is_told(tmp_path):
    with pytest.raises(UsageError, match="batch: .*torch.zeros"):
        export(ClassToken(), tmp_path / "m.pt2", batch=[1, 2])
    with pytest.raises(UsageError, match="different numbers of samples"):
        export(Several(), tmp_path / "m.pt2", batch=(torch.zeros(2, 4), torch.zeros(3, dtype=torch.long)))


def test_a_transformer_of_ones_own_runs_from_a_program(batch, tmp_path):
    torch.manual_seed(0)
    model = Attention()
    result = export(model, tmp_path / "m.pt2", batch=batch, info=describe_model(model, preprocessing=Preprocessing()))
    assert result.largest_difference < 1e-6  # eager attention takes a fused path of its own
    loaded = open_model(tmp_path / "m.pt2", trust_code=True)
    reference = torch.export.load(tmp_path / "m.pt2").module()
    for count in (1, 2, 9):
        # torch picks its attention kernel by more than the numbers, so the last bit may differ.
        assert torch.allclose(loaded(batch[:count]), reference(batch[:count]), atol=1e-6)


# ------------------------------------------------------------------------------------- failures


def test_a_model_that_depends_on_its_input_is_told_so(batch, tmp_path):
    class Depends(nn.Module):
        def forward(self, x):
            return x.float().flatten(1) if x.sum() > 0 else x.float().flatten(1)[:, :2]

    with pytest.raises(UsageError, match="Depends cannot be exported as a program.*safetensors or .pth instead"):
        export(Depends(), tmp_path / "m.pt2", batch=batch)
    assert os.listdir(tmp_path) == []


def test_an_export_that_computes_something_else_is_not_kept(directory, batch, tmp_path, monkeypatch):
    (tmp_path / "m.pth").write_bytes(b"the one before")

    real = exporting_module._weights_file

    def wrong(ending, module, info):
        with torch.no_grad():
            module.head.bias[0] += 1
        written = real(ending, module, info)
        with torch.no_grad():
            module.head.bias[0] -= 1
        return written

    monkeypatch.setattr(exporting_module, "_weights_file", wrong)
    with pytest.raises(RunFailed, match="is not what the model holds: head.bias; nothing was kept"):
        export(directory, tmp_path / "m.pth", batch=batch)
    assert (tmp_path / "m.pth").read_bytes() == b"the one before"
    assert os.listdir(tmp_path) == ["m.pth"]


def test_a_program_that_computes_something_else_is_not_kept(directory, batch, tmp_path, monkeypatch):
    real = exporting_module.traced

    def wrong(ready, batch):
        return real(exporting_module.Ready(ready.model, Preprocessing(mean=0.9)).eval(), batch)

    monkeypatch.setattr(exporting_module, "traced", wrong)
    with pytest.raises(RunFailed, match="computes something else: the largest difference is .* was allowed"):
        export(directory, tmp_path / "m.pt2", batch=batch)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "to, said",
    [
        ("m.h5", "ends in one of .safetensors, .pth"),
        ("no/such/m.pth", "the directory .* does not exist"),
        ("taken.pth", "is no regular file"),
    ],
)
def test_a_place_that_cannot_be_written_is_told(to, said, directory, tmp_path):
    (tmp_path / "taken.pth").mkdir()
    with pytest.raises(UsageError, match=said):
        export(directory, tmp_path / to)


def test_a_program_is_not_made_into_something_else(directory, batch, tmp_path):
    export(directory, tmp_path / "m.pt2", batch=batch)
    with pytest.raises(UsageError, match=r"a \.pt2 program does not hold a model"):
        export(tmp_path / "m.pt2", tmp_path / "m.onnx", trust_code=True)
    with pytest.raises(UsageError, match=r"--trust-code \(in Python: trust_code=True\)"):
        open_model(tmp_path / "m.pt2")


@pytest.mark.parametrize("ending", ["pt2", "onnx"])
def test_a_preprocessing_that_a_program_would_not_apply_is_refused(ending, directory, batch, tmp_path):
    needs_onnx(ending)
    export(directory, tmp_path / f"m.{ending}", batch=batch)
    with pytest.raises(UsageError, match="leave preprocessing out"):
        open_model(tmp_path / f"m.{ending}", preprocessing=Preprocessing(), trust_code=True)


def test_what_onnxruntime_cannot_run_is_told_and_not_kept(batch, tmp_path):
    needs_onnx("onnx")
    saved(LeNet5().double(), tmp_path / "model")
    with pytest.raises(UsageError, match="cannot be used and was not kept: onnxruntime refuses it"):
        export(tmp_path / "model", tmp_path / "m.onnx", batch=batch)
    assert os.listdir(tmp_path) == ["model"]


def test_onnx_without_its_packages_says_what_to_install(directory, batch, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(UsageError, match=r"needs the package onnx: pip install 'surefoot\[onnx\]'"):
        export(directory, tmp_path / "m.onnx", batch=batch)


# -------------------------------------------------------------------- what is opened, and how it is used


def test_a_run_directory_opens_its_model(directory, batch, tmp_path):
    save_model(load_model(directory), tmp_path / "run/model", preprocessing=Preprocessing(), classes=CLASSES)
    assert open_model(tmp_path / "run").predict(batch).shape == (9, 10)
    with pytest.raises(UsageError, match="holds no model"):
        open_model(tmp_path)


def test_a_batch_that_does_not_fit_is_told(directory, batch, tmp_path):
    export(directory, tmp_path / "m.pt2", batch=batch)
    for path in (directory, tmp_path / "m.pt2"):
        model = open_model(path, trust_code=True)
        with pytest.raises(UsageError, match=r"takes batches \(N, 1, 28, 28\), not \[2, 3, 28, 28\]"):
            model(torch.zeros(2, 3, 28, 28, dtype=torch.uint8))
        with pytest.raises(UsageError, match="takes raw data of uint8, not float32"):
            model(batch.float())


def test_predictions_do_not_depend_on_how_they_are_batched(directory, batch):
    model = open_model(directory)
    assert torch.allclose(model.predict(batch, batch_size=2), model.predict(batch), atol=1e-6)
    assert model.predict(batch[:0]).shape == (0, 10)


@pytest.mark.parametrize(
    "loss, expected",
    [
        ("CrossEntropyLoss", "softmax"),
        ({"name": "NLLLoss"}, "softmax"),
        ("BCEWithLogitsLoss", "sigmoid"),
        ("MSELoss", None),
        (None, None),
        ("MultiMarginLoss", None),
    ],
)
def test_what_becomes_of_the_outputs_follows_from_the_loss(loss, expected, tmp_path):
    model = MLP(in_features=2, hidden=[], classes=3)
    save_model(model, tmp_path / "m", loss=loss)
    raw = torch.randn(4, 2)
    logits = model(raw)
    wanted = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid(), None: logits}[expected]
    assert torch.allclose(open_model(tmp_path / "m").predict(raw), wanted)


def test_a_description_is_plain_data(directory, batch, tmp_path):
    export(directory, tmp_path / "m.pt2", batch=batch)
    for path in (directory, tmp_path / "m.pt2"):
        described = json.loads(json.dumps(open_model(path, trust_code=True).describe()))
        assert described["classes"] == CLASSES and described["model"]["name"] == "SmallResNet"


# ------------------------------------------------------------- without our code, in other processes


def run(code: str, *args: object, without: tuple[str, ...]) -> str:
    """Run `code` where importing any of `without` fails; returns what it printed."""
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in without)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", f"import sys\n{blocked}{code}", *map(str, args)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_pt2_runs_in_a_process_that_cannot_import_surefoot(directory, batch, tmp_path):
    export(directory, tmp_path / "m.pt2", batch=batch)
    torch.save(batch, tmp_path / "batch.pt")
    printed = run(
        "import json, torch\n"
        "extra = {'classes.json': ''}\n"
        "program = torch.export.load(sys.argv[1], extra_files=extra).module()\n"
        "logits = program(torch.load(sys.argv[2]))\n"
        "assert program(torch.load(sys.argv[2])[:1]).shape == (1, 10)\n"
        "print(json.dumps([json.loads(extra['classes.json']), logits.tolist()]))\n",
        tmp_path / "m.pt2",
        tmp_path / "batch.pt",
        without=("surefoot",),
    )
    classes, logits = json.loads(printed)
    assert classes == CLASSES
    assert torch.allclose(torch.tensor(logits), open_model(directory)(batch), atol=1e-6)


def test_an_onnx_file_runs_in_onnxruntime_without_torch(directory, batch, tmp_path):
    needs_onnx("onnx")
    export(directory, tmp_path / "m.onnx", batch=batch)
    np.save(tmp_path / "batch.npy", batch.numpy())
    printed = run(
        "import json, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1])\n"
        "images = numpy.load(sys.argv[2])\n"
        "(logits,) = session.run(['logits'], {'images': images})\n"
        "assert session.run(None, {'images': images[:1]})[0].shape == (1, 10)\n"
        "classes = session.get_modelmeta().custom_metadata_map['classes']\n"
        "print(json.dumps([json.loads(classes), logits.tolist()]))\n",
        tmp_path / "m.onnx",
        tmp_path / "batch.npy",
        without=("torch", "surefoot"),
    )
    classes, logits = json.loads(printed)
    assert classes == CLASSES
    assert torch.allclose(torch.tensor(logits), open_model(directory)(batch), atol=1e-5)


def test_weights_go_to_plain_torch_and_come_back(tmp_path, batch):
    torch.manual_seed(5)
    model = LeNet5()
    saved(model, tmp_path / "model")
    export(tmp_path / "model", tmp_path / "out.pth", batch=batch)
    export(tmp_path / "model", tmp_path / "out.safetensors", batch=batch)
    # The tutorial's own loading code, with the tutorial's own class.
    from test_models import GarmentClassifier

    plain = GarmentClassifier()
    plain.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    other = GarmentClassifier()
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "out.safetensors"))
    x = torch.randn(3, 1, 28, 28)
    with torch.no_grad():
        assert torch.equal(plain(x), model(x)) and torch.equal(other(x), model(x))
    # And the tutorial's last line, the other way.
    torch.save(plain.state_dict(), tmp_path / "model_params.pth")
    tutorials = Preprocessing()
    with pytest.raises(UsageError, match="does not say how raw data are prepared"):
        open_model(tmp_path / "model_params.pth", "LeNet5")(batch)
    opened = open_model(tmp_path / "model_params.pth", "LeNet5", preprocessing=tutorials)
    with torch.no_grad():
        assert torch.equal(opened(batch), plain(tutorials(batch)))


def test_an_export_tells_nothing_of_the_machine_it_was_made_on(directory, batch, tmp_path):
    here = str(Path(__file__).resolve().parents[1]).encode()
    for name in ("pt2", "onnx", "pth", "safetensors"):
        needs_onnx(name)
        export(directory, tmp_path / f"m.{name}", batch=batch)
        data = (tmp_path / f"m.{name}").read_bytes()
        assert here not in data and str(tmp_path).encode() not in data and b"site-packages" not in data


def test_loaded_models_from_all_formats_are_one_kind_of_thing(directory):
    model = open_model(directory)
    assert isinstance(model, LoadedModel) and model.format == "directory"
    assert isinstance(model.module, SmallResNet)
