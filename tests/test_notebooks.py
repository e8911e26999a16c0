"""In a notebook, progress is one output that changes, results are tables and curves, a stop is no traceback."""

from __future__ import annotations

import base64
import re
import signal
import sys
import types
from xml.etree import ElementTree

import pytest
import torch

import surefoot
from surefoot.charts.figure import figure
from surefoot.planning import plan_report
from surefoot.tracking import NotebookProgress, Progress, ReportPage, make_progress


class Screen:
    """Stands for IPython.display: what was displayed, and what every update showed."""

    def __init__(self):
        self.displayed, self.shown = [], []

    def display(self, thing, *, display_id=False):
        assert display_id is True, "an output that is to change needs an id"
        self.displayed.append(thing)
        self.update(thing)
        return self

    def update(self, thing):
        self.shown.append(thing._repr_mimebundle_())


@pytest.fixture
def screen(monkeypatch):
    screen = Screen()
    package, display = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    package.get_ipython = lambda: types.SimpleNamespace(kernel=object())
    display.display = screen.display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    return screen


def job(**settings):
    torch.manual_seed(0)
    x = torch.randn(64, 4)
    y = (x.sum(1) > 0).long()
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    settings = {"epochs": 3, "batch_size": 8, **settings}
    return model, surefoot.fit(model, torch.nn.CrossEntropyLoss(), optimizer, (x, y), val=(x, y), **settings)


def test_fit_shows_one_output_with_a_bar_and_then_the_curve(screen, capsys):
    job()
    assert len(screen.displayed) == 1 and isinstance(screen.displayed[0], NotebookProgress)
    assert capsys.readouterr().out == ""
    first_epoch = next(shown for shown in screen.shown if "epoch 1/3  train loss" in shown["text/plain"])
    assert "image/svg+xml" in first_epoch["text/html"]
    last = screen.shown[-1]
    assert "epoch 3/3  train loss" in last["text/plain"] and "<progress" not in last["text/html"]
    assert all(set(shown) == {"text/html", "text/plain"} for shown in screen.shown)


def test_the_bar_says_where_the_run_is(screen):
    progress = make_progress()
    progress.start(surefoot.tracking.RunInfo("mine", epochs=2, steps_per_epoch=10, samples_per_step=4))
    progress._drawn_at = float("-inf")
    progress.record({"kind": "step", "split": "train", "epoch": 0, "step": 5, "loss": 0.5, "lr": [0.1], "wall_s": 1.0})
    shown = screen.shown[-1]
    assert "<progress" in shown["text/html"] and re.search("max='20' value='5'", shown["text/html"])
    assert "epoch 1/2  step 5/20" in shown["text/plain"]
    progress.close()
    assert "<progress" not in screen.shown[-1]["text/html"]


def test_what_a_run_is_called_is_escaped(screen):
    make_progress().start(surefoot.tracking.RunInfo("<script>", epochs=1, steps_per_epoch=1))
    assert "<script>" not in screen.shown[-1]["text/html"]


def test_without_a_kernel_progress_is_text(monkeypatch):
    package = types.ModuleType("IPython")
    package.get_ipython = lambda: None  # IPython was imported by a library, in a script
    monkeypatch.setitem(sys.modules, "IPython", package)
    assert not isinstance(make_progress(), NotebookProgress) and isinstance(make_progress(), Progress)


def test_results_show_themselves(tmp_path):
    model, result = job(run_dir=tmp_path / "run", run=surefoot.RunOptions(progress=False))
    shown = result._repr_html_()
    assert "val/accuracy" in shown and "%" in shown and "image/svg+xml" in shown
    with (tmp_path / "run/metrics.jsonl").open("ab") as journal:
        journal.write(b'no record\n{"kind": "epoch"}\n')
    assert result._repr_html_() == shown, "lines that are no records are left out, as everywhere"
    x = torch.randn(32, 4)
    evaluation = surefoot.evaluate(model, torch.nn.CrossEntropyLoss(), (x, (x.sum(1) > 0).long()), confusion=2)
    assert "accuracy" in evaluation._repr_html_() and "confusion" in evaluation._repr_html_()
    page = ReportPage(tmp_path / "run")._repr_html_()
    assert "<iframe srcdoc=" in page and "<html" not in page and "&lt;html" in page
    assert page.startswith(f"<code>{tmp_path}/run/report.html</code>")


def test_schedules_and_plans_show_themselves():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    schedule = surefoot.Schedule(optimizer, scheduler, surefoot.LinearWarmup(optimizer, 4))
    assert "StepLR by epoch under LinearWarmup by step" in schedule._repr_html_()
    plan = plan_report(schedule, 5, 4)
    assert plan._repr_svg_().startswith("<svg xmlns=") and plan._repr_html_().startswith("<img alt=")
    assert repr(plan) == plan.render_terminal()  # where nothing is drawn


def test_a_notebook_that_is_not_trusted_shows_an_image_and_no_text_of_svg():
    chart = figure({"a": [1.0, 2.0]}, x="step", y="loss")
    assert chart._repr_html_().startswith("<img alt='loss over step: a' ") and "<svg" not in chart._repr_html_()
    assert repr(chart) == "Figure(alt='loss over step: a')"


def test_a_figure_is_an_svg_file(tmp_path):
    chart = figure({"a": [1.0, 2.0], "b": [(0, 3.0), (2, float("nan")), (1, 4.0)]}, x="x", y="y", marks={"here": 1})
    chart.save(tmp_path / "chart.svg")
    text = (tmp_path / "chart.svg").read_text(encoding="utf-8")
    assert text == chart._repr_svg_() and text.startswith("<svg xmlns=") and "here" in text
    assert "prefers-color-scheme: dark" in text and "var(--" not in text
    assert ElementTree.fromstring(text).attrib.items() >= {"width": "720", "class": "chart"}.items()


def test_a_figure_without_a_finite_point_says_so():
    assert "Nothing to draw." in figure({"a": [float("nan")]}, x="x", y="y").svg


def test_the_curve_grows_into_a_frame_of_all_epochs(screen):
    job(epochs=20)
    shown = next(each for each in screen.shown if "epoch 1/20  train loss" in each["text/plain"])
    data = re.search("base64,([^']+)", shown["text/html"]).group(1)
    texts = [
        text.text for text in ElementTree.fromstring(base64.b64decode(data)).iter("{http://www.w3.org/2000/svg}text")
    ]
    assert "20" in texts and "epoch" in texts


def test_a_stop_in_a_notebook_says_how_to_go_on_and_shows_no_traceback(tmp_path):
    class Interrupting(torch.nn.Linear):
        def forward(self, inputs):
            if self.training and not self.done:
                self.done = True
                signal.raise_signal(signal.SIGINT)
            return super().forward(inputs)

    torch.manual_seed(0)
    x, y = torch.randn(64, 4), torch.arange(64) % 2
    model = Interrupting(4, 2)
    model.done = False
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    quiet = surefoot.RunOptions(progress=False, lint_off="all", execution="plain")
    with pytest.raises(surefoot.Stopped) as stopped:
        surefoot.fit(
            model,
            torch.nn.CrossEntropyLoss(),
            optimizer,
            (x, y),
            epochs=3,
            batch_size=8,
            run=quiet,
            run_dir=tmp_path / "r",
        )
    told = stopped.value._render_traceback_()
    assert "saved in" in told[0] and "resume=True" in told[1] and not any("File" in line for line in told)
