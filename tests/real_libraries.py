"""Trains what real libraries make, each killed in the middle and compared to the bit: `python3 dev.py libraries`."""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import other_trainers
import real_services

ROOT = Path(__file__).resolve().parents[1]
# Without what they depend on where that would replace torch.
ALONE = [
    *("transformers", "datasets", "torchmetrics", "peft", "torch_geometric", "torchdata"),
    *("timm", "segmentation_models_pytorch"),
]
PACKAGES = [
    *(
        "numpy",
        "pandas",
        "polars",
        "pyarrow",
        "huggingface_hub",
        "tokenizers",
        "safetensors",
        "regex",
        "requests",
        "tqdm",
        "pyyaml",
    ),
    *("packaging", "filelock", "dill", "multiprocess", "xxhash", "fsspec", "httpx", "aiohttp"),
    *("lightning-utilities", "psutil", "pyparsing", "accelerate", "typer", "tensorboard", "pillow", "python-dateutil"),
]


def main(arguments: list[str] | None = None) -> int:
    """Returns 0 where everything was trained, resumed and measured right, 1 where something was not."""
    parser = argparse.ArgumentParser(prog="dev.py libraries", description=__doc__)
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    default = Path(home) / "surefoot" / "real"
    parser.add_argument("--env", type=Path, default=default, metavar="DIR", help=f"its environment ({default})")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="only cases whose names hold one of these")
    options = parser.parse_args(arguments)
    if options.inside:
        return train_all(options.cases)
    python = options.env / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(options.env)], check=True)
    constraints = str(ROOT / "constraints.txt")
    packages, alone = [*PACKAGES, *real_services.PACKAGES, *other_trainers.PACKAGES], [*ALONE, *other_trainers.ALONE]
    for what in (["torch", "-c", constraints], packages, ["--no-deps", *alone]):
        subprocess.run([str(python), "-m", "pip", "install", "-q", *what], check=True)
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    return subprocess.run([str(python), __file__, "--inside", *options.cases], env=environment).returncode


def train_all(only: list[str]) -> int:
    """Every case here, or `only` those whose names hold one of these, in this environment."""
    warnings.simplefilter("ignore")
    import real_models

    wrong = 0
    for case in [*CASES, *real_models.CASES, *real_services.CASES, other_trainers.other_trainers]:
        if only and not any(word in case.__name__ for word in only):
            continue
        try:
            print(f"{case.__name__:25} {case()}", flush=True)
        except Exception as error:
            wrong += 1
            print(f"{case.__name__:25} WRONG: {type(error).__name__}: {error}", flush=True)
    return 1 if wrong else 0


CASES = []


def case(function):
    """Mark a function as a case: it raises where something is wrong, and returns what is printed."""
    CASES.append(function)
    return function


def trained(make, loss, data, **settings):
    """Train untouched, and again in two sittings; returns the untouched model and result once both are equal."""
    import torch

    import surefoot

    def once(epochs: int, run_dir: str, resume: bool = False):
        torch.manual_seed(0)
        model = make()
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        result = surefoot.fit(
            model, loss, optimizer, data, val=data, epochs=epochs, batch_size=8, run_dir=run_dir, resume=resume,
            run=surefoot.RunOptions(progress=False), **settings,
        )  # fmt: skip
        return model, result

    with tempfile.TemporaryDirectory() as home:
        model, result = once(2, f"{home}/whole")
        once(1, f"{home}/part")
        resumed, again = once(2, f"{home}/part", resume=True)
    for (name, one), other in zip(model.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other), f"{name} differs after a resume"
    assert result.metrics == again.metrics, f"{result.metrics} is not {again.metrics}"
    return model, result


def by_recipe(recipe: str, files: dict[str, str] | None = None):
    """Train a recipe untouched and in two sittings, by the command; returns its directory once the models are equal."""
    from surefoot.cli import main

    home = Path(tempfile.mkdtemp(prefix="surefoot-real-"))
    for name, text in {"recipe.yaml": recipe, **(files or {})}.items():
        (home / name).write_text(text, encoding="utf-8")
    os.chdir(home)
    with contextlib.redirect_stdout(io.StringIO()):
        plain = ["tensorboard=false", "execution=plain"]
        assert main(["train", "recipe.yaml", "--run", "whole", "epochs=2", *plain]) == 0
        assert main(["train", "recipe.yaml", "--run", "part", "epochs=1", *plain]) == 0
        assert main(["resume", "part", "epochs=2"]) == 0
    one, other = (home / run / "model" / "model.safetensors" for run in ("whole", "part"))
    assert one.read_bytes() == other.read_bytes(), "the resumed model differs"
    return home


def said(*words: str) -> str:
    """What a command prints, standard error included."""
    from surefoot.cli import main

    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        main(list(words))
    return out.getvalue()


def tokens():
    import torch

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (44, 12), generator=generator)
    return ids, torch.randint(0, 3, (44,), generator=generator)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    return BertForSequenceClassification(BertConfig(vocab_size=100, num_labels=3, **sizes))


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"n_positions": 16, "n_embd": 32, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(vocab_size=100, bos_token_id=0, eos_token_id=0, **sizes))


@case
def bert_labels() -> str:
    """A `datasets.Dataset` in torch's format; the model's own loss; a metric of torchmetrics."""
    import datasets
    import torchmetrics

    ids, labels = tokens()
    columns = {"input_ids": ids.tolist(), "attention_mask": (ids > 9).long().tolist(), "labels": labels.tolist()}
    data = datasets.Dataset.from_dict(columns).with_format("torch")
    f1 = torchmetrics.F1Score(task="multiclass", num_classes=3, average="macro")
    model, result = trained(bert, None, data, metrics=["accuracy", f1])
    model.eval()
    logits = model(**{name: column[:] for name, column in data[:].items()}).logits
    assert abs(float(f1(logits, labels)) - result.metrics["val/F1Score"]) < 1e-6
    return str(result.metrics)


@case
def bert_plain_lists() -> str:
    """A `datasets.Dataset` as it is made."""
    import datasets

    ids, labels = tokens()
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    return str(trained(bert, None, data)[1].metrics)


@case
def gpt2_tokens() -> str:
    """Rows with unequal numbers of labels, accumulated: the mean is the model's own over all the data."""
    import datasets
    import torch

    from surefoot import StepOptions

    ids, _ = tokens()
    labels = ids.clone()
    for row in range(len(labels)):
        labels[row, 2 + row % 10 :] = -100
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()}).with_format("torch")
    model, result = trained(gpt2, None, data, step=StepOptions(grad_accum_steps=2))
    model.eval()
    with torch.no_grad():
        whole = float(model(input_ids=ids, labels=labels).loss)
    assert abs(whole - result.metrics["val/loss"]) < 1e-5 * whole, f"{result.metrics['val/loss']} is not {whole}"
    return str(result.metrics)


@case
def padded_by_collate() -> str:
    """Samples of unequal length, padded by the user's collate function."""
    import torch

    from surefoot.data import DatasetSource

    ids, labels = tokens()
    samples = [{"input_ids": row[: 4 + i % 5], "labels": labels[i]} for i, row in enumerate(ids)]

    def collate(few):
        rows = torch.nn.utils.rnn.pad_sequence([sample["input_ids"] for sample in few], batch_first=True)
        return {
            "input_ids": rows,
            "attention_mask": (rows > 0).long(),
            "labels": torch.stack([s["labels"] for s in few]),
        }

    return str(trained(bert, None, DatasetSource(samples, collate=collate))[1].metrics)


@case
def lora() -> str:
    """PEFT's adapters: only what is trained moves."""
    import datasets
    import torch
    from peft import LoraConfig, get_peft_model

    ids, _ = tokens()
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": ids.tolist()}).with_format("torch")
    config = LoraConfig(r=4, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True)
    model, result = trained(lambda: get_peft_model(gpt2(), config), None, data)
    torch.manual_seed(0)
    before = get_peft_model(gpt2(), config).state_dict()
    moved = [name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])]
    assert moved and all("lora_" in name for name in moved), moved
    return str(result.metrics)


@case
def graphs() -> str:
    """PyTorch Geometric's batches, by an objective."""
    import torch
    from torch import nn
    from torch_geometric.data import Batch, Data
    from torch_geometric.nn import GCNConv, global_mean_pool

    import surefoot
    from surefoot.data import DatasetSource

    generator = torch.Generator().manual_seed(0)
    samples = [
        Data(
            x=torch.randn(5 + i % 3, 4, generator=generator),
            edge_index=torch.randint(0, 5, (2, 8), generator=generator),
            y=torch.tensor([i % 2]),
        )
        for i in range(22)
    ]

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.head = GCNConv(4, 8), nn.Linear(8, 2)

        def forward(self, batch):
            return self.head(global_mean_pool(self.conv(batch.x, batch.edge_index).relu(), batch.batch))

    @surefoot.objective
    def classify(model, batch):
        outputs = model(batch)
        return {"loss": nn.functional.cross_entropy(outputs, batch.y), "outputs": outputs, "targets": batch.y}

    data = DatasetSource(samples, collate=Batch.from_data_list)
    return str(trained(Network, classify, data, metrics=["accuracy"])[1].metrics)


@case
def graphs_by_recipe() -> str:
    """A recipe with a list of graphs, CrossEntropyLoss on their `y`, a model of (x, edge_index, batch)."""
    module = """
import torch
from torch_geometric.data import Data
from torch_geometric.nn import GCNConv, global_mean_pool

class Net(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.head = GCNConv(4, width), torch.nn.Linear(width, 2)

    def forward(self, x, edge_index, batch):
        return self.head(global_mean_pool(self.conv(x, edge_index).relu(), batch))

def graphs():
    g = torch.Generator().manual_seed(0)
    edges = [torch.randint(0, 5, (2, 8), generator=g) for _ in range(22)]
    data = [Data(torch.randn(5, 4, generator=g), e, y=torch.tensor([i % 2])) for i, e in enumerate(edges)]
    return data[:16], data[16:]
"""
    recipe = """
model: {import: "small_graphs:Net", width: 8}
data: {import: "small_graphs:graphs", batch_size: 4}
loss: CrossEntropyLoss
optimizer: {name: Adam, lr: 0.01}
epochs: 2
"""
    home = by_recipe(recipe, {"small_graphs.py": module})
    report = said("eval", str(home / "whole"))
    assert "accuracy" in report, report
    return report.splitlines()[1].strip()


@case
def lora_by_recipe() -> str:
    """PEFT by nested imports in a recipe: the adapter of a model, both made from their configurations."""
    recipe = """
model:
  import: peft:get_peft_model
  model:
    import: transformers:AutoModelForCausalLM.from_config
    config:
      {import: "transformers:AutoConfig.for_model", model_type: gpt2, n_layer: 2, n_embd: 32, n_head: 2, vocab_size: 27}
  peft_config: {import: "peft:LoraConfig", r: 4, target_modules: [c_attn], task_type: CAUSAL_LM, fan_in_fan_out: true}
data: {name: text, path: book.txt, length: 16, batch_size: 8}
loss: CrossEntropyLoss
optimizer: {name: AdamW, lr: 0.001}
epochs: 2
"""
    home = by_recipe(recipe, {"book.txt": "abcdefghijklmnopqrstuvwxyz " * 60})
    report = said("eval", str(home / "whole"))
    assert "accuracy" in report, report
    return report.splitlines()[1].strip()


@case
def frames() -> str:
    """pandas' frames and columns."""
    import numpy as np
    import pandas as pd
    from torch import nn

    frame = pd.DataFrame(np.random.default_rng(0).normal(size=(50, 4)), columns=list("abcd"))
    return str(trained(lambda: nn.Linear(4, 2), nn.CrossEntropyLoss(), (frame, (frame.a > 0).astype(int)))[1].metrics)


@case
def tables() -> str:
    """Frames of pandas and polars with texts, categoricals and gaps, a table of pyarrow: the same rows, resumed."""
    import pandas as pd
    import polars as pl
    import pyarrow as pa
    import torch
    from torch import nn

    from surefoot.data import table
    from surefoot.models import TabularMLP

    columns = {
        "area": [float(30 + 7 * k % 90) if k % 9 else None for k in range(60)],
        "rooms": [k % 4 + 1 for k in range(60)],
        "city": [("Ulm", "Bonn", "Kiel")[k % 3] for k in range(60)],
        "price": [900.5 + k for k in range(60)],
    }
    plain = pd.DataFrame(columns, index=range(5, 65))
    coded = plain.assign(city=plain.city.astype("category"), rooms=plain.rooms.astype("Int64"))
    polars = pl.DataFrame(columns)
    frames = [plain, coded, polars, polars.with_columns(pl.col("city").cast(pl.Categorical)), pa.table(columns)]
    splits = [table(frame, "price", missing="mean") for frame in frames]
    for other in splits[1:]:
        assert all(map(torch.equal, splits[0].train.tensors, other.train.tensors))
        assert splits[0].train.columns == other.train.columns and splits[0].preprocessing == other.preprocessing
    return str(trained(lambda: TabularMLP(**splits[0].sizes_for(TabularMLP)), nn.MSELoss(), splits[0])[1].metrics)


@case
def dict_of_tensors() -> str:
    """A mapping of columns."""
    import torch
    from torch import nn

    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    return str(trained(lambda: nn.Linear(4, 1), nn.MSELoss(), {"x": x, "y": x[:, :1] * 2})[1].metrics)


TRANSFORMERS = """
model:
  import: transformers:AutoModelFor{task}.from_config
  config:
    import: transformers:AutoConfig.for_model
    model_type: {kind}
    num_hidden_layers: 2
    hidden_size: 32
    num_attention_heads: 2
    {more}
data: {{name: {data}, batch_size: 8}}
{objective}
optimizer: {{name: AdamW, lr: 0.001}}
epochs: 2
"""


@case
def transformers_by_recipe() -> str:
    """Models of transformers in recipes: their own loss is CrossEntropyLoss's; `eval` gives what training did."""
    import json

    import datasets
    import numpy as np
    from PIL import Image

    home = Path(tempfile.mkdtemp(prefix="surefoot-real-"))
    ids, labels = tokens()
    names = datasets.ClassLabel(names=["a", "b", "c"])
    columns = {"input_ids": ids.tolist(), "attention_mask": (ids > 9).long().tolist(), "label": labels.tolist()}
    datasets.Dataset.from_dict(columns).cast_column("label", names).save_to_disk(home / "tokens")
    pixels = np.random.default_rng(0).integers(0, 256, (44, 16, 16, 3), dtype=np.uint8)
    pictures = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, pixels)), "label": labels.tolist()})
    pictures.cast_column("label", names).save_to_disk(home / "pictures")
    bert = {
        "task": "SequenceClassification", "kind": "bert", "more": "vocab_size: 100\n    num_labels: 3",
        "data": f"hugging_face, path: {home}/tokens, inputs: [input_ids, attention_mask], targets: label",
    }  # fmt: skip
    vit = {
        "task": "ImageClassification", "kind": "vit", "more": "image_size: 16\n    patch_size: 4\n    num_labels: 3",
        "data": f"hugging_face, path: {home}/pictures, inputs: image, targets: label, size: 16",
    }  # fmt: skip
    for parts in (bert, vit):
        found = []
        for objective in ("objective: model\nmetrics: [accuracy]", "loss: CrossEntropyLoss"):
            where = by_recipe(TRANSFORMERS.format(**parts, objective=objective))
            last = [json.loads(line) for line in (where / "whole/metrics.jsonl").read_text().splitlines()][-1]
            report = json.loads(said("eval", "whole", "--json"))
            assert abs(report["loss"] - last["loss"]) < 1e-4, (report, last)
            found.append((last["loss"], last["accuracy"]))
        assert abs(found[0][0] - found[1][0]) < 1e-4 and found[0][1] == found[1][1], found
    return f"BERT and ViT, {found[0]}"


@case
def gpt2_on_a_text() -> str:
    """Recipe data `text`: transformers' GPT-2 by CrossEntropyLoss, on windows of another length than its vocabulary."""
    import string

    recipe = TRANSFORMERS.format(
        task="CausalLM", kind="gpt2", more="vocab_size: 27", data="text, path: book.txt, length: 16",
        objective="loss: CrossEntropyLoss",
    )  # fmt: skip
    book = "".join(f"{letter}{letter} " for letter in string.ascii_lowercase) * 40
    home = by_recipe(recipe, {"book.txt": book})
    report = said("eval", str(home / "whole"))
    assert "accuracy" in report, report
    return report.splitlines()[1].strip()


@case
def hugging_face_pictures() -> str:
    """Recipe data `hugging_face`: pictures with class labels, of save_to_disk and as Parquet; predict reads a PNG."""
    import datasets
    import numpy as np
    from PIL import Image

    home = Path(tempfile.mkdtemp(prefix="surefoot-real-"))
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 3), dtype=np.uint8)
    labels = [index % 2 for index in range(40)]
    pixels[::2] //= 4
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["dark", "light"])})
    data = datasets.Dataset.from_dict({"image": list(map(Image.fromarray, pixels)), "label": labels}, features=features)
    datasets.DatasetDict(train=data, validation=data).save_to_disk(home / "disk")
    (home / "parquet").mkdir()
    data.to_parquet(home / "parquet" / "train.parquet")
    Image.fromarray(pixels[0]).save(home / "dark.png")
    recipe = """
model: {name: SmallResNet, width: 4}
data: {name: hugging_face, path: PATH, inputs: image, targets: label, size: 8, batch_size: 8}
loss: CrossEntropyLoss
optimizer: {name: Adam, lr: 0.02}
epochs: 2
"""
    by_recipe(recipe.replace("PATH", str(home / "parquet")))
    by_recipe(recipe.replace("PATH", str(home / "disk")))
    answer = said("predict", "whole/model", str(home / "dark.png"))
    assert "dark" in answer and "light" in answer, answer
    return answer.split(": ")[-1].strip()


@case
def hugging_face_columns() -> str:
    """Recipe data `hugging_face`: CSV columns as keywords, texts as classes; what is wrong is named."""
    from surefoot.data.hugging_face import hugging_face
    from surefoot.errors import UsageError

    home = Path(tempfile.mkdtemp(prefix="surefoot-real-"))
    rows = "\n".join(f"{i},{i / 7},{'odd' if i % 2 else 'even'}" for i in range(30))
    (home / "rows.csv").write_text(f"count,size,parity\n{rows}\n")
    splits = hugging_face(str(home), ["count", "size"], "parity")
    assert splits.classes == ("even", "odd") and (len(splits.train), len(splits.val)) == (27, 3)
    (sample,) = splits.train.formed(splits.train[5])
    assert int(sample["labels"]) == int(sample["count"]) % 2 and sample["size"].dtype.is_floating_point
    (home / "gaps.jsonl").write_text('{"x": 1, "y": 0}\n{"x": null, "y": 1}\n')
    for path, inputs, message in [
        (home, ["counts"], "files of several kinds (.csv, .jsonl)"),
        (home / "rows.csv", ["counts"], "no column 'counts'; did you mean 'count'?"),
        (home / "rows.csv", ["parity"], "the column 'parity' holds texts; make numbers of them"),
        (home / "gaps.jsonl", ["x"], "the column 'x' has no value in 1 rows; the first is row 1"),
        (home / "none", ["x"], "there is no such directory or file"),
        ("somebody/something", ["x"], "cannot be reached, and no earlier download of it was found"),
    ]:
        try:
            hugging_face(str(path), inputs, val_share=0)
        except UsageError as error:
            assert message in str(error), error
        else:
            raise AssertionError(f"{message}: was not said")
    return "classes, columns and refusals"


@case
def streams() -> str:
    """`datasets.IterableDataset`, plain, shuffled, read by workers: gone on with from the middle of an epoch."""
    import datasets
    import torch

    from surefoot import Loader

    ids, labels = tokens()
    data = datasets.Dataset.from_dict({"input_ids": ids.tolist(), "labels": labels.tolist()})
    stream = data.to_iterable_dataset(num_shards=4)
    said = []
    for given, workers, by_state in (
        (stream, 0, True),
        (stream.map(lambda row: {"labels": 2 - row["labels"]}), 2, True),
        (stream.with_format("torch"), 2, True),
        (stream.shuffle(seed=1, buffer_size=12), 0, False),
        (stream.shuffle(seed=1, buffer_size=12), 2, False),
    ):
        whole, stopped, resumed = (Loader(given, 4, workers=workers) for _ in range(3))
        assert whole.source.stateful is by_state, f"{given}: {whole.source.stateful}"
        batches = [*whole, *whole]
        first = list(itertools.islice(stopped, 5))
        state = stopped.state_dict()
        assert (state["epoch"], state["position"]) == (0, 5)
        resumed.load_state_dict(state)
        rest = [*resumed, *resumed]
        assert len(batches) == len(first + rest)
        for (one,), (other,) in zip(batches, first + rest, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in ("input_ids", "labels"))
        said.append(f"{len(batches)} batches {'by state' if by_state else 'read again'}")
        for loader in (whole, stopped, resumed):
            loader.close()
    trained(bert, None, stream.shuffle(seed=1, buffer_size=12))
    return ", ".join(said)


@case
def torchdata_nodes() -> str:
    """A pipeline of torchdata's nodes is a stream with a state."""
    from torch.utils.data import RandomSampler
    from torchdata.nodes import Loader as Nodes
    from torchdata.nodes import Mapper, SamplerWrapper

    from surefoot import Loader

    def made():
        nodes = Mapper(SamplerWrapper(RandomSampler(range(50))), lambda number: (float(number), number % 3))
        return Loader(Nodes(nodes, restart_on_stop_iteration=False), 4)

    whole = [batch[1].tolist() for batch in made()]
    stopped, resumed = made(), made()
    first = [batch[1].tolist() for batch in itertools.islice(stopped, 5)]
    resumed.load_state_dict(stopped.state_dict())
    assert first + [batch[1].tolist() for batch in resumed] == whole
    return "by state" if resumed.source.stateful else "read again"


if __name__ == "__main__":
    sys.exit(main())
