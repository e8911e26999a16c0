"""The fault catalogue's own test: a selection of its cases runs here; `python3 dev.py faults` runs them all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("faults") / "run.py"


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> list[dict]:
    """The selection's outcomes, of two processes side by side: most of each one's time is spent on the disk."""
    folder, parts = tmp_path_factory.mktemp("faults"), ("1/2", "2/2")
    files = [folder / f"{part[0]}.json" for part in parts]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    processes = [
        subprocess.Popen([sys.executable, PROGRAM, "--tests", "--part", part, "--json", file], text=True, **streams)
        for part, file in zip(parts, files, strict=True)
    ]
    errors = [process.communicate()[1] for process in processes]
    codes = [process.returncode for process in processes]  # negative: the signal that ended it from outside
    assert all(file.exists() for file in files), f"exit codes {codes}\n" + "".join(errors)
    return [json.loads(file.read_text()) for file in files]


@pytest.fixture(scope="module")
def rows(tables) -> list[dict]:
    return [row for table in tables for row in table["rows"]]


GROUPS = [
    "SIGKILL",
    "SIGKILL by the kernel (strace)",
    "power cut",
    "power cut, lying disk",
    "damage",
    "disk",
    "names",
    "processes",
    "clock",
    "signals",
    "data",
    "conditions",
    "hostile pickles",
    "hostile tensor files",
    "hostile states",
    "hostile state texts",
    "hostile tensors",
    "hostile manifests",
    "hostile directories",
    "surefoot train",
    "surefoot resume",
    "foreign recipes",
    "links",
    "streams",
    "records",
    "writers",
]


@pytest.mark.parametrize("group", GROUPS)
def test_every_fault_has_the_outcome_that_a_user_should_see(rows, group):
    mine = [row for row in rows if row["group"] == group]
    wrong = [f"{row['name']}: {row['outcome']}" for row in mine if row["verdict"] == "WRONG"]
    assert mine, f"no case of {group} was selected"
    assert not wrong, "\n".join(wrong)
    if all(row["verdict"] == "did not run" for row in mine):
        pytest.skip(mine[0]["outcome"])


def test_no_group_is_left_out(rows):
    assert {row["group"] for row in rows} <= set(GROUPS)


def test_the_catalogue_holds_what_was_promised(tables):
    listed, other = (table["listed"] for table in tables)
    assert len(listed) == len(other) >= 300
    assert sum("random instant" in line and line.startswith("SIGKILL") for line in listed) >= 100
