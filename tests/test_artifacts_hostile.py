"""No hostile file is loaded, runs code, takes memory or changes anything; each is refused with a reason.

The files are made and opened in a process of their own (see hostile/), all at once, for its limits on memory and
its watch on what Python runs.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from hostile.case import payload
from hostile.corpus import corpus

NAMES = [case.name for case in corpus(Path("/nowhere"))]
# What a reader may take above the file's own size, which it may hold once: the check of a 64 MB pickle is the most.
MEGABYTES = 260


@pytest.fixture(scope="module")
def opened(tmp_path_factory) -> dict[str, dict]:
    """What happened to each case, by name."""
    return open_all(tmp_path_factory.mktemp("hostile"))


def open_all(folder: Path, *options: str) -> dict[str, dict]:
    canary = folder / "canary"
    (folder / "hostile_module.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    tests = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "hostile.open_all", str(folder), str(canary), *options],
        capture_output=True,
        text=True,
        cwd=tests,
        env={**os.environ, "PYTHONPATH": f"{tests}:{folder}", "OMP_NUM_THREADS": "1"},
    )
    results = {r["name"]: r for r in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, f"the process died after {list(results)[-1:]}: {done.stderr[-3000:]}"
    assert not canary.exists(), "a hostile file ran its code"
    return results


def test_the_corpus_is_as_large_as_promised():
    assert len(NAMES) >= 60


def test_the_canary_would_sing(tmp_path):
    """The payloads are real: a reader that unpickles runs them."""
    for protocol in range(6):
        canary = tmp_path / str(protocol)
        pickle.loads(payload(canary, protocol))
        assert canary.exists()


@pytest.mark.parametrize("name", NAMES)
def test_refused(name, opened):
    check_refused(opened[name])


@pytest.mark.slow
def test_each_is_refused_within_the_readers_own_limits(tmp_path):
    results = open_all(tmp_path, "--whole")
    assert list(results) == NAMES
    for result in results.values():
        check_refused(result)


def check_refused(result: dict) -> None:
    assert result["error"] in ("BadFile", "UsageError", "Problems"), result
    assert result["said"], result["message"][:500]
    assert not result["changed"] and result["events"] == []
    assert result["megabytes"] < MEGABYTES + 2 * result["size"], result
    assert len(result["message"]) < 3000 and "Traceback" not in result["message"]
