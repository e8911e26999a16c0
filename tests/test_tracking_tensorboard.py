"""TensorBoard: one run, every point once, the chart that the tutorial draws."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sys

import pytest
from tensorboard import context
from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer
from tensorboard.plugins import base_plugin
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams import api_pb2, backend_context, list_session_groups
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from surefoot.errors import RunFailed, UsageError
from surefoot.tracking import RunRecords, TensorBoard
from surefoot.tracking.recording import settings_of
from surefoot.tracking.tensorboard import CHART

STEPS, EVERY = 20, 5


def run_records(epochs, first_epoch=0):
    """A run's journal: four step records and two epoch records an epoch."""
    for epoch in range(first_epoch, epochs):
        for at in range(EVERY, STEPS + 1, EVERY):
            step = epoch * STEPS + at
            lr = [0.1 / (step + 1), 0.01]
            yield record("step", "train", epoch, step, loss=1 / step, accuracy=0.5, lr=lr)
        step = (epoch + 1) * STEPS
        yield record("epoch", "train", epoch, step, loss=2 / step, accuracy=0.6, lr=[9.0, 9.0])
        yield record("epoch", "val", epoch, step, loss=3 / step, accuracy=0.7, lr=[9.0, 9.0])


def record(kind, split, epoch, step, **values):
    return {"kind": kind, "split": split, "epoch": epoch, "step": step, **values, "wall_s": step / 8}


def points(directory):
    """tag -> [(step, value)] as TensorBoard itself reads them."""
    reader = EventAccumulator(str(directory), size_guidance={"scalars": 0}, purge_orphaned_data=False)
    reader.Reload()
    return {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def close_to(found, expected):
    return [step for step, _ in found] == [step for step, _ in expected] and [v for _, v in found] == pytest.approx(
        [v for _, v in expected]
    )


def written(directory, records, **how):
    with TensorBoard(directory, **how) as board:
        for one in records:
            board.write(one)
    return directory


def test_each_tag_holds_one_kind_of_point_at_the_updates_done(tmp_path):
    found = points(written(tmp_path, run_records(2)))
    assert set(found) == {
        *("loss/train", "loss/val", "loss/train_step"),
        *("accuracy/train", "accuracy/val", "accuracy/train_step"),
        *("lr/0", "lr/1", "steps_per_s/train"),
    }
    # Not of the first epoch, in which a process measures and compiles.
    assert close_to(found["steps_per_s/train"], [(40, 8.0)])
    assert close_to(found["loss/train"], [(20, 2 / 20), (40, 2 / 40)])
    assert close_to(found["loss/val"], [(20, 3 / 20), (40, 3 / 40)])
    assert [step for step, _ in found["loss/train_step"]] == list(range(5, 41, 5))
    assert close_to(found["lr/0"], [(step, 0.1 / (step + 1)) for step in range(5, 41, 5)])


def test_a_run_without_step_records_still_shows_its_learning_rate(tmp_path):
    records = [one for one in run_records(2) if one["kind"] == "epoch"]
    assert points(written(tmp_path, records))["lr/1"] == [(20, 9.0), (40, 9.0)]


def test_rebuilt_from_the_journal_every_point_appears_once(tmp_path):
    untouched = points(written(tmp_path / "a", run_records(3)))
    # The other run was killed in its third epoch, some records after the checkpoint at the end of its second.
    written(tmp_path / "b", list(run_records(3))[:-3])
    with TensorBoard(tmp_path / "b") as board:
        board.rebuild(run_records(2))
        for one in run_records(3, first_epoch=2):
            board.write(one)
    assert points(tmp_path / "b") == untouched


def test_a_tensorboard_that_watches_drops_what_was_cut_off(tmp_path):
    reader = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0})
    written(tmp_path, run_records(3))
    reader.Reload()
    assert len(reader.Scalars("loss/val")) == 3
    with TensorBoard(tmp_path) as board:
        board.rebuild(run_records(1))
    reader.Reload()
    assert [event.step for event in reader.Scalars("loss/val")] == [20]


def test_events_carry_the_time_of_the_run_also_after_a_rebuild(tmp_path):
    written(tmp_path, run_records(1), started=1_700_000_000)
    for _ in range(2):
        reader = EventAccumulator(str(tmp_path))
        reader.Reload()
        assert [e.wall_time for e in reader.Scalars("lr/0")][:2] == [
            1_700_000_000 + 5 / 8,
            1_700_000_000 + 10 / 8,
        ]
        with TensorBoard(tmp_path) as board:  # told nothing: reads it from the file that is there
            board.rebuild(run_records(1))


def test_the_chart_draws_training_against_validation_without_sub_runs(tmp_path):
    written(tmp_path, run_records(1))
    runs = EventMultiplexer()
    runs.AddRunsFromDirectory(str(tmp_path)).Reload()
    assert list(runs.Runs()) == ["."]
    (event,) = runs.Tensors(".", "custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    (chart,) = [chart for category in layout.category for chart in category.chart]
    assert chart.title == CHART == "Training vs. Validation Loss"
    assert list(chart.multiline.tag) == [r"^loss/train$", r"^loss/val$"]
    assert runs.GetAccumulator(".").PluginTagToContent("custom_scalars") == {"custom_scalars__config__": b""}


def test_values_that_are_not_finite_are_shown_as_they_are(tmp_path):
    found = points(written(tmp_path, [record("step", "train", 0, 1, loss=math.nan, grad_norm=math.inf)]))
    assert math.isnan(found["loss/train_step"][0][1]) and found["grad_norm/train_step"] == [(1, math.inf)]


def test_nothing_is_lost_when_the_process_is_killed_and_a_torn_end_is_ignored(tmp_path):
    code = (
        "import sys, os, signal\n"
        "from surefoot.tracking.tensorboard import TensorBoard\n"
        "board = TensorBoard(sys.argv[1])\n"
        "for step in range(1, 4): board.write({'kind': 'step', 'split': 'train', 'step': step, 'loss': 0.5})\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    (file,) = tmp_path.iterdir()
    with file.open("ab") as end:
        end.write(b"\x30\x00\x00")
    assert points(tmp_path)["loss/train_step"] == [(1, 0.5), (2, 0.5), (3, 0.5)]


def test_files_do_not_pile_up_over_many_resumes(tmp_path):
    for _ in range(5):
        with TensorBoard(tmp_path) as board:
            board.rebuild(run_records(1))
    sizes = [file.stat().st_size for file in sorted(tmp_path.iterdir())]
    assert len(sizes) == 2 and sizes[0] == 0 < sizes[1]


def test_other_peoples_files_stay(tmp_path):
    others = [tmp_path / name for name in ("notes.txt", "events.out.tfevents.1000000000.host.12.0")]
    for path in others:  # the second as SummaryWriter calls it, which may write beside the run's
        path.write_text("mine")
    with TensorBoard(tmp_path) as board:
        for record in run_records(1):
            mark = board.begin()
            board.write(record)
        assert board.cut(mark, board.mark(), 1, 0), "what others write is no damage"
        board.rebuild([])
    assert [path.read_text() for path in others] == ["mine", "mine"]
    others[1].unlink()
    assert points(tmp_path) == {}


def test_failures_are_told(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made: File exists"):
        TensorBoard(tmp_path / "file")
    board = TensorBoard(tmp_path / "board")
    board.write(record("step", "train", 0, 1, loss=1.0))

    def write(fd, data):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(RunFailed, match="No space left on device; make room"):
        board.write(record("step", "train", 0, 2, loss=1.0))
    monkeypatch.undo()
    board.close()


def test_the_first_event_needs_neither_torch_nor_a_writers_thread(tmp_path):
    code = (
        "import sys, threading\n"
        "from surefoot.tracking.tensorboard import TensorBoard\n"
        "TensorBoard(sys.argv[1]).write({'kind': 'step', 'split': 'train', 'step': 1, 'loss': 0.5})\n"
        "heavy = {'torch', 'tensorflow', 'tensorboard.summary', 'grpc'}\n"
        "print(sorted(heavy & set(sys.modules)), threading.active_count())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "[] 1\n"


def marked(directory, records, at, **how):
    """Events of `records`, and the mark that a checkpoint before record number `at` kept."""
    with TensorBoard(directory, **how) as board:
        for number, one in enumerate(records):
            if number == at:
                mark = board.begin(), one["step"], one["epoch"]
            board.write(one)
    return mark


def kept(directory):
    """The bytes of the event files by name."""
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir()) if path.is_file()}


def test_cut_back_to_a_mark_only_what_came_after_goes(tmp_path):
    records = list(run_records(3))
    untouched = points(written(tmp_path / "a", records))
    mark, step, epoch = marked(tmp_path / "b", records, 9)
    (before,) = kept(tmp_path / "b").values()
    with TensorBoard(tmp_path / "b") as board:
        assert board.cut(mark, mark, step, epoch)
        after = list(kept(tmp_path / "b").values())
        assert len(after) == 1 and before.startswith(after[0]) and len(after[0]) == mark["points"][0]
        for one in records[9:]:
            board.write(one)
    assert points(tmp_path / "b") == untouched
    reader = EventAccumulator(str(tmp_path / "b"), size_guidance={"scalars": 0}).Reload()  # drops what a START says
    assert {tag: [(e.step, e.value) for e in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]} == untouched


def test_cut_back_again_and_again_no_point_is_lost_or_doubled_and_files_do_not_pile_up(tmp_path):
    records = list(run_records(3))
    untouched = points(written(tmp_path / "a", records))
    mark, step, epoch = marked(tmp_path / "b", records, 9)
    for _ in range(4):
        with TensorBoard(tmp_path / "b") as board:
            assert board.cut(mark, mark, step, epoch)
            for one in records[9:12]:
                board.write(one)
    with TensorBoard(tmp_path / "b") as board:
        assert board.cut(mark, mark, step, epoch)
        for one in records[9:]:
            board.write(one)
    assert points(tmp_path / "b") == untouched
    assert len(kept(tmp_path / "b")) <= 3


@pytest.mark.parametrize("damage", [lambda data: data[:-40], lambda data: data[:50] + b"?" + data[51:]])
def test_events_that_are_not_whole_are_not_kept(tmp_path, damage):
    mark, step, epoch = marked(tmp_path, list(run_records(2)), 11)
    (path,) = tmp_path.iterdir()
    path.write_bytes(damage(path.read_bytes()[: mark["points"][0]]))
    before = kept(tmp_path)
    with TensorBoard(tmp_path) as board:
        assert not board.cut(mark, mark, step, epoch)
        assert kept(tmp_path) == before
        assert not board.cut({"lr_step": 3}, mark, step, epoch), "an older checkpoint kept other marks"


def test_a_watching_tensorboard_goes_on_after_a_cut(tmp_path):
    records = list(run_records(3))
    mark, step, epoch = marked(tmp_path, records, 9)
    reader = EventAccumulator(str(tmp_path), size_guidance={"scalars": 0}).Reload()
    with TensorBoard(tmp_path) as board:
        assert board.cut(mark, mark, step, epoch)
        for one in records[9:]:
            board.write(one)
    reader.Reload()
    assert [e.step for e in reader.Scalars("loss/train_step")] == list(range(5, 61, 5))


def test_together_draws_both_losses_under_one_tag_by_epoch(tmp_path):
    records = list(run_records(3))
    written(tmp_path / "a", records, together=True)
    runs = EventMultiplexer().AddRunsFromDirectory(str(tmp_path / "a")).Reload()
    assert sorted(runs.Runs()) == [".", "Training", "Validation"]
    for name, factor in (("Training", 2), ("Validation", 3)):
        found = [(e.step, e.value) for e in runs.Scalars(name, CHART)]
        assert close_to(found, [(n, factor / (20 * n)) for n in (1, 2, 3)])
    mark, step, epoch = marked(tmp_path / "b", records, 12, together=True)
    with TensorBoard(tmp_path / "b", together=True) as board:
        assert board.cut(mark, mark, step, epoch)
        for one in records[12:]:
            board.write(one)
    for name in ("", "Training", "Validation"):
        assert points(tmp_path / "a" / name) == points(tmp_path / "b" / name)


def hparams_of(directory):
    """The settings and the number of events of a kind, as TensorBoard itself reads them."""
    reader = EventAccumulator(str(directory), size_guidance={"tensors": 0})
    reader.Reload()
    content = reader.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    kept = HParamsPluginData.FromString(content).session_start_info.hparams
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in kept.items()}
    return values, len(reader.Tensors("_hparams_/session_start_info"))


def test_a_run_that_has_ended_tells_its_settings_once_whatever_it_was_resumed(tmp_path):
    settings = {"recipe.optimizer.lr": 0.1, "recipe.model": "LeNet5", "recipe.strict": False, "recipe.freeze": []}
    records = list(run_records(2))
    with contextlib.closing(RunRecords(tmp_path)) as run:
        for one in records[:6]:
            run.append(one)
        offset, marks = run.offset, run.marks()
        run.end(settings, 20, 1.0)
    with contextlib.closing(RunRecords(tmp_path)) as run:
        run.truncate(offset, marks)
        for one in records[6:]:
            run.append(one)
        run.end(settings | {"recipe.seed": 3}, 40, 2.0)
    expected = {"optimizer.lr": 0.1, "model": "LeNet5", "strict": False, "seed": 3.0}
    assert hparams_of(tmp_path / "tensorboard") == (expected, 1)
    assert [step for step, _ in points(tmp_path / "tensorboard")["loss/val"]] == [20, 40]


def test_settings_of_a_run_from_python_are_those_of_fit_and_the_optimizer():
    conditions = {"fit.seed": 1, "optimizer.lr": 0.1, "optimizer.param_names": ["w"], "loss": "MSELoss()", "threads": 1}
    assert settings_of(conditions) == {"fit.seed": 1, "optimizer.lr": 0.1, "loss": "MSELoss()"}


def test_tensorboards_own_table_compares_runs_by_their_settings_and_last_values(tmp_path):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        with TensorBoard(tmp_path / name / "tensorboard") as board:
            board.write(record("epoch", "val", 0, 10, loss=2 * lr))
            board.write_settings({"optimizer.lr": lr, "model": "LeNet5"}, 10, 1.0)
    events = plugin_event_multiplexer.EventMultiplexer()
    events.AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    provider = data_provider.MultiplexerDataProvider(events, str(tmp_path))
    backend = backend_context.Context(base_plugin.TBContext(data_provider=provider))
    request = api_pb2.ListSessionGroupsRequest(start_index=0, slice_size=9, allowed_statuses=[1])
    request.col_params.add().metric.tag = "loss/val"
    listed = list_session_groups.Handler(context.RequestContext(), backend, "x", request).run().session_groups
    rows = {g.hparams["optimizer.lr"].number_value: g.metric_values[0].value for g in listed}
    assert rows == {0.1: pytest.approx(0.2), 0.2: pytest.approx(0.4)}
