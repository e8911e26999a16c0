"""report.html: one page that needs no network, true to the journal."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as xml

import pytest

from surefoot.charts.scale import Axis
from surefoot.charts.svg import Line, line_chart
from surefoot.errors import RunFailed, UsageError
from surefoot.tracking import JournalFile, write_report
from surefoot.tracking.report import render_report
from surefoot.tracking.run_numbers import RunNumbers


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


def test_the_page_asks_the_network_for_nothing_and_runs_no_script(run_dir):
    page = write_report(run_dir).read_text()
    assert not re.search(r"https?://|src=|@import|url\(|<script|<link|onload", page)
    assert "&lt;script&gt;alert(1)" in page and "mine &lt;b&gt;" in page


def test_the_page_holds_figures_settings_and_what_was_inexact(run_dir):
    page = write_report(run_dir, confusion=[[9, 1], [0, 5]], classes=["coat", "bag & co"]).read_text()
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


def test_a_report_that_cannot_be_written_is_told(run_dir):
    (run_dir / "report.html").mkdir()
    with pytest.raises(RunFailed, match=r"report\.html: the report cannot be written"):
        write_report(run_dir)


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
        return render_report(RunNumbers(records(lr=lr)), run={}, recipe="", name="x").split("Learning rate")[1]

    assert "0.001<" in rate_chart(lambda step: [0.1 * 0.1 ** (step // 60)])
    cosine = rate_chart(lambda step: [0.1 * (1 + math.cos(math.pi * step / 301)) / 2])
    assert ">0.04<" in cosine and "e-0" not in cosine.split("</svg>")[0]


def test_param_groups_with_one_course_share_a_line():
    page = render_report(RunNumbers(records(lr=lambda step: [0.1, 0.1, 0.02])), run={}, recipe="", name="x")
    assert "group 0, 1" in page and "group 2" in page


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.3, 0.31), (-5, 1e6), (1e-9, 3e-9), (2, 2)])
def test_ticks_are_round_few_and_inside(low, high):
    found = Axis.around([low, high]).ticks()
    low, high = Axis.around([low, high]).low, Axis.around([low, high]).high
    assert 1 <= len(found) <= 7 and all(low - 1e-9 <= value <= high + 1e-9 for value in found)


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
    assert len(page) < 100_000
    assert "One epoch in 128 is shown" in page and ">30000<" in page
    heights = {y for line in lines_of(charts_of(page)[0]) for _, y in line}
    assert len(heights) == 2


def test_memory_of_a_report_does_not_grow_with_the_run():
    numbers = RunNumbers()
    for step in range(1, 5001):
        numbers.add(dict(kind="step", split="train", epoch=0, step=step, loss=1 / step, lr=[0.1, 1 / step]))
    assert len(numbers.points("step", "train", "loss")) <= 801
    assert [groups for groups, _ in numbers.rate_courses()] == [[0], [1]]


def test_many_classes_show_the_pairs_that_are_mistaken_most():
    confusion = [[0] * 300 for _ in range(300)]
    confusion[7][9], confusion[1][2] = 5, 4
    page = render_report(RunNumbers(), run={}, recipe="", name="x", confusion=confusion, classes=["a"] * 8)
    assert len(page) < 10_000 and "<td>a</td><td>9</td><td>5</td>" in page


def test_class_names_stand_upright_so_that_ten_fit_on_a_page(run_dir):
    names = [f"a long class {i}" for i in range(10)]
    page = write_report(run_dir, confusion=[[1] * 10 for _ in range(10)], classes=names).read_text()
    assert page.count('<th class="class"><span>a long class') == 10 and "writing-mode: vertical-rl" in page
