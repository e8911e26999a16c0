"""report.html: one page that needs no network, true to the journal."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import sys
import xml.etree.ElementTree as xml
from html import unescape

import numpy
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from surefoot.charts import interactive
from surefoot.charts.scale import Axis, axis_for
from surefoot.charts.svg import Line, line_chart
from surefoot.charts.terminal import framed
from surefoot.charts.thinning import Curve
from surefoot.errors import RunFailed, UsageError
from surefoot.tracking import JournalFile, TensorBoard, write_report
from surefoot.tracking.journal import run_records
from surefoot.tracking.report import render_report
from surefoot.tracking.run_numbers import RunNumbers
from surefoot.training.last_validation import _MOST_PICTURES

# uPlot 1.6.32 as the npm registry has it, dist/uPlot.iife.min.js, without its last newline.
UPLOT = "9a6a7d50b066b6c083ddf74930c8e3908fdf5b7d1a660969dd15e0360918006d"


def records(epochs=3, steps=100, every=10, lr=lambda step: [0.1]):
    for epoch in range(epochs):
        for at in range(every, steps + 1, every):
            step = epoch * steps + at
            yield dict(
                kind="step",
                split="train",
                epoch=epoch,
                step=step,
                loss=1 / step,
                lr=lr(step),
                wall_s=step / 9,
            )
        step = (epoch + 1) * steps
        for split in ("train", "val"):
            figures = {"loss": 2 / step, "accuracy": 1 - 10 / step, "lr": lr(step), "wall_s": step / 9}
            yield dict(kind="epoch", split=split, epoch=epoch, step=step) | figures


def charts_of(page):
    return [xml.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", page, re.S)]


def lines_of(chart):
    """The corners of each line of a chart, in the picture's units."""
    return [
        [tuple(map(float, spot.split(","))) for spot in line.get("points").split()] for line in chart.iter("polyline")
    ]


@pytest.fixture
def run_dir(tmp_path):
    with JournalFile(tmp_path / "metrics.jsonl") as journal:
        for record in records():
            journal.append(record)
    (tmp_path / "run.json").write_text(
        json.dumps({"id": "a1", "name": "mine <b>", "inexact": ["threads"], "conditions": {"threads": 2}})
    )
    (tmp_path / "recipe.yaml").write_text("name: mine\nnote: <script>alert(1)</script>\n")
    return tmp_path


def test_the_page_asks_the_network_for_nothing_and_runs_no_script_but_its_own(run_dir):
    page = write_report(run_dir).read_text()
    rest = page
    for script in interactive.scripts():
        assert page.count(f"<script>{script}</script>") == 1
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in page.split("Content-Security-Policy")[1].split(">")[0]
        rest = rest.replace(f"<script>{script}</script>", "")
    assert not re.search(r"https?://|src=|@import|url\(|<script|<link|onload", rest)
    assert "default-src 'none'" in rest and "connect-src" not in rest and "surefoot-live" not in rest
    assert "&lt;script&gt;alert(1)" in rest and "mine &lt;b&gt;" in rest


def test_the_embedded_library_is_the_one_that_was_released_and_goes_with_its_licence(run_dir):
    uplot, _ = interactive.scripts()
    assert hashlib.sha256(uplot.encode()).hexdigest() == UPLOT and "(v1.6.32)" in uplot[:60]
    assert "Copyright (c) 2022 Leon Sorokin" in write_report(run_dir).read_text()
    assert "</script" not in "".join(interactive.scripts()).lower() and "--" not in interactive.licence()


def specs_of(page):
    return [json.loads(unescape(text)) for text in re.findall(r'<figure data-chart="([^"]*)"', page)]


def test_a_charts_script_has_every_point_that_the_picture_has_and_more():
    points = [(step, 1 / step) for step in range(1, 1501)] + [(1501, math.nan), (1502, 0.5)]
    page = interactive.chart([Line("<i>", points, 9, marks=True)], x_label="step", y_label="loss", log=True)
    (spec,) = specs_of(page)
    (line,) = spec["lines"]
    assert (spec["x"], spec["y"], spec["log"], line["label"], line["colour"]) == ("step", "loss", True, "<i>", 1)
    assert line["x"][:3] == [1, 2, 3] and len(line["x"]) == 1502 and line["y"][-2:] == [None, 0.5]
    assert "<i>" not in page and len(lines_of(charts_of(page)[0])[0]) <= 402
    assert interactive.chart([Line("a", [(0, math.nan)])], x_label="x", y_label="y") == "<p>Nothing to draw.</p>"


def test_the_page_holds_figures_settings_and_what_was_inexact(run_dir):
    page = write_report(
        run_dir, validation={"confusion": [[9, 1], [0, 5]], "classes": ["coat", "bag & co"]}
    ).read_text()
    assert "96.67 %" in page and "300" in page  # 1 - 10/300: the last validation
    assert "resumed inexactly: threads" in page
    assert '"threads": 2' in page
    assert "bag &amp; co" in page and "90.00 %" in page and "100.00 %" in page


def test_the_same_run_gives_the_same_page(run_dir):
    first = write_report(run_dir).read_bytes()
    assert write_report(run_dir).read_bytes() == first


def test_only_the_journal_has_to_be_there(tmp_path):
    JournalFile(tmp_path / "metrics.jsonl").close()
    assert "</html>" in write_report(tmp_path).read_text()
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(UsageError, match="cannot be read"):
        write_report(tmp_path)


def test_a_number_that_no_float_holds_is_left_out(tmp_path):
    """JSON has such, and a journal of somebody's making may."""
    huge = 10**400
    with JournalFile(tmp_path / "metrics.jsonl") as journal:
        for record in records(epochs=1):
            journal.append(record)
        for change in ({"loss": huge, "other": huge}, {"lr": [huge]}, {"wall_s": huge}):
            for kind in ("step", "epoch"):
                at = {"kind": kind, "split": "train", "epoch": 1, "step": 200, "lr": [0.1], "wall_s": 30.0}
                journal.append(at | change)
    page = write_report(tmp_path).read_text()
    assert page.count("is no list of numbers") == page.count("is no number of seconds") == 2 and str(huge) not in page
    board = TensorBoard(tmp_path / "tensorboard")
    board.rebuild(run_records(tmp_path / "metrics.jsonl", lambda message: None))
    board.close()


def test_a_report_that_cannot_be_written_is_told(run_dir):
    (run_dir / "report.html").mkdir()
    with pytest.raises(RunFailed, match=r"report\.html: the report cannot be written"):
        write_report(run_dir)


@pytest.mark.parametrize(
    ("values", "percent"),
    [((12345.1, 12345.9), False), ((104231.0, 104259.0), False), ((0.9999, 0.99996), True), ((0.0, 1.0), True)],
)
def test_no_two_values_of_an_axis_are_written_alike(values, percent):
    picture = line_chart([Line("a", list(enumerate(values)))], x_label="x", y_label="y", percent=percent)
    shown = re.findall(r'text-anchor="end">([^<]*\d[^<]*)</text>', picture)
    assert len(shown) > 2 and len({*shown}) == len(shown)
    lines, margin = framed(
        [numpy.array(values)], Axis.around(values), 80, label="y", marks=(), scale=lambda columns: "", unicode=False,
        colour=False,
    )  # fmt: skip
    written = [line[:margin].strip() for line in lines if re.match(r" *\S+\+", line[: margin + 1])]
    assert len(written) > 1 and len({*written}) == len(written) and len({*map(float, written)}) == len(written)


def test_a_lines_corners_stand_where_its_values_are():
    (chart,) = charts_of(line_chart([Line("a", [(0, 0.0), (5, 1.0), (10, 4.0)])], x_label="step", y_label="loss"))
    ((left, middle, right),) = lines_of(chart)
    assert middle[0] - left[0] == pytest.approx(right[0] - middle[0], abs=0.2)
    assert (left[1] - middle[1]) * 3 == pytest.approx(middle[1] - right[1], abs=0.5)  # up is less
    assert all(0 <= x <= 720 and 0 <= y <= 300 for x, y in (left, middle, right))


def test_what_is_not_finite_leaves_a_gap():
    points = [(0, 1.0), (1, 2.0), (2, math.nan), (3, math.inf), (4, 1.0)]
    (chart,) = charts_of(line_chart([Line("a", points)], x_label="x", y_label="y"))
    assert [len(line) for line in lines_of(chart)] == [2, 1]
    assert "nan" not in line_chart([Line("a", [(0, math.nan)])], x_label="x", y_label="y")


def test_a_long_run_stays_a_small_page_and_keeps_its_extremes():
    points = [(float(i), 1.0) for i in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    text = line_chart([Line("a", points)], x_label="x", y_label="y")
    ((*corners,),) = [lines_of(charts_of(text)[0])[0]]
    assert len(corners) <= 802 and len({y for _, y in corners}) == 2


def test_rates_that_are_decades_apart_get_a_logarithmic_axis_a_cosine_does_not():
    def rate_chart(lr):
        return (
            render_report(RunNumbers(records(lr=lr)), run={}, recipe="", name="x")
            .split("Learning rate</h2>")[1]
            .split("</svg>")[0]
            .split("<svg")[1]
        )

    assert "0.001<" in rate_chart(lambda step: [0.1 * 0.1 ** (step // 60)])
    cosine = rate_chart(lambda step: [0.1 * (1 + math.cos(math.pi * step / 301)) / 2])
    assert ">0.04<" in cosine and "e-0" not in cosine


def test_param_groups_with_one_course_share_a_line():
    page = render_report(RunNumbers(records(lr=lambda step: [0.1, 0.1, 0.02])), run={}, recipe="", name="x")
    assert "group 0, 1" in page and "group 2" in page


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-5, 1e6), (1e-9, 3e-9), (2, 2)])
def test_ticks_are_round_few_and_inside(low, high):
    found = Axis.around([low, high]).ticks()
    low, high = Axis.around([low, high]).low, Axis.around([low, high]).high
    assert 1 <= len(found) <= 7 and all(low - 1e-9 <= value <= high + 1e-9 for value in found)


LARGEST, SMALLEST = sys.float_info.max, 5e-324
ODD = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from(
    [LARGEST, -LARGEST, 1e300, SMALLEST, -SMALLEST]
)


@pytest.mark.filterwarnings("error")
@given(st.lists(ODD, min_size=1, max_size=4))
@example([LARGEST, -LARGEST])
@example([SMALLEST, -SMALLEST])
@example([SMALLEST, LARGEST])
def test_any_numbers_have_a_place_on_an_axis(values):
    curve = numpy.array(values)
    axes = [Axis.around(values), Axis.around(values, margin=0.05), axis_for([curve])]
    if min(values) > 0:
        axes.append(Axis.around(values, log=True, margin=0.05))
    for axis in axes:
        places = axis.place(numpy.sort(curve))
        assert ((places >= 0) & (places <= 1)).all() and (numpy.diff(places) >= 0).all()
        assert len(axis.ticks()) < 20 and all(map(math.isfinite, axis.ticks()))


def test_the_page_tells_how_the_run_ended_and_what_is_damaged(run_dir):
    about = {"id": "a1", "status": "done", "damaged": ["metrics.jsonl:7: not a JSON record"]}
    (run_dir / "run.json").write_text(json.dumps(about))
    with (run_dir / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 1}\n[1]\n')
    page = write_report(run_dir).read_text()
    assert "status done" in page and "status running" not in page
    assert "metrics.jsonl:7: not a JSON record" in page
    assert "metrics.jsonl:37: lacks &#x27;kind&#x27;" in page and "metrics.jsonl:38: expected a JSON object" in page


def test_a_long_run_is_a_small_page_with_its_extremes(tmp_path):
    def long():
        for step in range(1, 30_001):
            loss = 9.0 if step == 12_345 else 1.0
            yield dict(kind="epoch", split="train", epoch=step - 1, step=step, loss=loss, accuracy=0.5, lr=[0.1])

    page = render_report(RunNumbers(long()), run={}, recipe="", name="x")
    assert len(page) < 300_000
    assert "One epoch in 128 is shown" in page and ">30000<" in page
    heights = {y for line in lines_of(charts_of(page)[0]) for _, y in line}
    assert len(heights) == 2


def test_the_largest_page_is_one_that_can_be_mailed():
    names = [f"a metric with a long name {i}" for i in range(30)]

    def long():
        for step in range(1, 6001):
            at = dict(epoch=step - 1, step=step, lr=[0.1 + i / 9 + step / 7 for i in range(30)], wall_s=step / 3)
            values = {name: 1 / (step + i) for i, name in enumerate(["loss", "accuracy", "grad_norm", *names])}
            yield dict(kind="step", split="train") | at | values
            for split in ("train", "val"):
                yield dict(kind="epoch", split=split) | at | values

    answer = {"loss": 1 / 3, "true": 1, "predicted": 2, "confidence": 1 / 3}
    residuals = {"target": "t" * 99, "samples": 999, "stride": 1, "mean": 1 / 3, "deviation": 1 / 3, "counts": [1] * 40}
    residuals |= {"edges": [i / 7 for i in range(41)], "points": [[i / 7, i / 3] for i in range(1000)]}
    found = {
        "classes": ["c" * 200] * 40,
        "confusion": [[1] * 40] * 40,
        "wrong": [answer | {"index": i} for i in range(24)],
        "unsure": [answer | {"index": i} for i in range(24, 48)],
        "shown": {str(i): {"picture": "A" * (_MOST_PICTURES // 48)} for i in range(48)},
        "residuals": [residuals] * 8,
    }
    text = "a line of text\n" * 10_000
    page = render_report(RunNumbers(long()), run={"a": text}, recipe=text, name="x", validation=found, brief=text)
    assert 1_000_000 < len(page.encode()) < 2_000_000


def test_memory_of_a_report_does_not_grow_with_the_run():
    numbers = RunNumbers()
    for step in range(1, 5001):
        numbers.add(dict(kind="step", split="train", epoch=0, step=step, loss=1 / step, lr=[0.1, 1 / step]))
    assert len(numbers.points("step", "train", "loss")) <= 2001
    assert [groups for groups, _ in numbers.rate_courses()] == [[0], [1]]


def test_many_classes_show_the_pairs_that_are_mistaken_most():
    confusion = [[0] * 300 for _ in range(300)]
    confusion[7][9], confusion[1][2] = 5, 4
    page = render_report(
        RunNumbers(), run={}, recipe="", name="x", validation={"confusion": confusion, "classes": ["a"] * 8}
    )
    assert len(page) < 100_000 and "<td class=words>a</td><td>9</td><td>5</td>" in page
    assert "The 200 with the lowest F1 of 300." in page


def test_class_names_stand_upright_so_that_ten_fit_on_a_page(run_dir):
    names = [f"a long class {i}" for i in range(10)]
    found = {"confusion": [[1] * 10 for _ in range(10)], "classes": names}
    page = write_report(run_dir, validation=found).read_text()
    assert page.count('<th class="class"><span>a long class') == 10
    assert "writing-mode: vertical-rl" in page


def test_each_class_has_its_figures_the_worst_first_and_the_matrix_both_forms(run_dir):
    page = write_report(
        run_dir, validation={"confusion": [[8, 2], [0, 10]], "classes": ["coat", "bag <i>"]}
    ).read_text()
    by_class = page.split("By class</h2>")[1].split("Confusion matrix")[0]
    assert by_class.index("coat") < by_class.index("bag &lt;i&gt;")
    figures = "<td>10</td><td>100.00 %</td><td>80.00 %</td><td>88.89 %</td>"
    assert f"<td class=words>coat</td>{figures}<td class=words>bag &lt;i&gt;</td>" in by_class
    matrix = page.split("Confusion matrix</h2>")[1]
    assert '<td data-n="8" style="--right: 0.80">80.0</td>' in matrix  # what shows counts and sorts is the script
    assert '<td data-n="2" style="--wrong: 0.45">20.0</td>' in matrix and '<td data-n="0"></td>' in matrix
    assert "<td class=words>coat</td><td class=words>bag &lt;i&gt;</td><td>2</td>" in matrix


def test_the_reliability_diagram_has_a_point_for_each_part_with_answers(run_dir):
    reliability = {"samples": [0, 4, 6], "right": [0, 1, 6], "confidence": [0.0, 0.5, 0.95]}
    page = write_report(run_dir, validation={"reliability": reliability}).read_text().split("Reliability</h2>")[1]
    assert "Expected calibration error 13.00 %, in 3 parts." in page  # 0.4 * |0.25 - 0.5| + 0.6 * |1 - 0.95|
    (diagonal, answers) = lines_of(charts_of(page)[0])
    assert len(diagonal) == len(answers) == 2 and "33 to 67 %" in page


def test_gradient_norm_and_throughput_are_drawn_and_resumes_marked(tmp_path):
    with JournalFile(tmp_path / "metrics.jsonl") as journal:
        for step in range(1, 41):
            wall = 0.1 * step if step <= 20 else 2.0 + 0.4 * (step - 20)
            at = dict(kind="step", split="train", epoch=0, step=step, lr=[0.1], wall_s=wall)
            journal.append(at | {"loss": 1 / step, "grad_norm": 2.0})
    (tmp_path / "run.json").write_text(json.dumps({"id": "a", "resumes": [20, "x", -1, 10**30]}))
    page = write_report(tmp_path).read_text()
    assert (
        "Gradient norm</h2>" in page and page.count(">resumed</text>") == 5
    )  # loss, rate, gradient norm, speed, step time
    speeds = lines_of(charts_of(page.split("Throughput</h2>")[1])[0])[0]
    assert speeds[0][1] < speeds[-1][1], "slower after the resume: further down"


def test_the_recipe_begins_with_what_differs_from_the_defaults(run_dir):
    page = write_report(run_dir, brief="name: mine\nlr: <0.1>\n").read_text()
    assert page.index("lr: &lt;0.1&gt;") < page.index("Every default filled in") < page.index("note: &lt;script")


def test_hardware_and_versions_have_a_table(tmp_path):
    JournalFile(tmp_path / "metrics.jsonl").close()
    conditions = {"device.cpu": "<x86>", "versions.torch": "2.13.0", "recipe.seed": 0}
    (tmp_path / "run.json").write_text(json.dumps({"conditions": conditions}))
    table = write_report(tmp_path).read_text().split("Hardware and versions</h2>")[1].split("</section>")[0]
    assert "&lt;x86&gt;" in table and "2.13.0" in table and "recipe.seed" not in table
    (tmp_path / "run.json").write_text(json.dumps({"conditions": [1]}))
    assert "Hardware" not in write_report(tmp_path).read_text()


@pytest.mark.parametrize("missing", range(8))
def test_a_thinned_line_breaks_where_the_value_is_missing(missing):
    heights = [math.nan if x == missing else float(x % 3) for x in range(8)]
    points = Curve.of(list(enumerate(heights)), most=4).points()
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [x for x, y in points if math.isnan(y)] == [missing]


def test_a_point_alone_is_seen():
    around = [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.5), (4, math.nan), (5, 1.0), (6, 2.0)]
    assert line_chart([Line("a", around)], x_label="x", y_label="y").count("<circle") == 1
    assert line_chart([Line("a", [(3, 1.0)])], x_label="x", y_label="y").count("<circle") == 1
    assert line_chart([Line("a", [(3, 1.0)], marks=True)], x_label="x", y_label="y").count("<circle") == 1
