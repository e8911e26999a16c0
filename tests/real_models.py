"""Recipes whose models real libraries make: trained, killed, resumed, saved, loaded, used (see real_libraries.py)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from real_libraries import by_recipe, said

# timm, and segmentation_models_pytorch by it, import torchvision, which has no build beside a torch for CPUs alone.
# What they take from it is never called for the models here.
NO_TORCHVISION = """
import importlib.machinery, sys, types

__path__ = []

def made(self, name):
    if name.startswith("__"):
        raise AttributeError(name)
    setattr(self, name, Anything(name, (), {}))
    return getattr(self, name)

class Anything(type):
    __getattr__ = made

class Module(types.ModuleType):
    __version__, __path__, __getattr__ = "0.0", [], made

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torchvision":
            return importlib.machinery.ModuleSpec(name, self)
    def create_module(self, spec):
        return Module(spec.name)
    def exec_module(self, module):
        pass

sys.meta_path.append(Finder())
"""
SENTENCES = """
import torch
from surefoot.data import DataSplits, DatasetSource
def rows(count, seed):
    ids = torch.randint(5, 100, (count, 12), generator=torch.Generator().manual_seed(seed))
    return [{"input_ids": row, "labels": row[0] % 3} for row in ids]
def data():
    return DataSplits(DatasetSource(rows(48, 0)), DatasetSource(rows(16, 1)), None, None)
"""
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
BERT = {"model_type": "bert", "vocab_size": 100, **SIZES}
LABELLED = json.dumps({"import": "transformers:AutoConfig.for_model", "num_labels": 3, **BERT})
REST = "epochs: 2\noptimizer: {name: AdamW, lr: 0.003}\n"


def used(recipe: str, files: dict[str, str] | None = None) -> Path:
    """Train a recipe killed and untouched, compare as bytes, and load what was saved; returns its directory."""
    from surefoot import load_model

    home = by_recipe(recipe, files)
    verdict = said("verify", "recipe.yaml", "execution=plain", "--kills", "1")
    assert "identical: killed 1 time" in verdict, verdict
    assert load_model("whole").training is False
    report = json.loads(said("eval", "whole", "--json"))
    assert report["samples"] > 0 and report["loss"] > 0, report
    return home


def transformers_by_recipe() -> str:
    """A classifier with starting weights of save_pretrained, its head left out; from_pretrained opens what is saved."""
    import numpy as np
    import torch
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

    from surefoot import load_model, open_model

    start = tempfile.mkdtemp(prefix="surefoot-real-")
    torch.manual_seed(1)
    backbone = AutoModel.from_config(AutoConfig.for_model(**BERT))
    backbone.save_pretrained(start)
    recipe = f"""
model:
  import: transformers:AutoModelForSequenceClassification.from_config
  config: {LABELLED}
  weights: {start}
  strict: false
data: {{import: "sentences:data", batch_size: 8}}
objective: model
"""
    used(recipe + REST, {"sentences.py": SENTENCES})
    told = said("check", "recipe.yaml")
    assert "missing: classifier.weight" in told and "39 tensors" in told, told
    theirs, info = AutoModelForSequenceClassification.from_pretrained("whole/model", output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    ids = torch.randint(5, 100, (4, 12))
    ours = load_model("whole")
    assert type(ours) is type(theirs) and torch.equal(ours(ids).logits, theirs.eval()(ids).logits)
    assert not torch.equal(ours.bert.pooler.dense.weight, backbone.pooler.dense.weight)
    np.save("ids.npy", ids.numpy())
    answer = said("predict", "whole", "ids.npy")
    assert answer.count("ids.npy") == 4, answer
    ours.save_pretrained("theirs")
    opened = open_model("theirs", "transformers:AutoModelForSequenceClassification.from_config")
    assert torch.equal(opened(ids).logits, ours(ids).logits)
    assert said("export", "whole", "--to", "m.safetensors").endswith("bit by bit\n")
    return answer.splitlines()[0]


def peft_by_recipe() -> str:
    """LoRA around a model of transformers, made by the recipe alone: arguments within arguments are imported."""
    import torch

    from surefoot import load_model

    recipe = f"""
model:
  import: peft:get_peft_model
  model:
    import: transformers:AutoModelForSequenceClassification.from_config
    config: {LABELLED}
  peft_config: {{import: "peft:LoraConfig", r: 4, target_modules: [query], task_type: SEQ_CLS}}
data: {{import: "sentences:data", batch_size: 8}}
objective: model
"""
    used(recipe + REST, {"sentences.py": SENTENCES})
    model = load_model("whole")
    learned = [name for name, p in model.named_parameters() if p.requires_grad]
    assert any("lora_B" in name for name in learned) and not any("intermediate" in name for name in learned), learned
    assert any(p.abs().sum() > 0 for name, p in model.named_parameters() if "lora_B" in name)
    assert model(torch.randint(5, 100, (2, 12))).logits.shape == (2, 3)
    return f"{len(learned)} parameters learn"


def timm_by_recipe() -> str:
    """A ResNet of timm on pictures: predict takes a PNG, a program holds it; what timm refuses is told in a line."""
    from PIL import Image

    from surefoot.data import DATA

    recipe = """
model: {import: "timm:create_model", model_name: resnet10t, num_classes: 10, in_chans: 1}
data: {name: garments, train_size: 64, val_size: 32, batch_size: 16}
loss: CrossEntropyLoss
"""
    used(recipe + REST, {"torchvision.py": NO_TORCHVISION})
    splits = DATA.build("garments", {"train_size": 10, "val_size": 10})
    Image.fromarray(splits.val.tensors[0][0, 0].numpy()).save("one.png")
    answer = said("predict", "whole", "one.png")
    assert "%" in answer, answer
    assert "largest difference" in said("export", "whole", "--to", "m.pt2")
    wrong = said("check", "recipe.yaml", "model.model_name=resnet11t")
    assert "recipe.yaml:" in wrong and "Unknown model (resnet11t)" in wrong and "Traceback" not in wrong, wrong
    return answer.strip()


def segmentation_by_recipe() -> str:
    """A U-Net of segmentation_models_pytorch on masks."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    home = Path(tempfile.mkdtemp(prefix="surefoot-real-"))
    for folder in ("images", "masks"):
        (home / folder).mkdir()
    for number in range(24):
        mask = np.zeros((32, 32), np.uint8)
        top, left = rng.integers(0, 16, 2)
        mask[top : top + 14, left : left + 14] = 1
        pixels = rng.integers(0, 90, (32, 32, 3), np.uint8) + 150 * mask[..., None]
        Image.fromarray(pixels.astype(np.uint8)).save(home / "images" / f"{number}.png")
        Image.fromarray(mask).save(home / "masks" / f"{number}.png")
    recipe = f"""
model: {{import: "segmentation_models_pytorch:Unet", encoder_name: efficientnet-b0, encoder_weights: null, classes: 2}}
data: {{name: image_masks, images: {home}/images, masks: {home}/masks, size: 32, batch_size: 8}}
loss: CrossEntropyLoss
"""
    used(recipe + REST, {"torchvision.py": NO_TORCHVISION})
    answer = said("predict", "whole", str(home / "images" / "0.png"))
    assert "positions" in answer or "%" in answer, answer
    return answer.splitlines()[0].rpartition("/")[2]


def graphs_by_recipe() -> str:
    """A GCN of PyTorch Geometric on its own batches, by an objective."""
    import torch

    from surefoot import load_model

    files = {
        "graphs.py": """
import torch
from torch_geometric.data import Batch, Data
import surefoot
from surefoot.data import DataSplits, DatasetSource
def samples(count, seed):
    g = torch.Generator().manual_seed(seed)
    return [Data(x=torch.randn(5 + i % 3, 4, generator=g), edge_index=torch.randint(0, 5, (2, 8), generator=g),
                 y=torch.tensor([i % 2])) for i in range(count)]
def data():
    return DataSplits(*(DatasetSource(samples(n, n), collate=Batch.from_data_list) for n in (22, 10)), None, None)
def classify(model, batch):
    nodes = model(batch.x, batch.edge_index)
    sums = torch.zeros(batch.num_graphs, nodes.shape[1]).index_add(0, batch.batch, nodes)
    return {"loss": torch.nn.functional.cross_entropy(sums, batch.y), "outputs": sums, "targets": batch.y}
"""
    }
    recipe = """
model: {import: "torch_geometric.nn:GCN", in_channels: 4, hidden_channels: 8, num_layers: 2, out_channels: 2}
data: {import: "graphs:data", batch_size: 8}
objective: {import: "graphs:classify"}
"""
    used(recipe + REST, files)
    outputs = load_model("whole")(torch.randn(5, 4), torch.randint(0, 5, (2, 8)))
    assert outputs.shape == (5, 2)
    return str(list(outputs.shape))


CASES = [transformers_by_recipe, peft_by_recipe, timm_by_recipe, segmentation_by_recipe, graphs_by_recipe]
