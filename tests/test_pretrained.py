"""Models of transformers: saved with their configuration, folders of theirs read as data, nothing imported by a file.

The library here is a stand-in of the same shape; `python3 dev.py libraries` does the same with the real one.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from surefoot import load_model, open_model, save_model
from surefoot.artifacts import import_weights, read_info
from surefoot.artifacts.importing import build_named
from surefoot.cli import main
from surefoot.errors import UsageError

LIBRARY = """
import json
import torch
from torch import nn

class NetConfig:
    model_type = "net"
    def __init__(self, width=4, num_labels=2, id2label=None, **more):
        self.width = width
        self.id2label = id2label or {str(i): f"LABEL_{i}" for i in range(num_labels)}
        self.num_labels = len(self.id2label)
        self.__dict__.update({k: v for k, v in more.items() if k not in ("model_type", "architectures", "dtype")})
    def to_json_string(self):
        return json.dumps({**self.__dict__, "model_type": "net", "num_labels": None})

class PreTrainedModel(nn.Module):
    main_input_name = "input_ids"
    def __init__(self, config):
        super().__init__()
        self.config = config
    @property
    def dtype(self):
        return next(self.parameters()).dtype

class NetForClasses(PreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(config.width, config.num_labels)
    def forward(self, x):
        self.config.problem_type = "of the first batch"  # as transformers does
        return self.head(x)

class AutoConfig:
    @staticmethod
    def for_model(model_type, **given):
        assert model_type == "net"
        return NetConfig(**given)

class AutoModelForClasses:
    @classmethod
    def from_config(cls, config, **more):
        return NetForClasses(config)
"""
RECIPE = """\
epochs: 1
model:
  import: transformers:AutoModelForClasses.from_config
  config: {import: "transformers:AutoConfig.for_model", model_type: net, width: 784, num_labels: 10}
data: {name: garments, train_size: 32, val_size: 16, batch_size: 16}
loss: CrossEntropyLoss
optimizer: AdamW
execution: plain
"""


@pytest.fixture(autouse=True)
def library(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("transformers.py").write_text(LIBRARY)
    monkeypatch.delitem(sys.modules, "transformers", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("transformers", None)


def model(**given):
    return build_named("transformers:NetForClasses", {"config": {"import": "transformers:NetConfig", **given}})[0]


def folder(**changes) -> Path:
    """What save_pretrained writes."""
    net = model(width=3, num_labels=2)
    Path("sp").mkdir()
    safetensors.torch.save_file(net.state_dict(), "sp/model.safetensors", metadata={"format": "pt"})
    config = json.loads(net.config.to_json_string()) | {"architectures": ["NetForClasses"]} | changes
    Path("sp/config.json").write_text(json.dumps(config))
    sys.modules.pop("transformers")
    return Path("sp")


def test_a_model_of_a_recipe_is_saved_with_its_configuration_and_made_again_from_it(capsys):
    recipe = RECIPE
    Path("flat.py").write_text(
        "from surefoot.data import DATA, DataSplits, TensorSource\n"
        "def data():\n"
        "    s = DATA.build('garments', {'train_size': 32, 'val_size': 16})\n"
        "    flat = lambda t: TensorSource(t.tensors[0].flatten(1) / 255, t.tensors[1], classes=s.classes)\n"
        "    return DataSplits(flat(s.train), flat(s.val), s.classes, None)\n"
    )
    recipe = recipe.replace("name: garments, train_size: 32, val_size: 16", 'import: "flat:data"')
    Path("r.yaml").write_text(recipe)
    assert main(["train", "r.yaml", "--run", "run"]) == 0
    config = json.loads(Path("run/model/config.json").read_text())
    assert "problem_type" not in config  # what is written is the same whether this process ran a batch or not
    assert config["architectures"] == ["NetForClasses"] and config["width"] == 784 and "import" not in config
    assert config["id2label"]["0"] == read_info("run/model").classes[0]
    sys.modules.pop("transformers")
    assert type(load_model("run/model")).__name__ == "NetForClasses"
    capsys.readouterr()
    assert main(["eval", "run", "--json"]) == 0
    assert main(["export", "run", "--to", "m.onnx"]) == 0
    text = Path("run/model/README.md").read_text()
    assert 'NetForClasses.from_pretrained(".")' in text


def test_a_folder_of_theirs_is_data_until_its_class_is_named(capsys):
    place = folder(auto_map={"AutoModel": "evil.Net"}, id2label={"0": "cat", "1": "dog"})
    with pytest.raises(UsageError, match="--model transformers:NetForClasses"):
        open_model(place)
    assert "transformers" not in sys.modules
    for name in ("transformers:NetForClasses", "transformers:AutoModelForClasses.from_config"):
        opened = open_model(place, name)
        assert opened.classes == ("cat", "dog") and not hasattr(opened.module.config, "auto_map")
        assert opened(torch.zeros(2, 3)).shape == (2, 2)  # tokens are taken as they are
    assert open_model(place, trust_code=True).module.config.width == 3
    save_model(opened.module, "own", classes=["cat", "dog"])
    assert read_info("own").model["args"]["config"]["id2label"] == {"0": "cat", "1": "dog"}
    shutil.copytree("own", "copied")
    with pytest.raises(UsageError, match="--trust-code"):
        load_model("copied")


@pytest.mark.parametrize("where", ["top", "deep"])
def test_a_config_that_names_code_to_import_is_refused_even_when_trusted(where):
    evil = {"import": "os:system", "command": "touch EXECUTED"}
    place = folder(**(evil if where == "top" else {"text": [{"deep": evil}]}))
    for given in ({"model": "transformers:NetForClasses"}, {"trust_code": True}, {}):
        with pytest.raises(UsageError, match="names 'os:system' to be imported"):
            open_model(place, **given)
    assert not Path("EXECUTED").exists()


def test_what_code_a_folder_asks_for_deep_inside_is_left_out():
    net = import_weights(folder(text={"attn_implementation": "a/kernel", "size": 1}), trust_code=True).model
    assert net.config.text == {"size": 1}


@pytest.mark.parametrize("text", ['{"architectures": ["A", "B"], "model_type": "net"}', "[]", '{"model_type": 3}'])
def test_a_config_of_another_form_says_nothing(text):
    place = folder()
    (place / "config.json").write_text(text)
    with pytest.raises(UsageError, match="does not name its model"):
        open_model(place)


def test_a_wrong_argument_of_what_is_imported_is_told_with_its_place(capsys):
    Path("r.yaml").write_text(RECIPE.replace("model_type: net", "model_typ: net"))
    assert main(["check", "r.yaml"]) == 2
    error = capsys.readouterr().err
    assert "r.yaml:" in error and "transformers:AutoConfig.for_model" in error and "model_type" in error
    Path("r.yaml").write_text(RECIPE.replace("AutoConfig.for_model", "AutoConfg.for_model"))
    assert main(["check", "r.yaml"]) == 2
    assert "did you mean 'AutoConfig'?" in capsys.readouterr().err
