"""The samples most wrongly and least surely answered, and residuals: the right ones, on any ranks, in a file."""

from __future__ import annotations

import base64
import io
import json
import re

import pytest
import torch
from command_runs import SMALL, refused
from PIL import Image
from torch import nn

import surefoot
from surefoot import files
from surefoot.cli import main
from surefoot.data import DatasetSource, Loader, TensorSource, table
from surefoot.data.streams import StreamSource
from surefoot.metrics import hardest as module
from surefoot.metrics.hardest import Hardest
from surefoot.tracking.validation import FILE, read_validation, write_validation
from surefoot.training import evaluate
from surefoot.training.last_validation import shown_sample
from surefoot.world import World


def logits(count=300, classes=5, seed=0):
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(count, classes, generator=draws) * 3, torch.randint(0, classes, (count,), generator=draws)


def in_batches(kind, outputs, targets, size, **options):
    hardest = Hardest(kind, size=size, **options)
    for batch, begin in enumerate(range(0, len(outputs), size)):
        hardest.add(outputs[begin : begin + size], targets[begin : begin + size], batch)
    return hardest.result(World.alone())


def places(entries, size):
    return [batch * size + row for batch, row in (entry["sample"] for entry in entries)]


def test_wrong_begins_with_the_largest_loss_of_the_wrong_and_unsure_with_the_lowest_confidence():
    outputs, targets = logits()
    found = in_batches("classes", outputs, targets, 32, most=7)
    losses = nn.functional.cross_entropy(outputs, targets, reduction="none")
    confidence, answers = outputs.softmax(1).max(1)
    wrong = (answers != targets).nonzero().flatten()
    assert places(found.wrong, 32) == wrong[losses[wrong].argsort(descending=True)][:7].tolist()
    assert places(found.unsure, 32) == confidence.argsort()[:7].tolist()
    first = found.wrong[0]
    at = places([first], 32)[0]
    assert (first["true"], first["predicted"]) == (int(targets[at]), int(answers[at]))
    assert first["loss"] == pytest.approx(float(losses[at])) and first["confidence"] == pytest.approx(confidence[at])


def test_what_is_held_is_bounded_and_changes_nothing(monkeypatch):
    outputs, targets = logits()
    whole = in_batches("classes", outputs, targets, 10)
    monkeypatch.setattr(module, "_HELD", 40)
    hardest = Hardest("classes", size=10)
    for batch in range(30):
        hardest.add(outputs[10 * batch : 10 * batch + 10], targets[10 * batch : 10 * batch + 10], batch)
        assert sum(len(each[0]) for each in hardest._held) <= 2 * module.MOST + 10
    assert hardest.result(World.alone()) == whole


class OneOf(World):
    """A rank of two whose other has left its tensors and values before."""

    def __init__(self, rank, exchanged):
        self.rank, self.size, self._exchanged, self._calls = rank, 2, exchanged, 0

    def _both(self, mine):
        key, self._calls = self._calls, self._calls + 1
        self._exchanged.setdefault(key, {})[self.rank] = mine
        ranks = self._exchanged[key]
        return [ranks.get(rank, mine) for rank in range(2)]

    def gather(self, plain):
        return json.loads(json.dumps(self._both(plain)))

    def gathered(self, tensor):
        return self._both(tensor)


@pytest.mark.parametrize("kind", ["classes", None])
def test_two_ranks_find_what_one_process_finds(monkeypatch, kind):
    monkeypatch.setattr(module, "_HELD", 64)
    outputs, targets = logits()
    if kind is None:
        targets = outputs + torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    whole = in_batches(kind, outputs, targets, 10)
    exchanged = {}
    for _attempt in range(4):  # what the other rank says at each exchange is known once it has come there
        found = []
        for rank in range(2):
            hardest = Hardest(kind, size=10)
            for batch in range(rank, 30, 2):
                hardest.add(outputs[10 * batch : 10 * batch + 10], targets[10 * batch : 10 * batch + 10], batch)
            found.append(hardest.result(OneOf(rank, exchanged)))
    assert found == [whole, whole]


def test_an_ignored_target_is_no_answer_and_no_number_is_the_worst():
    outputs, targets = logits(6)
    targets[2] = -100
    outputs[4] = torch.nan
    found = in_batches("classes", outputs, targets, 6)
    assert 2 not in places(found.wrong + found.unsure, 6) and places(found.wrong, 6)[0] == 4
    json.dumps(found.wrong, allow_nan=False)


def test_positions_count_as_the_share_that_is_right():
    outputs = torch.zeros(2, 3, 4)
    outputs[:, 0] = 1.0
    targets = torch.tensor([[0, 0, 0, 0], [0, 1, 2, -100]])
    found = in_batches("classes", outputs, targets, 2)
    assert places(found.wrong, 2) == [1] and found.wrong[0]["right"] == pytest.approx(1 / 3)
    assert "true" not in found.wrong[0]


@pytest.mark.parametrize("kind", ["logits", "probabilities", "signs"])
def test_labels_are_named_by_those_that_hold(kind):
    outputs = torch.tensor([[3.0, -2.0, 1.0], [3.0, 2.0, -4.0]])
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]])
    outputs, targets = (
        (outputs.sigmoid() if kind == "probabilities" else outputs),
        (2 * targets - 1 if kind == "signs" else targets),
    )
    found = in_batches(kind, outputs, targets, 2)
    (wrong,) = found.wrong
    assert (wrong["sample"], wrong["true"], wrong["predicted"]) == ((0, 1), [1, 2], [0, 1])
    one = in_batches(kind, outputs[:, :1], targets[:, 0], 2).wrong
    assert [(entry["true"], entry["predicted"]) for entry in one] == [(0, 1)]


def test_residuals_are_predicted_minus_true_by_target():
    draws = torch.Generator().manual_seed(0)
    true = torch.randn(500, 2, generator=draws)
    predicted = true + torch.tensor([0.5, 0.0]) + 0.1 * torch.randn(500, 2, generator=draws)
    predicted[7, 1] = 1000.0
    predicted[8, 1] = torch.nan
    found = in_batches(None, predicted, true, 64)
    assert places(found.wrong, 64)[:2] == [8, 7] and not found.unsure
    first, second = found.residuals
    assert first["mean"] == pytest.approx(0.5, abs=0.02) and first["deviation"] == pytest.approx(0.1, abs=0.02)
    assert sum(first["counts"]) == 500 and sum(second["counts"]) == second["samples"] == 499
    assert second["edges"][-1] < 1, "one that lies far off does not make the others one column"
    assert len(first["edges"]) == len(first["counts"]) + 1
    assert len(first["points"]) == 500 and first["points"] == sorted(first["points"])


def test_equal_predictions_and_one_sample_have_residuals():
    for count in (1, 5):
        (residuals,) = in_batches(None, torch.ones(count), torch.ones(count), 2).residuals
        assert sum(residuals["counts"]) == count and residuals["edges"][0] < 0 < residuals["edges"][-1]


@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        (torch.zeros(3, 4), torch.zeros(2, dtype=torch.long)),
        ((torch.zeros(3),), "text"),
        (None, None),
        (torch.tensor(1.0), torch.tensor(1)),
        (torch.zeros(3, 1), torch.zeros(3, 5, dtype=torch.long)),
        (torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)),
    ],
)
@pytest.mark.parametrize("kind", ["classes", "logits", None])
def test_outputs_of_another_form_are_passed_over(kind, outputs, targets):
    hardest = Hardest(kind, size=3)
    hardest.add(outputs, targets, 0)
    assert hardest.result(World.alone()) is None


def picture_of(shown):
    return Image.open(io.BytesIO(base64.b64decode(shown["picture"])))


def test_samples_are_shown_as_pictures_rows_or_text():
    images = TensorSource(torch.arange(784, dtype=torch.uint8).reshape(1, 1, 28, 28), torch.tensor([0]))
    assert picture_of(shown_sample(images, 0)).size == (28, 28)
    normalised = TensorSource(torch.randn(2, 3, 300, 200), torch.tensor([0, 1]))
    assert picture_of(shown_sample(normalised, 1)).size == (107, 160)
    rows = table({"area": [50.0, 70.0], "city": ["Ulm", "Bonn"], "price": [1.5, 2.5]}, "price", val_share=0).train
    assert shown_sample(rows, 0) == {"row": [["area", "50"], ["city", "Ulm"]]}
    assert shown_sample(DatasetSource([("good", 1), ("bad", 0)]), 1) == {"text": "bad"}
    mixed = DatasetSource([({"ids": torch.zeros(9, 9, 9, 9), "age": torch.tensor(3)}, 1)])
    assert shown_sample(mixed, 0) == {"row": [["ids", "(9, 9, 9, 9) float32"], ["age", "3"]]}
    assert shown_sample(StreamSource([1, 2]), 0) == {}


def test_samples_are_read_again_without_a_trace_in_the_random_numbers():
    class Drawing(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return torch.rand(3), 0

    before = torch.get_rng_state()
    shown_sample(DatasetSource(Drawing()), 2)
    assert torch.equal(torch.get_rng_state(), before)


def a_run(run_dir, *, epochs=2, **options):
    torch.manual_seed(0)
    x = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    data = TensorSource(x, torch.arange(60) % 3, classes=("coat", "<bag>", "shoe"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    loaders = [Loader(data, 16, shuffle=shuffle, preprocessing=surefoot.Preprocessing()) for shuffle in (True, False)]
    run = surefoot.RunOptions(tensorboard=False, progress=False, **options)
    return surefoot.fit(
        model, nn.CrossEntropyLoss(), optimizer, loaders[0], val=loaders[1], epochs=epochs, run_dir=run_dir, run=run
    )


def test_a_run_keeps_what_its_last_validation_found(tmp_path):
    a_run(tmp_path / "run")
    found = read_validation(tmp_path / "run", pytest.fail)
    assert (found["epoch"], found["step"], found["samples"]) == (1, 8, 60)
    assert found["classes"] == ["coat", "<bag>", "shoe"] and sum(map(sum, found["confusion"])) == 60
    assert sum(found["reliability"]["samples"]) == 60
    wrong = found["wrong"][0]
    assert wrong["true"] == wrong["index"] % 3 != wrong["predicted"]
    assert {str(e["index"]) for e in found["wrong"] + found["unsure"]} == found["shown"].keys()
    assert picture_of(found["shown"][str(wrong["index"])]).size == (8, 8)
    assert "&lt;bag&gt;" in (tmp_path / "run" / "report.html").read_text()


def test_what_eval_gives_on_the_same_samples_is_the_same():
    outputs, targets = logits(50)
    result = evaluate(nn.Identity(), nn.CrossEntropyLoss(), (outputs, targets), batch_size=8, hardest=5)
    assert result.answers == in_batches("classes", outputs, targets, 8, most=5)
    assert evaluate(nn.Identity(), nn.CrossEntropyLoss(), (outputs, targets)).answers is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"validation": 1, "sha256": "x"}', "\xff", "[" * 5000, '{"a": NaN}']
)
def test_a_damaged_file_is_named_and_nothing_of_it_used(tmp_path, text):
    (tmp_path / FILE).write_bytes(text.encode("latin-1"))
    problems = []
    assert read_validation(tmp_path, problems.append) == {} and FILE in problems[0]


def test_one_changed_byte_is_seen(tmp_path):
    write_validation(tmp_path, {"epoch": 1, "samples": 60})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b"60", b"61"))
    assert read_validation(tmp_path) == {}


HOSTILE = {
    "epoch": -1,
    "classes": ["a", 3],
    "confusion": [[1, 2], [3]],
    "reliability": {"samples": [1], "right": [2], "confidence": [0.5]},
    "wrong": [{"index": "<script>"}],
    "unsure": [{"index": 1, "confidence": "high"}],
    "shown": {"1": {"picture": '"><script>alert(1)</script>'}},
    "residuals": [
        {"target": "a", "samples": 1, "stride": 1, "mean": 0, "deviation": 0, "edges": [1], "counts": [1], "points": []}
    ],
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_has_another_form_is_left_out_and_named(tmp_path, name):
    write_validation(tmp_path, {"step": 4, name: HOSTILE[name], "new": 1})
    problems = []
    assert read_validation(tmp_path, problems.append) == {"step": 4} and name in problems[0]


def test_no_file_is_no_problem_and_a_link_is_not_followed(tmp_path):
    assert read_validation(tmp_path, pytest.fail) == {}
    write_validation(tmp_path, {"step": 4})
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / FILE).symlink_to(tmp_path / FILE)
    assert read_validation(tmp_path / "run") == {}


def test_a_disk_that_is_full_ends_the_run_with_the_files_name(tmp_path, monkeypatch):
    rename = files.system.rename

    def full(old, new):
        if str(new).endswith(FILE):
            raise OSError(28, "No space left on device", str(new))
        rename(old, new)

    monkeypatch.setattr(files.system, "rename", full)
    with pytest.raises(surefoot.RunFailed, match=f"{FILE}: cannot be written"):
        a_run(tmp_path / "run")


def test_eval_names_the_samples_that_are_worst(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "quickstart", "--run", "run", "--quiet", *SMALL]) == 0
    found = read_validation("run")
    capsys.readouterr()
    assert main(["eval", "run", "--worst", "3", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [entry["index"] for entry in report["wrong"]] == [entry["index"] for entry in found["wrong"][:3]]
    assert main(["eval", "run", "--worst", "3"]) == 0
    told = capsys.readouterr().out
    first = found["wrong"][0]
    assert "most wrongly answered" in told and "least surely answered" in told
    true, predicted = (found["classes"][first[key]] for key in ("true", "predicted"))
    assert re.search(rf"{first['index']} +{true} +{predicted} ", told)
    assert "--worst 0: give how many, 1 or more" in refused(capsys, "eval", "run", "--worst", "0")


@pytest.mark.parametrize("kind", ["logits", None])
def test_rows_of_several_widths_are_found_without_their_lists(kind):
    hardest = Hardest(kind, size=4)
    for batch, width in enumerate((3, 1, 5, 3)):
        outputs = torch.full((4, width), float(batch - 2))
        hardest.add(outputs, torch.ones(4, width), batch)
    found = hardest.result(World.alone())
    assert found.wrong[0]["sample"] == (0, 0) and not any("true" in entry for entry in found.wrong)
    assert found.residuals == []


def test_an_answer_that_is_no_number_is_the_most_wrong():
    hardest = Hardest("logits", size=2)
    hardest.add(torch.tensor([[9.0], [torch.nan]]), torch.tensor([[0.0], [1.0]]), 0)
    found = hardest.result(World.alone())
    assert [entry["sample"] for entry in found.wrong] == [(0, 1), (0, 0)]


def test_rows_that_are_no_samples_of_the_data_are_passed_over(tmp_path):
    """Two views of each sample: row 5 of a batch of 4 is no sample."""

    def views(samples):
        x, y = torch.stack([x for x, _ in samples] * 2), torch.tensor([y for _, y in samples] * 2)
        return x, y

    data = [(torch.randn(3), index % 2) for index in range(8)]
    loader = lambda: Loader(DatasetSource(data, collate=views), 4)  # noqa: E731
    model = nn.Linear(3, 2)
    run = surefoot.RunOptions(progress=False, execution="plain", lint_off=["all"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    surefoot.fit(
        model, nn.CrossEntropyLoss(), optimizer, loader(), val=loader(), epochs=1, run_dir=tmp_path / "run", run=run
    )
    found = read_validation(tmp_path / "run")
    assert found["samples"] == 16 and "wrong" not in found
