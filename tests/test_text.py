"""Recipe data `text`: windows as views of the tokens, the vocabulary saved as data, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from surefoot import open_model
from surefoot.build import build
from surefoot.cli import main
from surefoot.data import DATA, Loader
from surefoot.data.text import BYTE_NAMES, TokenWindows, encoded, text
from surefoot.errors import UsageError
from surefoot.models import GPT
from surefoot.recipe import parse_recipe

WORDS = "der Fluß läuft, the river runs; " * 40
RECIPE = """
model: {{name: GPT, width: 16, depth: 1, heads: 2}}
data: {{name: text, path: {path}, length: 8, batch_size: 16}}
loss: CrossEntropyLoss
optimizer: {{name: AdamW, lr: 0.01}}
epochs: 1
execution: plain
tensorboard: false
"""


@pytest.fixture
def book(tmp_path):
    (tmp_path / "book.txt").write_text(WORDS, encoding="utf-8")
    return tmp_path / "book.txt"


def test_targets_are_the_next_characters_and_the_end_validates(book):
    splits = text(str(book), length=10, val_share=0.2)
    assert splits.classes == tuple(sorted(set(WORDS))) and splits.sizes == {"length": 10}
    number = {c: i for i, c in enumerate(splits.classes)}
    count = len(WORDS) - round(0.2 * len(WORDS))
    for source, part in ((splits.train, WORDS[:count]), (splits.val, WORDS[count:])):
        windows = [part[k : k + 11] for k in range(0, len(part) - 10, 10)]
        inputs, targets = source[:]
        assert inputs.tolist() == [[number[c] for c in window[:-1]] for window in windows]
        assert targets.tolist() == [[number[c] for c in window[1:]] for window in windows]
    assert text(str(book), length=10, val_share=0).val is None


def test_bytes_and_several_files(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(256)))
    (tmp_path / "b").write_bytes(b"the end")
    splits = text([str(tmp_path / "a"), str(tmp_path / "b")], "bytes", length=262, val_share=0)
    (inputs,), (targets,) = splits.train[:]
    assert bytes(inputs.tolist()) + bytes(targets[-1:].tolist()) == bytes(range(256)) + b"the end"
    assert splits.classes == BYTE_NAMES and len(set(BYTE_NAMES)) == 256 and BYTE_NAMES[65] == "A"


def test_windows_are_views_and_batches_are_int64():
    tokens = torch.randint(0, 200, (5000,), dtype=torch.uint8)
    source = TokenWindows(tokens, 64, stride=1)
    assert len(source) == 5000 - 64 and source.batch_dtype == torch.int64
    stored = {tensor.untyped_storage().data_ptr() for tensor in source.tensors}
    assert stored == {tokens.untyped_storage().data_ptr()}
    loader = Loader(source, 32, seed=3)
    for inputs, targets in loader:
        assert inputs.dtype == targets.dtype == torch.int64 and inputs.is_contiguous()
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
    first = loader.batch_at(0, 5)
    starts = loader.indices_at(0, 5)
    assert torch.equal(first[0], torch.stack([tokens[s : s + 64].long() for s in starts]))


def test_many_characters_take_four_bytes_each(tmp_path):
    (tmp_path / "many.txt").write_text("".join(map(chr, range(0x4E00, 0x4E00 + 600))), encoding="utf-8")
    splits = text(str(tmp_path / "many.txt"), length=8, val_share=0)
    assert len(splits.classes) == 600 and splits.train.tokens.dtype == torch.int32
    assert splits.train[1][0].tolist() == list(range(8, 16))


def test_the_fingerprint_is_of_tokens_vocabulary_and_windows():
    tokens = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0], dtype=torch.uint8)
    every = [
        TokenWindows(tokens, 2, None, ("a", "b")),
        TokenWindows(tokens, 2, None, ("a", "c")),
        TokenWindows(tokens, 3, None, ("a", "b")),
        TokenWindows(tokens, 2, 1, ("a", "b")),
        TokenWindows(1 - tokens, 2, None, ("a", "b")),
    ]
    assert len({source.fingerprint() for source in every}) == len(every)
    assert TokenWindows(tokens.clone(), 2, 2, ["a", "b"]).fingerprint() == every[0].fingerprint()


def test_without_a_path_it_is_pythons_own_reference():
    splits = text(length=32)
    assert len(splits.train) > 5000 and "\n" in splits.classes and "a" in splits.classes


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, {}, "nobody.txt cannot be read: No such file or directory"),
        (b"", {}, "nobody.txt is empty; give a file with text"),
        (b"abc", {"val_share": 0}, "3 tokens are too few: a window of 64 and the token after it need 65"),
        (b"abcd" * 40, {}, "of the 160 tokens, 144 are to train on and the rest to validate with: 16 tokens are too"),
        (b"one\ntwo \xe4\n", {}, r"nobody.txt: byte 8 \(line 2\) is 0xe4, which is not UTF-8; convert the file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(tmp_path, content, arguments, message):
    path = tmp_path / "nobody.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        text(str(path), **arguments)


def test_a_directory_an_empty_list_and_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(UsageError, match="is a directory; give its files"):
        text(str(tmp_path))
    with pytest.raises(UsageError, match="an empty list; give at least one file"):
        text([])
    for arguments in ({"length": 0}, {"stride": 0}, {"val_share": 1}, {"tokens": "words"}, {"path": 3}):
        with pytest.raises(UsageError):
            DATA.build("text", arguments)


def test_a_recipe_gives_the_model_its_sizes(book, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(path=book))
    built = build(parse_recipe((tmp_path / "recipe.yaml").read_text(encoding="utf-8")))
    assert isinstance(built.model, GPT)
    assert (built.model.arguments["classes"], built.model.arguments["length"]) == (len(set(WORDS)), 8)


def test_a_run_is_killed_and_resumed_exactly_and_its_model_keeps_the_vocabulary(book, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(path=book))
    assert main(["train", "recipe.yaml", "--run", "whole", "epochs=2"]) == 0
    assert main(["train", "recipe.yaml", "--run", "part"]) == 0
    assert main(["resume", "part", "epochs=2"]) == 0
    one, other = (tmp_path / run / "model" / "model.safetensors" for run in ("whole", "part"))
    assert one.read_bytes() == other.read_bytes()
    described = json.loads((tmp_path / "whole/model/model.json").read_text())
    assert described["classes"] == sorted(set(WORDS)) and described["input"] == {"shape": [8], "dtype": "int64"}
    printed = capsys.readouterr().out
    splits = text(str(book), length=8)
    model = open_model(tmp_path / "whole/model").module.eval()
    assert main(["eval", "whole", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    last = [json.loads(line) for line in (tmp_path / "whole/metrics.jsonl").read_text().splitlines()][-1]
    assert last["split"] == "val" and report["loss"] == pytest.approx(last["loss"], rel=1e-5)
    assert "predict" in printed and "FILE.txt  " in printed
    (tmp_path / "some.txt").write_text(WORDS[5:300], encoding="utf-8")
    assert main(["eval", "whole", "--data", "some.txt", "--json"]) == 0
    loss = json.loads(capsys.readouterr().out)["loss"]
    windows = TokenWindows(encoded(tmp_path / "some.txt", splits.classes), 8)
    outputs = model(windows[:][0])
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(outputs, windows[:][1]).item(), rel=1e-5)
    assert main(["predict", "whole/model", "some.txt", "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    best = model(encoded(tmp_path / "some.txt", splits.classes)[None, -8:].long())[0, :, -1].softmax(0).max(0)
    told = answer["predictions"][0]
    assert told["class"] == splits.classes[best.indices] and told["probability"] == pytest.approx(best.values.item())
    (tmp_path / "other.txt").write_text("never seen: X", encoding="utf-8")
    assert main(["predict", "whole/model", "other.txt"]) == 2
    assert "character 10 is ':', which is none of the model's" in capsys.readouterr().err
    (tmp_path / "short.txt").write_text("der", encoding="utf-8")
    assert main(["predict", "whole/model", "short.txt"]) == 2
    assert "has 3 tokens, and the model takes windows of 8" in capsys.readouterr().err
    book.write_text(WORDS + "another end", encoding="utf-8")
    assert main(["resume", "part", "epochs=3"]) == 2
    assert "data.train" in capsys.readouterr().err


def test_windows_are_a_source_like_any_other():
    windows = TokenWindows(torch.arange(30, dtype=torch.uint8), 5)
    inputs, targets = windows.subset(torch.tensor([1, 0])).tensors
    assert inputs[0].tolist() == [5, 6, 7, 8, 9] and targets[1].tolist() == [1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match="weights: 'rare' is neither balanced nor a column"):
        Loader(windows, 2, weights="rare")


def test_arguments_given_in_python_are_checked_as_a_recipes_are(book):
    with pytest.raises(UsageError, match="data.tokens: 'words' is not one of characters, bytes\ndata.length: 0 is not"):
        text(book, tokens="words", length=0)
    with pytest.raises(UsageError, match="data.stride: 0 is not a whole .*\ndata.val_share: 1.5 is above 1"):
        text(book, stride=0, val_share=1.5)
    assert text(Path(book), length=8).train.fingerprint() == text(str(book), length=8).train.fingerprint()
