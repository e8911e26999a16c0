"""`surefoot compare`: all that differs and nothing else, curves and figures of each, and what seeds explain."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from command_runs import refused
from run_directories import make_run

from surefoot.charts.interactive import scripts
from surefoot.cli import main
from surefoot.runs.comparison import Comparison, runs_named
from surefoot.runs.comparison_shown import as_page, as_text
from surefoot.runs.seeds import _quantile, difference
from surefoot.tracking.validation import write_validation


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def compared(*paths: str, metric: str | None = None) -> Comparison:
    return Comparison(runs_named(paths, lambda line: None), metric)


def with_confusion(run: Path, confusion: object, classes: list[str]) -> None:
    write_validation(run, {"confusion": confusion, "classes": classes})


def groups_of_seeds() -> None:
    for name, lr, values in (("slow", 0.01, [0.80, 0.81, 0.79]), ("fast", 0.1, [0.90, 0.92, 0.91])):
        for seed, value in enumerate(values):
            settings = {"optimizer.lr": lr, "seed": seed}
            make_run(Path(f"runs/{name}{seed}"), [0.1, value], settings=settings, conditions={"threads": seed})


def test_what_differs_is_shown_and_what_does_not_is_not():
    make_run(Path("a"), [0.5, 0.6], settings={"optimizer.lr": 0.1}, conditions={"data.train": "aa", "threads": 1})
    make_run(Path("b"), [0.5, 0.7], settings={"optimizer.lr": 0.2}, conditions={"code.net.py": "bb", "threads": 2})
    rows = {(row.part, row.key): row.values for row in compared("a", "b").differences()}
    assert rows == {
        ("recipe", "optimizer.lr"): (0.1, 0.2),
        ("data", "data.train"): ("aa", "ab" * 32),
        ("code", "code.net.py"): (None, "bb"),
        ("machine", "threads"): (1, 2),
    }


def test_runs_without_a_recipe_are_compared_by_their_conditions():
    for name, lr in (("a", 0.1), ("b", 0.2)):
        make_run(Path(name), [0.5], conditions={"optimizer.momentum": lr})
        Path(name, "recipe.yaml").unlink()
    assert [row.key for row in compared("a", "b").differences()] == ["optimizer.momentum"]


def test_the_better_one_is_named_by_the_direction_of_its_metric():
    make_run(Path("a"), [0.5, 0.9])
    make_run(Path("b"), [0.7, 0.8])
    assert "a is the best: val/accuracy 90.00 % against 80.00 %" in compared("a", "b").verdict(False)[0]
    assert "a is the best: val/loss 0.1000 against 0.2000" in compared("b", "a", metric="val/loss").verdict(False)[0]
    make_run(Path("c"), [0.9])
    assert "equally good" in compared("a", "c").verdict(False)[0]
    make_run(Path("d"), [])
    assert "only a has a value" in compared("a", "d").verdict(False)[0]
    make_run(Path("e"), [math.nan, math.nan])
    for order in (("a", "e"), ("e", "a")):
        assert "only a has a value" in compared(*order).verdict(False)[0]
    for order in (("d", "e"), ("e", "e2")):
        make_run(Path("e2"), [math.nan])
        assert "no run has a value of val/accuracy that is a number" in compared(*order).verdict(False)[0]


def test_a_metric_whose_direction_one_recipe_says_is_judged_so_in_all():
    make_run(Path("a"), [1.0, 3.0], metric="val/spread", monitor="val/spread")
    make_run(Path("b"), [9.0, 0.5], metric="val/spread")
    for order in (("a", "b"), ("b", "a")):
        assert (
            "b is the best: val/spread 9.0000 against 3.0000" in compared(*order, metric="val/spread").verdict(False)[0]
        )


def test_seeds_are_a_group_whatever_machine_they_ran_on():
    groups_of_seeds()
    comparison = compared("runs")
    fast, slow = comparison.groups()
    assert [comparison.runs[i].path.name for i in fast.runs] == ["fast0", "fast1", "fast2"]
    assert (fast.spread.mean, slow.spread.mean) == (pytest.approx(0.91), pytest.approx(0.80))
    assert fast.spread.deviation == pytest.approx(0.01)
    (line,) = comparison.verdict(True)
    assert "runs/fast0 (3 seeds) against runs/slow0 (3 seeds)" in line and line.endswith("larger than seeds make")
    assert "not" not in line


def test_what_changes_no_result_of_a_run_sets_no_seed_apart():
    """How it is watched, where its data lie, on what it ran: what a resume lets change without a word."""
    others = (
        {"trackers": ["mlflow"]}, {"on_end": "say done"}, {"tensorboard": {"histograms": "1 epoch"}},
        {"device": "cuda"}, {"execution": {"threads": 2}}, {"parallel": "none"}, {"data": {"workers": 4}},
    )  # fmt: skip
    for seed, settings in enumerate(({}, *others)):
        make_run(Path(f"runs/{seed}"), [0.9], settings={"seed": seed, **settings})
    assert [len(group.runs) for group in compared("runs").groups()] == [8]
    make_run(Path("runs/longer"), [0.9], planned=7)
    assert sorted(len(group.runs) for group in compared("runs").groups()) == [1, 8]


def test_seeds_of_runs_from_python_are_a_group():
    for lr, seed, value in ((0.1, 0, 0.9), (0.1, 1, 0.8), (0.2, 0, 0.7), (0.2, 1, 0.6)):
        seeds = {"fit.seed": seed, "loader.seed": seed, "val.seed": seed}
        make_run(Path(f"runs/{lr}-{seed}"), [value], conditions={"optimizer.lr": lr, **seeds})
        Path(f"runs/{lr}-{seed}/recipe.yaml").unlink()
    assert [group.spread.values for group in compared("runs").groups()] == [(0.9, 0.8), (0.7, 0.6)]


def test_seeds_that_measured_nothing_but_nan_are_never_the_best_and_those_without_a_value_are_not_counted():
    for name, lr, values in (("a", 2.0, [0.95, math.nan]), ("b", 0.01, [0.80, 0.81]), ("c", 0.1, [0.90, 0.92])):
        for seed, value in enumerate(values):
            make_run(Path(f"runs/{name}{seed}"), [value], settings={"optimizer.lr": lr, "seed": seed})
    make_run(Path("runs/c2"), [], settings={"optimizer.lr": 0.1, "seed": 2}, planned=1)
    comparison = compared("runs")
    assert [Path(group.name).name for group in comparison.groups()] == ["c0", "b0", "a0"]
    first, second = comparison.verdict(True)
    assert "runs/c0 (2 seeds) against runs/b0 (2 seeds)" in first and first.endswith("larger than seeds make")
    assert second.endswith("val/accuracy is NaN in all epochs of 1 of the 2 seeds of runs/a0")


def test_one_seed_or_one_group_is_called_what_it_is():
    make_run(Path("a"), [0.5], settings={"seed": 1})
    make_run(Path("b"), [0.6], settings={"seed": 2})
    assert "nothing but the seed" in compared("a", "b").verdict(True)[0]
    make_run(Path("c"), [0.9], settings={"optimizer.lr": 3})
    assert "one seed in a group says nothing" in compared("a", "b", "c").verdict(True)[0]


@pytest.mark.parametrize(("freedom", "t"), [(1, 12.706), (4, 2.776), (10, 2.228), (100, 1.984)])
def test_students_quantiles_are_those_of_the_tables(freedom, t):
    assert _quantile(freedom) == pytest.approx(t, rel=2e-3)


def test_welchs_test_gives_the_published_figures():
    # Example 2 of the article on Welch's t-test in Wikipedia: p = 0.149.
    one = [17.2, 20.9, 22.6, 18.1, 21.7, 21.4, 23.5, 24.2, 14.7, 21.8]
    other = [21.5, 22.8, 21.0, 23.0, 21.6, 23.6, 22.5, 20.7, 23.4, 21.8]
    other += [20.7, 21.7, 21.5, 22.5, 23.6, 21.5, 22.5, 23.5, 21.5, 21.8]
    found = difference(one, other)
    assert found is not None and found.p == pytest.approx(0.149, abs=5e-4) and not found.beyond_seeds
    assert difference([1.0], [2.0, 3.0]) is None
    assert not difference([1.0, 1.0], [1.0, 1.0]).beyond_seeds and difference([2.0, 2.0], [1.0, 1.0]).beyond_seeds


def test_classes_that_differ_most_stand_first():
    for name, confusion in (("a", [[9, 1], [5, 5]]), ("b", [[10, 0], [0, 10]])):
        with_confusion(make_run(Path(name), [0.5, 0.6]), confusion, ["cat", "dog"])
    assert compared("a", "b").by_class() == [("dog", [0.5, 1.0]), ("cat", [0.9, 1.0])]


@pytest.mark.parametrize("confusion", [None, [], [[1]], [[1, 2], [3]], [[1, -1], [0, 0]], [["x", 1], [1, 1]], {"a": 1}])
def test_counts_that_are_none_or_of_other_classes_are_left_out(confusion):
    with_confusion(make_run(Path("a"), [0.5]), [[9, 1], [5, 5]], ["cat", "dog"])
    with_confusion(make_run(Path("b"), [0.5]), confusion, ["cat", "dog"])
    assert compared("a", "b").by_class() == []


def test_the_terminal_shows_numbered_curves_at_any_width():
    groups_of_seeds()
    comparison = compared("runs")
    for width in (60, 120):
        text = as_text(comparison, width, True, False, seeds=True)
        assert max(map(len, text.splitlines())) <= width
        assert "optimizer.lr" in text and "1 ━━" in text and "Seeds" in text
    as_text(comparison, 80, False, False, seeds=False).encode("ascii")


def test_the_page_runs_no_script_but_its_own_and_escapes_every_name():
    for name, note in (("<b>a", "<script>alert(1)</script>"), ("b", "x")):
        make_run(Path(name), [0.5, 0.6], settings={"data.name": note}, name=note, metric="val/<i>")
    page = as_page(compared("<b>a", "b", metric="val/loss"), seeds=True)
    rest = page
    for script in scripts():
        rest = rest.replace(f"<script>{script}</script>", "")
    assert not re.search(r"<script|<b>a|<i>|https?://|src=|url\(", rest)
    assert "&lt;script&gt;alert(1)" in page and "&lt;b&gt;a" in page
    assert page.count("<polyline") >= 4 and page == as_page(compared("<b>a", "b", metric="val/loss"), seeds=True)


def test_the_command_prints_writes_and_gives_machines_the_same(capsys):
    groups_of_seeds()
    Path("runs/note.txt").write_text("x")
    assert main(["compare", "runs", "--seeds", "--html", "page.html"]) == 0
    told = capsys.readouterr()
    assert "larger than seeds make" in told.out.replace("\n", " ") and "note.txt: is a file" in told.err
    assert "larger than seeds make" in Path("page.html").read_text()
    assert main(["compare", "runs/fast0", "runs/slow0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["order"] == ["runs/fast0", "runs/slow0"] and found["metric"] == "val/accuracy"


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("a",), "name two or more"),
        (("a", "a"), "name two or more"),
        (("a", "none"), "no such run directory"),
        (("a", "empty"), "holds no run"),
        (("a", "b", "--best", "val/x"), "none has the metric 'val/x'; they have"),
        (("young", "other"), "none has finished an epoch"),
        (("a", "b", "--html", "none/x.html"), "cannot be written"),
        (("a", "b", "--html", "."), "--html .: cannot be written: Is a directory"),
    ],
)
def test_bad_input_is_answered_with_what_to_give(argv, told, capsys):
    for name in "ab":
        make_run(Path(name), [0.5])
    for name in ("young", "other"):
        make_run(Path(name), [])
    Path("empty").mkdir()
    assert told in refused(capsys, "compare", *argv)
